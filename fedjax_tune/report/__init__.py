"""What a run leaves behind: progress, metrics, tables and plots."""
