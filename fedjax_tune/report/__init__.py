"""What a run shows and writes: progress, metrics, tables and plots."""
