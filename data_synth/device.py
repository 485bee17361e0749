"""Where networks run: ``auto`` is the GPU where there is one."""

from __future__ import annotations

from pathlib import Path

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


def computes_bf16(device: torch.device, processor: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Whether bfloat16 is computed in hardware; None where it cannot be told. Imitated, it is many times slower than float32."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        flags = processor.read_text(errors="replace").split()
    except OSError:
        return None
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", "bf16"))
