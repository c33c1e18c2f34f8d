"""A second reading of expressions about named scenes: from the text alone, by plain comparisons.

It shares nothing with the generator but the scene's measurements: it reads `names.txt` itself,
knows its own words, names colours by the nearest hue, and knows no doubt: the nearest, the largest
and the one further left win by any margin. What the generator says of a thing must hold here for it
alone.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

import cris_train.synthetic.named
from cris_train.synthetic.named.facts import Facts

HUES = {"red": 0, "orange": 27, "yellow": 54, "green": 120, "blue": 215, "purple": 277, "pink": 316}
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7}
ORDINALS = {
    "first": 1,
    "1st": 1,
    "second": 2,
    "2nd": 2,
    "third": 3,
    "3rd": 3,
    "fourth": 4,
    "4th": 4,
}
COLOURS = [*HUES, "brown", "black", "grey", "white"]
FULL_NOUNS = ("thing", "object", "one", "item")

AXES = {"left": ("x", 1), "right": ("x", -1), "top": ("y", 1), "bottom": ("y", -1)}
EXTREMES = {
    **dict.fromkeys(("leftmost", "far left", "left most", "most left"), ("x", 0)),
    **dict.fromkeys(("furthest left", "farthest to the left", "at the far left"), ("x", 0)),
    **dict.fromkeys(("rightmost", "far right", "right most", "most right"), ("x", -1)),
    **dict.fromkeys(("furthest right", "farthest to the right", "at the far right"), ("x", -1)),
    **{"closest to the left edge": ("x", 0), "closest to the right edge": ("x", -1)},
    **dict.fromkeys(("topmost", "highest", "uppermost", "top most", "highest up"), ("y", 0)),
    **dict.fromkeys(("nearest the top", "closest to the top", "at the very top"), ("y", 0)),
    **dict.fromkeys(("bottommost", "lowest", "bottom most", "lowermost", "lowest down"), ("y", -1)),
    **dict.fromkeys(("nearest the bottom", "closest to the bottom"), ("y", -1)),
    **{"at the very bottom": ("y", -1)},
    **dict.fromkeys(("smallest", "tiniest", "littlest", "that is the smallest"), ("size", 0)),
    **dict.fromkeys(("that looks smallest", "with the smallest size"), ("size", 0)),
    **dict.fromkeys(("largest", "biggest", "hugest", "that is the biggest"), ("size", -1)),
    **dict.fromkeys(("that is the largest", "that looks biggest"), ("size", -1)),
    **dict.fromkeys(("small", "little", "smaller", "tiny", "mini", "littler"), ("size", 0)),
    **dict.fromkeys(("small sized",), ("size", 0)),
    **dict.fromkeys(("big", "large", "bigger", "larger", "huge", "giant"), ("size", -1)),
    **dict.fromkeys(("great big", "enormous"), ("size", -1)),
}
ENDS = {"left": ("x", 0), "right": ("x", -1), "top": ("y", 0), "bottom": ("y", -1), **EXTREMES}
SIDES = {
    "left": ("to the left of", "on the left of", "left of", "on the left side of", "left from"),
    "right": ("to the right of", "on the right of", "right of", "on the right side of",
              "right from"),
    "above": ("above", "over", "higher than", "up above", "higher up than", "further up than"),
    "below": ("below", "under", "beneath", "lower than", "underneath", "further down than"),
    "beside": ("right next to", "next to", "beside", "close to", "near", "by", "adjacent to",
               "alongside"),
    "before": ("in front of", "covering", "partly hiding", "blocking", "obscuring",
               "partially covering"),
    "behind": ("behind", "partly hidden by", "in back of", "partly covered by",
               "partially hidden by", "half hidden by", "partially behind"),
    "near": ("closest to", "nearest to", "nearest"),
    "far": ("farthest from", "furthest from", "farthest away from", "most distant from"),
}  # fmt: skip
_LONGEST_FIRST = sorted((way for ways in SIDES.values() for way in ways), key=len, reverse=True)
SIDE = re.compile(rf" (?:that is |that's |which is )?({'|'.join(_LONGEST_FIRST)}) (?:the )?")
NOT = r"(?:that is not|that isn't|that's not|which is not|which isn't)"
EXCEPT = r"(?:other than|except|except for|but not|apart from)"
HERE = r" (?:please|thanks|here|in (?:the|this) (?:picture|image|photo|scene))$"
OPENINGS = (
    r"^(?:(?:please |can you |could you )?(?:find|select|show|give|mark|pick|highlight|segment"
    r"|choose|see|spot|look for|look at|point to|click on)(?: me)?|where is|where's|i mean|i want"
    r"|it is|it's|that would be|i am looking for) (?=the )"
)
WAYS = {
    **{way: way for way in ("left", "right", "top", "bottom")},
    **{"upper": "top", "up": "top", "high": "top", "lower": "bottom", "down": "bottom"},
    **{"low": "bottom", "below": "bottom", "middle": "middle", "centre": "middle"},
    **{"center": "middle", "central": "middle"},
}
"""Word -> where it says."""
FILLERS = {
    *("at", "the", "in", "on", "over", "towards", "to", "near", "around", "of", "there", "hand"),
    *("side", "half", "part", "corner", "picture", "image"),
}
STANDS = ("that is", "that's", "which is", "located", "standing", "placed", "sitting")


def where(text: str) -> set[str]:
    """Where a phrase says that something is: "upper right", "down in the left corner". Nothing for
    any other phrase."""
    words = text.removeprefix("right in the ").split()
    if any(word not in WAYS and word not in FILLERS for word in words):
        return set()
    return {WAYS[word] for word in words if word in WAYS}


def vocabulary() -> dict[str, set[str]]:
    """Usual name -> words that are true, read from the file by other code than the generator's."""
    words: dict[str, set[str]] = {}
    section: set[str] = set()
    text = (Path(cris_train.synthetic.named.__file__).parent / "names.txt").read_text()
    for line in text.split("\n"):
        if match := re.match(r"\[(.*?)\]", line):
            section = {w.strip() for w in match[1].split(",") if not w.strip().startswith("-")}
        elif match := re.match(r"[0-9a-f -]+ = (.*)", line):
            listed = [w.strip() for w in re.split(r"[,+]", match[1])]
            words[listed[0]] = {*listed, *section}
    return words


