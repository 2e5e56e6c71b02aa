"""The user's own data sets, read where they are; `sets.py` comes first."""
