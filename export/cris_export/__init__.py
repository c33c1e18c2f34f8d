"""Checkpoint in, verified bundle out: load, trace, type, write, compare."""
