"""A training run: recipe, loop, state, logbook."""
