"""One rung of the reward model: encoder, map decoder (none in RM_0) and score head, handed in ready-made by `build`.

Takes float batches only; raw pictures, tiling and devices are the predictor's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from torch import nn
from torch.nn import functional as F

from finpercep.checkpoint import read_checkpoint, write_checkpoint
from finpercep.errors import ConfigError, SchemaError, WeightsError
from finpercep.reward_model.config import RewardModelConfig
from finpercep.reward_model.map_decoder import MapDecoder
from finpercep.reward_model.score_head import MapForScore, ScoreHead, bring_to

MIN_SIDE = 32
"""Smallest image side in px that the model takes."""


@dataclass(frozen=True)
class RewardOutput:
    """What the model says of a batch.

    Attributes:
        score: (N,) in [0, 1], higher is better.
        map_logits: (N, H, W) logits of the degradation map at input resolution; None for RM_0.
    """

    score: torch.Tensor
    map_logits: torch.Tensor | None

    @property
    def map(self) -> torch.Tensor | None:
        """M in [0, 1], (N, H, W), 1 = degraded; None for RM_0."""
        return None if self.map_logits is None else self.map_logits.sigmoid()


@dataclass(frozen=True)
class Perception:
    """What the network sees of an image before the score: enough to score it, and small enough to stitch from tiles.

    Attributes:
        deep: f_N, (N, C, h, w).
        coarse_logits: map logits at the rung's stride, (N, h', w'), cropped to the image; None for RM_0.
    """

    deep: torch.Tensor
    coarse_logits: torch.Tensor | None


class FinPercepRM(nn.Module, ModelHubMixin):
    """FinPercep-RM. ``from_pretrained`` takes a folder or a hub id; ``save_pretrained`` and ``push_to_hub`` write contract 2."""

    def __init__(
        self, config: RewardModelConfig, encoder: nn.Module, map_decoder: MapDecoder | None, score_head: ScoreHead
    ) -> None:
        super().__init__()
        self.config, self.encoder, self.map_decoder, self.score_head = config, encoder, map_decoder, score_head
        self.digest: str | None = None  # of the checkpoint it was loaded from
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)
        self.mean: torch.Tensor
        self.std: torch.Tensor

    def forward(self, images: torch.Tensor) -> RewardOutput:
        """Score a batch.

        Args:
            images: (N, 3, H, W) float RGB in [0, 1], H and W at least 32 px.

        Raises:
            ValueError: wrong shape or too small.
        """
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[-2:]) < MIN_SIDE:
            raise ValueError(f"images must be N×3×H×W with sides of at least {MIN_SIDE} px, got {tuple(images.shape)}")
        size = (images.shape[-2], images.shape[-1])
        seen = self.perceive(images)
        return RewardOutput(self.score(seen, size), self.upsample_logits(seen.coarse_logits, size))

    def perceive(self, images: torch.Tensor) -> Perception:
        """Run encoder and decoder on (N, 3, H, W); sides are padded by reflection to a multiple of f_N's stride."""
        height, width = images.shape[-2:]
        period = self.config.deep_stride
        padded = F.pad(images, (0, -width % period, 0, -height % period), mode="reflect")
        features = self.encoder((padded - self.mean) / self.std)
        if self.map_decoder is None:
            return Perception(features[-1], None)
        stride = self.config.map_stride or 1
        logits = self.map_decoder(features)[:, : -(-height // stride), : -(-width // stride)]
        return Perception(features[-1], logits)

    def score(self, seen: Perception, size: tuple[int, int]) -> torch.Tensor:
        """S in [0, 1], (N,), of images of ``size`` (height, width)."""
        logit = self.score_head(seen.deep, self._map_for_score(seen), self._image_share(seen.deep, size))
        return torch.sigmoid(self.config.score_scale * logit.float() + self.config.score_shift)

    def _map_for_score(self, seen: Perception) -> MapForScore | None:
        """Where f_N reaches beyond the image because the input was padded, the map's edge is repeated."""
        if seen.coarse_logits is None:
            return None
        own = seen.coarse_logits.sigmoid()
        ratio = self.config.deep_stride // (self.config.map_stride or 1)
        height, width = seen.deep.shape[-2:]
        missing = (0, width * ratio - own.shape[-1], 0, height * ratio - own.shape[-2])
        padded = F.pad(own[:, None], missing, mode="replicate")[:, 0] if any(missing) else own
        return MapForScore(own, bring_to(padded, (height, width), self.config.map_pooling))

    def _image_share(self, deep: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """(h, w): the share of each f_N position that lies inside the image."""
        rows, columns = (
            (side / self.config.deep_stride - torch.arange(count, device=deep.device)).clamp(0, 1)
            for side, count in zip(size, deep.shape[-2:], strict=True)
        )
        return rows[:, None] * columns[None, :]

    def upsample_logits(self, coarse_logits: torch.Tensor | None, size: tuple[int, int]) -> torch.Tensor | None:
        """Map logits at the rung's stride → (N, H, W) at input resolution."""
        if coarse_logits is None:
            return None
        stride = self.config.map_stride or 1
        full = F.interpolate(coarse_logits[:, None].float(), scale_factor=stride, mode="bilinear", align_corners=False)
        return full[:, 0, : size[0], : size[1]]

    def _save_pretrained(self, save_directory: Path) -> None:
        write_checkpoint(save_directory, self.config.to_json(), self.state_dict())

    @classmethod
    def load(cls, folder: Path) -> FinPercepRM:
        """The rung in a folder, float32, in eval mode. Raises `WeightsError` or `SchemaError`."""
        from finpercep.reward_model.build import build_reward_model

        checkpoint = read_checkpoint(folder)
        try:
            model = build_reward_model(RewardModelConfig.from_json(checkpoint.model))
            model.load_state_dict(checkpoint.state)
        except (ConfigError, RuntimeError) as error:
            raise SchemaError(str(folder), "model", "a config and weights that fit each other", str(error)) from error
        model.digest = checkpoint.digest
        return model.eval()

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the mixin's also builds from its own config format, which is not ours
        cls, pretrained_model_name_or_path: str | Path, *, revision: str | None = None, **hub: Any
    ) -> FinPercepRM:
        """The rung in a folder or on the hub; ``hub`` are options of `huggingface_hub.snapshot_download`.

        Raises:
            WeightsError: neither a folder nor a model that can be downloaded.
            SchemaError: what is there breaks contract 2.
        """
        folder = Path(pretrained_model_name_or_path)
        return cls.load(folder if folder.is_dir() else _download(str(pretrained_model_name_or_path), revision, hub))


def _download(model_id: str, revision: str | None, hub: dict[str, Any]) -> Path:
    try:
        return Path(snapshot_download(model_id, revision=revision, **hub))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{model_id}: neither a folder here nor a model that could be downloaded ({reason})") from error
