"""Processes that train together share a batch evenly, or say why not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finpercep.batch_share import share_of
from finpercep.errors import ConfigError


@given(each=st.integers(1, 20), size=st.integers(1, 20))
def test_every_place_is_in_one_share_in_order(each, size):
    shares = [share_of(each * size, rank=rank, size=size) for rank in range(size)]
    assert [place for share in shares for place in share] == list(range(each * size))
    assert {len(share) for share in shares} == {each}


@pytest.mark.parametrize("batch_size", [0, 2, 4])
def test_a_batch_that_does_not_divide_is_refused(batch_size):
    with pytest.raises(ConfigError, match=f"multiple of the number of processes, 3, got {batch_size}"):
        share_of(batch_size, rank=1, size=3)
