"""`cris-bench kernels`: the fused mask step against the step as training does it, on this machine.

The reference is PyTorch's sigmoid and bicubic resize, OpenCV's warp and NumPy's comparison. All
contestants of a size are timed in turn, so that a drifting machine favours nobody.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cris_bench.record.machine import Machine, describe
from cris_bench.scopes import kernels_cuda
from cris_bench.scopes.timing import Timing, interleave, paired_ratio
from cris_deploy.errors import BackendError, CrisError, InputError
from cris_deploy.pixels.image import Letterbox
from cris_deploy.pixels.mask import KernelsBuild, Output, Upsampling, kernels_status, upsample_masks

EXIT_BAD_INPUT = 2
INPUT_SIZE = 416
SOURCE = 104
THRESHOLD = 0.35
SIZES = ((480, 640), (1080, 1920), (2160, 3840))
# A pixel this near the threshold may fall on either side: the reference itself rounds by as much.
UNDECIDED = 1e-5
REFERENCE = "reference"


class Content(Enum):
    """What the logits hold: a network's few blobs, or noise, where no block is all 0 or all 1."""

    BLOBS = "blobs"
    NOISE = "noise"


@dataclass(frozen=True)
class KernelOptions:
    """What to time.

    Attributes:
        sizes: Image (height, width) of each row of the table.
        content: What the logits hold.
        warmup: Untimed rounds of each size.
        iterations: Timed rounds of each size.
        threads: CPU threads of every contestant, None for all.
        seed: Of the logits.
    """

    sizes: tuple[tuple[int, int], ...] = SIZES
    content: Content = Content.BLOBS
    warmup: int = 5
    iterations: int = 50
    threads: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class SizeResult:
    """One image size.

    Attributes:
        height, width: Of the image.
        timings: Raw times; the reference first. A name that starts with "cuda" was timed on the
            device by events, all others by the wall clock.
        differing: Pixels in which the exact mask differs from the reference's.
        decided: Those of them whose reference value is further than 1e-5 from the threshold.
    """

    height: int
    width: int
    timings: tuple[Timing, ...]
    differing: int
    decided: int


@dataclass(frozen=True)
class KernelsResult:
    """Everything a record holds. `bandwidth` is the device's copy bandwidth, bytes per second."""

    machine: Machine
    simd: str
    threads: int
    options: KernelOptions
    sizes: tuple[SizeResult, ...]
    device: str | None = None
    bandwidth: float | None = None


def run(options: KernelOptions) -> KernelsResult:
    """Time the mask step. Raises InputError, and BackendError where the extension is not built."""
    status = kernels_status()
    if status.build is not KernelsBuild.BUILT or status.simd is None:
        raise BackendError(f"the kernels cannot be timed: {status.reason}")
    if options.iterations < 1 or options.warmup < 0:
        raise InputError("iterations must be at least 1 and warmup at least 0")
    import cv2  # both heavy, and not wanted for --help
    import torch

    machine = describe()
    threads = options.threads or machine.cores
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    logits = make_logits(options.content, options.seed)
    on_device = bool(status.cuda) and torch.cuda.is_available()
    sizes = tuple(_time_size(logits, size, threads, options, on_device) for size in options.sizes)
    return KernelsResult(
        machine,
        status.simd,
        threads,
        options,
        sizes,
        torch.cuda.get_device_name() if on_device else None,
        kernels_cuda.copy_bandwidth() if on_device else None,
    )


def make_logits(content: Content, seed: int) -> NDArray[np.float32]:
    """Give one (SOURCE, SOURCE) map of logits."""
    generator = np.random.default_rng(seed)
    if content is Content.NOISE:
        return generator.normal(0, 3, (SOURCE, SOURCE)).astype(np.float32)
    y, x = np.mgrid[0:SOURCE, 0:SOURCE] / SOURCE
    logits = np.full((SOURCE, SOURCE), -6.0)
    for _ in range(3):
        center_y, center_x, radius = generator.uniform(0.15, 0.85, 3)
        distance = (y - center_y) ** 2 + (x - center_x) ** 2
        logits += 12 * np.exp(-distance / (0.05 + radius / 5) ** 2)
    return logits.astype(np.float32)


