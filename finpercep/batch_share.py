"""Which part of a batch is whose, of processes that train together."""

from __future__ import annotations

from finpercep.errors import ConfigError


def share_of(batch_size: int, *, rank: int, size: int) -> range:
    """The places of a batch that process ``rank`` of ``size`` takes.

    Raises:
        ConfigError: the batch does not divide evenly.
    """
    each, rest = divmod(batch_size, size)
    if rest or not each:
        raise ConfigError(f"batch_size must be a multiple of the number of processes, {size}, got {batch_size}")
    return range(rank * each, (rank + 1) * each)
