"""Writes what each extra of pyproject.toml brings: a list with hashes, and a CycloneDX document.

    python sbom.py FOLDER

Versions are those that are resolved today, for this machine and the lowest Python that is allowed.
Nothing is installed: extras exclude each other, and several bring CUDA. Run by `make sbom`, with
uv and cyclonedx-bom in the environment of this Python.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent


def name_of(requirement: str) -> str:
    """Give the normal form of a requirement's name."""
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def write(extra: str, python: str, folder: Path) -> set[str]:
    """Write the two files of one extra; gives the names of its components."""
    listed, document = folder / f"{extra}.txt", folder / f"{extra}.cdx.json"
    resolve = [BIN / "uv", "pip", "compile", "pyproject.toml", "--extra", extra, "--quiet"]
    resolve += ["--python-version", python, "--generate-hashes", "--no-header", "-o", listed]
    subprocess.run(resolve, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    describe = [BIN / "cyclonedx-py", "requirements", listed, "--pyproject", "pyproject.toml"]
    describe += ["--output-reproducible", "--mc-type", "library", "-o", document]
    # A list has no graph of who needs whom; cyclonedx-py warns of that each time.
    subprocess.run(describe, cwd=ROOT, check=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    components = json.loads(document.read_text(encoding="utf-8"))["components"]
    return {name_of(component["name"]) for component in components}


def main(folder: Path) -> int:
    """Write all; exit 1 if a document lacks what its extra names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    python = project["requires-python"].removeprefix(">=")
    folder.mkdir(parents=True, exist_ok=True)
    lacking = False
    for extra, requirements in project["optional-dependencies"].items():
        found = write(extra, python, folder)
        direct = {name_of(each) for each in [*project["dependencies"], *requirements]}
        missing = direct - found - {project["name"]}
        print(f"{extra}: {len(found)} packages, {extra}.cdx.json", flush=True)
        if missing:
            print(f"{extra}: {', '.join(sorted(missing))} not in it", file=sys.stderr)
            lacking = True
    return int(lacking)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
