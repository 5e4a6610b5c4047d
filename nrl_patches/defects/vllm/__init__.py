"""Known defects of vLLM that are not repaired here."""
