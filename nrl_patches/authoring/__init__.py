"""Writing a patch: the commands ``nrl-patches new`` and ``nrl-patches check``.

Imports tripwires, processes and engine, and nothing of matrix, audit and cli.
"""
