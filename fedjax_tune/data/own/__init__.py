"""Data sets of the user's own, read where they lie; `sets.py` comes first."""
