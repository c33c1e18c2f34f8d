"""Plans as a step of an export: those that nobody asked for by name stop none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cris_deploy.bundle.plans import PlanRecord
from cris_deploy.errors import BackendError, one_line
from cris_export.plans.build import build_plans
from cris_export.plans.choose import choose_builder
from cris_export.plans.options import PlanOptions

T = TypeVar("T")


class Planner:
    """Chooses the builder at once, so that what cannot be had is refused before the work.

    Plans that were asked for by name are had, or an error is raised as `build_plans` does, a
    builder's own RuntimeError as BackendError. Of others `warnings` says what failed.
    """

    def __init__(self, options: PlanOptions, step: Callable[[str], None]) -> None:
        self._options = options
        self._step = step
        self.warnings: list[str] = []
        self._wanted = self._guarded(lambda: choose_builder(options, step)) is not None

    def build(self, folder: Path, name: Path) -> tuple[PlanRecord, ...]:
        """Build the plans of the bundle in a folder that will be called `name`."""
        if not self._wanted:
            return ()
        build = lambda: build_plans(folder, self._options, self._step)  # noqa: E731
        return self._guarded(build, (str(folder), str(name))) or ()

    def _guarded(self, action: Callable[[], T], rename: tuple[str, str] = ("", "")) -> T | None:
        if self._options.named:
            try:
                return action()
            except RuntimeError as error:  # a builder's own
                raise BackendError(f"--engine {self._options.kind}: {one_line(error)}") from error
        try:
            return action()
        except Exception as error:  # a driver's or a builder's, of any type
            said = one_line(error).replace(*rename)
            self.warnings.append(f"no plan was built: {said}")
            self._step(f"warning: {self.warnings[-1]}")
            return None
