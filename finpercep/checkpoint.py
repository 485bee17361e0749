"""CONTRACT 2, version 2: a rung on disk, and the ladder of rungs (version 1).

    FOLDER/ladder.json             {"format", "version", "name", "rungs": [{"rung", "path", "digest"}, …]}   RM_0 first
    FOLDER/RM_k/config.json        {"format", "version", "model": {…}, "digest"}   model: architecture, preprocessing, calibration
    FOLDER/RM_k/model.safetensors  the weights, in float32 or float16

A rung's digest covers weights, preprocessing and calibration. It is the rung's identity in replies, logs and run records.
Older versions are read as well (`SETTINGS_SINCE`), and a rung keeps its digest when it is written anew in a later version.
Knows nothing about how a model is built from its config.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from data_synth.schema.errors import SchemaError
from data_synth.schema.pixels import write_atomically
from finpercep.errors import WeightsError

CHECKPOINT_FORMAT = "finpercep-rm"
LADDER_FORMAT = "finpercep-ladder"
CONTRACT_VERSION = 2
LADDER_VERSION = 1
SETTINGS_SINCE: dict[int, dict[str, Any]] = {2: {"decoder": "unet", "lr_input": False, "map_scale": 1.0, "map_shift": 0.0}}
"""What each version added to ``model``, as JSON, with the values that mean what the version before it did."""
CONFIG_NAME, WEIGHTS_NAME, LADDER_NAME = "config.json", "model.safetensors", "ladder.json"


@dataclass(frozen=True)
class Checkpoint:
    """A rung as read from disk. ``state`` has the dtype it was stored in; ``digest`` was verified against it."""

    model: dict[str, Any]
    state: dict[str, torch.Tensor]
    digest: str


@dataclass(frozen=True)
class LadderRung:
    """One entry of a ladder: its name (``RM_0`` …), its folder relative to the ladder's, its digest."""

    rung: str
    path: str
    digest: str


@dataclass(frozen=True)
class Ladder:
    """The rungs of a folder, RM_0 first."""

    name: str
    rungs: tuple[LadderRung, ...]


