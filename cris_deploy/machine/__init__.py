"""What is here: processor, GPUs, versions of packages."""
