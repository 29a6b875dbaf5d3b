"""Measurements of our nets beside the nets they are compared with, in one run; they print ratios and assert nothing."""
