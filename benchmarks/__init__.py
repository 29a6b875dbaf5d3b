"""Measurements against named rivals in the same run. They print ratios and assert nothing."""
