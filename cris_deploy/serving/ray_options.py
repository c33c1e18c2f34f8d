"""What the Ray Serve app is asked to do, and what that means for Ray; without importing it."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cris_deploy import arguments, documents
from cris_deploy.bundle.signature import key_text
from cris_deploy.errors import InputError
from cris_deploy.serving.options import ServeOptions

_ROOM: Final = 16
"""Requests beyond those that a replica lets wait: it refuses them itself, with its sentence."""


@dataclass(frozen=True, slots=True)
class RayOptions(ServeOptions):
    """What `serve run` is given as NAME=VALUE, and a config file under `args`.

    Attributes:
        replicas: Copies of the engine; with `most_replicas` the fewest, of which 0 is allowed.
        most_replicas: Up to so many are started as requests wait; None for no autoscaling.
        queue: Requests in hand that each replica should have, in the long run; more start another.
        cpus: Of a replica, for Ray's placement; also its threads if `threads` is not given.
        gpus: Of a replica, for Ray's placement; 0.5 lets two share one.
    """

    replicas: int = 1
    most_replicas: int | None = None
    queue: float = 4.0
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        ServeOptions.__post_init__(self)  # super() does not know a class with slots
        arguments.whole("replicas", self.replicas, 0 if self.most_replicas else 1)
        if self.most_replicas is not None:
            arguments.whole("most_replicas", self.most_replicas, max(1, self.replicas))
        for name, least in (("queue", "above 0"), ("cpus", "above 0"), ("gpus", "0 or more")):
            value = getattr(self, name)
            if not (0 < value < float("inf") or (value == 0 and name == "gpus")):
                raise InputError(f"{name} is {value}: give a number, {least}")


def read_options(args: Mapping[str, Any]) -> RayOptions:
    """Read options; on a command line all values are text. Raises InputError."""
    texts = {"bundle", "manifest_sha256", "require_signature"} | {
        field.name for field in dataclasses.fields(RayOptions) if isinstance(field.default, str)
    }
    given = {
        name: _value(value) if isinstance(value, str) and name not in texts else value
        for name, value in args.items()
    }
    options = documents.convert(RayOptions, given, "arguments of cris_deploy.serving.ray:app")
    threads = max(1, int(options.cpus)) if options.threads is None else options.threads
    # A replica runs in a folder of Ray's.
    bundle = str(Path(options.bundle).absolute())
    key = options.require_signature
    if key is not None:  # its file need not be where replicas are
        key = key_text(key)
    return dataclasses.replace(options, bundle=bundle, threads=threads, require_signature=key)


def deployment_options(options: RayOptions) -> dict[str, Any]:
    """Give Ray's options of the deployment."""
    given: dict[str, Any] = {
        "name": "cris",
        "ray_actor_options": {"num_cpus": options.cpus, "num_gpus": options.gpus},
        # A replica refuses what is too much, with 429. What finds no replica waits at the proxy.
        "max_ongoing_requests": options.waiting + _ROOM,
        "max_queued_requests": options.waiting,
        "health_check_period_s": 10.0,
        "health_check_timeout_s": options.timeout,
        "graceful_shutdown_timeout_s": options.timeout + 1,
    }
    if options.most_replicas is None:
        return given | {"num_replicas": options.replicas}
    return given | {
        "autoscaling_config": {
            "min_replicas": options.replicas,
            "max_replicas": options.most_replicas,
            "target_ongoing_requests": options.queue,
        }
    }


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text  # and `convert` says what was expected
