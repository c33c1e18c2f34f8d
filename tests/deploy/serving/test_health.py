"""What probes ask: not whether a process lives, but whether it still gives the right mask."""

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from cris_deploy.errors import BackendError
from cris_deploy.serving.metrics import Metrics
from cris_deploy.serving.options import ServeOptions
from cris_deploy.serving.service import Service


def test_a_network_that_gives_another_mask_is_not_healthy(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ServeOptions(str(tiny_bundle), backend="onnxruntime", threads=1)

    async def run() -> None:
        service = Service(options, Metrics())
        await service.start()
        try:
            await service.infers()
            decode = service.engine.pipeline.decode_masks

            def wrong(*given: Any) -> Any:
                return [
                    (dataclasses.replace(found, mask=~found.mask), *rest)
                    for found, *rest in decode(*given)
                ]

            monkeypatch.setattr(service.engine.pipeline, "decode_masks", wrong)
            with pytest.raises(BackendError, match="another mask"):
                await service.infers()
        finally:
            await service.stop()

    asyncio.run(run())
