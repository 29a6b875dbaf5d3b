"""Measurements of our nets and of baselines in one run; they print ratios and assert nothing."""
