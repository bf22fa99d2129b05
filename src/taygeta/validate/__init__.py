"""Predictions against measured silicon: tables in, scores out; and the constants of a chip fitted on such
tables.
"""
