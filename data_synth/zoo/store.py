"""The zoo on disk, version 1: a folder that holds every snapshot of every member.

    FOLDER/zoo.json              {"format", "version", "scale", "networks": [{"name", "member", "family", "step", "steps",
                                  "generator": {…}, "digest"}, …]}
    FOLDER/NAME.safetensors      weights of the network NAME = MEMBER@STEP, float16

A network's digest covers its architecture and weights; it is its version in recipes. Knows no training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from data_synth.schema.errors import SchemaError
from data_synth.schema.pixels import write_atomically
from data_synth.zoo.errors import ZooError
from data_synth.zoo.networks import Generator, GeneratorConfig

FORMAT, VERSION = "finpercep-sr-zoo", 1
INDEX_NAME = "zoo.json"
_FIELDS: dict[str, type] = {
    "name": str,
    "member": str,
    "family": str,
    "step": int,
    "steps": int,
    "generator": dict,
    "digest": str,
}


@dataclass(frozen=True)
class StoredNetwork:
    """One entry of a zoo.

    Attributes:
        name: ``MEMBER@STEP``; its file's name without suffix.
        member: name of the member it is a snapshot of.
        family: what kind of faults it makes.
        step: after how many of ``steps`` training steps it was kept.
        steps: length of the whole training.
        generator: its architecture.
        digest: ``sha256:…`` of architecture and weights; empty until it is written.
    """

    name: str
    member: str
    family: str
    step: int
    steps: int
    generator: GeneratorConfig
    digest: str = ""

    @classmethod
    def of(cls, member: str, family: str, step: int, steps: int, generator: GeneratorConfig) -> Self:
        """The entry of a snapshot, named as such."""
        return cls(f"{member}@{step:04d}", member, family, step, steps, generator)


def network_digest(config: GeneratorConfig, state: Mapping[str, torch.Tensor]) -> str:
    """``sha256:…`` over the architecture and every tensor's name, dtype, shape and bytes."""
    sha = hashlib.sha256(json.dumps(asdict(config), sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        sha.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return f"sha256:{sha.hexdigest()}"


def write_network(folder: Path, network: StoredNetwork, state: Mapping[str, torch.Tensor]) -> None:
    """Write weights as float16 and enter the network into ``zoo.json``, in place of one of its name if there is one.

    Raises:
        ZooError: the zoo there has another scale, or a weight does not fit float16.
    """
    half = {name: tensor.detach().cpu().half().contiguous() for name, tensor in state.items()}
    if not all(torch.isfinite(tensor).all() for tensor in half.values()):
        raise ZooError(f"{network.name}: weights must be finite and fit float16, and some are not; train it with a lower rate")
    entry = StoredNetwork(**{**vars(network), "digest": network_digest(network.generator, half)})
    others = [other for other in read_index(folder) if other.name != entry.name] if (folder / INDEX_NAME).exists() else []
    write_atomically(folder / f"{entry.name}.safetensors", save_tensors(half))
    write_index(folder, [*others, entry])


def write_index(folder: Path, networks: Sequence[StoredNetwork]) -> None:
    """Write ``zoo.json`` over networks of one scale, ordered by name.

    Raises:
        ZooError: none, or of several scales.
    """
    scales = {network.generator.scale for network in networks}
    if len(scales) != 1:
        raise ZooError(f"{folder}: the networks of a zoo share one scale, got {sorted(scales)}; use another folder")
    entries = [asdict(network) for network in sorted(networks, key=lambda network: network.name)]
    record = {"format": FORMAT, "version": VERSION, "scale": scales.pop(), "networks": entries}
    write_atomically(folder / INDEX_NAME, (json.dumps(record, indent=2) + "\n").encode())


def read_index(folder: Path) -> tuple[StoredNetwork, ...]:
    """The networks of a zoo, by name.

    Raises:
        ZooError: there is no zoo in the folder.
        SchemaError: its index is not of this format and version.
    """
    path = folder / INDEX_NAME
    try:
        record = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ZooError(
            f"{folder}: expected an SR zoo ({INDEX_NAME}), found none; train one with `finpercep train-zoo`"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SchemaError(str(path), "(file)", "JSON", str(error)) from error
    if not isinstance(record, dict):
        raise SchemaError(str(path), "(file)", "a JSON object", type(record).__name__)
    for field, expected in (("format", FORMAT), ("version", VERSION)):
        if record.get(field) != expected:
            raise SchemaError(str(path), field, repr(expected), record.get(field))
    entries = record.get("networks")
    if not isinstance(entries, list) or not entries:
        raise SchemaError(str(path), "networks", "a list of at least one network", entries)
    networks = tuple(_parse_entry(f"{path}", index, entry) for index, entry in enumerate(entries))
    if {network.generator.scale for network in networks} != {record.get("scale")}:
        raise SchemaError(str(path), "scale", "the scale of every network", record.get("scale"))
    return networks


def _parse_entry(where: str, index: int, entry: Any) -> StoredNetwork:
    field = f"networks[{index}]"
    if not isinstance(entry, dict) or set(entry) != set(_FIELDS):
        raise SchemaError(where, field, f"an object with {sorted(_FIELDS)}", entry)
    for name, kind in _FIELDS.items():
        if not isinstance(entry[name], kind) or isinstance(entry[name], bool):
            raise SchemaError(where, f"{field}.{name}", kind.__name__, entry[name])
    if Path(entry["name"]).name != entry["name"]:
        raise SchemaError(where, f"{field}.name", "a plain file name", entry["name"])
    try:
        generator = GeneratorConfig(**entry["generator"])
    except (TypeError, ZooError) as error:
        raise SchemaError(where, f"{field}.generator", f"an architecture ({error})", entry["generator"]) from error
    return StoredNetwork(**{**entry, "generator": generator})


def read_network(folder: Path, network: StoredNetwork) -> Generator:
    """The network with its weights, float32, in evaluation mode.

    Raises:
        ZooError: its weights are absent or unreadable.
        SchemaError: they are not the ones the index names, or do not fit the architecture.
    """
    path = folder / f"{network.name}.safetensors"
    try:
        state = load_tensors(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ZooError(f"{path}: weights cannot be read: {error}; copy the zoo again, or train it") from error
    actual = network_digest(network.generator, state)
    if actual != network.digest:
        raise SchemaError(str(path), "digest", network.digest, actual)
    generator = Generator(network.generator)
    try:
        generator.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    except RuntimeError as error:
        raise SchemaError(str(path), "weights", "tensors of the architecture in the index", str(error)) from error
    return generator.requires_grad_(False).eval()
