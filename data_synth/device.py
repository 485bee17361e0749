"""Where networks run: ``auto`` is the GPU where there is one."""

from __future__ import annotations

import torch

from data_synth.schema.errors import FinpercepError


class DeviceError(FinpercepError):
    """A device that this machine does not have."""


def resolve_device(name: str) -> torch.device:
    """The device that ``name`` (``auto``, ``cpu``, ``cuda``, ``cuda:1``, …) means.

    Raises:
        DeviceError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"the device must be auto, cpu or cuda[:i], got {name!r}") from error
    if device.type not in {"cpu", "cuda"}:
        raise DeviceError(f"the device must be auto, cpu or cuda[:i], got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device {name}: this machine has {torch.cuda.device_count()} CUDA devices; try auto")
    return device


def device_mark(device: torch.device) -> str:
    """What a model's version ends in: nothing on a CPU, ``+cuda`` on a GPU, which rounds differently."""
    return "" if device.type == "cpu" else f"+{device.type}"
