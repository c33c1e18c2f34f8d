"""What takes minutes here runs in `make platforms` alone."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "platforms" in config.option.markexpr:
        return
    for item in items:
        if item.get_closest_marker("platforms"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: make platforms"))
