"""Clients that have different models."""
