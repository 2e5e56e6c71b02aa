"""Experiments: each file states its claim and returns its configuration."""
