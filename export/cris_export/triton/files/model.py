"""Triton's way in; everything is in `cris_deploy.serving.triton`."""

from typing import Any

import triton_python_backend_utils

from cris_deploy.serving.triton import TritonModel


class TritonPythonModel:
    """The class that Triton looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle beside this file."""
        self._model = TritonModel(triton_python_backend_utils, args)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests that came together."""
        return self._model.execute(requests)

    def finalize(self) -> None:
        """Let go of it."""
        self._model.close()