def reference_step(logits: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Values at image size (height, width), as training makes them, of logits (h, w)."""
    import cv2
    import torch

    values = torch.sigmoid(torch.from_numpy(logits))[None, None]  # (1, 1, h, w)
    square = torch.nn.functional.interpolate(
        values, (INPUT_SIZE, INPUT_SIZE), mode="bicubic", align_corners=True
    )
    return np.asarray(
        cv2.warpAffine(
            square[0, 0].numpy(),
            Letterbox(height, width, INPUT_SIZE).inverse,
            (width, height),
            flags=cv2.INTER_CUBIC,
            borderValue=0.0,
        ),
        dtype=np.float32,
    )


def _time_size(
    logits: NDArray[np.float32],
    size: tuple[int, int],
    threads: int,
    options: KernelOptions,
    on_device: bool,
) -> SizeResult:
    batch, threshold = logits[None], np.float32(THRESHOLD)
    kept = [np.empty(size, np.bool_)]

    def ours(**changes: Any) -> Callable[[], object]:
        return lambda: upsample_masks(
            batch, [size], INPUT_SIZE, THRESHOLD, threads=threads, **changes
        )

    timings = interleave(
        {
            REFERENCE: lambda: reference_step(logits, *size) > threshold,
            "mask": ours(),
            "mask, own array": ours(out=kept),
            "mask, direct": ours(upsampling=Upsampling.DIRECT),
            "RLE": ours(outputs=Output.RLE),
            "packed bits": ours(outputs=Output.PACKED),
            "area and box": ours(outputs=Output.NONE),
        },
        warmup=options.warmup,
        iterations=options.iterations,
    )
    if on_device:
        seconds = kernels_cuda.time_mask(
            logits, size, INPUT_SIZE, THRESHOLD, options.warmup, options.iterations
        )
        timings.append(Timing("cuda mask", seconds))
    values = reference_step(logits, *size)
    mask = upsample_masks(batch, [size], INPUT_SIZE, THRESHOLD)[0].mask
    differs = mask != (values > threshold)
    return SizeResult(
        *size,
        tuple(timings),
        int(np.count_nonzero(differs)),
        int(np.count_nonzero(differs & (np.abs(values - threshold) > UNDECIDED))),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or with --json the record. Exit 0, or 2 for unusable input."""
    args = _parser().parse_args(argv)
    try:
        options = KernelOptions(
            sizes=tuple(args.size) or SIZES,
            content=Content(args.logits),
            warmup=args.warmup,
            iterations=args.iterations,
            threads=args.threads,
            seed=args.seed,
        )
        result = run(options)
    except CrisError as error:
        print(f"cris-bench kernels: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    record = json.dumps(dataclasses.asdict(result), indent=2, default=lambda enum: enum.value)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(record + "\n", encoding="utf-8")
    print(record if args.json else table(result))
    return 0


def table(result: KernelsResult) -> str:
    """Lay a result out for people."""
    machine = result.machine
    lines = [
        f"{machine.cpu}, {result.threads} threads, {result.simd}; "
        f"{SOURCE} x {SOURCE} logits ({result.options.content.value}), "
        f"medians of {result.options.iterations}",
        ", ".join(f"{name} {version}" for name, version in machine.versions.items()),
    ]
    if result.device is not None and result.bandwidth is not None:
        lines.append(f"{result.device}, copies {result.bandwidth / 1e9:.0f} GB/s")
    for size in result.sizes:
        lines.append(
            f"\n{size.width} x {size.height}: {size.differing} pixels differ from the reference, "
            f"{size.decided} of them decided"
        )
        lines.append(f"  {'':<18}{'ms':>9}{'x':>8}{'spread':>9}")
        baseline = size.timings[0]
        for timing in size.timings:
            # Only the CPU's were timed in turn with the reference.
            paired = not timing.name.startswith("cuda")
            ratio = (
                paired_ratio(baseline, timing)
                if paired
                else statistics.median(baseline.seconds) / statistics.median(timing.seconds)
            )
            lines.append(
                f"  {timing.name:<18}{timing.median_ms:>9.3f}{ratio:>8.1f}{timing.spread:>9.1%}"
            )
            if not paired and result.bandwidth:
                moved = size.height * size.width + SOURCE * SOURCE * 4
                share = moved / statistics.median(timing.seconds) / result.bandwidth
                lines.append(f"  {'':<18}{share:>9.1%} of the copy bandwidth")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cris-bench kernels",
        description="Time the compiled mask step against PyTorch's resize and OpenCV's warp.",
    )
    parser.add_argument(
        "--size", type=_size, action="append", default=[], metavar="WxH", help="image size (three)"
    )
    parser.add_argument(
        "--logits",
        choices=[content.value for content in Content],
        default=Content.BLOBS.value,
        help="what the logits hold (blobs, as a network's; noise is the worst case)",
    )
    parser.add_argument("--warmup", type=int, default=5, metavar="N", help="untimed rounds (5)")
    parser.add_argument("--iterations", type=int, default=50, metavar="N", help="timed rounds (50)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the logits (0)")
    parser.add_argument("--json", action="store_true", help="print the record, raw times included")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write the record")
    return parser


def _size(text: str) -> tuple[int, int]:
    width, separator, height = text.partition("x")
    if not (separator and width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"{text} is no size: give WIDTHxHEIGHT, as 1920x1080")
    return int(height), int(width)


if __name__ == "__main__":
    sys.exit(main())
