"""The reward model where an image-quality metric is expected: called like pyiqa's, or accumulated like torchmetrics'.

Needs neither of the two. Scores through the same predictor as the command line and the server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import distributed, nn

from data_synth.schema.pixels import decode_rgb, to_rgb8
from finpercep.errors import RewardError
from finpercep.local_reward import LocalReward
from finpercep.predictor import Predictor, load_predictor, packaged_model_folder
from finpercep.reward import SCORE_ONLY, Rewards

Images = torch.Tensor | str | Path | Image.Image
"""N×3×H×W RGB in [0, 1] (or uint8), a picture's path, or a Pillow picture."""


class FinPercepMetric(nn.Module):
    """images → scores in [0, 1], as `pyiqa.create_metric` gives one; no reference image is needed.

    Args:
        rung: which rung of the ladder; None is the last, the finest.
        model: folder of a ladder; None is the packaged one.
        as_loss: return 1 − score, with gradients to the images. The model itself is never trained by it.
        device: where it runs; `.to(device)` moves it.

    Attributes:
        lower_better: whether a lower number is a better image: True for the loss, False for the score.

    Raises:
        ConfigError: the ladder has no such rung.
        WeightsError: there is no ladder.
    """

    metric_name = "finpercep"
    metric_mode: Literal["NR"] = "NR"
    score_range = (0.0, 1.0)

    def __init__(
        self,
        rung: str | None = None,
        *,
        model: str | Path | None = None,
        as_loss: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        loaded = load_predictor(packaged_model_folder() if model is None else Path(model), rung, device)
        self.model, self.as_loss, self.lower_better = loaded.model, as_loss, as_loss
        self.name, self.rung, self.digest = loaded.name, loaded.rung, loaded.digest
        self._loaded: Predictor | None = loaded
        self.register_load_state_dict_post_hook(_forget)

    def forward(self, images: Images) -> torch.Tensor:
        """Score a batch, or one picture.

        Returns:
            float32 (N,): scores in [0, 1], or 1 − score for a loss.

        Raises:
            RewardRejected: a tensor of wrong shape, type or range, or below 32 px.
            ImageError: a picture that cannot be read, or below 32 px.
            RewardError: the model's result is not finite.
        """
        with torch.set_grad_enabled(self.as_loss and torch.is_grad_enabled()):
            score = self.rewards(images).reward
            return 1 - score if self.as_loss else score

    def rewards(self, images: Images) -> Rewards:
        """Score and degradation; ``reward`` is the score with gradients to a tensor of images. Errors as `forward`."""
        predictor = self._predictor()
        if isinstance(images, torch.Tensor):
            return LocalReward(predictor, SCORE_ONLY)(images)
        seen = predictor.assess(to_rgb8(images) if isinstance(images, Image.Image) else decode_rgb(images), SCORE_ONLY)
        worst, mean = seen.max_degradation or 0.0, seen.mean_degradation or 0.0  # 0 without a map, as in `Rewards`
        numbers = [torch.tensor([number]) for number in (seen.reward, seen.score, worst, mean)]
        return Rewards(numbers[0], numbers[1], numbers[2], numbers[3])

    @property
    def has_map(self) -> bool:
        """Whether the rung has a degradation map; RM_0 has none."""
        return self.model.config.map_stride is not None

    def _predictor(self) -> Predictor:
        """Made again when `.to(device)` has moved the model, or other weights were loaded into it."""
        device = self.model.mean.device
        if self._loaded is None or self._loaded.device != device:
            self._loaded = Predictor(self.model, name=self.name, rung=self.rung, digest=self.digest, device=device)
        return self._loaded

    def train(self, mode: bool = True) -> FinPercepMetric:  # noqa: ARG002
        """Stays in eval mode inside a module that trains: scores must not depend on the batch."""
        return super().train(False)


def _forget(metric: nn.Module, _: object) -> None:
    """Other weights were loaded. A function of the module, not of one instance, so that copies forget for themselves."""
    assert isinstance(metric, FinPercepMetric)
    metric._loaded = None
    metric.digest = metric.model.digest_now()


class FinPercepAccumulator:
    """Means over a set of images, with the interface of a torchmetrics metric: `update`, `compute`, `reset`.

    In a `torch.distributed` process group `compute` is over the images of all processes; all must call it.

    Args:
        metric: what scores; by default the packaged ladder's finest rung.
    """

    _sums: torch.Tensor

    def __init__(self, metric: FinPercepMetric | None = None) -> None:
        self.metric = metric or FinPercepMetric()
        self._sums = torch.zeros(4, dtype=torch.float64)

    @torch.no_grad()
    def update(self, preds: Images) -> None:
        """Count a batch, or one picture. Errors as `FinPercepMetric`; a batch that raises is not counted."""
        rewards = self.metric.rewards(preds)
        numbers = (torch.ones_like(rewards.score), rewards.score, rewards.mean_degradation, rewards.max_degradation)
        batch = torch.stack(numbers).double().sum(dim=1)
        self._sums = self._sums.to(batch.device) + batch

    def compute(self) -> dict[str, torch.Tensor]:
        """Means over the images so far, on all processes.

        Returns:
            ``score`` (higher is better), and for a rung with a map ``mean_degradation`` and ``max_degradation``: means over the
            images of mean(M) and of max^(M), the map's top 1 % (1 = degraded). float32 scalars in [0, 1].

        Raises:
            RewardError: no image has been counted.
        """
        sums = self._sums.to(self.metric.model.mean.device, copy=True)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(sums)
        count, *totals = sums
        if count == 0:
            raise RewardError("a mean needs at least one image, got none; call update(images) first")
        names = ("score", "mean_degradation", "max_degradation") if self.metric.has_map else ("score",)
        return {name: (total / count).float() for name, total in zip(names, totals, strict=False)}

    def reset(self) -> None:
        """Forget all images."""
        self._sums = torch.zeros(4, dtype=torch.float64)
