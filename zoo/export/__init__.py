"""Export to other frameworks: one file a target, each verified in the target's own runtime."""
