"""The workarounds of Acme; it imports nothing, since every process with a target imports it."""
