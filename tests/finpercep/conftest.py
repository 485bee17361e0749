"""Published weights of every kind of policy, tiny, saved once."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """Name → what `load_policy` takes."""
    from tests.tiny_pipelines import save_pipelines

    return save_pipelines(tmp_path_factory.mktemp("published"))
