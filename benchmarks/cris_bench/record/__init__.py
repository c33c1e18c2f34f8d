"""A run as plain data: what was measured, and on what."""
