"""Expressions in: cleaning and tokens."""
