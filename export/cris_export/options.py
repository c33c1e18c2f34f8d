"""What to export and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cris_deploy.bundle.manifest import DEFAULT_MIN_IOU, Precision
from cris_deploy.errors import InputError
from cris_deploy.proof.gate import check_logit_budget
from cris_export.graph.trace import DEFAULT_OPSET
from cris_export.plans.options import NO_PLANS, PlanOptions
from cris_export.precision.int8.stage import MIN_CORRELATION
from cris_export.proof.verify import NOTHING_ASKED, Asked
from cris_export.sign import Signer

# Edges of objects move by a pixel in int8; what is segmented, and the mIoU on a data set, do not.
INT8_MIN_IOU = 0.95


@dataclass(frozen=True)
class ExportOptions:
    """What to export and how.

    Attributes:
        checkpoint: The `.pth` file.
        output: The bundle's directory; None for `x.bundle` beside `x.pth`.
        word_len: Tokens per expression; None to take the checkpoint's, or 17.
        precision: Type of weights and arithmetic.
        half: Whether an int8 bundle has float16 between its int8 layers, for GPUs.
        samples: JSONL of pairs to prove the export on; None for the packaged ones.
        calibration: JSONL of pairs to calibrate INT8 on, which needs it; nothing else may have it.
        min_iou: Least mean mask IoU against FP32 PyTorch, 0 to 1; None for 0.99, for INT8 0.95.
        min_correlation: Least correlation of INT8 logits with float32, 0 to 1, on each of a few
            calibration pairs; None for 0.99.
        max_logit_error: Largest error of a sample's logits relative to their deviation; None for
            what `cris_deploy.proof.gate` gives for the precision and the arithmetic that runs.
        opset: ONNX operator set.
        plans: Plans to build; none if not given.
        asked: What has to prove the bundle beside ONNX Runtime on the CPU; what `auto` takes here
            if nothing is asked for.
        signer: What signs the bundle, once it is proved; None leaves it unsigned.
        gate: Off hands over a bundle that failed, and its manifest says so: to measure with.
    """

    checkpoint: Path
    output: Path | None = None
    word_len: int | None = None
    precision: Precision = Precision.FP32
    half: bool = False
    samples: Path | None = None
    calibration: Path | None = None
    min_iou: float | None = None
    min_correlation: float | None = None
    opset: int = DEFAULT_OPSET
    plans: PlanOptions = NO_PLANS
    max_logit_error: float | None = None
    asked: Asked = NOTHING_ASKED
    signer: Signer | None = None
    gate: bool = True

    def __post_init__(self) -> None:
        if (self.precision is Precision.INT8) != (self.calibration is not None):
            raise InputError(
                "--int8 and --calibration FILE go together: give a JSONL of images and expressions "
                "like those to come, a hundred or so"
            )
        if self.half and self.precision is not Precision.INT8:
            raise InputError("half: what is not int8 has float16 with precision fp16")
        if not 0.0 <= self.budget <= 1.0:
            raise InputError(f"--min-iou must be 0 to 1, not {self.min_iou}")
        if self.min_correlation is not None and self.precision is not Precision.INT8:
            raise InputError("--min-correlation goes with --int8: give both, or neither")
        if not 0.0 <= self.correlation_budget <= 1.0:
            raise InputError(f"--min-correlation must be 0 to 1, not {self.min_correlation}")
        check_logit_budget(self.max_logit_error)

    @property
    def budget(self) -> float:
        """The mean mask IoU to be reached."""
        if self.min_iou is not None:
            return self.min_iou
        return INT8_MIN_IOU if self.precision is Precision.INT8 else DEFAULT_MIN_IOU

    @property
    def correlation_budget(self) -> float:
        """The correlation of INT8 logits to be reached."""
        return MIN_CORRELATION if self.min_correlation is None else self.min_correlation

    @property
    def bundle(self) -> Path:
        """Where the bundle goes."""
        return self.output or self.checkpoint.with_suffix(".bundle")
