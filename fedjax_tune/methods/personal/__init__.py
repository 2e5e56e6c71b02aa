"""Clients that keep a part of their model to themselves."""
