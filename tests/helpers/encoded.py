"""Pictures as the bytes of a file, and what OpenCV reads in those."""

import io

import cv2
import numpy as np
from PIL import Image


def save(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def opencv(data: bytes) -> np.ndarray:
    """The reference: cv2.imdecode, colour, then RGB."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]


def encode(picture: np.ndarray, extension: str, *parameters: int) -> bytes:
    return cv2.imencode(extension, picture, parameters)[1].tobytes()
