"""Clients that hold LoRA of different rank."""
