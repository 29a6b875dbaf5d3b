"""How nets do without normalization, or with it: one class a scheme."""
