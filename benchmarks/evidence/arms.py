"""The arms of the evidence: what each is rewarded by, and nothing else differs.

All start from one policy, draw the same photos, crops and noise for one seed, take the same number of steps of the same
size, and keep the same supervised loss and Gram term. `control` has no reward at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from finpercep.curriculum.controller import AdaptiveConfig
from finpercep.curriculum.settings import FinetuneConfig
from finpercep.reward import RewardWeights
from finpercep.rl.algorithms import algorithm_class

POLICIES = {"early": "tiny@00300", "trained": "tiny"}
"""The packaged diffusion SR model after 300 steps of its training, with grain and false texture to see, and finished."""


@dataclass(frozen=True)
class Scale:
    """How large the experiment is.

    Attributes:
        policy: where all arms start; see `POLICIES`.
        steps: optimiser steps of a run.
        batch_size: photos a step.
        crop: side of the HR crop in px.
        lr: learning rate.
        reward_weight: of the reward term beside the supervised loss.
        gram_weight: of the Gram term.
        samples: K, samples of each photo for GRPO, which takes one photo a step.
        refresh_samples: region swaps of the policy's outputs, for the arm that refreshes its rungs.
        refresh_steps: training steps of a refreshed rung.
    """

    policy: str = "early"
    steps: int = 60
    batch_size: int = 2
    crop: int = 64
    lr: float = 1e-4
    reward_weight: float = 1.0
    gram_weight: float = 100.0
    samples: int = 6
    refresh_samples: int = 400
    refresh_steps: int = 120


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    Attributes:
        reward: where the reward comes from.
        says: what it is, for the page.
        settings: of `FinetuneConfig`, beside the scale's.
        algorithm: the algorithm's name.
        own: settings of the algorithm, beside the scale's.
        against: the arm it is compared with.
    """

    reward: Literal["none", "ladder", "oracle", "refreshed"]
    says: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    algorithm: str = "refl"
    own: Mapping[str, Any] = field(default_factory=dict)
    against: str = "control"

    def config(self, scale: Scale, seed: int) -> FinetuneConfig:
        """The settings of its run."""
        general: dict[str, Any] = {name: getattr(scale, name) for name in ("steps", "batch_size", "crop", "lr")}
        own = dict(self.own)
        if self.algorithm == "refl":
            own = {"reward_weight": scale.reward_weight, "gram_weight": scale.gram_weight, **own}
        if self.algorithm == "grpo":
            own = {"group_size": scale.samples, "pretraining_weight": 1.0, **own}
            general["batch_size"] = 1
        if self.algorithm == "rfsr":  # the authors' ratio of low-frequency and reward weight, 10 : 1, beside a supervised loss
            weights = {"low_frequency_weight": 10 * scale.reward_weight, "reward_weight": scale.reward_weight}
            own = {**weights, "gram_weight": scale.gram_weight, "pretraining_weight": 1.0, "ceiling": "clean", **own}
        adaptive = AdaptiveConfig(window=max(5, scale.steps // 6), patience=2, blend_steps=max(1, scale.steps // 12))
        config = FinetuneConfig(
            algorithm=algorithm_class(self.algorithm)(**own),
            adaptive=adaptive,
            save_every=scale.steps,
            snapshot_every=0,
            seed=seed,
            **general,
        )
        return replace(config, **self.settings)


ARMS: Mapping[str, Arm] = {
    "control": Arm("none", "no reward: the supervised loss and the Gram term", own={"reward_weight": 0.0}),
    "control-no-gram": Arm(
        "none", "the supervised loss alone, without the Gram term", own={"reward_weight": 0.0, "gram_weight": 0.0}
    ),
    "fixed-no-gram": Arm("ladder", "as fixed, without the Gram term", own={"gram_weight": 0.0}, against="control-no-gram"),
    "fixed-light": Arm(
        "ladder",
        "as fixed, a tenth of the Gram term and 0.3 of the reward",
        own={"gram_weight": 10.0, "reward_weight": 0.3},
        against="control-no-gram",
    ),
    "fixed-one-view": Arm("ladder", "as fixed, the reward asked about the image as it is", own={"views": False}, against="fixed"),
    "global": Arm("ladder", "RM_0 only, one number", {"rungs": ("RM_0",)}),
    "full": Arm("ladder", "RM_2 from the first step", {"rungs": ("RM_2",)}),
    "fixed": Arm("ladder", "RM_0 → RM_1 → RM_2, equal lengths"),
    "adaptive": Arm("ladder", "RM_0 → RM_1 → RM_2, deciding itself", {"curriculum": "adaptive"}),
    "beside-lr": Arm("ladder", "as fixed, the reward shown the LR picture too", {"show_lr": True}),
    "full-score": Arm(
        "ladder",
        "RM_2's score alone",
        {"rungs": ("RM_2",), "reward": RewardWeights(score=1.0, max=0.0, mean=0.0)},
        against="full",
    ),
    "full-map": Arm(
        "ladder", "RM_2's map alone", {"rungs": ("RM_2",), "reward": RewardWeights(score=0.0, max=0.5, mean=0.5)}, against="full"
    ),
    "unmatched": Arm(
        "ladder", "as fixed, each rung on its own scale, no blend", {"match_scales": False, "blend_share": 0.0}, against="fixed"
    ),
    "refresh": Arm(
        "refreshed", "as adaptive, each rung trained on the policy's own outputs when it is reached", {"curriculum": "adaptive"}
    ),
    "oracle": Arm("oracle", "score and map from the ground truth", own={"views": False}),
    "grpo-control": Arm(
        "none",
        "GRPO's steps without a reward: its supervised loss alone",
        {"rungs": ("RM_0",), "reward": RewardWeights(score=0.0, max=0.0, mean=0.0)},
        algorithm="grpo",
    ),
    "grpo": Arm("ladder", "GRPO, fixed's reward, the same credit everywhere", algorithm="grpo", against="grpo-control"),
    "rfsr": Arm("ladder", "RFSR, fixed's reward", algorithm="rfsr"),
    "rfsr-no-low": Arm(
        "ladder",
        "RFSR without its early window",
        algorithm="rfsr",
        own={"early": 0.0, "low_frequency_weight": 0.0},
        against="rfsr",
    ),
    "rfsr-no-gram": Arm("ladder", "RFSR without its Gram term", algorithm="rfsr", own={"gram_weight": 0.0}, against="rfsr"),
    "spatial": Arm("ladder", "GRPO, fixed's reward, credit by the map", algorithm="grpo", own={"credit": "map"}, against="grpo"),
}
