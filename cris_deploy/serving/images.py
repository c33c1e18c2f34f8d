"""Images that were sent before: letterboxed, by the hash of their bytes, for a while."""

import hashlib
import time
from collections import OrderedDict
from typing import Final

from cris_deploy.execution.steps import Picture


def image_id(data: bytes) -> str:
    """Name an image by its bytes: their SHA-256."""
    return hashlib.sha256(data).hexdigest()


class ImageStore:
    """The images used last, bounded in number and in time. For one thread, that of the event loop.

    An entry takes 3 bytes per pixel of the model's input, 0.5 MB at 416 x 416, whatever the image.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self._most: Final = most
        self._seconds: Final = seconds
        self._pictures: OrderedDict[str, tuple[float, Picture]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pictures)

    def put(self, identity: str, picture: Picture) -> None:
        """Keep a picture; the one unused for longest goes when there are too many."""
        if not self._most:
            return
        self._pictures[identity] = (time.monotonic() + self._seconds, picture)
        self._pictures.move_to_end(identity)
        self._drop()

    def get(self, identity: str) -> Picture | None:
        """Look up a picture, which is then kept for as long again."""
        self._drop()
        entry = self._pictures.get(identity)
        if entry is None:
            return None
        self.put(identity, entry[1])
        return entry[1]

    def _drop(self) -> None:
        now = time.monotonic()
        while self._pictures:
            ends, _ = next(iter(self._pictures.values()))
            if ends > now and len(self._pictures) <= self._most:
                return
            self._pictures.popitem(last=False)
