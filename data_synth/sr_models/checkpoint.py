"""Any community SR checkpoint as an `SRModel`, through spandrel, which knows the architectures.

Weights only: `.safetensors` holds nothing else, and a pickled file (`.pth`, `.ckpt`, `.pt`) is read with torch's weights-only
unpickler. spandrel's own file loader is not used: its unpickler is stricter about data types, but also runs TorchScript files.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data_synth.device import device_mark, resolve_device
from data_synth.library_errors import first_line
from data_synth.sr_models.protocol import Span, SRCall, SRModelError

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor

PICKLED = frozenset({".pth", ".ckpt", ".pt"})
"""Suffixes of files that may hold more than weights."""


class CheckpointSR:
    """`SRModel` over a network that spandrel recognised. Make it with `load_checkpoint`.

    Attributes:
        module: the network itself; `perturbed.PerturbedSR` breaks it for the length of a call.
    """

    family = "checkpoint"
    settings: Mapping[str, Span] = {}

    def __init__(self, descriptor: ImageModelDescriptor[torch.nn.Module], *, name: str, version: str) -> None:
        self.name, self.version = name, version
        self.scale = descriptor.scale
        self.module = descriptor.model.eval().requires_grad_(False)
        self._descriptor = descriptor

    def covers(self, source_id: str) -> bool:  # noqa: ARG002
        """Any photo."""
        return True

    def __call__(self, lr: torch.Tensor, calls: Sequence[SRCall]) -> torch.Tensor:
        """SR images of ``lr`` (N×3×h×w float32 in [0, 1]) on the CPU; padded by reflection where the network needs other sizes.

        One by one: an output must not depend on which images share its batch.
        """
        if len(calls) != len(lr):
            raise SRModelError(f"SR model {self.name}: expected one call an image, got {len(calls)} for {len(lr)} images")
        height, width = lr.shape[-2:]
        out = torch.empty(len(lr), 3, height * self.scale, width * self.scale)
        for index in range(len(lr)):
            sr = self._descriptor(lr[index : index + 1].to(self._descriptor.device, self._descriptor.dtype))
            if sr.shape[1:] != out.shape[1:]:
                raise SRModelError(
                    f"SR model {self.name}: expected output {tuple(out.shape[1:])} for x{self.scale}, got {tuple(sr.shape[1:])}"
                )
            out[index] = sr[0].float().cpu()
        return out


def load_checkpoint(path: Path, *, name: str | None = None, scale: int | None = None, device: str = "auto") -> CheckpointSR:
    """Load the SR checkpoint at ``path``; its version names the file's content, spandrel's version and a GPU.

    Args:
        path: a `.safetensors` file, or a `.pth`, `.ckpt` or `.pt` file that holds weights alone.
        name: of the model; the file's stem by default.
        scale: the upscaling factor it must have; None accepts any.
        device: ``auto``, ``cpu`` or ``cuda[:i]``.

    Raises:
        SRModelError: no such file, not a file of weights alone, not an architecture spandrel knows, not a super-resolution model
            for RGB images, or of another scale.
        DeviceError: no such device on this machine.
    """
    try:
        import spandrel
    except ImportError as error:
        raise SRModelError("SR checkpoints are read by spandrel: pip install 'finpercep[train]'") from error
    state = _read_weights(path)
    where = resolve_device(device)
    loader = spandrel.ModelLoader(device=where)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)  # SwinIR and its kin
            descriptor = loader.load_from_state_dict(state)
    except spandrel.UnsupportedModelError as error:
        raise SRModelError(
            f"{path}: expected weights of an SR architecture that spandrel {spandrel.__version__} knows, got "
            f"{len(state)} entries such as {', '.join(list(state)[:3]) or 'none'}; use its ready outputs instead (folder:DIR)"
        ) from error
    except Exception as error:  # each architecture's own parser fails in its own way
        raise SRModelError(
            f"{path}: looks like an architecture spandrel knows, but cannot be loaded: {first_line(error)}"
        ) from error
    _check_purpose(path, descriptor, scale)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    version = f"{digest}+spandrel{spandrel.__version__}{device_mark(where)}"
    return CheckpointSR(descriptor, name=name or path.stem, version=version)  # type: ignore[arg-type] # purpose was checked


def _check_purpose(path: Path, descriptor: Any, scale: int | None) -> None:
    architecture = descriptor.architecture.name
    if descriptor.purpose != "SR":
        raise SRModelError(f"{path}: expected a super-resolution model, got {architecture} for {descriptor.purpose}")
    if (descriptor.input_channels, descriptor.output_channels) != (3, 3):
        channels = f"{descriptor.input_channels} → {descriptor.output_channels}"
        raise SRModelError(f"{path}: expected a model of RGB images (3 → 3 channels), got {architecture} with {channels}")
    if scale is not None and descriptor.scale != scale:
        raise SRModelError(
            f"{path}: expected an x{scale} model, got {architecture} x{descriptor.scale}; choose another checkpoint"
        )


def _read_weights(path: Path) -> dict[str, Any]:
    """The file's state dict. Code in it is refused, not run."""
    if not path.is_file():
        raise SRModelError(f"{path}: no such checkpoint file; check the path")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _read_safetensors(path)
    if suffix not in PICKLED:
        raise SRModelError(f"{path}: expected .safetensors, .pth, .ckpt or .pt, got {suffix or 'no suffix'}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # odd pickles and TorchScript are read as weights, or refused below
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SRModelError(
            f"{path}: expected weights alone, got a pickle with other objects or code, which is never run; "
            f"save its state dict as .safetensors where you trust the file"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise SRModelError(f"{path}: not a readable checkpoint of weights: {first_line(error)}") from error
    if not isinstance(loaded, dict):
        raise SRModelError(f"{path}: expected a state dict (names → tensors), got {type(loaded).__name__}")
    return loaded


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise SRModelError(f"{path}: damaged .safetensors file: {first_line(error)}") from error
