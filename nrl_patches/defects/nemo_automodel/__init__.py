"""Known defects of nemo-automodel that are not repaired here."""
