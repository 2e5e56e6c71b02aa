"""Models of a finished run: evaluated, cut to subnetworks, and exported."""
