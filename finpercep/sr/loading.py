"""Policies by name: ``tiny``, ``tiny@STEP``, a folder that a run wrote, or ``KIND:SOURCE``, published weights of a kind."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from finpercep.errors import ConfigError, WeightsError
from finpercep.sr.diffusion import DiffusionPolicy
from finpercep.sr.settings import Options, PolicySettings
from finpercep.sr.sources import fetched
from finpercep.sr.tiny import TinyDiffusionSR, with_snapshots

if TYPE_CHECKING:
    from finpercep.sr.pipeline_policy import PipelinePolicy
    from finpercep.sr.prompts import Captions

KINDS = {
    "latent-unet": ("finpercep.sr.latent_unet", "LatentUNetPolicy"),
    "controlnet": ("finpercep.sr.controlnet", "ControlNetPolicy"),
    "flow": ("finpercep.sr.flow", "FlowPolicy"),
    "one-step": ("finpercep.sr.one_step", "OneStepPolicy"),
    "residual-shift": ("finpercep.sr.residual_shift", "ResidualShiftPolicy"),
}
"""Where each kind's class is; imported when it is asked for, since diffusers' pipelines take seconds to import."""


def load_policy(
    name: str,
    *,
    device: torch.device | str = "cpu",
    settings: PolicySettings = PolicySettings(),
    captions: Captions | None = None,
) -> DiffusionPolicy:
    """The policy called ``name``: ``tiny`` or ``tiny@STEP``, a folder, or ``KIND:SOURCE`` (``controlnet:BASE+CONTROLNET``).

    Args:
        name: a source is a folder or a hub id of a diffusers model, or two of them joined by ``+``.
        device: where its networks go.
        settings: choices in place of what the folder records, or of the kind's defaults.
        captions: words for each image; only kinds with a text encoder take them.

    Raises:
        WeightsError: there is no such policy, or its weights cannot be had.
        ConfigError: a choice that this policy cannot have.
        SchemaError: a ``policy.json`` of another format or version.
    """
    kind, _, source = name.partition(":")
    if kind in KINDS and source:
        cls = policy_class(kind)
        options = settings.over(cls.defaults)
        return cls.build(cls.open(source, options), options, source, captions).to(device)
    folder = policy_folder(name)
    if not is_tiny(folder):
        return _load_saved(folder, device, settings, captions)
    if captions is not None:
        raise ConfigError(f"{name} has no text encoder, so it takes no captions")
    return _load_tiny(folder, device, settings)


def policy_class(kind: str) -> type[PipelinePolicy]:
    """The class of a kind. Raises `WeightsError` when there is none."""
    if kind not in KINDS:
        raise WeightsError(f"policy kind must be one of {', '.join(KINDS)}, got {kind!r}")
    module, name = KINDS[kind]
    found: type[PipelinePolicy] = getattr(import_module(module), name)
    return found


def packaged_policy_folder() -> Path:
    """Folder of the diffusion SR model that ships with the package."""
    return Path(str(files("finpercep"))) / "weights" / "tiny-sr"


def packaged_policies() -> dict[str, Path]:
    """Name → folder of the model that ships with the package, and of its snapshots from early in training."""
    return with_snapshots("tiny", packaged_policy_folder())


def policy_folder(name: str) -> Path:
    """Where the policy called ``name`` lies: ``tiny``, ``tiny@STEP``, or a folder. Raises `WeightsError` when it is neither."""
    folder = packaged_policies().get(name, Path(name))
    if not folder.is_dir():
        raise WeightsError(
            f"policy {name!r}: expected {', '.join(packaged_policies())}, a folder that finetune or train-sr wrote, or "
            f"KIND:SOURCE with one of the kinds {', '.join(KINDS)}"
        )
    if (folder / "model_index.json").is_file() and not (folder / "policy.json").is_file():
        raise WeightsError(
            f"policy {name!r} is a diffusers pipeline: name its kind too, KIND:{name} with one of {', '.join(KINDS)}"
        )
    return folder


def policy_sources(name: str) -> list[Path]:
    """The folders whose files decide what the policy called ``name`` puts out: its own, and that of its published weights."""
    kind, _, source = name.partition(":")
    own = []
    if kind not in KINDS or not source:
        folder = policy_folder(name)
        own, source = [folder], ""
        if not is_tiny(folder):
            from finpercep.sr.policy_folder import read_record

            source = read_record(folder).source
    base, *rest = source.split("+")
    return [*own, *([fetched(base)] if base else []), *(fetched(part, single=True) for part in rest)]


def is_tiny(folder: Path) -> bool:
    """Whether ``policy.json`` is not of this package's general format, but of `tiny`'s own, or of none that can be read."""
    try:
        record: Any = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
        return str(record["format"]) != "finpercep-policy"
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _load_saved(folder: Path, device: torch.device | str, settings: PolicySettings, captions: Captions | None) -> PipelinePolicy:
    from finpercep.sr.policy_folder import read_adapters, read_record, replaced_networks

    record = read_record(folder)
    cls = policy_class(record.kind)
    options = settings.over(cls.defaults, record.settings)
    parts = replaced_networks(cls.open(record.source, options), folder)
    policy = cls.build(parts, options, record.source, captions)
    if record.settings.lora_rank:
        read_adapters(policy, folder, record.settings)
    return policy.to(device)


def _load_tiny(folder: Path, device: torch.device | str, settings: PolicySettings) -> TinyDiffusionSR:
    policy = TinyDiffusionSR.from_pretrained(folder, device=device)
    own = Options(steps=policy.num_steps, eta=policy.sampler.eta, scale=policy.scale, lora_rank=0, trained=("denoiser",))
    options = settings.over(own)
    shared = {name: getattr(options, name) for name in ("steps", "noise", "eta", "tile", "overlap", "colour")}
    usable = replace(own, precision=options.precision, gradient_checkpointing=options.gradient_checkpointing, **shared)
    for name, value in settings.said().items():
        if value != getattr(usable, name):
            raise ConfigError(f"policy tiny has {name} {getattr(usable, name)!r} and no other, got {value!r}")
    if options.precision == "float16":
        raise ConfigError("policy tiny runs in float32 or bfloat16, got float16")
    policy.autocast = options.precision == "bfloat16"
    if options.gradient_checkpointing:
        policy.unet.enable_gradient_checkpointing()
    policy = policy.with_sampler(options.sampler)
    policy.delivery = options.delivery
    return policy
