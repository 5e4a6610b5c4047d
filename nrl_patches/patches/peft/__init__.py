"""Patches for PEFT."""
