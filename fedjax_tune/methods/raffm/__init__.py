"""RaFFM, and the baselines of its paper."""
