"""What is installed here, and what it can run on: versions, extras, processors. Imports no library before it is asked to."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from finpercep.errors import ConfigError

DISTRIBUTION = "finpercep"
EXTRAS = {
    "server": "`finpercep serve`",
    "sr": "`upscale`, `finetune`, the packaged SR model",
    "train": "`synth`, `train-rm`, `eval-rm`, `report`, `demo`, pyiqa's metrics",
    "export": "`finpercep export` (ONNX)",
    "cluster": "many machines (Ray)",
    "docs": "`make docs`",
    "dev": "the tests",
}
"""The extras worth naming, and what each is for."""

GIB = 1024.0**3


@dataclass(frozen=True)
class Package:
    """A library that a group of features needs.

    Attributes:
        name: of the distribution.
        required: the versions that will do, as the project states them; empty for any.
        installed: the version here, or None.
        fits: whether it is here in a version that will do.
    """

    name: str
    required: str
    installed: str | None
    fits: bool


@dataclass(frozen=True)
class Extra:
    """A group of optional libraries; ``get`` installs what is ``missing``, None where nothing is."""

    name: str
    purpose: str
    missing: tuple[Package, ...]
    get: str | None


@dataclass(frozen=True)
class Device:
    """Something that networks run on.

    Attributes:
        name: as ``--device`` takes it, or ``mps``.
        description: what it is.
        memory_gib: all of it; None where it cannot be told.
        free_gib: what is free now; None where it cannot be told.
        bf16: whether bfloat16 is computed in hardware; None where it cannot be told.
        usable: whether this program runs on it.
    """

    name: str
    description: str
    memory_gib: float | None
    free_gib: float | None
    bf16: bool | None
    usable: bool


def core_packages() -> tuple[Package, ...]:
    """What every command needs. Raises `ConfigError` when the project itself is not installed, only lying here."""
    return tuple(_requirements(None))


def extras() -> tuple[Extra, ...]:
    """Every extra in `EXTRAS` that the project has, with what it lacks. Raises as `core_packages`."""
    stated = set(_stated().get_all("Provides-Extra") or ())
    found = []
    for name, purpose in EXTRAS.items():
        if name in stated:
            missing = tuple(package for package in _requirements(name) if not package.fits)
            found.append(Extra(name, purpose, missing, f"pip install '{DISTRIBUTION}[{name}]'" if missing else None))
    return tuple(found)


def _stated() -> metadata.PackageMetadata:
    try:
        return metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError as error:
        raise ConfigError(
            "finpercep must be installed, not only lie in a folder: run `make install`, or `pip install -e .` in its folder"
        ) from error


def _requirements(extra: str | None) -> Iterator[Package]:
    """What an extra needs beyond the core, or the core itself (None); extras inside of it are followed."""
    from packaging.requirements import Requirement

    seen: set[str] = set()
    for text in metadata.requires(DISTRIBUTION) or () if _stated() else ():
        requirement = Requirement(text)
        marker = requirement.marker
        if extra is None:
            wanted = marker is None or marker.evaluate({"extra": ""})
        else:
            wanted = marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})
        if not wanted:
            continue
        if requirement.name == DISTRIBUTION:
            found = [package for inner in sorted(requirement.extras) for package in _requirements(inner)]
        else:
            installed = _version(requirement.name)
            fits = installed is not None and requirement.specifier.contains(installed, prereleases=True)
            found = [Package(requirement.name, str(requirement.specifier), installed, fits)]
        for package in found:
            if package.name not in seen:
                seen.add(package.name)
                yield package


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def opencv_fault() -> str | None:
    """Why OpenCV, which pyiqa brings, cannot be used, with the cure; None where it works or is not here."""
    if _version("opencv-python") is None and _version("opencv-python-headless") is None:
        return None
    try:
        importlib.import_module("cv2")
    except ImportError as error:
        return f"OpenCV cannot be imported ({error}): pip install --force-reinstall --no-deps opencv-python-headless"
    return None


def devices() -> tuple[tuple[Device, ...], tuple[str, ...]]:
    """The processors PyTorch sees, and what it says against those that it does not. Imports PyTorch."""
    import torch

    found, remarks = [_cpu()], []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        has_cuda = torch.cuda.is_available()
    if has_cuda:
        found += [_cuda(index) for index in range(torch.cuda.device_count())]
    elif torch.version.cuda is None:
        remarks.append(
            f"this PyTorch ({torch.__version__}) is built without CUDA; with a GPU, install the build for it (pytorch.org)"
        )
    elif Path("/proc/driver/nvidia/version").exists():
        said = " ".join(str(warning.message).split("(")[0].strip() for warning in caught)
        remarks.append(
            f"there is an NVIDIA driver, but PyTorch (for CUDA {torch.version.cuda}) cannot use it"
            f"{': ' + said if said else ''}; update the driver, or see whether this container was given the GPU"
        )
    if torch.backends.mps.is_available():
        memory = torch.mps.recommended_max_memory() / GIB
        found.append(
            Device("mps", "Apple GPU; finpercep does not run on it, only on cpu and cuda", memory, None, None, usable=False)
        )
    return tuple(found), tuple(remarks)


def _cpu() -> Device:
    import torch

    from data_synth.device import computes_bf16

    cores = usable_cores()
    described = f"{cores} of {os.cpu_count()} cores usable, {torch.get_num_threads()} threads"
    total = free = None
    if sys.platform != "win32":
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
        if "SC_AVPHYS_PAGES" in os.sysconf_names:
            free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / GIB
    return Device("cpu", described, total, free, computes_bf16(torch.device("cpu")), usable=True)


def _cuda(index: int) -> Device:
    import torch

    from data_synth.device import computes_bf16

    about = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    bf16 = computes_bf16(torch.device("cuda", index))
    return Device(f"cuda:{index}", f"{about.name}, CUDA {torch.version.cuda}", total / GIB, free / GIB, bf16, usable=True)


def usable_cores(limits: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores this process may use: those it may run on, and not more than a container's quota (``limits``, cgroup 2) gives."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = limits.read_text().split()
        return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores
