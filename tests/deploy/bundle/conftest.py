"""A bundle that a test may change, opened."""

from pathlib import Path

import pytest

from cris_deploy.bundle.reading import Bundle


@pytest.fixture
def bundle(own_bundle: Path) -> Bundle:
    return Bundle.open(own_bundle)
