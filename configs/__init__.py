"""The recipes, installed as zoo._configs."""
