"""Upstream defects that are known and not repaired here: one file each, in the folder of its distribution.

The files import from the package's top, from ``guards`` and from ``patches._shared``, and nothing else of this package.
"""
