"""The errors that only training raises; like all of ours they derive from `CrisError`."""

from cris_deploy.errors import CrisError, DataError


class CheckpointError(CrisError):
    """A checkpoint cannot be used: missing, truncated, not a checkpoint, or of another model."""


class TrainingError(CrisError):
    """Training cannot start or go on; says which value and what to do."""


class ReaderError(DataError):
    """The processes that read pictures have failed, whatever is in the pictures."""
