"""What the matrix shows of its evidence: panels, the picture, the page.

Imports evidence, and starts nothing.
"""
