"""The engine: plan a round on the host, run it on the device, merge it."""
