"""The engine on a small hand-built bundle: the full graph's logits and masks on every way."""

import warnings

import cv2
import numpy as np
import pytest

from cris_deploy import TruncationWarning
from cris_deploy.bundle.reading import GraphName
from cris_deploy.errors import ExpressionError
from tests.helpers.engines import TOLERANCE, check, count


def test_one_image_one_expression(engine, images, reference):
    for image in images:
        check(engine.segment(image, "a cat"), image, "a cat", reference)


def test_the_bundle_tells_expressions_and_images_apart(reference, images):
    # Otherwise the comparisons of this file would prove nothing.
    logits = [reference(i, e)[0] for i in images[:3] for e in ("a cat", "dog")]
    for first in range(len(logits)):
        for second in range(first):
            assert np.abs(logits[first] - logits[second]).max() > 100 * TOLERANCE


@pytest.mark.parametrize("count", [0, 1, 2, 8, 9, 20])
def test_many_expressions(engine, images, reference, count):
    expressions = [f"n{index % 13}" for index in range(count)]  # some are repeated
    results = engine.segment(images[0], expressions)
    assert isinstance(results, list)
    assert len(results) == count
    for result, expression in zip(results, expressions, strict=True):
        check(result, images[0], expression, reference)
    assert len(engine.segment(images[0], tuple(expressions))) == count


def test_scene(engine, images, reference):
    scene = engine.encode_image(images[1])
    assert (scene.height, scene.width) == (90, 40)
    check(scene.segment("dog"), images[1], "dog", reference)
    for result, expression in zip(scene.segment(["x", "y"]), "xy", strict=True):
        check(result, images[1], expression, reference)


def test_files_bytes_and_pil(engine, images, tmp_path):
    from PIL import Image

    path = tmp_path / "x.png"
    cv2.imwrite(str(path), images[0][:, :, ::-1])
    expected = engine.segment(images[0], "a cat").logits
    for source in (path, str(path), path.read_bytes(), Image.fromarray(images[0])):
        np.testing.assert_array_equal(engine.segment(source, "a cat").logits, expected)


def test_cut_expressions_say_so_once(engine, images):
    long = "far too long"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert engine.segment(images[0], long).truncated
        results = engine.segment(images[0], ["a", long, "one two three"])
    assert [result.truncated for result in results] == [False, True, True]
    assert [w.category for w in caught] == [TruncationWarning] * 2
    assert "far too long" in str(caught[0].message)


@pytest.mark.parametrize(
    "call",
    [
        lambda engine, image: engine.segment(image, "one two three"),
        lambda engine, image: engine.segment(image, ["a", "one two three"]),
        lambda engine, image: engine.encode_image(image).segment("one two three"),
        lambda engine, image: list(engine.stream([(image, "one two three")])),
        lambda engine, image: list(engine.stream([(image, "one two three")], on_error="yield")),
    ],
)
def test_a_warning_points_at_the_line_of_the_caller(engine, images, call):
    with pytest.warns(TruncationWarning) as caught:
        call(engine, images[0])
    (warning,) = caught
    assert (warning.filename, warning.lineno) == (__file__, call.__code__.co_firstlineno)


@pytest.mark.parametrize("wrong", ["", " \n", None, 5, b"cat", ["a", ""], ["a", None], {"a"}])
def test_unusable_expressions(engine, images, wrong):
    graphs = count(engine)
    with pytest.raises(ExpressionError, match="expression"):
        engine.segment(images[0], wrong)
    with pytest.raises(ExpressionError, match="expression"):
        engine.encode_image(images[0]).segment(wrong)
    assert graphs[GraphName.MASK_DECODER].runs == 0


def test_unusual_characters(engine, images):
    for text in ("🧑‍🚀", "שמאל", "a\x00b\x07", "\u202eabc", "&lt;", "!!!", "<end_of_text>"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)
            assert engine.segment(images[0], text).expression == text
