"""The compiled step against the step as training does it: PyTorch's resize, OpenCV's warp."""

import cv2
import numpy as np
import pytest

from cris_deploy.pixels.image import STD, Letterbox, letterbox, normalise
from cris_deploy.pixels.mask import kernel_frame, mask_from_logits
from tests.helpers.kernels_reference import disagreements, random_logits, smooth_logits

torch = pytest.importorskip("torch")
kernels = pytest.importorskip("cris_deploy._kernels", reason="the extension is not built")


def reference(logits: np.ndarray, height: int, width: int, size: int) -> np.ndarray:
    values = torch.sigmoid(torch.from_numpy(logits))[None, None]
    square = torch.nn.functional.interpolate(
        values, (size, size), mode="bicubic", align_corners=True
    )
    inverse = Letterbox(height, width, size).inverse
    return np.asarray(
        cv2.warpAffine(
            square[0, 0].numpy(), inverse, (width, height), flags=cv2.INTER_CUBIC, borderValue=0.0
        )
    )


@pytest.mark.parametrize("make", [random_logits, smooth_logits])
@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 1), (3, 150), (17, 31), (480, 640), (640, 427), (2000, 40), (1080, 1920), (4096, 4096)],
)
@pytest.mark.parametrize("size", [416, 224])
def test_masks_agree(make: object, height: int, width: int, size: int) -> None:
    logits = make(height + width, size // 4, size // 4)  # type: ignore[operator]
    values = reference(logits, height, width, size)
    mask = mask_from_logits(logits, height, width, size, 0.35)
    assert disagreements(mask, values, 0.35) == 0


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (31, 17), (480, 640), (900, 20), (768, 1024)]
)
def test_letterbox_is_within_one_level_of_opencv(height: int, width: int) -> None:
    rgb = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    ours = kernels.letterbox(rgb, kernel_frame(kernels, Letterbox(height, width, 416)), 416)
    theirs = normalise(letterbox(rgb, 416))
    levels = np.abs(ours - theirs) * 255 * np.array(STD, np.float32).reshape(3, 1, 1)
    assert levels.max() < 1.001  # one level, and the rounding of this line
    # Levels differ only where a value lies on the edge between two: OpenCV's float32 coordinates
    # are off by up to 6e-5 at 1024, which in noise of 255 levels moves values by 0.015.
    assert (levels > 0.5).mean() < 0.01
