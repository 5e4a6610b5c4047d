"""How the patches reach the other processes of a job, and how one looks into running processes.

Imports engine, and nothing of tripwires, matrix or cli.
"""
