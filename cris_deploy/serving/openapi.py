"""What the OpenAPI document says of /v1/segment, whose body is read by hand to bound it."""

from typing import Any, Final

_IMAGE_ID: Final = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_FORMAT: Final = {
    "name": "format",
    "in": "query",
    "schema": {"type": "string", "enum": ["json", "png", "zip"], "default": "json"},
    "description": "png: the one mask, 0 and 255; zip: 1.png, 2.png, ...",
}
_PROBLEM: Final = {
    "type": "object",
    "required": ["error", "request_id"],
    "properties": {"error": {"type": "string"}, "request_id": {"type": "string"}},
}
_REFUSALS: Final = {
    "401": "no token",
    "403": "another token",
    "404": "the image is not known any more",
    "408": "the request did not arrive in time",
    "413": "the body is too long",
    "415": "a body of another kind",
    "422": "the image or an expression is unusable",
    "429": "too many requests wait",
    "503": "not ready",
    "504": "not answered in time",
}
_RESULT: Final = {
    "type": "object",
    "properties": {
        "expression": {"type": "string"},
        "rle": {
            "type": "object",
            "description": "COCO's compressed run lengths, as pycocotools reads them",
            "properties": {
                "size": {"type": "array", "items": {"type": "integer"}, "description": "H, W"},
                "counts": {"type": "string"},
            },
        },
        "box": {
            "type": "array",
            "nullable": True,
            "items": {"type": "integer"},
            "description": "x0, y0, x1, y1 in pixels, x1 and y1 exclusive; null if it is empty",
        },
        "area": {"type": "integer", "description": "pixels"},
        "score": {"type": "number", "description": "highest probability of any pixel"},
        "truncated": {"type": "boolean", "description": "the model saw only the beginning"},
    },
}
SEGMENT: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": "expression",
            "in": "query",
            "schema": {"type": "array", "items": {"type": "string"}},
            "description": "with an image as the whole body; may be repeated",
        },
        _FORMAT,
    ],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["expression"],
                    "properties": {
                        "image": {"type": "string", "format": "binary"},
                        "image_id": {"type": "string"},
                        "expression": {"type": "array", "items": {"type": "string"}},
                        "format": _FORMAT["schema"],
                    },
                },
                "example": {"expression": ["the man in red", "the dog on the left"]},
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["image_id", "expressions"],
                    "properties": {
                        "image_id": {"type": "string"},
                        "expressions": {"type": "array", "items": {"type": "string"}},
                        "format": _FORMAT["schema"],
                    },
                },
                "example": {"image_id": _IMAGE_ID, "expressions": ["the cup"]},
            },
        },
    },
    "responses": {
        "200": {
            "description": "masks, in the order of the expressions",
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "properties": {
                            "image": {
                                "type": "object",
                                "properties": {
                                    "id": {"type": "string", "description": "to ask again"},
                                    "width": {"type": "integer"},
                                    "height": {"type": "integer"},
                                    "kept_seconds": {"type": "number"},
                                },
                            },
                            "results": {"type": "array", "items": _RESULT},
                        },
                    },
                    "example": {
                        "image": {
                            "id": _IMAGE_ID,
                            "width": 640,
                            "height": 480,
                            "kept_seconds": 300.0,
                        },
                        "results": [
                            {
                                "expression": "the man in red",
                                "rle": {"size": [480, 640], "counts": "Xnc23k>2N1O"},
                                "box": [12, 30, 200, 310],
                                "area": 20417,
                                "score": 0.984213,
                                "truncated": False,
                            }
                        ],
                    },
                },
                "image/png": {"schema": {"type": "string", "format": "binary"}},
                "application/zip": {"schema": {"type": "string", "format": "binary"}},
            },
        },
        **{
            status: {
                "description": meaning,
                "content": {"application/json": {"schema": _PROBLEM}},
            }
            for status, meaning in _REFUSALS.items()
        },
    },
}
