"""A request's body becomes an image, or the name of one, and expressions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import UploadFile
from starlette.requests import Request

from cris_deploy import documents
from cris_deploy.errors import InputError
from cris_deploy.serving.answers import Form, Refused
from cris_deploy.serving.options import ServeOptions

_FIELDS: Final = ("image", "image_id", "expression", "format")
_READABLE: Final = (
    "send multipart/form-data with the parts image and expression, an image by itself (image/jpeg, "
    "image/png, ...) with ?expression=, or application/json with image_id and expressions"
)


@dataclass(frozen=True, slots=True)
class Upload:
    """What was asked: the bytes of an image file or the id of one sent before, and expressions."""

    image: bytes | None
    image_id: str | None
    expressions: tuple[str, ...]
    form: Form


@dataclass(frozen=True, slots=True)
class _Again:
    """The JSON of a request without an image."""

    image_id: str
    expressions: tuple[str, ...]
    format: Form = Form.JSON


async def read_upload(request: Request, options: ServeOptions) -> Upload:
    """Read a request to /v1/segment.

    Raises Refused: 415 for another kind of body, 422 for what is missing or too much in it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    query = request.query_params
    if kind == "multipart/form-data":
        form = await request.form(
            max_files=1,
            max_fields=options.max_expressions + len(_FIELDS),
            max_part_size=4 * options.max_characters,
        )
        image = form.get("image")
        if isinstance(image, str):
            raise Refused(422, "the part image is text: send a file")
        upload = Upload(
            await image.read() if isinstance(image, UploadFile) else None,
            _text(form.get("image_id")),
            tuple(part for part in form.getlist("expression") if isinstance(part, str)),
            _form(_text(form.get("format")) or query.get("format"), request),
        )
    elif kind.startswith("image/") or kind == "application/octet-stream":
        expressions = tuple(query.getlist("expression"))
        upload = Upload(
            await request.body(), None, expressions, _form(query.get("format"), request)
        )
    elif kind == "application/json":
        try:
            again = documents.read(
                _Again, await request.body(), "the request", error=InputError, known_only=True
            )
        except InputError as error:
            raise Refused(422, str(error)) from None
        upload = Upload(None, again.image_id, again.expressions, again.format)
    else:
        raise Refused(415, f"the body is {kind or 'of no stated type'}: {_READABLE}")
    if (upload.image is None) == (upload.image_id is None):
        raise Refused(422, "give an image, or the image_id of one that was sent before")
    check_expressions(upload.expressions, options)
    if upload.form is Form.PNG and len(upload.expressions) > 1:
        raise Refused(422, "format=png holds one mask: give one expression, or format=zip")
    return upload


def check_expressions(expressions: Sequence[str], options: ServeOptions) -> None:
    """Refuse none, too many, and those that are too long."""
    if not 1 <= len(expressions) <= options.max_expressions:
        raise Refused(
            422, f"{len(expressions)} expressions are given: give 1 to {options.max_expressions}"
        )
    longest = max(map(len, expressions))
    if longest > options.max_characters:
        raise Refused(
            422,
            f"an expression has {longest:,} characters: give at most {options.max_characters:,}",
        )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _form(asked: str | None, request: Request) -> Form:
    if asked is None:
        accepted = request.headers.get("accept", "")
        return Form.PNG if accepted.startswith("image/png") else Form.JSON
    try:
        return Form(asked)
    except ValueError:
        raise Refused(422, f"format is {asked[:40]!r}: give {', '.join(Form)}") from None
