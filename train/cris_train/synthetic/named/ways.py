"""The ways in which something is said: of where, of how large, of which; a draw takes one."""

from __future__ import annotations

from typing import Final

from cris_train.synthetic.named.meaning import Side

THINGS: Final = ("thing", "object", "one", "item")
COLOURS: Final = {"grey": ("grey", "gray"), "purple": ("purple", "purple", "violet")}
OF_COLOUR: Final = ("that is", "that's", "which is", "in", "that looks")
NOT: Final = ("that is not", "that isn't", "which is not", "that's not", "which isn't")
EXCEPT: Final = ("other than", "except", "except for", "but not", "apart from")
SMALL: Final = ("small", "little", "smaller", "tiny", "mini", "littler", "small sized")
BIG: Final = ("big", "large", "bigger", "larger", "huge", "giant", "great big", "enormous")
ORDINALS: Final = (("first", "1st"), ("second", "2nd"), ("third", "3rd"), ("fourth", "4th"))
NUMBERS: Final = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven"}
WHICH_IS: Final = ("that is", "that's", "which is", "located", "standing", "placed", "sitting")

_SIDEWAYS: Final = (
    *("on the {}", "on the {} side", "at the {}", "on the {} hand side", "to the {}"),
    *("over on the {}", "towards the {}", "in the {} half", "on the {} of the picture"),
    *("on the {} side of the image", "{} hand side"),
)
_CORNERS: Final = (  # "top", "upper", "left", "up"
    *("at the {0} {2}", "in the {0} {2} corner", "{0} {2}", "in the {1} {2}"),
    *("in the {1} {2} corner", "{3} on the {2}", "{1} {2} corner", "{0} {2} corner"),
    *("in the {0} {2}", "{3} in the {2} corner", "in the {2} {1} corner", "{3} to the {2}"),
)
_LEFT_RIGHT: Final = ((-1, "left"), (1, "right"))
_TOP_BOTTOM: Final = ((-1, "top", "upper", "up"), (1, "bottom", "lower", "down"))
PLACES: Final[dict[tuple[int | None, int | None], tuple[str, ...]]] = {
    **{(x, None): tuple(way.format(side) for way in _SIDEWAYS) for x, side in _LEFT_RIGHT},
    (None, -1): (
        *("at the top", "on top", "in the upper part", "up top", "near the top", "high up"),
        *("towards the top", "in the top half", "in the upper half", "at the top of the picture"),
        *("up there", "up high"),
    ),
    (None, 1): (
        *("at the bottom", "in the lower part", "down low", "near the bottom", "low down"),
        *("towards the bottom", "in the bottom half", "in the lower half", "down there"),
        *("at the bottom of the picture", "down below"),
    ),
    (0, 0): (
        *("in the middle", "in the centre", "in the center", "at the center", "near the middle"),
        *("right in the middle", "in the middle of the picture", "in the center of the image"),
        *("around the middle", "in the central part"),
    ),
    **{
        (x, y): tuple(way.format(end, other, side, up) for way in _CORNERS)
        for x, side in _LEFT_RIGHT
        for y, end, other, up in _TOP_BOTTOM
    },
}
"""(across, down) of a `Place` -> what follows a noun."""
BEFORE_NOUN: Final[dict[tuple[int | None, int | None], tuple[str, ...]]] = {
    **{(x, None): (side, side, f"{side} hand") for x, side in _LEFT_RIGHT},
    **{(None, y): (end, end, other) for y, end, other, _ in _TOP_BOTTOM},
    (0, 0): ("middle", "middle", "center", "central"),
    **{
        (x, y): (f"{end} {side}", f"{other} {side}")
        for x, side in _LEFT_RIGHT
        for y, end, other, _ in _TOP_BOTTOM
    },
}
EXTREMES: Final = {
    **{
        ("x", place): (
            (f"{side}most", f"far {side}", f"{side} most", f"most {side}"),
            (
                *(f"furthest {side}", f"farthest to the {side}", f"at the far {side}"),
                f"closest to the {side} edge",
            ),
        )
        for place, side in ((0, "left"), (-1, "right"))
    },
    ("y", 0): (
        ("topmost", "highest", "uppermost", "top most"),
        ("nearest the top", "closest to the top", "highest up", "at the very top"),
    ),
    ("y", -1): (
        ("bottommost", "lowest", "bottom most", "lowermost"),
        ("nearest the bottom", "closest to the bottom", "lowest down", "at the very bottom"),
    ),
    ("size", 0): (
        ("smallest", "tiniest", "littlest"),
        ("that is the smallest", "that looks smallest", "with the smallest size"),
    ),
    ("size", -1): (
        ("largest", "biggest", "largest", "biggest", "hugest"),
        ("that is the biggest", "that is the largest", "that looks biggest"),
    ),
}
"""(axis, place) of a `Rank` -> what stands before the noun, and after it."""
_BESIDE_OF: Final = ("{} of", "to the {} of", "on the {} of", "on the {} side of", "{} from")
SIDES: Final = {
    **{Side(side): tuple(way.format(side) for way in _BESIDE_OF) for _, side in _LEFT_RIGHT},
    Side.ABOVE: ("above", "over", "higher than", "up above", "higher up than", "further up than"),
    Side.BELOW: ("below", "under", "beneath", "lower than", "underneath", "further down than"),
    Side.BESIDE: (
        *("next to", "beside", "right next to", "close to", "near", "by", "adjacent to"),
        "alongside",
    ),
    Side.BEFORE: (
        *("in front of", "covering", "partly hiding", "blocking", "obscuring"),
        "partially covering",
    ),
    Side.BEHIND: (
        *("behind", "partly hidden by", "in back of", "partly covered by"),
        *("partially hidden by", "half hidden by", "partially behind"),
    ),
}
NEAREST: Final = ("closest to", "nearest to", "nearest")
FARTHEST: Final = ("farthest from", "furthest from", "farthest away from", "most distant from")

OPENINGS: Final = (
    *("find the", "show me the", "select the", "where is the", "mark the", "i mean the"),
    *("please find the", "can you find the", "look for the", "pick the", "point to the"),
    *("highlight the", "give me the", "i want the", "click on the", "find me the", "spot the"),
    *("could you select the", "segment the", "choose the", "where's the", "look at the"),
    *("it is the", "it's the", "that would be the", "i am looking for the", "see the"),
)
ENDINGS: Final = (
    *("please", "in the picture", "in this picture", "in the image", "in the photo", "here"),
    *("in this scene", "thanks"),
)
NO_ARTICLE: Final = (
    *("on ", "in ", "at ", "of the ", "out of ", "among ", "over ", "to ", "towards ", "near "),
    *("right in ", "around ", "up ", "down "),
)
"""How a sentence begins that no article and no opening goes before."""
