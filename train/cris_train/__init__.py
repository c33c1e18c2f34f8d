"""Training of CRIS: model, data, loop, metrics."""
