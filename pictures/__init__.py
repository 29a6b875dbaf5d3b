"""The pictures that the demo shows, installed as tasks._pictures."""
