"""The list of names: whole, no picture twice, and known to Unicode."""

import unicodedata

from cris_train.synthetic.named.names import things

# Names that this Python's Unicode data may be too old for: emoji of Unicode 15.
NEWER = range(0x1FA75, 0x1FAF9)


def test_there_are_enough_names_and_every_picture_has_one() -> None:
    names = [thing.name for thing in things()]
    assert len(names) == len(set(names)) >= 450
    codes = [code for thing in things() for code in thing.codes]
    assert len(codes) == len(set(codes))
    for code in codes:
        points = [int(part, 16) for part in code.split("-") if part != "fe0f"]
        assert len(points) == 1
        assert points[0] in NEWER or unicodedata.name(chr(points[0]))


def test_words_are_plain_and_a_taxi_is_a_car() -> None:
    known = {thing.name: thing for thing in things()}
    assert known["taxi"].words == {"taxi", "cab", "car", "automobile", "vehicle"}
    assert known["taxi"].painted
    assert not known["banana"].painted
    for thing in things():
        assert all(word == word.lower().strip() and word for word in thing.words)
        assert not any(word.startswith("-") for word in thing.words)
