"""Clients that keep a part of their model for themselves."""
