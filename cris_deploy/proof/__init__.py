"""A bundle's own test: its samples against FP32 PyTorch's answers, and what is asked of them."""
