"""Which room of the runtime may use which, and that no modules import each other in a circle.

All imports count: those of types alone, and those inside of functions.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "cris_deploy"

# A room uses those before it, and none behind it. The public names are behind proof.
ROOMS = (
    "errors",
    "arguments",
    "files",
    "documents",
    "machine",
    "pixels",
    "words",
    "bundle",
    "execution",
    "results",
    "engine",
    "batcher",
    "proof",
    PACKAGE,
    "batch",
    "web",
    "serving",
    "cli",
)
# Imported by name when it is asked for: `selection` gives the files of the backends.
BY_NAME = {
    f"{PACKAGE}.execution.backends.selection": {
        f"{PACKAGE}.execution.backends.{name}"
        for name in ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
    }
}


def modules() -> dict[str, Path]:
    found = {}
    for suffix in ("py", "pyi"):
        for path in (ROOT / PACKAGE).rglob(f"*.{suffix}"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(source: str, known: Mapping[str, object]) -> Iterator[str]:
    """What a module names in its imports, of the modules that are known."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports here are absolute"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if name in known or node.module in known:
                    yield name if name in known else str(node.module)


def graph() -> dict[str, set[str]]:
    known = modules()
    found = {name: set(imported(path.read_text(), known)) for name, path in known.items()}
    for name, more in BY_NAME.items():
        assert more <= known.keys()
        found[name] |= more
    return found


def circle(uses: Mapping[str, set[str]]) -> list[str]:
    """A chain of modules that comes back to its start; empty if there is none."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name not in done:
            for other in sorted(uses[name]):
                if found := walk(other, [*way, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(uses) if (found := walk(name, []))), [])


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else PACKAGE


def test_no_circle_of_imports():
    found = circle(graph())
    assert not found, " -> ".join(found)


def test_a_room_uses_those_before_it():
    wrong = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if room(name) != "_kernels"
        and room(other) != "_kernels"  # the compiled extension, which uses nothing
        and ROOMS.index(room(other)) > ROOMS.index(room(name))
    ]
    assert not wrong


def test_who_knows_ray():
    others = {"ray": 0, "ray.data": 0, "pyarrow": 0, "pyarrow.parquet": 0}
    knowing = {name for name, path in modules().items() if [*imported(path.read_text(), others)]}
    assert f"{PACKAGE}.batch.job" in knowing
    assert {name for name in knowing if room(name) != "batch"} == {f"{PACKAGE}.serving.ray"}


def test_every_module_has_a_room():
    assert {room(name) for name in modules()} == {*ROOMS, "_kernels"}


@pytest.mark.parametrize(
    ("source", "uses"),
    [
        ("import p.a", ["p.a"]),
        ("from p import a", ["p.a"]),
        ("from p.a import thing", ["p.a"]),
        ("from p import thing", ["p"]),
        ("if TYPE_CHECKING:\n    from p.a import T", ["p.a"]),
        ("def f():\n    import p.a", ["p.a"]),
        ("import os", []),
    ],
)
def test_imports_are_found_wherever_they_are(source, uses):
    assert list(imported(source, {"p": 0, "p.a": 0})) == uses


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