@dataclass
class Reader:
    """Reads expressions about one scene; `image` (H, W, 3) RGB and `masks` (n, H, W)."""

    facts: Facts
    image: np.ndarray
    masks: np.ndarray
    words: dict[str, set[str]]

    def __post_init__(self) -> None:
        self.items = self.facts.items
        self.all = list(range(len(self.items)))
        named = nearest_colours(self.image)
        self.colour = [
            {c: float((named[mask] == k).mean()) for k, c in enumerate(COLOURS)}
            for mask in self.masks
        ]

    def understood(self, text: str) -> list[int]:
        """Indices of all things that the sentence could mean."""
        text = re.sub(HERE, "", re.sub(OPENINGS, "", text))
        text = re.sub(r"\bgray\b", "grey", re.sub(r"\bviolet\b", "purple", text))
        text = text.removeprefix("the ")
        if match := re.match(r"(?:of|out of|among) the (\w+) (.+) the (.+) one$", text):
            return self.one_of(match[3], match[1], match[2])
        several = r"(two|three|four|five|six|seven|[2-7])"
        if match := re.match(rf"(.+?)(?: one)?(?: out)? of the {several} (.+)$", text):
            return self.one_of(match[1], match[2], match[3])
        if self.is_noun(text):
            return self.noun(text)
        for noun, said in self.parted(text):
            if self.is_noun(noun):
                return self.at(noun, said)
        for match in SIDE.finditer(text):
            noun, anchor = text[: match.start()], text[match.end() :]
            if self.is_noun(noun) and self.is_noun(anchor):
                return self.beside(noun, match[1], anchor)
        return self.in_order(text)

    def parted(self, text: str) -> list[tuple[str, set[str]]]:
        """Nouns that a place follows, or stands before, the longest first."""
        words, found = text.split(), []
        for k in range(len(words) - 1, 0, -1):
            noun, rest = " ".join(words[:k]), " ".join(words[k:])
            for stands in STANDS:
                noun = noun.removesuffix(f" {stands}")
            found.append((noun, where(rest)))
            if words[k] == "the":
                found.append((" ".join(words[k + 1 :]), where(noun)))
        return [(noun, said) for noun, said in found if said]

    def in_order(self, text: str) -> list[int]:
        number = r"(first|1st|second|2nd|third|3rd|fourth|4th)"
        start = r"(left|right|top|bottom)"
        if match := re.match(rf"{number} from the {start} (.+)$", text):
            return self.nth(match[3], ORDINALS[match[1]], match[2])
        if match := re.match(
            rf"{number} (.+?)(?: counting| starting)? from (?:the )?{start}$", text
        ):
            return self.nth(match[2], ORDINALS[match[1]], match[3])
        if match := re.match(
            rf"(.+) (?:that is|which is|that comes) {number} from the {start}$", text
        ):
            return self.nth(match[1], ORDINALS[match[2]], match[3])
        if match := re.match(rf"(.+) number (\w+) from the {start}$", text):
            return self.nth(match[1], numeral(match[2]), match[3])
        if match := re.match(rf"{number} (smallest|largest|biggest) (.+)$", text):
            order = self.ordered(self.noun(match[3]), "size")
            order = order if match[2] == "smallest" else order[::-1]
            place = ORDINALS[match[1]]
            return order[place - 1 : place]
        for words, (axis, place) in sorted(EXTREMES.items(), key=lambda entry: -len(entry[0])):
            for noun in (text.removeprefix(f"{words} "), text.removesuffix(f" {words}")):
                if noun != text and self.is_noun(noun):
                    order = self.ordered(self.noun(noun), axis)
                    return order[:1] if place == 0 else order[-1:]
        words = text.split()
        for k in range(1, len(words)):
            if (said := where(" ".join(words[:k]))) and self.is_noun(" ".join(words[k:])):
                return self.at(" ".join(words[k:]), said)
        raise AssertionError(f"not understood: {text!r}")

    # Nouns.

    def is_noun(self, text: str) -> bool:
        try:
            self.noun(text)
        except KeyError:
            return False
        return True

    def noun(self, text: str) -> list[int]:
        """Indices of the things a noun phrase fits; KeyError for anything else."""
        match = re.match(rf"(.+) {NOT} (\w+)$", text)
        if match and match[2] in COLOURS:
            return [i for i in self.noun(match[1]) if self.colour[i][match[2]] < 0.25]
        if match := re.match(rf"(.+) (?:{NOT} an?|{EXCEPT} the) (.+)$", text):
            without = self.noun(match[2])
            return [i for i in self.noun(match[1]) if i not in without]
        match = re.match(r"(.+) (?:that is|that's|which is|in|that looks) (\w+)$", text)
        if match and match[2] in COLOURS:
            return self.of_colour(self.noun(match[1]), match[2])
        first, _, rest = re.sub(r"^(\w+) colou?red ", r"\1 ", text).partition(" ")
        if first in COLOURS and rest:
            return self.of_colour(self.noun(rest), first)
        if text in FULL_NOUNS:
            return self.all
        if not any(text in words for words in self.words.values()):
            raise KeyError(text)
        return [i for i in self.all if text in self.words[self.items[i].name]]

    def of_colour(self, among: list[int], colour: str) -> list[int]:
        return [i for i in among if self.colour[i][colour] > 0.3]

    # Qualifiers.

    def one_of(self, which: str, number: str, many: str) -> list[int]:
        found = self.noun(self.singular(many))
        if len(found) != numeral(number):
            return []
        if which == "middle":
            return [self.ordered(found, "x")[len(found) // 2]]
        axis, place = ENDS[which]
        return [self.ordered(found, axis)[place]]

    def singular(self, many: str) -> str:
        irregular = {"mice": "mouse", "geese": "goose", "wolves": "wolf", "knives": "knife"}
        irregular |= {"dice": "die", "leaves": "leaf", "teeth": "tooth", "oxen": "ox"}
        for ending, other in (("", ""), ("s", ""), ("es", ""), ("ies", "y")):
            word = many.removesuffix(ending) + other
            if many.endswith(ending) and word != many + other and self.is_noun(word):
                return word
        head, _, last = many.rpartition(" ")
        return f"{head} {irregular.get(last, last)}".strip()

    def ordered(self, among: list[int], axis: str) -> list[int]:
        return sorted(among, key=lambda i: getattr(self.items[i], axis))

    def nth(self, noun: str, number: int, start: str) -> list[int]:
        axis, way = AXES[start]
        order = self.ordered(self.noun(noun), axis)[::way]
        return order[number - 1 : number]

    def at(self, noun: str, said: set[str]) -> list[int]:
        found = []
        for i in self.noun(noun):
            x, y = self.items[i].x / self.facts.width, self.items[i].y / self.facts.height
            true = {
                **{"left": x < 0.5, "right": x > 0.5},
                **{"top": y < 0.5, "bottom": y > 0.5},
                "middle": 0.27 < x < 0.73 and 0.27 < y < 0.73,
            }
            if all(true[word] for word in said):
                found.append(i)
        return found

    def beside(self, noun: str, side: str, anchor: str) -> list[int]:
        anchors = self.noun(anchor)
        if len(anchors) != 1:
            return []
        at = anchors[0]
        found = [i for i in self.noun(noun) if i != at]
        way = next(name for name, words in SIDES.items() if side in words)
        a = self.items[at]
        if way in ("near", "far"):
            order = sorted(
                found, key=lambda i: (self.items[i].x - a.x) ** 2 + (self.items[i].y - a.y) ** 2
            )
            return order[:1] if way == "near" else order[-1:]
        return [i for i in found if self.is_beside(way, i, at)]

    def is_beside(self, way: str, i: int, at: int) -> bool:
        item, a = self.items[i], self.items[at]
        level = 0.04 * min(self.facts.width, self.facts.height)
        if way == "beside":
            near = 0.16 * min(self.facts.width, self.facts.height)
            grown = cv2.dilate(self.masks[at].astype(np.uint8), np.ones((3, 3), np.uint8),
                               iterations=int(near))  # fmt: skip
            return bool((grown.astype(bool) & boxed(self.masks[i])).any())
        if way in ("before", "behind"):
            # Boxes that do not meet cannot hide each other; which is in front, the order says.
            meet = item.box[0] < a.box[2] and a.box[0] < item.box[2]
            meet &= item.box[1] < a.box[3] and a.box[1] < item.box[3]
            return meet and (i > at if way == "before" else i < at) and at in item.touches
        gain = {"left": a.x - item.x, "right": item.x - a.x, "above": a.y - item.y}
        return bool(gain.get(way, item.y - a.y) > level)


def numeral(text: str) -> int:
    return NUMBERS.get(text) or int(text)


def boxed(mask: np.ndarray) -> np.ndarray:
    y, x = np.nonzero(mask)
    box = np.zeros_like(mask)
    box[y.min() : y.max() + 1, x.min() : x.max() + 1] = True
    return box


def nearest_colours(image: np.ndarray) -> np.ndarray:
    """Index into COLOURS of every pixel: nearest hue where there is one, else by lightness."""
    hls = cv2.cvtColor(image.astype(np.float32) / 255.0, cv2.COLOR_RGB2HLS)
    high, low = image.max(axis=2) / 255.0, image.min(axis=2) / 255.0
    hues = np.array(list(HUES.values()), np.float32)
    apart = np.abs(hls[..., :1] - hues)
    named = np.minimum(apart, 360 - apart).argmin(axis=2)
    warm = np.isin(named, [0, 1, 2])
    pale = warm & (high - low < 0.3 * high)
    named[(named == 0) & (low > 0.42)] = COLOURS.index("pink")
    named[warm & (high < 0.62)] = COLOURS.index("brown")
    named[pale & (high >= 0.62) & (named < 3)] = len(COLOURS)  # cream is no colour word's
    flat = high - low < 0.16 * np.maximum(high, 0.01)
    named[flat & (high >= 0.78)] = COLOURS.index("white")
    named[flat & (high < 0.78)] = COLOURS.index("grey")
    named[high < 0.25] = COLOURS.index("black")
    return named
