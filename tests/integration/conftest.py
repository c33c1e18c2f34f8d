"""Fixtures of the tests that export and train."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _models_are_traced_once(traced_once: None) -> None:
    """Of more than twenty exports of small models, most are of the same few."""
