"""`--device auto|cpu|cuda[:i]` as a torch device."""

from __future__ import annotations

import torch

from finpercep.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """The device that ``name`` means; ``auto`` is CUDA where there is one.

    Raises:
        ConfigError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device must be auto, cpu or cuda[:i], got {name!r}") from error
    if device.type not in {"cpu", "cuda"}:
        raise ConfigError(f"--device must be auto, cpu or cuda[:i], got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; try --device cpu")
    return device
