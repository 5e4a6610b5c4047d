"""The patches: one folder per distribution, one file per defect."""
