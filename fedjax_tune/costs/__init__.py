"""What clients cost: exact counts, estimates, and the hardware that they have."""
