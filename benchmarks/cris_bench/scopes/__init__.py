"""What is timed, and how: stages, whole calls, clients, memory, kernels."""
