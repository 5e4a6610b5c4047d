"""One process, one patch: whether it applies, how its targets are replaced and put back, and its status.

Imports nothing of processes, tripwires, matrix or cli.
"""
