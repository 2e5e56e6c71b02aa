"""Clients that hold LoRA adapters of different rank."""
