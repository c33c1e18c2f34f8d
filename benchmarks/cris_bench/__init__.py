"""Benchmarks: a bundle becomes numbers that anyone can reproduce."""
