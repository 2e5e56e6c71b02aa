"""A run: what builds it, its loop, and what it keeps on disk."""
