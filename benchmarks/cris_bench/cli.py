"""`cris-bench`: the engine against PyTorch on this machine; `cris-bench kernels`: the mask step."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from cris_deploy.cli import guarded

if TYPE_CHECKING:
    from cris_bench.network import NetworkResult

# From here on a table says that its machine was not quiet.
NOISY = 0.15


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch to a benchmark. Exit 0, or 2 for unusable input."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["kernels"]:
        from cris_bench import kernels

        return kernels.main(argv[1:])
    args = _parser().parse_args(argv)

    def run() -> int:
        # torch takes seconds to import: not for --help
        from cris_bench import network

        options = network.NetworkOptions(
            args.ckpt, args.warmup, args.iterations, args.threads, args.int8, args.expressions
        )
        with tqdm(unit="pass", leave=False, disable=None) as bar:
            result = network.run(options, lambda line: bar.write(line, file=sys.stderr), bar.update)
        record = json.dumps(dataclasses.asdict(result), indent=2)
        if args.output is not None:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(record + "\n", encoding="utf-8")
        print(record if args.json else _table(result))
        return 0

    return guarded("cris-bench", run)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cris-bench",
        description="Time the network alone as the reference does (batch 1, one random image and "
        "expression, one by one), PyTorch eager against the engine in one run. "
        "`cris-bench kernels` times the mask step.",
    )
    parser.add_argument(
        "--ckpt", type=Path, metavar="FILE", help="model (default: RN50 with random weights)"
    )
    parser.add_argument("--warmup", type=int, default=5, metavar="N", help="untimed rounds (5)")
    parser.add_argument(
        "--iterations",
        type=int,
        default=30,
        metavar="N",
        help="timed rounds (30; the reference has 400, on a GPU)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    parser.add_argument("--int8", action="store_true", help="also quantise the model and time it")
    parser.add_argument(
        "--expressions",
        type=int,
        default=1,
        metavar="N",
        help="also time N expressions on the one image, per mask",
    )
    parser.add_argument("--json", action="store_true", help="print the record, raw times included")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write the record")
    return parser


def _table(result: NetworkResult) -> str:
    machine = result.machine
    lines = [
        f"{result.architecture}, {result.parameters / 1e6:.2f} M parameters, "
        f"{result.input_size} x {result.input_size}, {result.word_len} tokens, batch 1, "
        f"network only",
        f"{machine.cpu}, {machine.cores} cores; Python {machine.python}, "
        + ", ".join(f"{name} {version}" for name, version in machine.versions.items()),
        "",
        f"{'':<36}{'ms a mask':>10}{'FPS':>8}{'x':>7}{'spread':>9}{'logit error':>13}",
    ]
    for contestant in result.contestants:
        timing = contestant.timing
        noisy = "  noisy" if timing.spread > NOISY else ""
        lines.append(
            f"{timing.name:<36}{contestant.mask_ms:>10.1f}{1e3 / contestant.mask_ms:>8.2f}"
            f"{contestant.ratio:>7.2f}{timing.spread:>8.1%}{contestant.logit_error:>13.1e}{noisy}"
        )
    if result.paper_fps is not None:
        lines.append(
            f"{'paper, Table 1, V100 GPU':<36}{1e3 / result.paper_fps:>10.1f}"
            f"{result.paper_fps:>8.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
