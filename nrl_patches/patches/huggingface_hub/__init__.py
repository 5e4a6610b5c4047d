"""Patches for huggingface_hub."""
