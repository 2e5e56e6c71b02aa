"""Federated fine-tuning of foundation models across unequal clients."""

__version__ = '0.1.0'
