"""`serve run cris_deploy.serving.ray:app bundle=scenes.bundle`: cris-serve as a Ray Serve app.

A replica is what a worker of cris-serve is: the same routes, the same batcher, the same refusals.
Ray decides how many there are, where they run, and which of them a request goes to. Needs the extra
`ray`; nothing in the package imports this module. `docs/ray.md` is its manual.
"""

import os
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve

from cris_deploy.serving.app import create_app
from cris_deploy.serving.options import TOKEN_VARIABLE
from cris_deploy.serving.ray_options import RayOptions, deployment_options, read_options
from cris_deploy.serving.service import Service


class Replica:
    """What Ray starts: the application of cris-serve, and a health check that infers."""

    def __init__(self, options: RayOptions) -> None:
        self._options = options
        self._service: Service | None = None

    async def __serve_build_asgi_app__(self) -> FastAPI:  # Ray asks for it after __init__
        """Make the application; Ray then waits for its start, which loads the bundle."""
        # The token stands in the environment: what is bound to an app is shown on the dashboard.
        token = os.environ.get(TOKEN_VARIABLE) or None
        application = create_app(self._options, token, tells_id=False)  # Ray's proxy does
        self._service = application.state.service
        return application

    async def check_health(self) -> None:
        """Segment a picture whose mask is known. Raises what says that this replica is lost."""
        if self._service is not None:
            await self._service.infers()


def app(args: Mapping[str, Any]) -> serve.Application:
    """Build the application from the names and values of `RayOptions`; `bundle` has to be given.

    Raises InputError for names and values that there are not, BundleError for a path without a
    bundle.
    """
    options = read_options(args)
    options.open_bundle(verify=False)  # a wrong path is said here, once
    replica = serve.deployment(serve.ingress()(Replica)).options(**deployment_options(options))
    return replica.bind(options)
