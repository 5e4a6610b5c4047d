"""Known defects of transformers, alone or with torch, that are not repaired here."""
