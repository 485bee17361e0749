"""Where SR networks run: `auto` is the GPU where there is one."""

from __future__ import annotations

import torch

from data_synth.sr_models.protocol import SRModelError


def sr_device(name: str) -> torch.device:
    """The device that ``name`` (``auto``, ``cpu``, ``cuda``, ``cuda:1``, …) means.

    Raises:
        SRModelError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SRModelError(f"the device must be auto, cpu or cuda[:i], got {name!r}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SRModelError(f"device {name}: this machine has {torch.cuda.device_count()} CUDA devices; try auto")
    return device
