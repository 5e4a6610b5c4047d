"""The programs of both sides; copied as ``nrl_patches_sides``, so that importing them activates no patch.

They run in interpreters that may have nothing of this project, and need only vLLM or transformers there.
"""
