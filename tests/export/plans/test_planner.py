"""Plans as a step of an export: whose failure stops it."""

from pathlib import Path

import pytest

from cris_deploy.errors import BackendError, InputError
from cris_export.errors import ExportError
from cris_export.plans import planner
from cris_export.plans.options import PlanKind, PlanOptions
from cris_export.plans.planner import Planner

FOLDER, NAME = Path("/tmp/.x.partial"), Path("/tmp/x.bundle")
NAMED = [
    PlanOptions(PlanKind.TENSORRT),
    PlanOptions(PlanKind.AUTO, targets=("sm86",)),
    PlanOptions(PlanKind.AUTO, version_compatible=True),
]


def plan(monkeypatch, options, *, choose=None, build=None):
    """Choose and build, each with the error given."""

    def act(error, result):
        if error is not None:
            raise error
        return result

    monkeypatch.setattr(planner, "choose_builder", lambda *_: act(choose, "a choice"))
    monkeypatch.setattr(planner, "build_plans", lambda *_: act(build, ("a plan",)))
    lines: list[str] = []
    found = Planner(options, lines.append)
    return found, found.build(FOLDER, NAME), lines


def test_plans_are_built(monkeypatch):
    for options in (PlanOptions(), *NAMED):
        found, plans, _ = plan(monkeypatch, options)
        assert plans == ("a plan",)
        assert found.warnings == []


@pytest.mark.parametrize("step", ["choose", "build"])
@pytest.mark.parametrize(
    "fault",
    [
        BackendError(f"no plan; see {FOLDER}/engines/x.log"),
        ExportError(f"no plan; see {FOLDER}/engines/x.log"),
        RuntimeError(f"no plan;\nsee {FOLDER}/engines/x.log"),
    ],
)
def test_what_nobody_asked_for_is_a_warning(monkeypatch, step, fault):
    found, plans, lines = plan(monkeypatch, PlanOptions(), **{step: fault})
    assert plans == ()
    folder = NAME if step == "build" else FOLDER  # the log goes where the bundle goes
    assert found.warnings == [f"no plan was built: no plan; see {folder}/engines/x.log"]
    assert lines == [f"warning: {found.warnings[0]}"]


@pytest.mark.parametrize("step", ["choose", "build"])
@pytest.mark.parametrize("options", NAMED)
@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (BackendError("no plan"), BackendError),
        (ExportError("no plan"), ExportError),
        (InputError("no plan"), InputError),
        (RuntimeError("no\nplan"), BackendError),
    ],
)
def test_what_was_asked_for_stops_the_export(monkeypatch, step, options, fault, raised):
    with pytest.raises(raised, match="no plan"):
        plan(monkeypatch, options, **{step: fault})
