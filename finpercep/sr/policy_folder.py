"""A saved policy on disk: ``policy.json`` (kind, source, choices) beside what was trained, in diffusers' own formats.

A network trained in full lies in ``NAME/`` as its ``from_pretrained`` reads it. A denoiser's adapter lies in
``pytorch_lora_weights.safetensors`` as ``pipeline.load_lora_weights(folder)`` reads it, another network's in ``NAME_lora/`` as
``network.load_lora_adapter(folder, prefix=None, weight_name=LORA_NAME)`` does. Networks whose class cannot load adapters are
saved in full, merged. A network that the policy's own folder held in full is saved in full again, whatever is trained now, and
beside an adapter that it has been given since: nobody else has its weights.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers.loaders import SD3LoraLoaderMixin, StableDiffusionLoraLoaderMixin
from safetensors.torch import load_file

from data_synth.schema.errors import SchemaError
from data_synth.schema.pixels import write_atomically
from finpercep.errors import ConfigError, WeightsError
from finpercep.sr.lora import adapter_metadata, adapter_state, has_adapter, set_adapter_state, without_adapter
from finpercep.sr.settings import PolicySettings
from finpercep.sr.sources import load_from

if TYPE_CHECKING:
    from finpercep.sr.pipeline_policy import Parts, PipelinePolicy

FORMAT = "finpercep-policy"
FORMAT_VERSION = 1
RECORD = "policy.json"
LORA_NAME = "pytorch_lora_weights.safetensors"
_LOADERS: dict[str, Any] = {"unet": StableDiffusionLoraLoaderMixin, "transformer": SD3LoraLoaderMixin}


@dataclass(frozen=True)
class PolicyRecord:
    """What ``policy.json`` says: kind and source as on the command line, and all choices."""

    kind: str
    source: str
    settings: PolicySettings


def write_policy(policy: PipelinePolicy, folder: Path) -> None:
    """Write ``policy`` to ``folder``; the record last, which marks the folder complete."""
    (folder / RECORD).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    trained = {policy.network_of(role) for role in policy.options.trained}
    for name, network in policy.networks().items():
        adapted = has_adapter(network) and hasattr(network, "save_lora_adapter")
        if name in policy.replaced or (name in trained and not adapted):
            without_adapter(network, merge=not adapted).save_pretrained(folder / name)  # type: ignore[operator]
        if adapted:
            _write_adapter(network, name, folder)
    source = "+".join(str(Path(part).resolve()) if Path(part).is_dir() else part for part in policy.source.split("+"))
    settings = asdict(policy.options) | asdict(policy.sampler)
    settings["steps"] = settings.pop("num_steps")
    record = {"format": FORMAT, "version": FORMAT_VERSION, "kind": policy.name, "source": source, "settings": settings}
    write_atomically(folder / RECORD, (json.dumps(record, indent=2) + "\n").encode())


def _write_adapter(network: Any, name: str, folder: Path) -> None:
    if name in _LOADERS:
        weights = {f"{name}_lora_layers": adapter_state(network), f"{name}_lora_adapter_metadata": adapter_metadata(network)}
        _LOADERS[name].save_lora_weights(folder, **weights)
    else:
        network.save_lora_adapter(folder / f"{name}_lora")


def read_record(folder: Path) -> PolicyRecord:
    """Raises `WeightsError` without ``policy.json``, `SchemaError` when it is not of this format and version."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"{folder}: expected an SR model folder with {RECORD}, found none") from error
    except json.JSONDecodeError as error:
        raise SchemaError(str(path), "(file)", "JSON", str(error)) from error
    for field, expected in (("format", FORMAT), ("version", FORMAT_VERSION)):
        if record.get(field) != expected:
            raise SchemaError(str(path), field, repr(expected), repr(record.get(field)))
    try:
        return PolicyRecord(str(record["kind"]), str(record["source"]), PolicySettings.of(record["settings"]))
    except (KeyError, TypeError) as error:
        raise SchemaError(str(path), "(fields)", "kind, source and settings", str(error)) from error


def replaced_networks(parts: Parts, folder: Path) -> Parts:
    """``parts`` with the networks that were saved in full in ``folder`` in place of their own."""
    found = {
        name: load_from(type(network), folder / name)
        for name, network in parts.networks.items()
        if (folder / name / "config.json").is_file()
    }
    return replace(parts, networks={**parts.networks, **found}, replaced=frozenset(found))


def read_adapters(policy: PipelinePolicy, folder: Path, recorded: PolicySettings) -> None:
    """Set the adapters of ``policy`` to those saved in ``folder``.

    Raises:
        ConfigError: the policy has other adapters than the folder.
        WeightsError: adapters are missing or do not fit.
    """
    for name in ("lora_rank", "lora_alpha", "lora_targets", "trained"):
        saved, asked = getattr(recorded, name), getattr(policy.options, name)
        if saved != asked:
            raise ConfigError(f"{folder}: {name} is {saved} in this folder, got {asked}; leave it out")
    for name, network in policy.networks().items():
        if not has_adapter(network) or not hasattr(network, "save_lora_adapter"):
            continue
        path = folder / LORA_NAME if name in _LOADERS else folder / f"{name}_lora" / LORA_NAME
        prefix = f"{name}." if name in _LOADERS else ""
        try:
            state = load_file(path)
        except (OSError, ValueError) as error:
            raise WeightsError(f"{path}: the adapter's weights cannot be read: {error}") from error
        set_adapter_state(network, {key.removeprefix(prefix): tensor for key, tensor in state.items()}, str(path))
