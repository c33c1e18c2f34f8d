"""Table 1's ablation: four corners of one recipe, with and without each of the paper's two ideas.

    python -m cris_train.run.ablation --config train/configs/ablation.yaml --seeds 3 [key=value ...]

The corners are trained one after the other on the same number of expressions, with one seed, then
with the next, and measured as `cris-eval` does, on the whole validation split, after the last step:
nothing is chosen on it. What an idea gains is its difference within a seed; over seeds it has a
95% interval by Student's t. A run that was stopped goes on when the command is given again.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cris_deploy.cli import Parser, guarded, tables
from cris_deploy.documents import plain, to_json
from cris_deploy.errors import InputError
from cris_train.evaluation.metrics import PRECISION_NAMES

if TYPE_CHECKING:
    from cris_train.evaluation.report import EvalReport
    from cris_train.run.recipe import TrainConfig

_METRICS = ("mIoU", "oIoU", *PRECISION_NAMES)
# Student's t, 97.5%, of 1 to 9 degrees of freedom: one less than there are seeds.
_T: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
MOST_SEEDS: Final = len(_T) + 1


@dataclass(frozen=True)
class Corner:
    """One of the four models.

    Attributes:
        contrastive: Text-to-pixel contrastive head (CRIS, eq. 8 to 10), or a plain convolution.
        decoder: The vision-language decoder (CRIS, section 3.3), or none.
    """

    contrastive: bool
    decoder: bool

    @property
    def name(self) -> str:
        """Of its folder."""
        parts = ("contrastive" * self.contrastive, "decoder" * self.decoder)
        return "-".join(part for part in parts if part) or "neither"


# In the order of the paper's Table 1.
CORNERS: Final = tuple(Corner(c, d) for d in (False, True) for c in (False, True))


@dataclass(frozen=True)
class CornerResult:
    """What a corner came to.

    Attributes:
        corner: Which.
        seed: Of its training.
        parameters: Of the model.
        expressions: Seen in training.
        seconds: Wall time of the training, validations on the way included.
        report: Of the evaluation after the last step.
    """

    corner: Corner
    seed: int
    parameters: int
    expressions: int
    seconds: float
    report: EvalReport


def corner_config(config: TrainConfig, corner: Corner) -> TrainConfig:
    """The recipe of a corner, in a folder of its seed and its own inside the recipe's.

    Raises:
        InputError: the recipe itself is one without a decoder or contrastive head.
    """
    if not (config.model.decoder_layers and config.model.contrastive):
        raise InputError(
            "the recipe of an ablation has both: set model.decoder_layers to 1 or more and "
            "model.contrastive to true"
        )
    model = dataclasses.replace(
        config.model,
        contrastive=corner.contrastive,
        decoder_layers=config.model.decoder_layers if corner.decoder else 0,
    )
    folder = Path(config.output) / f"seed-{config.seed}" / corner.name
    return dataclasses.replace(config, model=model, output=str(folder))


def run_corner(
    config: TrainConfig, corner: Corner, report: Callable[[str], None] = print
) -> CornerResult:
    """Train a corner, or go on with it, and measure it.

    Raises:
        CrisError: as `train` and `measure`.
    """
    from cris_train import checkpoint
    from cris_train.evaluation.measure import EvalOptions, measure
    from cris_train.run.loop import train

    recipe = corner_config(config, corner)
    expressions = _expressions(recipe)
    trained = train(recipe, report, resume=True)
    options = EvalOptions(
        data=Path(recipe.data),
        images=Path(recipe.images) if recipe.images is not None else None,
        checkpoint=trained.last,
        splits=(recipe.val_split,),
        split_by=recipe.split_by,
        threshold=recipe.threshold,
    )
    loaded = checkpoint.load(trained.last)
    return CornerResult(
        corner=corner,
        seed=config.seed,
        parameters=sum(p.numel() for p in checkpoint.build(loaded).parameters()),
        expressions=expressions,
        seconds=round(trained.seconds, 1),
        report=measure(options),
    )


def run(
    config: TrainConfig, seeds: int = 1, report: Callable[[str], None] = print
) -> Iterator[CornerResult]:
    """All corners with the recipe's seed, then with the next, and so on."""
    for seed in range(config.seed, config.seed + seeds):
        for corner in CORNERS:
            report(f"--- {corner.name}, seed {seed}")
            yield run_corner(dataclasses.replace(config, seed=seed), corner, report)


def to_document(config: TrainConfig, results: Sequence[CornerResult]) -> dict[str, Any]:
    """The recipe and all results as plain values."""
    return {
        "recipe": plain(config),
        "corners": [
            {
                "name": result.corner.name,
                **dataclasses.asdict(result.corner),
                "seed": result.seed,
                "parameters": result.parameters,
                "expressions": result.expressions,
                "seconds": result.seconds,
                "evaluation": result.report.to_json(),
            }
            for result in results
        ],
    }


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of a sample and half of its 95% interval, by Student's t; NaN for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, _T[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))


