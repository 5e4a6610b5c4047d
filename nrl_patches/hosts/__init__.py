"""What hosts import of this project: pytest, vLLM, Ray and the startup files of interpreters, one module for each.

Shipped a second time as the top-level package ``nrl_patches_hosts``, which activates nothing when it is imported:
importing any part of nrl_patches does, and hosts treat the two moments differently. vLLM logs and forgets what
*loading* a plugin raises, but lets through what *calling* it raises; pytest loads its plugins in every session. So a
module here does nothing that can fail before it is called, and imports of nrl_patches only what it then needs.
"""
