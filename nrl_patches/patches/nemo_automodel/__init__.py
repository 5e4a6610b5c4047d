"""Patches for nemo-automodel."""
