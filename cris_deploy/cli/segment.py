"""cris-segment: masks and overlay pictures from a bundle, images and expressions."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cris_deploy.cli import Parser, add_trust, guarded, many
from cris_deploy.cli.jobs import BadEntry, Job, read_jobs
from cris_deploy.errors import CrisError, InputError, one_line
from cris_deploy.execution.backends import AUTO, BackendName, Compute
from cris_deploy.pixels.image import MAX_PIXELS, Pixels
from cris_deploy.results.segmentation import Segmentation

_EPILOG = """\
IMAGE may be a folder (all images in it), or a .jsonl file whose lines are
  {"image": "a.jpg", "expression": "the man in red"}   or "expressions": ["...", "..."]
with paths relative to the file. Written are, per image, NAME.mask-1.png, NAME.mask-2.png, ...
(0 and 255, one per expression) and NAME.overlay.png. Of a video (.mp4, .mov, .mkv, .avi, .webm) or
a camera (camera:0, until Ctrl-C) NAME.mp4 is written, with the masks drawn onto every frame.
With --ray IMAGE is a folder, a Parquet file or a URL of either, and Parquet is written.
Exit code 2 if anything could not be done.
"""


@dataclass(frozen=True, slots=True)
class Written:
    """One expression's result and the file of its mask."""

    segmentation: Segmentation
    mask: Path


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one job: what was written, and what went wrong."""

    job: Job | BadEntry
    results: tuple[Written, ...] = ()
    overlay: Path | None = None
    problems: tuple[str, ...] = ()

    def messages(self) -> Iterator[str]:
        """Give the problems with the line of the list and the image they belong to."""
        line = f"line {self.job.line}: " if self.job.line is not None else ""
        image = str(self.job.image) if isinstance(self.job, Job) else ""
        for problem in self.problems:
            # Problems of the image itself name it already.
            yield f"{line}{problem}" if image in problem else f"{line}{image}: {problem}"

    def to_json(self) -> dict[str, Any]:
        """Give the report as plain data."""
        document: dict[str, Any] = {}
        if self.job.line is not None:
            document["line"] = self.job.line
        if isinstance(self.job, Job):
            document["image"] = str(self.job.image)
        if self.results:
            height, width = self.results[0].segmentation.mask.shape
            document |= {"width": width, "height": height}
        document["results"] = [
            {**written.segmentation.to_json(), "mask": str(written.mask)}
            for written in self.results
        ]
        document["overlay"] = str(self.overlay) if self.overlay else None
        document["errors"] = list(self.problems)
        return document


def segment_jobs(
    bundle: Path,
    jobs: Sequence[Job | BadEntry],
    output: Path,
    *,
    batch_size: int = 8,
    threshold: float | None = None,
    max_pixels: int = MAX_PIXELS,
    **options: Any,
) -> Iterator[Report]:
    """Segment jobs and write their masks and overlays into `output`; one report per job, in order.

    `options` are further ones of `Engine`. A job that fails is reported and the others are done.
    Raises CrisError for what concerns all: the bundle, the backend, the output folder.
    """
    from cris_deploy.engine import Engine

    engine = Engine(bundle, max_pixels=max_pixels, **options)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output {output} cannot be made: {error.strerror}") from None
    pairs = (
        (job.image, expression)
        for job in jobs
        if isinstance(job, Job)
        for expression in job.expressions
    )
    items = engine.stream(pairs, batch_size, on_error="yield", threshold=threshold)
    with engine, closing(items) as stream:
        for job in jobs:
            if isinstance(job, BadEntry):
                yield Report(job, problems=(job.problem,))
                continue
            found = [next(stream) for _ in job.expressions]
            yield _write(job, found, output, max_pixels)


def _write(
    job: Job, found: Sequence[Segmentation | CrisError], output: Path, max_pixels: int
) -> Report:
    from cris_deploy.pixels import image
    from cris_deploy.results import overlay

    problems = []
    done: list[tuple[int, Segmentation]] = []
    for index, outcome in enumerate(found):
        if isinstance(outcome, Segmentation):
            done.append((index, outcome))
        else:
            problems.append(one_line(outcome))
    written: list[Written] = []
    picture_path = None
    try:
        for index, segmentation in done:
            path = output / f"{job.name}.mask-{index + 1}.png"
            _write_png(path, segmentation.mask.astype("uint8") * 255)
            written.append(Written(segmentation, path))
        if done:
            rgb = image.decode(job.image, max_pixels)
            colours = [overlay.colour(index) for index, _ in done]
            picture = overlay.draw(rgb, [item.mask for _, item in done], colours)
            if len(done) > 1:
                texts = [item.expression for _, item in done]
                picture = overlay.add_legend(picture, list(zip(texts, colours, strict=True)))
            picture_path = output / f"{job.name}.overlay.png"
            _write_png(picture_path, picture[:, :, ::-1])  # OpenCV writes BGR
    except CrisError as error:
        problems.append(one_line(error))
    # One bad image fails once per expression, with the same words.
    return Report(job, tuple(written), picture_path, tuple(dict.fromkeys(problems)))


def _write_png(path: Path, pixels: Pixels) -> None:
    import cv2

    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            partial.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"output {path} cannot be written: {error.strerror}") from None


def _print_reports(reports: Iterable[Report], total: int, as_json: bool) -> int:
    from tqdm import tqdm

    code = 0
    # One image needs no bar; None hides it where stderr is no terminal.
    bar = tqdm(reports, total=total, unit="image", disable=True if total == 1 else None)
    for report in bar:
        for message in report.messages():
            bar.write(f"cris-segment: error: {message}", file=sys.stderr)
            code = 2
        text = json.dumps(report.to_json()) if as_json else _describe(report)
        if text:
            bar.write(text, file=sys.stdout)
            sys.stdout.flush()
    return code


def _describe(report: Report) -> str:
    lines = []
    for written in report.results:
        item = written.segmentation
        share = 100 * item.area / item.mask.size
        place = "nothing found" if item.box is None else f"box {','.join(map(str, item.box))}"
        cut = "  (expression cut)" if item.truncated else ""
        lines.append(
            f"{written.mask}  {item.expression!r}{cut}  {item.area} px ({share:.1f}%)  {place}  "
            f"score {item.score:.3f}"
        )
    return "\n".join([*lines, str(report.overlay)]) if report.overlay else "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="cris-segment",
        description="Find what expressions refer to in images.",
        epilog=_EPILOG,
        examples=(
            "cris-segment scenes.bundle scene.png 'the red star' 'the leftmost square' -o masks",
            "cris-segment scenes.bundle lists/today.jsonl -o masks",
            "cris-segment scenes.bundle street.mp4 'the red car' --reuse 4 -o masks",
            "cris-segment scenes.bundle s3://photos/2026 'the red car' --ray --workers 8 -o cars",
        ),
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="what cris-export wrote")
    parser.add_argument("image", metavar="IMAGE", help="image, folder, .jsonl, video")
    parser.add_argument("expressions", nargs="*", metavar="EXPRESSION", help="what to find")
    parser.add_argument(
        "-o",
        "--output",
        default="segmented",
        metavar="DIR",
        help="folder for masks and overlays (default: segmented)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per image on stdout")
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="probability above which a pixel is in the mask (default: the checkpoint's)",
    )
    parser.add_argument(
        "--reuse",
        type=float,
        metavar="LEVELS",
        help="videos: a frame in which no block of 16 x 16 pixels changed by more than this, of "
        "255, keeps the masks of the last computed one (default: none does)",
    )
    parser.add_argument("--frames", type=int, metavar="N", help="videos: no more than these")
    parser.add_argument(
        "--backend", default=AUTO, choices=[AUTO, *BackendName], help="runtime (default: auto)"
    )
    parser.add_argument(
        "--device",
        default=AUTO,
        metavar="NAME",
        help="auto, cpu, cuda, or cuda:N for the GPU number N, from 0 (default: auto)",
    )
    parser.add_argument(
        "--precision", default=AUTO, choices=[AUTO, *Compute], help="arithmetic (default: auto)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help=f"refuse larger images (default: {MAX_PIXELS:,})",
    )
    add_trust(parser)
    parser.add_argument(
        "--trust-plans",
        action="store_true",
        help="take TensorRT plans that the bundle does not list; a plan is code",
    )
    parser.add_argument(
        "--allow-plan-code",
        action="store_true",
        help="run the machine code that version-compatible TensorRT plans bring",
    )
    many.add_arguments(parser)
    return parser


def _quieten() -> None:
    """Leave stderr to our own lines: the problems that libraries print there are reported."""
    import cv2

    from cris_deploy.words.tokenizer import TruncationWarning

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    warnings.simplefilter("ignore", TruncationWarning)
    warnings.filterwarnings("ignore", module="PIL")


def _segment_video(arguments: argparse.Namespace, options: dict[str, Any]) -> int:
    from tqdm import tqdm

    from cris_deploy.cli.video import Frame, segment_video
    from cris_deploy.engine import Engine

    if not arguments.expressions:
        raise InputError("no expression: say what to find in the video")
    source = arguments.image
    name = str(source).replace(":", "-") if not source.is_file() else source.stem
    # None hides the bar where stderr is no terminal; it shows frames a second.
    with Engine(arguments.bundle, **options) as engine, tqdm(unit="frame", disable=None) as bar:

        def told(frame: Frame) -> None:
            bar.update()
            if arguments.json:
                print(json.dumps(frame.to_json()), flush=True)

        summary = segment_video(
            engine,
            source,
            arguments.expressions,
            arguments.output / name,
            threshold=arguments.threshold,
            reuse=arguments.reuse,
            most=arguments.frames,
            on_frame=told,
        )
    if not arguments.json:
        print(
            f"{summary.output}  {summary.frames:,} frames, {summary.reused:,} unchanged, "
            f"{summary.rate:.1f} a second"
        )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run cris-segment; gives the exit code."""
    arguments = _parser().parse_args(argv)

    def action() -> int:
        _quieten()
        options = {
            name: getattr(arguments, name)
            for name in (
                *("backend", "device", "precision", "threads", "max_pixels"),
                *("manifest_sha256", "require_signature", "trust_plans", "allow_plan_code"),
            )
        }
        if many.asked(arguments):
            return many.segment(arguments, options)
        arguments.image, arguments.output = Path(arguments.image), Path(arguments.output)
        if arguments.image.is_dir() and arguments.output.resolve() == arguments.image.resolve():
            raise InputError(f"output {arguments.output} is the folder of the images: give another")
        from cris_deploy.cli.video import is_video

        if is_video(arguments.image):
            return _segment_video(arguments, options)
        for flag in ("reuse", "frames"):
            if getattr(arguments, flag) is not None:
                raise InputError(f"--{flag} is for videos: {arguments.image} is none")
        jobs = read_jobs(arguments.image, arguments.expressions)
        reports = segment_jobs(
            arguments.bundle, jobs, arguments.output, threshold=arguments.threshold, **options
        )
        return _print_reports(reports, len(jobs), arguments.json)

    return guarded("cris-segment", action)


if __name__ == "__main__":
    sys.exit(main())