def digest_of(model: dict[str, Any], state: dict[str, torch.Tensor]) -> str:
    """``sha256:…`` over the model config and every tensor's name, dtype, shape and bytes.

    A setting of `SETTINGS_SINCE` that has the value given there is left out: a new setting that is not used makes no new model.
    """
    unused = {name: value for added in SETTINGS_SINCE.values() for name, value in added.items()}
    used = {name: value for name, value in model.items() if name not in unused or value != unused[name]}
    sha = hashlib.sha256(json.dumps(used, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        sha.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return f"sha256:{sha.hexdigest()}"


def as_stored(state: dict[str, torch.Tensor], dtypes: dict[str, torch.dtype]) -> dict[str, torch.Tensor]:
    """``state`` in the types it was stored in, where that loses nothing; otherwise ``state`` as it is.

    Args:
        state: weights, perhaps changed since they were read.
        dtypes: the type of each tensor in the checkpoint they were read from; may be empty.
    """
    narrowed = {name: tensor.to(dtypes.get(name, tensor.dtype)) for name, tensor in state.items()}
    unchanged = all(torch.equal(narrowed[name].to(tensor.dtype), tensor) for name, tensor in state.items())
    return narrowed if unchanged else state


def write_checkpoint(
    folder: Path, model: dict[str, Any], state: dict[str, torch.Tensor], *, dtype: torch.dtype | None = None
) -> str:
    """Write a rung; ``config.json`` goes last, so that a folder with one is complete.

    Args:
        folder: made when absent.
        model: the model's JSON config.
        state: its weights.
        dtype: store floating-point tensors in this type; None keeps theirs.

    Returns:
        The digest.

    Raises:
        WeightsError: a weight is not finite, or does not fit ``dtype``.
    """
    model = json.loads(json.dumps(model))  # what a reader will see: tuples are lists
    stored = {
        name: tensor.detach().cpu().to(dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in state.items()
    }
    if not all(torch.isfinite(tensor).all() for tensor in stored.values()):
        fit = "" if dtype is None else f" and fit {str(dtype).removeprefix('torch.')}"
        advice = "" if dtype is None else "; keep them in float32 (half = false)"
        raise WeightsError(f"{folder}: weights must be finite{fit}, and some are not{advice}")
    digest = digest_of(model, stored)
    write_atomically(folder / WEIGHTS_NAME, save_tensors(stored))
    record = {"format": CHECKPOINT_FORMAT, "version": CONTRACT_VERSION, "model": model, "digest": digest}
    write_atomically(folder / CONFIG_NAME, _json_bytes(record))
    return digest


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify a rung; ``model`` has the settings of the present version, whichever it was written in.

    Raises:
        WeightsError: the folder or its weights are absent or unreadable.
        SchemaError: not this contract, a later version of it, or the digest does not match.
    """
    path = folder / CONFIG_NAME
    record = _read_record(path, CHECKPOINT_FORMAT, range(1, CONTRACT_VERSION + 1), {"model": dict, "digest": str})
    model = _with_later_settings(path, record["model"], record["version"])
    try:
        state = load_tensors((folder / WEIGHTS_NAME).read_bytes())
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{folder / WEIGHTS_NAME}: weights cannot be read: {error}") from error
    actual = digest_of(model, state)
    if actual != record["digest"]:
        raise SchemaError(str(path), "digest", f"{actual} (what weights and config give)", record["digest"])
    return Checkpoint(model, state, actual)


def _with_later_settings(path: Path, model: dict[str, Any], version: int) -> dict[str, Any]:
    """``model`` of ``version`` in the present one: settings it did not have yet, at the values it stood for."""
    later = {name: value for since, added in SETTINGS_SINCE.items() if since > version for name, value in added.items()}
    for name in sorted(later.keys() & model.keys()):
        raise SchemaError(str(path), f"model.{name}", f"no such setting in version {version}", model[name])
    return {**model, **later}


def write_ladder(folder: Path, name: str, rungs: Sequence[LadderRung]) -> None:
    """Write ``ladder.json``."""
    record = {"format": LADDER_FORMAT, "version": LADDER_VERSION, "name": name, "rungs": [asdict(rung) for rung in rungs]}
    write_atomically(folder / LADDER_NAME, _json_bytes(record))


def read_ladder(folder: Path) -> Ladder:
    """Read ``ladder.json``.

    Raises:
        WeightsError: there is none.
        SchemaError: it is not of this contract and version, names no rung, or a path leads out of the folder.
    """
    path = folder / LADDER_NAME
    record = _read_record(path, LADDER_FORMAT, range(LADDER_VERSION, LADDER_VERSION + 1), {"name": str, "rungs": list})
    rungs = []
    for index, entry in enumerate(record["rungs"]):
        wanted = {"rung", "path", "digest"}
        if not isinstance(entry, dict) or set(entry) != wanted or not all(isinstance(entry[key], str) for key in wanted):
            raise SchemaError(str(path), f"rungs[{index}]", f"an object of strings {sorted(wanted)}", entry)
        if not (folder / entry["path"]).resolve().is_relative_to(folder.resolve()):
            raise SchemaError(str(path), f"rungs[{index}].path", "a path inside the ladder's folder", entry["path"])
        rungs.append(LadderRung(**entry))
    if not rungs:
        raise SchemaError(str(path), "rungs", "at least one rung", "none")
    return Ladder(record["name"], tuple(rungs))


def _read_record(path: Path, expected_format: str, versions: Sequence[int], fields: dict[str, type]) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise WeightsError(
            f"{path.parent}: expected a folder with {path.name}, found none; train one or check the path"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SchemaError(str(path), "(file)", "JSON", str(error)) from error
    if not isinstance(record, dict):
        raise SchemaError(str(path), "(file)", "a JSON object", type(record).__name__)
    for field, accepted in (("format", [expected_format]), ("version", versions)):
        if record.get(field) not in accepted:
            raise SchemaError(str(path), field, " or ".join(map(repr, accepted)), record.get(field))
    for field, kind in fields.items():
        if not isinstance(record.get(field), kind):
            raise SchemaError(str(path), field, kind.__name__, record.get(field))
    return record


def _json_bytes(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=2) + "\n").encode()
