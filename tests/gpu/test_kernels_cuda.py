"""The CUDA operations against the CPU ones, on a device."""

import numpy as np
import pytest

from cris_deploy.pixels import on_gpu as device
from cris_deploy.pixels.image import STD, normalise
from cris_deploy.pixels.image import letterbox as letterbox_cpu
from cris_deploy.pixels.mask import Output, Upsampling, upsample_masks
from tests.helpers.kernels_reference import random_logits

torch = pytest.importorskip("torch")
kernels = pytest.importorskip("cris_deploy._kernels", reason="the extension is not built")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not kernels.CUDA_ARCHITECTURES, reason="built without CUDA"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SIZES = [(480, 640), (1, 1), (31, 17), (17, 200), (1080, 1920), (333, 4001), (2160, 3840)]
EVERYTHING = Output.MASK | Output.PACKED | Output.PROBABILITIES


class Outputs:
    """Device arrays for every output of SIZES, full of garbage."""

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        def filled(*shape: int, dtype: object) -> object:
            return torch.full(shape, 77, dtype=dtype, device="cuda")

        self.masks = [filled(h, w, dtype=torch.uint8) for h, w in sizes]
        self.packed = [filled(h, (w + 7) // 8, dtype=torch.uint8) for h, w in sizes]
        self.probabilities = [filled(h, w, dtype=torch.float32) for h, w in sizes]
        self.stats = filled(len(sizes), device.STATS, dtype=torch.int64)
        needed = device.workspace_bytes(sizes, 416, (104, 104))
        self.workspace = filled(needed, dtype=torch.uint8)

    def run(self, logits: object, sizes: list[tuple[int, int]], **changes: object) -> None:
        device.upsample_masks(
            logits,
            sizes,
            416,
            [0.35] * len(sizes),
            self.workspace,
            masks=self.masks,
            packed=self.packed,
            probabilities=self.probabilities,
            stats=self.stats,
            **changes,  # type: ignore[arg-type]
        )


def check(
    outputs: Outputs, logits: np.ndarray, sizes: list[tuple[int, int]], upsampling: Upsampling
) -> None:
    expected = upsample_masks(logits, sizes, 416, 0.35, outputs=EVERYTHING, upsampling=upsampling)
    for index, cpu in enumerate(expected):
        np.testing.assert_array_equal(outputs.probabilities[index].cpu(), cpu.probabilities)
        np.testing.assert_array_equal(outputs.masks[index].cpu().numpy() != 0, cpu.mask)
        np.testing.assert_array_equal(outputs.packed[index].cpu(), cpu.packed)
        area, *box = outputs.stats[index].tolist()
        assert area == cpu.area
        assert (tuple(box) if area else None) == cpu.box


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("upsampling", Upsampling)
def test_equal_to_the_cpu(half: bool, upsampling: Upsampling) -> None:
    if kernels.simd() == "portable":
        pytest.skip("this CPU has no fused multiply-add")
    logits = random_logits(1, len(SIZES), 104, 104)
    logits[0, 5, 5:9] = (np.nan, np.inf, -np.inf, np.nan)
    logits = logits.astype(np.float16) if half else logits
    outputs = Outputs(SIZES)
    outputs.run(torch.from_numpy(logits).cuda(), SIZES, upsampling=upsampling)
    torch.cuda.synchronize()
    check(outputs, logits, SIZES, upsampling)


def test_more_items_than_one_launch_takes() -> None:
    sizes = [(50 + i, 300 - 3 * i) for i in range(40)]
    logits = random_logits(2, 40, 104, 104)
    outputs = Outputs(sizes)
    outputs.run(torch.from_numpy(logits).cuda(), sizes)
    torch.cuda.synchronize()
    check(outputs, logits, sizes, Upsampling.EXACT)


def test_in_a_graph_on_its_own_stream() -> None:
    logits = torch.zeros((len(SIZES), 104, 104), device="cuda")
    outputs = Outputs(SIZES)
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        outputs.run(logits, SIZES, stream=torch.cuda.current_stream().cuda_stream)
    for seed in (3, 4):
        values = random_logits(seed, len(SIZES), 104, 104)
        logits.copy_(torch.from_numpy(values))
        graph.replay()
        torch.cuda.synchronize()
        check(outputs, values, SIZES, Upsampling.EXACT)


def test_arrays_of_the_array_interface() -> None:
    class Wrapped:
        def __init__(self, tensor: object) -> None:
            self.__cuda_array_interface__ = tensor.__cuda_array_interface__  # type: ignore[attr-defined]

    logits = random_logits(5, 1, 104, 104)
    on_device = torch.from_numpy(logits).cuda()
    outputs = Outputs([(100, 150)])
    kept = outputs.masks
    outputs.masks = [Wrapped(mask) for mask in kept]
    outputs.run(Wrapped(on_device), [(100, 150)])
    outputs.masks = kept
    torch.cuda.synchronize()
    check(outputs, logits, [(100, 150)], Upsampling.EXACT)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (31, 17), (480, 640), (900, 20)])
def test_letterbox_is_within_one_level_of_opencv(height: int, width: int) -> None:
    rgb = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = torch.empty((3, 416, 416), device="cuda")
    device.letterbox(torch.from_numpy(rgb).cuda(), height, width, out)
    expected = normalise(letterbox_cpu(rgb, 416))
    levels = np.abs(out.cpu().numpy() - expected) * 255
    levels *= np.array(STD, np.float32).reshape(3, 1, 1)
    assert levels.max() < 1.001
    half = torch.empty((3, 416, 416), device="cuda", dtype=torch.float16)
    device.letterbox(torch.from_numpy(rgb).cuda(), height, width, half)
    np.testing.assert_array_equal(half.cpu(), out.half().cpu())
