"""The benchmark's workloads A and B in other frameworks, one program each."""
