"""Feature networks from timm, by name and optionally by file: loaded once a process, identified by a digest of their weights."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from data_synth.device import resolve_device
from data_synth.features.dense import DenseFeatures, choose_levels, usable_shifts
from data_synth.features.protocol import GroundTruthError
from data_synth.library_errors import first_line

DINOV3_SIZES = ("small", "small_plus", "base", "large", "huge_plus", "7b")
"""Ordered by size; the first is the default."""

_HEADS = ("head.", "head_dist.", "fc.", "fc_norm.", "norm_head.", "classifier.", "attn_pool.")  # what dense features do without


@dataclass(frozen=True)
class FeatureSource:
    """A timm architecture, and the file its weights come from; None: the hub, or its local cache."""

    architecture: str
    file: str | None


@dataclass(frozen=True)
class _Loaded:
    network: Any
    version: str


def parse_source(name: str) -> FeatureSource:
    """Parse ``dinov3[:SIZE][@FILE]`` or ``timm:MODEL[@FILE]``; FILE is a .safetensors file or a folder with model.safetensors.

    Raises:
        GroundTruthError: it is neither, or timm knows no such model.
    """
    import timm

    head, _, file = name.partition("@")
    kind, _, detail = head.partition(":")
    if kind == "dinov3" and (detail or DINOV3_SIZES[0]) in DINOV3_SIZES:
        architecture = f"vit_{detail or DINOV3_SIZES[0]}_patch16_dinov3"
    elif kind == "timm" and timm.is_model(detail):
        architecture = detail
    else:
        raise GroundTruthError(
            f"features must be weight-free, auto, dinov3[:{'|'.join(DINOV3_SIZES)}][@FILE] or timm:MODEL[@FILE] with a model of "
            f"timm.list_models(), got {name!r}"
        )
    return FeatureSource(architecture, file or None)


def load_dense(source: FeatureSource, *, shifts: int, device: str) -> DenseFeatures:
    """The extractor of ``source``; its weights are loaded once a process.

    Args:
        source: which network.
        shifts: patch grids along either axis; lowered to a divisor of the patch.
        device: where it runs, or ``auto``.

    Raises:
        GroundTruthError: weights that cannot be had or do not fit, or a network that gives no dense features.
        DeviceError: no such device on this machine.
    """
    device = str(resolve_device(device))
    network = _load(source, device).network
    every = [int(info["reduction"]) for info in network.feature_info]
    levels = choose_levels(every)
    reductions = tuple(every[level] for level in levels)
    settings = network.pretrained_cfg
    return DenseFeatures(
        network=network,
        levels=levels,
        reductions=reductions,
        normed=len(set(every)) == 1,
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        shifts=usable_shifts(shifts, max(reductions)),
        device=device,
    )


def weights_version(source: FeatureSource, device: str) -> str:
    """Digest of the weights of ``source``: the same whether they came from a file or from the hub."""
    return _load(source, str(resolve_device(device))).version


def cached_dinov3() -> str | None:
    """The smallest DINOv3 whose weights lie in the local Hugging Face cache, as a feature name; None when there is none."""
    from huggingface_hub import try_to_load_from_cache
    from timm.models import get_pretrained_cfg

    for size in DINOV3_SIZES:
        settings = get_pretrained_cfg(f"vit_{size}_patch16_dinov3")
        if settings is None or settings.hf_hub_id is None:
            continue  # a timm without weights for this size
        if isinstance(try_to_load_from_cache(settings.hf_hub_id, "model.safetensors"), str):
            return f"dinov3:{size}"
    return None


@cache
def _load(source: FeatureSource, device: str) -> _Loaded:
    network = _from_hub(source.architecture) if source.file is None else _from_file(source.architecture, Path(source.file))
    network = network.eval().requires_grad_(False)
    _check_dense(network, source.architecture)
    version = _digest(network.state_dict())
    return _Loaded(network.to(device), version)


def _check_dense(network: Any, architecture: str) -> None:
    """Whether images of any size come out as tokens, one a patch."""
    every = [int(info["reduction"]) for info in getattr(network, "feature_info", None) or ()]
    if not every or not hasattr(network, "forward_intermediates"):
        raise GroundTruthError(f"features of {architecture}: timm gives no dense features for it; choose another model")
    levels = choose_levels(every)
    patch = max(every[level] for level in levels)
    probe = torch.zeros((1, 3, 3 * patch, 5 * patch))
    try:
        with torch.no_grad():
            tokens = network.forward_intermediates(probe, indices=list(levels), output_fmt="NCHW", intermediates_only=True)
        sizes = [tuple(level.shape[-2:]) for level in tokens]
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:  # models of one image size say so in many ways
        raise GroundTruthError(
            f"features of {architecture}: images of any size are required, but it says: {first_line(error)}; choose another"
        ) from error
    expected = [(3 * patch // every[level], 5 * patch // every[level]) for level in levels]
    if sizes != expected:
        raise GroundTruthError(f"features of {architecture}: tokens {expected} expected, got {sizes}; choose another model")


def _create(architecture: str, *, pretrained: bool) -> Any:
    """The network without a classifier, for images of any size where it can be had so."""
    import timm

    try:
        return timm.create_model(architecture, pretrained=pretrained, num_classes=0, dynamic_img_size=True)
    except TypeError:  # only transformers with a patch grid know the option
        return timm.create_model(architecture, pretrained=pretrained, num_classes=0)


def _from_hub(architecture: str) -> Any:
    try:
        return _create(architecture, pretrained=True)
    except Exception as error:  # the hub, its client and timm raise many unrelated types
        raise GroundTruthError(
            f"the weights of {architecture} could not be had ({first_line(error)}); go online once, give a file "
            f"(timm:{architecture}@FILE.safetensors), or use --features weight-free"
        ) from error


def _from_file(architecture: str, path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = path / "model.safetensors" if path.is_dir() else path
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise GroundTruthError(f"{file}: weights in the safetensors format expected, got {first_line(error)}") from error
    network = _create(architecture, pretrained=False)
    missing = _fill(network, state)
    if missing:
        # a published checkpoint may need the renaming that timm keeps beside each architecture
        rename = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
        missing = _fill(network, rename(state, network)) if rename else missing
    if missing:
        raise GroundTruthError(
            f"{file}: weights of timm's {architecture} expected, but {len(missing)} tensors are missing or of another shape "
            f"({missing[0]}, …); choose the model the file was saved from"
        )
    return network


def _fill(network: Any, state: Mapping[str, torch.Tensor]) -> list[str]:
    """Load ``state`` where it fits; the names that stay unfilled, the classifier's aside."""
    own = network.state_dict()
    fitting = {name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape}
    network.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting and not name.startswith(_HEADS)]


def _digest(state: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
