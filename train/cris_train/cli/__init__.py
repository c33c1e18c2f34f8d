"""Consoles of `cris_train`: thin parsers over typed functions."""
