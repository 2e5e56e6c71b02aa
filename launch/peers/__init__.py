"""The benchmark's workloads A and B in other frameworks, a program each."""
