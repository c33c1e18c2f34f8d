"""Who takes part: this engine, PyTorch, plain exports in the usual runtimes."""
