"""Real photographs, small: what most tests of `data_synth` run on."""

from __future__ import annotations

import numpy as np
import pytest

from data_synth.photos import Photo


@pytest.fixture(scope="session")
def chelsea():
    """A cat's face, 300×451, uint8."""
    return Photo("sample:chelsea").read()


@pytest.fixture(scope="session")
def china():
    """A temple before a pale sky, 427×640, uint8."""
    return Photo("sample:china.jpg").read()


@pytest.fixture(scope="session")
def crop(china):
    """160×160 of the temple with a strip of sky, float32 in [0, 1]."""
    return np.ascontiguousarray(china[180:340, 200:360]).astype(np.float32) / 255
