"""Clients that remember how they drift, and correct it."""
