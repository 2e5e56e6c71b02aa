"""Data sets, their sources, and how clients share them."""
