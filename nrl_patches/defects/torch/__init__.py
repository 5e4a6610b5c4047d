"""Known defects of torch that are not repaired here."""
