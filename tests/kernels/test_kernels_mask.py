"""The compiled mask step against the float64 one, and its outputs against each other."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cris_deploy.errors import InputError
from cris_deploy.pixels import mask as masks
from cris_deploy.pixels import measures
from cris_deploy.pixels.mask import Output, Upsampling, mask_from_logits, upsample_masks
from tests.helpers.kernels_reference import (
    disagreements,
    probabilities,
    random_logits,
    smooth_logits,
)

kernels = pytest.importorskip("cris_deploy._kernels", reason="the extension is not built")
coco = pytest.importorskip("pycocotools.mask")

EVERYTHING = Output.MASK | Output.PACKED | Output.PROBABILITIES | Output.RLE
LOGITS = {"random": random_logits, "smooth": smooth_logits}


def instruction_sets() -> list[str]:
    best = kernels.simd()
    found = []
    for name in ("portable", "avx2", "avx512"):
        try:
            kernels.select_simd(name)
        except InputError:
            continue
        found.append(name)
    kernels.select_simd(best)
    return found


@pytest.fixture(params=instruction_sets())
def simd(request: pytest.FixtureRequest) -> Iterator[str]:
    best = kernels.simd()
    kernels.select_simd(request.param)
    yield request.param
    kernels.select_simd(best)


def coco_counts(mask: NDArray[np.bool_]) -> str:
    return str(coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode())


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize(
    ("height", "width"),
    [
        (1, 1),
        (1, 50),
        (50, 1),
        (17, 31),
        (104, 104),
        (480, 640),
        (80, 4000),
        (3000, 60),
        (721, 403),
    ],
)
def test_no_decided_pixel_differs_from_float64(
    simd: str, kind: str, height: int, width: int
) -> None:
    logits = LOGITS[kind](height * width, 104, 104)
    reference = probabilities(logits, height, width, 416)
    result = upsample_masks(logits[None], [(height, width)], 416, 0.35, outputs=EVERYTHING)[0]
    assert result.mask is not None
    assert result.probabilities is not None
    assert disagreements(result.mask, reference, 0.35) == 0
    # Five products per axis, each rounded to 6e-8 of values up to 1.4.
    np.testing.assert_allclose(result.probabilities, reference, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(2160, 3840), (4096, 4096)])
def test_large_images(height: int, width: int) -> None:
    logits = random_logits(5, 104, 104)
    result = mask_from_logits(logits, height, width, 416, 0.35)
    assert disagreements(result, probabilities(logits, height, width, 416), 0.35) == 0


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    quarter=st.integers(1, 40),
    threshold=st.floats(0, 1),
    kind=st.sampled_from(sorted(LOGITS)),
    half=st.booleans(),
    direct=st.booleans(),
)
def test_any_geometry(
    seed: int,
    height: int,
    width: int,
    quarter: int,
    threshold: float,
    kind: str,
    half: bool,
    direct: bool,
) -> None:
    logits = LOGITS[kind](seed, quarter, quarter).astype(np.float16 if half else np.float32)
    result = upsample_masks(
        logits[None],
        [(height, width)],
        4 * quarter,
        threshold,
        outputs=EVERYTHING,
        upsampling=Upsampling.DIRECT if direct else Upsampling.EXACT,
    )[0]
    assert result.mask is not None
    reference = probabilities(logits, height, width, 4 * quarter, direct)
    assert disagreements(result.mask, reference, threshold) == 0
    assert result.probabilities is not None
    np.testing.assert_array_equal(result.mask, result.probabilities > np.float32(threshold))
    np.testing.assert_array_equal(result.packed, np.packbits(result.mask, axis=1))
    assert result.area == np.count_nonzero(result.mask)
    assert result.box == masks.box(result.mask)
    assert result.counts == coco_counts(result.mask)


@pytest.mark.parametrize("threshold", [0.0, 1e-6, 0.5, 1 - 1e-6, 1.0])
def test_thresholds_to_the_ends(simd: str, threshold: float) -> None:
    logits = random_logits(3, 104, 104) * 3
    reference = probabilities(logits, 200, 300, 416)
    mask = mask_from_logits(logits, 200, 300, 416, threshold)
    assert disagreements(mask, reference, threshold) == 0


def test_threshold_is_strict() -> None:
    # All logits 0: every probability inside is exactly 0.5, whatever the weights' rounding.
    logits = np.zeros((104, 104), np.float32)
    result = upsample_masks(logits[None], [(416, 416)], 416, 0.5, outputs=EVERYTHING)[0]
    assert result.probabilities is not None
    np.testing.assert_array_equal(result.mask, result.probabilities > 0.5)
    assert mask_from_logits(logits, 416, 416, 416, 0.499)[200, 200]
    assert not mask_from_logits(logits, 416, 416, 416, 0.501)[200, 200]


@pytest.mark.parametrize("half", [False, True])
def test_not_finite_logits(simd: str, half: bool) -> None:
    logits = random_logits(4, 104, 104)
    logits[10:14, 20:25] = np.nan
    logits[30:40, 30:40] = np.inf
    logits[60:70, 60:70] = -np.inf
    logits[0, 0] = np.nan
    logits = logits.astype(np.float16) if half else logits
    result = upsample_masks(logits[None], [(300, 400)], 416, 0.35, outputs=EVERYTHING)[0]
    assert result.probabilities is not None
    assert result.mask is not None
    assert np.isfinite(result.probabilities).all()
    assert disagreements(result.mask, probabilities(logits, 300, 400, 416), 0.35) == 0


@pytest.mark.parametrize(("value", "inside"), [(np.nan, 0), (-np.inf, 0), (np.inf, 1)])
def test_all_logits_not_finite(value: float, inside: float) -> None:
    logits = np.full((1, 104, 104), value, np.float32)
    result = upsample_masks(logits, [(400, 400)], 416, 0.35, outputs=EVERYTHING)[0]
    assert result.probabilities is not None
    np.testing.assert_allclose(result.probabilities[10:-10, 10:-10], inside, atol=1e-6)
    assert result.area == (160000 if inside else 0)
    assert result.box == ((0, 0, 400, 400) if inside else None)


def test_half_is_read_exactly() -> None:
    # Every half there is, subnormals and NaN payloads included.
    logits = np.arange(65536, dtype=np.uint16).view(np.float16).reshape(1, 256, 256)
    with np.errstate(invalid="ignore"):
        single = logits.astype(np.float32)
    results = [
        upsample_masks(x, [(300, 500)], 1024, 0.5, outputs=EVERYTHING)[0] for x in (logits, single)
    ]
    assert results[0].probabilities is not None
    assert results[1].probabilities is not None
    np.testing.assert_array_equal(results[0].probabilities, results[1].probabilities)


def test_instruction_sets_with_fused_multiply_add_agree_bit_for_bit() -> None:
    names = [name for name in instruction_sets() if name != "portable"]
    if len(names) < 2:
        pytest.skip("this machine has only one of them")
    logits = random_logits(6, 2, 104, 104)
    best = kernels.simd()
    found = []
    for name in names:
        kernels.select_simd(name)
        found.append(upsample_masks(logits, [(333, 77), (20, 900)], 416, 0.35, outputs=EVERYTHING))
    kernels.select_simd(best)
    for first, second in zip(*found, strict=True):
        np.testing.assert_array_equal(first.probabilities, second.probabilities)
        assert first.counts == second.counts


def test_blocks_decided_by_their_bounds_equal_computed_ones() -> None:
    # With probabilities asked for, every pixel is computed; without, blocks may be skipped.
    for seed in range(6):
        logits = smooth_logits(seed, 1, 104, 104)
        # A flat region a hair above the threshold is where a careless bound would fail.
        logits[0, 20:60, 20:60] = np.log(0.35 / 0.65) + 2e-6 * (seed - 3)
        skipped, computed = (
            upsample_masks(logits, [(600, 800)], 416, 0.35, outputs=outputs)[0]
            for outputs in (Output.MASK, Output.MASK | Output.PROBABILITIES)
        )
        np.testing.assert_array_equal(skipped.mask, computed.mask)


def test_batch_equals_single_items() -> None:
    sizes = [(480, 640), (1, 1), (300, 31), (480, 640), (65, 129)]
    thresholds = [0.35, 0.1, 0.9, 0.6, 0.35]
    logits = random_logits(7, 5, 104, 104)
    batch = upsample_masks(logits, sizes, 416, thresholds, outputs=EVERYTHING)
    for index, size in enumerate(sizes):
        (alone,) = upsample_masks(
            logits[index : index + 1], [size], 416, thresholds[index], outputs=EVERYTHING
        )
        np.testing.assert_array_equal(batch[index].mask, alone.mask)
        assert batch[index].counts == alone.counts
        assert batch[index].box == alone.box


def test_empty_batch() -> None:
    assert upsample_masks(np.zeros((0, 104, 104), np.float32), [], 416, []) == []


def test_given_output_is_written_whole_and_nothing_else() -> None:
    logits = random_logits(8, 104, 104)
    for height, width in [(70, 65), (33, 63), (64, 64), (5, 127)]:
        # The array lies between two guards; garbage in it must all be replaced.
        memory = np.full(height * width + 128, 0xAA, np.uint8)
        out = memory[64:-64].view(np.bool_).reshape(height, width)
        result = upsample_masks(logits[None], [(height, width)], 416, 0.35, out=[out])[0]
        assert result.mask is not None
        assert np.shares_memory(result.mask, out)
        np.testing.assert_array_equal(out, mask_from_logits(logits, height, width, 416, 0.35))
        assert set(np.unique(memory[64:-64])) <= {0, 1}
        assert (memory[:64] == 0xAA).all()
        assert (memory[-64:] == 0xAA).all()


def test_outputs_not_asked_for_are_none() -> None:
    result = upsample_masks(random_logits(1, 1, 26, 26), [(9, 9)], 104, 0.5, outputs=Output.NONE)[0]
    assert (result.mask, result.packed, result.probabilities, result.counts) == (None,) * 4


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_thread_count_changes_nothing(threads: int) -> None:
    # Large enough that more than one thread is used at all.
    logits = random_logits(9, 3, 104, 104)
    sizes = [(1700, 1900), (31, 500), (500, 31)]
    for one, many in zip(
        upsample_masks(logits, sizes, 416, 0.35, outputs=EVERYTHING, threads=1),
        upsample_masks(logits, sizes, 416, 0.35, outputs=EVERYTHING, threads=threads),
        strict=True,
    ):
        np.testing.assert_array_equal(one.mask, many.mask)
        assert one.counts == many.counts


def test_many_python_threads() -> None:
    logits = random_logits(10, 8, 104, 104)
    sizes = [(100 + 190 * i, 1900 - 80 * i) for i in range(8)]  # some wake the pool, some do not
    expected = [mask_from_logits(logits[i], *sizes[i], 416, 0.35) for i in range(8)]
    start = threading.Barrier(4)

    def work(_: int) -> bool:
        start.wait(timeout=30)
        return all(
            np.array_equal(mask_from_logits(logits[i], *sizes[i], 416, 0.35), expected[i])
            for _ in range(3)
            for i in range(8)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_works_in_a_forked_child() -> None:
    logits = random_logits(11, 104, 104)
    expected = mask_from_logits(logits, 1500, 1700, 416, 0.35)  # the pool's threads exist now
    child = os.fork()
    if child == 0:
        same = np.array_equal(mask_from_logits(logits, 1500, 1700, 416, 0.35), expected)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("density", [0.0, 0.001, 0.5, 1.0])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (129, 131), (64, 64)])
def test_rle_is_pycocotools_string(density: float, height: int, width: int) -> None:
    mask = np.random.default_rng(height * width).random((height, width)) < density
    assert masks.rle(mask) == coco_counts(mask)
    with mock.patch.object(measures, "load_kernels", return_value=None):
        assert masks.rle(mask) == coco_counts(mask)


def test_rle_of_long_runs() -> None:
    # Counts of six and seven characters, negative differences among them.
    mask = np.zeros((5000, 4000), np.bool_)
    mask[:, 1000] = True
    mask[2500:, 3000] = True
    mask[:4999, 3999] = True
    assert masks.rle(mask) == coco_counts(mask)


def test_area_and_box() -> None:
    mask = np.zeros((20, 30), np.bool_)
    assert (masks.area(mask), masks.box(mask)) == (0, None)
    mask[3:7, 5:29] = True
    assert (masks.area(mask), masks.box(mask)) == (96, (5, 3, 29, 7))


@pytest.mark.parametrize("upsampling", Upsampling)
def test_opencv_path_agrees(upsampling: Upsampling) -> None:
    logits = np.stack([smooth_logits(12, 104, 104), random_logits(12, 104, 104)])
    logits[1, 5, 5] = np.nan
    sizes = [(240, 320), (31, 17)]
    fast = upsample_masks(logits, sizes, 416, 0.35, outputs=EVERYTHING, upsampling=upsampling)
    with mock.patch.object(masks, "load_kernels", return_value=None):
        slow = upsample_masks(logits, sizes, 416, 0.35, outputs=EVERYTHING, upsampling=upsampling)
    for one, two in zip(fast, slow, strict=True):
        assert one.mask is not None
        assert two.probabilities is not None
        # OpenCV's float32 coordinates lie up to 3e-5 off at 416, where the slope is up to 1.
        np.testing.assert_allclose(one.probabilities, two.probabilities, rtol=0, atol=4e-5)
        assert (one.mask != two.mask).sum() <= 1
        assert two.counts == coco_counts(two.mask)
        assert two.area == np.count_nonzero(two.mask)
