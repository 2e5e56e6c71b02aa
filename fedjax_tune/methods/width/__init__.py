"""Clients that hold a share of every width."""
