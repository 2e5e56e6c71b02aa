"""Clients that hold some of the blocks."""
