"""`python -m cris_bench.quantisers`: int8 of ours and of published tools, side by side."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from cris_bench.quantisers import bundles, judge
from cris_bench.quantisers.half import compare_half, section
from cris_bench.quantisers.makers import Maker, find_makers, largest_weight
from cris_bench.quantisers.record import FLOAT32, HalfRecord, Made, Ran, Record, Row, sections
from cris_bench.record import machine
from cris_bench.report.section import to_text
from cris_deploy import Engine, documents
from cris_deploy.bundle.manifest import GraphName, NumberType, Quantisation
from cris_deploy.bundle.reading import Bundle
from cris_deploy.cli import Parser, guarded
from cris_deploy.errors import CrisError, InputError, one_line
from cris_deploy.execution.backends import BackendName, Compute, Device, status
from cris_deploy.files import write_whole
from cris_export.proof.samples import SampleSource, read_samples

_PROGRAM = "python -m cris_bench.quantisers"
_MADE = "makers.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Make or measure. Exit 0, or 2 for unusable input."""
    args = _parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    return guarded(
        _PROGRAM, lambda: {"make": make, "measure": measure, "half": half}[args.action](args)
    )


def make(args: argparse.Namespace) -> int:
    """Write a bundle of every maker into a folder, and what went wrong."""
    source = bundles.open_float32(args.bundle)
    pairs = read_samples(args.calibration, "--calibration")
    makers = find_makers(args.nncf_python, args.modelopt_python)
    if args.only:
        makers = [maker for maker in makers if maker.name in args.only]
    args.output.mkdir(parents=True, exist_ok=True)
    made = {one.name: one for one in _read_made(args.output)} if args.only else {}
    for maker in makers:
        print(f"{maker.name}: {maker.says}", file=sys.stderr)
        start = time.perf_counter()
        problem, folder = None, f"{maker.name.replace(' ', '-')}.bundle"
        try:
            _make(maker, source, pairs, args.output / folder)
        except Exception as error:  # of any tool: it is part of the result
            problem = f"{type(error).__name__}: {one_line(error)}"
            print(f"  {problem}", file=sys.stderr)
        seconds = time.perf_counter() - start
        made[maker.name] = Made(
            maker.name, maker.says, None if problem else folder, seconds, problem
        )
        _write_made(args.output, list(made.values()))
    return 0


def _make(maker: Maker, source: Bundle, pairs: Sequence[SampleSource], to: Path) -> None:
    with bundles.scratch(source, pairs, "--calibration") as reference:
        models = maker.make(reference)
        levels = largest_weight(models.values())
        bundles.write_bundle(source, models, Quantisation(levels, 0.0, 0.0), to)


def _read_made(folder: Path) -> tuple[Made, ...]:
    path = folder / _MADE
    if not path.is_file():
        return ()
    return documents.read(tuple[Made, ...], path.read_bytes(), str(path), error=InputError)


def _write_made(folder: Path, made: Sequence[Made]) -> None:
    write_whole(folder / _MADE, documents.to_json(tuple(made)).encode())


def measure(args: argparse.Namespace) -> int:
    """Measure what lies in a folder, in every backend; print a table for each."""
    source = bundles.open_float32(args.bundle)
    made = _read_made(args.folder)
    if not made:
        raise InputError(f"{args.folder} has no {_MADE}: run {_PROGRAM} make first")
    if args.only:
        made = tuple(one for one in made if one.name in args.only)
    data = judge.questions_of_data(args.data, "val", args.expressions) if args.data else []
    pairs = judge.questions_of_pairs(args.pairs) if args.pairs else []
    places = {one.name: args.folder / one.folder for one in made if one.folder}
    ran: dict[str, list[Ran]] = {one.name: [] for one in (Made(FLOAT32, "", "", 0.0), *made)}
    for backend in args.backend or [name for name in BackendName if _on_cpu(name)]:
        for name, one in _measure(backend, source.path, places, data, pairs, args.rounds):
            ran[name].append(one)
    exact = Made(FLOAT32, "cris-export", str(source.path), 0.0)
    record = Record(
        created=_now(),
        command=tuple(sys.argv[1:]),
        commit=machine.commit(),
        machine=machine.describe(),
        checkpoint_sha256=source.manifest.model.checkpoint_sha256,
        expressions=sum(len(one.expressions) for one in data),
        pairs=len(pairs),
        rounds=args.rounds,
        rows=tuple(
            _row(one, places.get(one.name, source.path), ran[one.name]) for one in (exact, *made)
        ),
    )
    if args.output is not None:
        write_whole(args.output, documents.to_json(record).encode())
    print(to_text(list(sections(record))))
    return 0


