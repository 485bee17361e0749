"""LoRA adapters on diffusers models (arXiv 2106.09685), by peft: injected, read, set, merged, saved as diffusers saves them."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from finpercep.errors import ConfigError, MissingExtraError, WeightsError

try:
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
except ImportError as error:
    raise MissingExtraError("peft", "sr") from error

ADAPTER = "default"
SEED = 0
"""Of the adapters' first weights: two runs begin alike."""


@dataclass(frozen=True)
class Lora:
    """One adapter's shape: ``rank``, ``alpha`` (output is multiplied by alpha / rank) and the last parts of its layers' names."""

    rank: int
    alpha: float
    targets: tuple[str, ...]


def add_adapter(module: nn.Module, lora: Lora, *, within: str = "") -> None:
    """Give ``module``'s layers (those below ``within``, if said) adapters in float32, which at first change nothing.

    Afterwards the adapters alone require a gradient. Raises `ConfigError` when no layer has such a name.
    """
    names = "|".join(re.escape(target) for target in lora.targets)
    pattern = rf"{re.escape(within)}\.(.*\.)?({names})" if within else rf"(.*\.)?({names})"
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft divides it, nothing more
        target_modules=pattern,
        lora_dropout=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        try:
            if hasattr(module, "add_adapter"):
                module.add_adapter(config, ADAPTER)  # type: ignore[operator]
            else:
                inject_adapter_in_model(config, module, ADAPTER)
        except ValueError as error:
            names = ", ".join(lora.targets)
            raise ConfigError(f"LoRA: {type(module).__name__} has no layers named {names}; set other lora_targets") from error
    for name, parameter in module.named_parameters():
        adapts = "lora_" in name
        parameter.requires_grad_(adapts)
        if adapts:
            parameter.data = parameter.data.float()


def has_adapter(module: nn.Module) -> bool:
    """Whether `add_adapter` was called on it."""
    return any(isinstance(part, BaseTunerLayer) for part in module.modules())


def adapter_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The adapter's weights under peft's names."""
    state: dict[str, torch.Tensor] = get_peft_model_state_dict(module, adapter_name=ADAPTER)
    return {name: tensor.detach().contiguous() for name, tensor in state.items()}


def set_adapter_state(module: nn.Module, state: Mapping[str, torch.Tensor], where: str) -> None:
    """Set them. Raises `WeightsError`, naming ``where``, when names or shapes are another's."""
    own = {name: tensor.shape for name, tensor in adapter_state(module).items()}
    if own != {name: tensor.shape for name, tensor in state.items()}:
        raise WeightsError(
            f"{where}: expected LoRA weights for {len(own)} tensors of {type(module).__name__}, got another adapter's"
        )
    set_peft_model_state_dict(module, dict(state), adapter_name=ADAPTER)


def adapter_metadata(module: Any) -> dict[str, Any]:
    """The adapter's settings as diffusers writes them beside the weights; without them it would take alpha for the rank."""
    settings = module.peft_config[ADAPTER].to_dict()
    return {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}


def without_adapter(module: nn.Module, *, merge: bool) -> nn.Module:
    """A plain copy without adapters, to ``merge`` with their effect added to its weights; a module that has none, itself."""
    if not has_adapter(module):
        return module
    plain = copy.deepcopy(module)
    for name, part in list(plain.named_modules()):
        if isinstance(part, BaseTunerLayer):
            if merge:
                part.merge()
            parent, _, child = name.rpartition(".")
            setattr(plain.get_submodule(parent), child, part.get_base_layer())
    if hasattr(plain, "peft_config"):
        del plain.peft_config
    return plain


def store_in(modules: Sequence[nn.Module], dtype: torch.dtype) -> None:
    """Store the frozen weights of linear layers and convolutions in ``dtype``; norms and embeddings stay as they are."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and not any(p.requires_grad for p in layer.parameters(recurse=False)):
                layer.to(dtype)
