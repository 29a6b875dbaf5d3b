"""Translation: parallel text, training, search, scoring."""
