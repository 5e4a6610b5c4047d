"""Which known defects hit a set of pins, before anything of it is installed: the command ``nrl-patches audit``.

Imports the matrix's evidence and what lies below it, and nothing of cli. ``pins`` reads lists of pinned releases,
``uv_lock`` the combinations that a lock of uv allows, ``answers`` holds them against the evidence, ``bump`` compares
two of them, ``scan`` finds workarounds in somebody's source tree, ``reports`` shows it all.
"""
