"""Table 1's ablation: four corners of one recipe, with and without each of the paper's two ideas.

    python -m cris_train.run.ablation --config train/configs/ablation.yaml [key=value ...]

The corners are trained one after the other with one seed on the same number of expressions, and
measured as `cris-eval` does, on the whole validation split, after the last step: nothing is chosen
on it. A run that was stopped goes on where it was when the command is given again.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
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
        parameters: Of the model.
        expressions: Seen in training.
        seconds: Wall time of the training, validations on the way included.
        report: Of the evaluation after the last step.
    """

    corner: Corner
    parameters: int
    expressions: int
    seconds: float
    report: EvalReport


def corner_config(config: TrainConfig, corner: Corner) -> TrainConfig:
    """The recipe of a corner, in a folder of its own inside the recipe's.

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
    return dataclasses.replace(config, model=model, output=str(Path(config.output) / corner.name))


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
        parameters=sum(p.numel() for p in checkpoint.build(loaded).parameters()),
        expressions=expressions,
        seconds=round(trained.seconds, 1),
        report=measure(options),
    )


def run(config: TrainConfig, report: Callable[[str], None] = print) -> Iterator[CornerResult]:
    """All corners, one after the other."""
    for corner in CORNERS:
        report(f"--- {corner.name}")
        yield run_corner(config, corner, report)


def to_document(config: TrainConfig, results: Sequence[CornerResult]) -> dict[str, Any]:
    """The recipe and all results as plain values."""
    return {
        "recipe": plain(config),
        "corners": [
            {
                "name": result.corner.name,
                **dataclasses.asdict(result.corner),
                "parameters": result.parameters,
                "expressions": result.expressions,
                "seconds": result.seconds,
                "evaluation": result.report.to_json(),
            }
            for result in results
        ],
    }


def to_markdown(results: Sequence[CornerResult]) -> str:
    """The table: metrics in points of 100, of the validation split; the highest mIoU is bold."""
    best = max(result.report.splits[0].mean_iou for result in results)
    rows = []
    for result in results:
        score = result.report.splits[0]
        numbers = [f"{100 * score.metrics[name]:.2f}" for name in _METRICS]
        if score.mean_iou == best:
            numbers[0] = f"**{numbers[0]}**"
        rows.append(
            (
                *(
                    "yes" if has else "no"
                    for has in (result.corner.contrastive, result.corner.decoder)
                ),
                *numbers,
                f"{result.parameters / 1e6:.2f} M",
                f"{result.seconds / 60:.1f} min",
            )
        )
    head = ("contrastive", "decoder", *_METRICS, "parameters", "training")
    first = results[0]
    score = first.report.splits[0]
    remark = (
        f"{score.expressions:,} expressions of {score.images:,} pictures of {first.report.data} "
        f"{score.split}; each model saw {first.expressions:,} expressions."
    )
    return f"{tables.to_markdown(head, rows)}\n\n{remark}\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train four models, write ablation.json and ablation.md. Exit 0, or 2."""
    parser = Parser(
        prog="cris_train.run.ablation",
        description="Table 1's ablation: contrastive head yes or no, decoder yes or no.",
        examples=(
            "python -m cris_train.run.ablation --config train/configs/ablation.yaml",
            "python -m cris_train.run.ablation --config train/configs/ablation.yaml seed=1",
        ),
    )
    parser.add_argument("--config", type=Path, required=True, metavar="YAML", help="the recipe")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as data=data/scenes seed=1"
    )
    args = parser.parse_args(argv)

    def action() -> int:
        from cris_deploy.files import write_whole
        from cris_train.run.recipe import read_config

        config = read_config(args.config, args.overrides)
        folder = Path(config.output)
        results: list[CornerResult] = []
        for result in run(config, lambda line: print(line, flush=True)):
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
