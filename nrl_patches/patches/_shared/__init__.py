"""What several patches share: carriers, rules, and the tiny models of their probes.

A patch file imports from here and from no other patch, so that each can be deleted alone.
"""