def half(args: argparse.Namespace) -> int:
    """Make and measure float16 graphs; print a table."""
    source = bundles.open_float32(args.bundle)
    pairs = read_samples(args.calibration, "--calibration")
    judged = read_samples(args.pairs, "--pairs")
    rows = tuple(
        compare_half(
            source,
            pairs,
            judged,
            args.modelopt_python,
            args.only,
            args.stretch,
            lambda line: print(line, file=sys.stderr),
        )
    )
    record = HalfRecord(
        created=_now(),
        command=tuple(sys.argv[1:]),
        commit=machine.commit(),
        machine=machine.describe(),
        checkpoint_sha256=source.manifest.model.checkpoint_sha256,
        pairs=len(judged),
        rows=rows,
    )
    if args.output is not None:
        write_whole(args.output, documents.to_json(record).encode())
    print(to_text([section(rows, len(judged))]))
    return 0


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _on_cpu(name: BackendName) -> bool:
    return Device.CPU in status(name).devices


def _measure(
    backend: BackendName,
    source: Path,
    places: dict[str, Path],
    data: Sequence[judge.Question],
    pairs: Sequence[judge.Question],
    rounds: int,
) -> Iterator[tuple[str, Ran]]:
    def load(path: Path, compute: Compute) -> Engine:
        return Engine(
            path, backend=backend, device="cpu", precision=compute, cache=False, verify=False
        )

    with contextlib.ExitStack() as stack:
        engines = {FLOAT32: stack.enter_context(load(source, Compute.FP32))}
        for name, place in places.items():
            try:
                engines[name] = stack.enter_context(load(place, Compute.INT8))
                judge.ask(engines[name], [*data[:1], *pairs[:1]])
            except CrisError as error:
                engines.pop(name, None)
                yield name, Ran(backend, problem=one_line(error))
        with tqdm(desc=backend, unit="step", leave=False, disable=None) as bar:
            answers = {}
            for name, engine in engines.items():
                answers[name] = [judge.ask(engine, asked) for asked in (data, pairs)]
                bar.update()
            timings = judge.race(engines, min(rounds, 3), rounds, bar.update) if rounds else []
        speedups = list(judge.speedups(timings, FLOAT32)) if rounds else [None] * len(engines)
        for index, name in enumerate(engines):
            on_data, on_pairs = (
                judge.compare(exact, mine) if exact.logits else None
                for exact, mine in zip(answers[FLOAT32], answers[name], strict=True)
            )
            seconds = timings[index].seconds if rounds else ()
            yield name, Ran(backend, on_data, on_pairs, speedups[index], seconds)


def _row(made: Made, path: Path, ran: Sequence[Ran]) -> Row:
    if made.folder is None:
        return Row(made, 0, 0.0, ())
    bundle = Bundle.open(path, verify=False)
    share = bundle.manifest.types[GraphName.FULL].multiply_adds
    stored = sum(
        record.bytes
        for name, record in bundle.manifest.files.items()
        if not name.startswith("samples/")
    )
    return Row(made, stored, share.get(NumberType.INT8, 0) / sum(share.values()), tuple(ran))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=_PROGRAM,
        description="Quantise a float32 bundle with cris-export's int8 and with published tools, "
        "then compare masks, logits, size and time.",
        examples=(
            f"{_PROGRAM} make --bundle scenes.bundle --calibration train/demo/samples.jsonl -o q",
            f"{_PROGRAM} measure q --bundle scenes.bundle --data data/scenes -o record.json",
        ),
    )
    actions = parser.add_subparsers(dest="action", required=True)
    one = actions.add_parser("make", help="write a bundle of every maker")
    one.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="a float32 bundle")
    one.add_argument("--calibration", type=Path, required=True, metavar="JSONL", help="pairs")
    one.add_argument("--nncf-python", type=Path, metavar="FILE", help="a Python that has nncf")
    one.add_argument(
        "--modelopt-python", type=Path, metavar="FILE", help="one that has nvidia-modelopt[onnx]"
    )
    one.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these makers (all)")
    one.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the folder")
    two = actions.add_parser("measure", help="compare them")
    two.add_argument("folder", type=Path, help="what `make` wrote")
    two.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="the float32 one")
    two.add_argument("--data", type=Path, metavar="DIR", help="a data set, for mIoU")
    two.add_argument(
        "--expressions", type=int, default=1000, metavar="N", help="of it; 0 for all (1000)"
    )
    two.add_argument("--pairs", type=Path, metavar="JSONL", help="pairs that none calibrated on")
    two.add_argument("--backend", nargs="+", type=BackendName, metavar="NAME", help="(all)")
    two.add_argument("--rounds", type=int, default=20, metavar="N", help="timed rounds (20)")
    two.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these makers (all)")
    two.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write the record")
    three = actions.add_parser("half", help="the same for float16, at once")
    three.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="a float32 one")
    three.add_argument("--calibration", type=Path, required=True, metavar="JSONL", help="pairs")
    three.add_argument("--pairs", type=Path, required=True, metavar="JSONL", help="other pairs")
    three.add_argument("--modelopt-python", type=Path, metavar="FILE", help="as for make")
    three.add_argument(
        "--stretch",
        type=float,
        default=1.0,
        metavar="X",
        help="multiply activations, exactly, by a power of two: what does not fit float16? (1)",
    )
    three.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these makers (all)")
    three.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write the record")
    return parser


if __name__ == "__main__":
    sys.exit(main())
