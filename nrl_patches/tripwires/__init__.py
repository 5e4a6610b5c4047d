"""Each probe with and without its patch in clean processes, the verdict, and the reports about it.

Imports processes and engine, and nothing of matrix or cli.
"""
