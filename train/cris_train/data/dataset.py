"""What feeds the model: letterboxed pictures, tokens, and target masks at a quarter of the size."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from open_clip.tokenizer import SimpleTokenizer

from cris_deploy.errors import DataError
from cris_deploy.pixels import image as images
from cris_deploy.words.cleaning import clean
from cris_train.data.augment import Augment, augmented
from cris_train.data.batch import Sample
from cris_train.data.refer import ReferImage, ReferObject
from cris_train.data.strange import with_strange_word
from cris_train.data.target import TargetSampling, mask_target
from cris_train.model import CrisConfig


class ReferData:
    """A split, ready to be drawn from.

    Attributes:
        images: The pictures that have expressions, with these expressions only.
        config: The model that the data is prepared for (input size, word length).
        sampling: How masks become targets.
        cache: Whether pictures and targets are kept, as uint8, once they have been read.
        augment: How much pictures change each time they are read; None for not at all.
        strange_words: Share of expressions with a random word among their own (`strange.py`).
    """

    def __init__(
        self,
        split: Sequence[ReferImage],
        config: CrisConfig,
        *,
        max_words: int | None = None,
        sampling: TargetSampling = TargetSampling.COVERAGE,
        cache: bool = True,
        augment: Augment | None = None,
        strange_words: float = 0.0,
    ) -> None:
        """`max_words` leaves longer expressions out (None keeps all).

        `cache` is for small pictures: 20,000 squares of 160 pixels take 1.5 GB, of 416 pixels 10.

        Raises:
            DataError: nothing is left.
        """
        kept = (_shortened(image, max_words) for image in split)
        self.images = tuple(image for image in kept if image.objects)
        if not self.images:
            raise DataError(f"max_words is {max_words}: no expression is that short")
        self.config = config
        self.cache = cache
        self.sampling = sampling
        self.augment = augment
        self.strange_words = strange_words
        self._tokenizer = SimpleTokenizer()
        self._tokens: dict[str, npt.NDArray[np.int64]] = {}
        self._squares: dict[int, npt.NDArray[np.uint8]] = {}
        self._targets: dict[int, npt.NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self.images)

    def square(self, index: int) -> npt.NDArray[np.uint8]:
        """Letterboxed picture, (S, S, 3) uint8 RGB.

        Raises:
            ImageError: it cannot be read.
            DataError: its size is not the one that its masks have.
        """
        known = self._squares.get(index)
        if known is None:
            known = images.letterbox(read_picture(self.images[index]), self.config.input_size)
            if self.cache:
                self._squares[index] = known
        return known

    def tokens(self, expression: str) -> npt.NDArray[np.int64]:
        """CLIP's tokens, (L,) int64: start 49406, end 49407, padding 0.

        Too long: cut, and the last token becomes the end token, as the reference does.
        """
        known = self._tokens.get(expression)
        if known is None:
            length, tokenizer = self.config.word_len, self._tokenizer
            body = tokenizer.encode(clean(expression))[: length - 2]
            known = np.zeros(length, np.int64)
            known[: len(body) + 2] = [tokenizer.sot_token_id, *body, tokenizer.eot_token_id]
            self._tokens[expression] = known
        return known

    def target(self, image: ReferImage, item: ReferObject) -> npt.NDArray[np.uint8]:
        """Target mask of an object, (S/4, S/4) uint8, 255 is one.

        Raises:
            DataError: its mask is empty, of another size, or unreadable.
        """
        known = self._targets.get(item.ref_id)
        if known is None:
            soft = mask_target(image.mask(item), self.config.input_size, self.sampling)
            known = np.rint(soft * 255).astype(np.uint8)
            if self.cache:
                self._targets[item.ref_id] = known
        return known

    def sample(
        self,
        index: int,
        said: Sequence[tuple[int, int]],
        rng: np.random.Generator | None = None,
    ) -> Sample:
        """Picture `index` with k of its expressions.

        Args:
            index: Of `images`.
            said: (object of the picture, expression of that object), k times.
            rng: What `augment` and `strange_words` draw from; None leaves all as it is.

        Raises:
            ImageError: the picture cannot be read.
            DataError: its size is another one, or a mask is unusable.
        """
        image = self.images[index]
        items = [image.objects[which] for which, _ in said]
        words = [item.expressions[number] for item, (_, number) in zip(items, said, strict=True)]
        if self.augment is not None and rng is not None:
            changed = augmented(
                read_picture(image),
                [image.mask(item) for item in items],
                words,
                size=self.config.input_size,
                sampling=self.sampling,
                augment=self.augment,
                rng=rng,
            )
            bytes_ = np.rint(changed.targets * 255).astype(np.uint8)
            tokens = self._said(changed.said, rng)
            return Sample(changed.square, tokens, bytes_, image.path.name)
        tokens = self._said(words, rng)
        targets = [self.target(image, item) for item in items]
        return Sample(self.square(index), tokens, np.stack(targets), image.path.name)

    def _said(
        self, expressions: Sequence[str], rng: np.random.Generator | None
    ) -> npt.NDArray[np.int64]:
        rows = [self.tokens(one) for one in expressions]
        if rng is not None and self.strange_words:
            drawn = rng.random(len(rows)) < self.strange_words
            rows = [
                with_strange_word(row, rng) if strange else row
                for row, strange in zip(rows, drawn, strict=True)
            ]
        return np.stack(rows)


def read_picture(image: ReferImage) -> npt.NDArray[np.uint8]:
    """Decode a picture: (H, W, 3) uint8 RGB.

    Raises:
        ImageError: it cannot be read.
        DataError: its size is not the one that its masks have.
    """
    picture = images.decode(image.path)
    if picture.shape[:2] != (image.height, image.width):
        raise DataError(
            f"{image.path} is {picture.shape[1]}x{picture.shape[0]}, its masks are "
            f"{image.width}x{image.height}: fetch the picture again, or mend the masks"
        )
    return picture


def _shortened(image: ReferImage, max_words: int | None) -> ReferImage:
    if max_words is None:
        return image
    objects = []
    for item in image.objects:
        pairs = zip(item.expressions, item.sentence_ids, strict=True)
        short = [pair for pair in pairs if len(pair[0].split()) <= max_words]
        if short:
            said, numbers = zip(*short, strict=True)
            objects.append(dataclasses.replace(item, expressions=said, sentence_ids=numbers))
    return dataclasses.replace(image, objects=tuple(objects))
