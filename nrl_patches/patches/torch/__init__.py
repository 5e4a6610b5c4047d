"""Patches for torch."""
