"""The weights that ship, installed as zoo._weights."""
