"""The errors that only exports raise; like all of ours they derive from `CrisError`."""

from cris_deploy.errors import CrisError


class ExportError(CrisError):
    """An export failed before a bundle existed."""


class ParityError(ExportError):
    """The exported graph does not give the checkpoint's masks within the asked budget."""
