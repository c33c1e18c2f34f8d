"""The errors that only training raises; like all of ours they derive from `CrisError`."""

from cris_deploy.errors import CrisError


class CheckpointError(CrisError):
    """A checkpoint cannot be used: missing, truncated, not a checkpoint, or of another model."""


class TrainingError(CrisError):
    """Training cannot start or go on; says which value and what to do."""
