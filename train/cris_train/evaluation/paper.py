"""The paper's tables as data: CRIS, Wang et al., CVPR 2022. All scores in points of 100.

"IoU" there is the mean over expressions, what is called mIoU here. FPS are frames per second on one
V100 at batch 1. Data sets are named as REFER's folders, and split by whom the paper took them from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from cris_train.evaluation.metrics import PRECISION_NAMES
from cris_train.model.config import CrisConfig

REFCOCO, REFCOCO_PLUS, REFCOCOG = ("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")
CRIS: Final = "CRIS"
_MODEL: Final = CrisConfig.rn50()


@dataclass(frozen=True)
class AblationRow:
    """A row of Table 1: one of seven RN50 models on the validation split of one data set.

    Attributes:
        data: (data set, who split it).
        contrastive: Whether the model has the text-to-pixel head.
        decoder_layers: Of its decoder.
        mean_iou: mIoU.
        shares: Pr@50, 60, 70, 80 and 90.
        parameters_millions: Of the model.
        fps: On a V100.
    """

    data: tuple[str, str]
    contrastive: bool
    decoder_layers: int
    mean_iou: float
    shares: tuple[float, float, float, float, float]
    parameters_millions: float
    fps: float

    @property
    def config(self) -> CrisConfig:
        """The model of this row."""
        return replace(
            _MODEL,
            contrastive=self.contrastive,
            decoder_layers=self.decoder_layers,
            word_len=22 if self.data == REFCOCOG else 17,
        )

    @property
    def metrics(self) -> dict[str, float]:
        """By the names of our tables; the paper does not print oIoU."""
        return {"mIoU": self.mean_iou, **dict(zip(PRECISION_NAMES, self.shares, strict=True))}


@dataclass(frozen=True)
class MethodRow:
    """A row of Table 2: mIoU of one method on the splits of three data sets.

    Attributes:
        method: Its name.
        backbone: Its image encoder.
        refcoco: val, testA, testB.
        refcoco_plus: val, testA, testB; None where it was not measured.
        refcocog: val, test; None where it was not measured.
        refined: Whether masks were post-processed.
    """

    method: str
    backbone: str
    refcoco: tuple[float, float, float]
    refcoco_plus: tuple[float, float, float] | None
    refcocog: tuple[float, float] | None
    refined: bool = False

    def mean_iou(self, data: tuple[str, str], split: str) -> float | None:
        """mIoU on a split; None where the paper has none."""
        scores = {
            REFCOCO: (("val", "testA", "testB"), self.refcoco),
            REFCOCO_PLUS: (("val", "testA", "testB"), self.refcoco_plus),
            REFCOCOG: (("val", "test"), self.refcocog),
        }
        names, values = scores.get(data, ((), None))
        return dict(zip(names, values, strict=True)).get(split) if values is not None else None


TABLE_1: Final = (
    AblationRow(REFCOCO, False, 0, 62.66, (72.55, 67.29, 59.53, 43.52, 12.72), 131.86, 27.3),
    AblationRow(REFCOCO, True, 0, 64.64, (74.89, 69.58, 61.7, 45.5, 13.31), 134.22, 25.79),
    AblationRow(REFCOCO, False, 1, 66.31, (77.66, 72.99, 65.67, 48.43, 14.81), 136.07, 23.02),
    AblationRow(REFCOCO, True, 1, 68.66, (80.16, 75.72, 68.82, 51.98, 15.94), 138.43, 22.64),
    AblationRow(REFCOCO, True, 2, 69.13, (80.96, 76.6, 69.67, 52.23, 16.09), 142.64, 20.68),
    AblationRow(REFCOCO, True, 3, 69.52, (81.35, 77.54, 70.79, 52.65, 16.21), 146.85, 19.22),
    AblationRow(REFCOCO, True, 4, 69.18, (80.99, 76.74, 69.32, 52.57, 16.37), 151.06, 18.26),
    AblationRow(REFCOCO_PLUS, False, 0, 50.17, (54.55, 47.69, 40.19, 28.75, 8.21), 131.86, 27.3),
    AblationRow(REFCOCO_PLUS, True, 0, 53.15, (58.28, 53.74, 46.67, 34.01, 9.3), 134.22, 25.79),
    AblationRow(REFCOCO_PLUS, False, 1, 54.73, (63.31, 58.89, 52.46, 38.53, 11.7), 136.07, 23.02),
    AblationRow(REFCOCO_PLUS, True, 1, 59.97, (69.19, 64.85, 58.17, 43.47, 13.39), 138.43, 22.64),
    AblationRow(REFCOCO_PLUS, True, 2, 60.75, (70.69, 66.83, 60.74, 45.69, 13.42), 142.64, 20.68),
    AblationRow(REFCOCO_PLUS, True, 3, 61.39, (71.46, 67.82, 61.8, 47.0, 15.02), 146.85, 19.22),
    AblationRow(REFCOCO_PLUS, True, 4, 61.15, (71.05, 66.94, 61.25, 46.98, 14.97), 151.06, 18.26),
    AblationRow(REFCOCOG, False, 0, 49.24, (53.33, 45.49, 36.58, 23.9, 6.92), 131.86, 25.72),
    AblationRow(REFCOCOG, True, 0, 52.67, (59.27, 52.45, 44.12, 29.53, 8.8), 134.22, 25.33),
    AblationRow(REFCOCOG, False, 1, 51.46, (58.68, 53.33, 45.61, 31.78, 10.23), 136.07, 22.57),
    AblationRow(REFCOCOG, True, 1, 57.82, (66.28, 60.99, 53.21, 38.58, 13.38), 138.43, 22.34),
    AblationRow(REFCOCOG, True, 2, 58.4, (67.3, 61.72, 54.7, 39.67, 13.4), 142.64, 20.61),
    AblationRow(REFCOCOG, True, 3, 59.35, (68.93, 63.66, 55.45, 40.67, 14.4), 146.85, 19.14),
    AblationRow(REFCOCOG, True, 4, 58.79, (67.91, 63.11, 55.43, 39.81, 13.48), 151.06, 17.84),
)  # fmt: skip

TABLE_2: Final = (
    MethodRow("RMI", "ResNet-101", (45.18, 45.69, 45.57), (29.86, 30.48, 29.5), None, True),
    MethodRow("DMN", "ResNet-101", (49.78, 54.83, 45.13), (38.88, 44.22, 32.29), None),
    MethodRow("RRN", "ResNet-101", (55.33, 57.26, 53.95), (39.75, 42.15, 36.11), None, True),
    MethodRow("MAttNet", "ResNet-101", (56.51, 62.37, 51.7), (46.67, 52.39, 40.08), (47.64, 48.61)),
    MethodRow("NMTree", "ResNet-101", (56.59, 63.02, 52.06), (47.4, 53.01, 41.56), (46.59, 47.88)),
    MethodRow("CMSA", "ResNet-101", (58.32, 60.61, 55.09), (43.76, 47.6, 37.89), None, True),
    MethodRow("Lang2Seg", "ResNet-101", (58.9, 61.77, 53.81), None, (46.37, 46.95)),
    MethodRow("BCAN", "ResNet-101", (61.35, 63.37, 59.57), (48.57, 52.87, 42.13), None, True),
    MethodRow("CMPC", "ResNet-101", (61.36, 64.53, 59.64), (49.56, 53.44, 43.23), None, True),
    MethodRow("LSCM", "ResNet-101", (61.47, 64.99, 59.55), (49.34, 53.12, 43.5), None, True),
    MethodRow("MCN", "DarkNet-53", (62.44, 64.2, 59.71), (50.62, 54.99, 44.69), (49.22, 49.4)),
    MethodRow("CGAN", "DarkNet-53", (64.86, 68.04, 62.07), (51.03, 55.51, 44.06), (51.01, 51.69)),
    MethodRow("EFNet", "ResNet-101", (62.76, 65.69, 59.67), (51.5, 55.24, 43.01), None),
    MethodRow("LTS", "DarkNet-53", (65.43, 67.76, 63.08), (54.21, 58.32, 48.02), (54.4, 54.25)),
    MethodRow("VLT", "DarkNet-53", (65.65, 68.29, 62.73), (55.5, 59.2, 49.36), (52.99, 56.65)),
    MethodRow(CRIS, "ResNet-50", (69.52, 72.72, 64.7), (61.39, 67.1, 52.48), (59.35, 59.39)),
    MethodRow(CRIS, "ResNet-101", (70.47, 73.18, 66.1), (62.27, 68.08, 53.68), (59.87, 60.36)),
)  # fmt: skip


def ablation_row(
    data: tuple[str, str],
    *,
    architecture: str,
    input_size: int,
    contrastive: bool,
    decoder_layers: int,
) -> AblationRow | None:
    """Table 1's row of a model on a data set; None if it has none."""
    if (architecture, input_size) != (_MODEL.architecture, _MODEL.input_size):
        return None
    wanted = (data, contrastive, decoder_layers)
    found = (row for row in TABLE_1 if (row.data, row.contrastive, row.decoder_layers) == wanted)
    return next(found, None)


def fps_of(config: CrisConfig) -> float | None:
    """Table 1's frames per second of a model, on RefCOCO; None if the paper did not measure it."""
    rows = (row for row in TABLE_1 if row.data == REFCOCO and row.config == config)
    return next((row.fps for row in rows), None)