def to_markdown(results: Sequence[CornerResult]) -> str:
    """Two tables, in points of 100, of the validation split: the corners, and what an idea gains.

    A seed whose four corners are not all there does not count yet, unless it is the only one.
    """
    first = results[0]
    seeds = sorted({result.seed for result in results})
    whole = [seed for seed in seeds if sum(r.seed == seed for r in results) == len(CORNERS)]
    counted = [r for r in results if r.seed in (whole or seeds[:1])]
    corners = [corner for corner in CORNERS if any(r.corner == corner for r in counted)]
    of = {corner: [r for r in counted if r.corner == corner] for corner in corners}
    rows = [
        (
            *("yes" if has else "no" for has in (corner.contrastive, corner.decoder)),
            *(_shown(*interval(_points(of[corner], name))) for name in _METRICS),
            f"{of[corner][0].parameters / 1e6:.2f} M",
            f"{statistics.fmean(r.seconds for r in of[corner]) / 60:.1f} min",
        )
        for corner in corners
    ]
    head = ("contrastive", "decoder", *_METRICS, "parameters", "training")
    score = first.report.splits[0]
    number = len(whole) or 1
    remark = (
        f"{score.expressions:,} expressions of {score.images:,} pictures of {first.report.data} "
        f"{score.split}; each model saw {first.expressions:,} expressions; "
        + (f"means of {number} seeds with 95% intervals." if number > 1 else "one seed.")
    )
    parts = [tables.to_markdown(head, rows), remark]
    if len(corners) == len(CORNERS):
        parts.append(tables.to_markdown(("what is added", "to", *_METRICS), _gains(of)))
    return "\n\n".join(parts) + "\n"


def _gains(of: Mapping[Corner, Sequence[CornerResult]]) -> list[tuple[str, ...]]:
    """Differences within seeds between every two corners that differ in one idea, and of both."""
    neither, contrastive, decoder, both = CORNERS
    steps = (
        ("contrastive", "neither", neither, contrastive),
        ("decoder", "neither", neither, decoder),
        ("decoder", "contrastive", contrastive, both),
        ("contrastive", "decoder", decoder, both),
        ("both", "neither", neither, both),
    )
    rows = []
    for added, to, before, after in steps:
        differences = (
            [
                new - old
                for old, new in zip(
                    _points(of[before], name), _points(of[after], name), strict=True
                )
            ]
            for name in _METRICS
        )
        rows.append((added, to, *(_shown(*interval(d), sign="+") for d in differences)))
    return rows


def _points(results: Sequence[CornerResult], metric: str) -> list[float]:
    """One metric by seed, points of 100."""
    return [
        100 * result.report.splits[0].metrics[metric]
        for result in sorted(results, key=lambda result: result.seed)
    ]


def _shown(mean: float, half: float, sign: str = "") -> str:
    return f"{mean:{sign}.2f}" + ("" if math.isnan(half) else f" ± {half:.2f}")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train four models a seed, write ablation.json and ablation.md. Exit 0, or 2."""
    parser = Parser(
        prog="cris_train.run.ablation",
        description="Table 1's ablation: contrastive head yes or no, decoder yes or no.",
        examples=(
            "python -m cris_train.run.ablation --config train/configs/ablation.yaml",
            "python -m cris_train.run.ablation --config train/configs/ablation.yaml --seeds 3",
        ),
    )
    parser.add_argument("--config", type=Path, required=True, metavar="YAML", help="the recipe")
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="from the recipe's seed on (1)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as data=data/scenes seed=1"
    )
    args = parser.parse_args(argv)

    def action() -> int:
        from cris_deploy.files import write_whole
        from cris_train.run.recipe import read_config

        if not 1 <= args.seeds <= MOST_SEEDS:
            raise InputError(f"--seeds is {args.seeds}, expected 1 to {MOST_SEEDS}")
        config = read_config(args.config, args.overrides)
        folder = Path(config.output)
        results: list[CornerResult] = []
        for result in run(config, args.seeds, lambda line: print(line, flush=True)):
            results.append(result)
            # After every corner: hours of training should not depend on the last one.
            document = to_json(to_document(config, results))
            write_whole(folder / "ablation.json", document.encode())
            write_whole(folder / "ablation.md", to_markdown(results).encode())
        print(f"\n{to_markdown(results)}\n{folder / 'ablation.md'}")
        return 0

    return guarded("cris_train.run.ablation", action)


def _expressions(config: TrainConfig) -> int:
    """Expressions of all steps; an incomplete last step of a lesson is left out."""
    if not config.lessons:
        raise InputError("lessons is empty: an ablation's equal budget is lessons with samples")
    each = config.samples_per_step
    return sum(max(1, lesson.samples // each) * each for lesson in config.lessons)


if __name__ == "__main__":
    sys.exit(main())
