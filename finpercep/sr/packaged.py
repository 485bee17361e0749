"""Policies by name: the packaged model (``tiny``), or a folder a fine-tuning run or `train-sr` wrote."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch

from finpercep.errors import WeightsError
from finpercep.sr.tiny import TinyDiffusionSR


def packaged_policy_folder() -> Path:
    """Folder of the diffusion SR model that ships with the package."""
    return Path(str(files("finpercep"))) / "weights" / "tiny-sr"


def policy_folder(name: str) -> Path:
    """Where the policy called ``name`` lies: ``tiny``, or a folder. Raises `WeightsError` when it is neither."""
    folder = packaged_policy_folder() if name == "tiny" else Path(name)
    if not folder.is_dir():
        raise WeightsError(f"policy {name!r}: expected 'tiny' or a folder that finetune or train-sr wrote")
    return folder


def load_policy(name: str, *, device: torch.device | str = "cpu", autocast: bool = False) -> TinyDiffusionSR:
    """The policy called ``tiny``, or the one in the folder ``name``.

    Raises:
        WeightsError: neither a known name nor a folder with a policy.
    """
    return TinyDiffusionSR.from_pretrained(policy_folder(name), device=device, autocast=autocast)
