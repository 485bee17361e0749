"""`finpercep train-rm --config FILE.toml`: the settings of a ladder from defaults, a file and flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from data_synth.device import computes_bf16
from finpercep.cli.settings_file import merge_settings, read_settings, set_flags, validated
from finpercep.reward_model.build import with_encoder_statistics
from finpercep.reward_model.config import RewardModelConfig
from finpercep.training.train_config import TrainConfig

_STATISTICS = ("mean", "std")


def train_config(
    file: Path | None,
    flags: Mapping[str, Any],
    start: RewardModelConfig | None = None,
    device: torch.device | None = None,
) -> TrainConfig:
    """Settings of a training run; the input normalisation is the encoder's own, unless the file has another.

    Precision may also be ``auto``, the default: bf16 where the device computes it in hardware, else fp32.

    Args:
        file: TOML with any part of `TrainConfig`, nested as it is: ``[ladder]``, ``[ladder.base]``, ``[loss]``.
        flags: dotted names, ``ladder.base.encoder``, and values; None leaves the file's value, or the default.
        start: a rung of the ladder that is started from; its architecture takes the place of the defaults. Calibration begins
            anew.
        device: that will train; None: the CPU.

    Raises:
        ConfigError: the file cannot be read, or a setting is unknown or out of range; names it.
    """
    given = read_settings(file, "training") if file else {}
    defaults = {**dataclasses.asdict(TrainConfig()), "precision": "auto"}
    if start is not None:
        defaults["ladder"]["base"] = dataclasses.asdict(
            dataclasses.replace(start, map_stride=None, score_scale=1.0, score_shift=0.0, map_scale=1.0, map_shift=0.0)
        )
    tree = merge_settings(defaults, given, str(file))
    set_flags(tree, flags)
    if tree["precision"] == "auto":
        tree["precision"] = "bf16" if computes_bf16(device or torch.device("cpu")) else "fp32"
    config = validated(TrainConfig, tree)
    if start is not None:
        return config
    of_encoder = with_encoder_statistics(config.ladder.base)
    own = {name: getattr(of_encoder, name) for name in _STATISTICS if name not in given.get("ladder", {}).get("base", {})}
    base = dataclasses.replace(config.ladder.base, **own)
    return dataclasses.replace(config, ladder=dataclasses.replace(config.ladder, base=base))
