"""The costs of clients: exact counts, estimates, and simulated hardware."""
