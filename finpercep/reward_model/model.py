"""One rung of the reward model: encoder, map decoder (none in RM_0) and score head, handed in ready-made by `build`.

Takes float batches only; raw pictures, tiling and devices are the predictor's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import HfApi, ModelHubMixin
from torch import nn
from torch.nn import functional as F

from finpercep.checkpoint import as_stored, digest_of, read_checkpoint, write_checkpoint
from finpercep.errors import ConfigError, SchemaError
from finpercep.reward_model.config import RewardModelConfig
from finpercep.reward_model.hub import HubApi, download, model_card, upload
from finpercep.reward_model.lr_evidence import lr_difference, lr_evidence, no_evidence
from finpercep.reward_model.score_head import MapForScore, ScoreHead, bring_to_deep

MIN_SIDE = 32
"""Smallest image side in px that the model takes."""


@dataclass(frozen=True)
class RewardOutput:
    """What the model says of a batch.

    Attributes:
        score: (N,) in [0, 1], higher is better.
        map_logits: (N, H, W) calibrated logits of the degradation map at input resolution; None for RM_0.
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
        coarse_logits: map logits at the rung's stride, (N, h', w'), of the padded image, uncalibrated; None for RM_0.
    """

    deep: torch.Tensor
    coarse_logits: torch.Tensor | None


class FinPercepRM(nn.Module, ModelHubMixin):
    """FinPercep-RM. ``from_pretrained`` takes a folder or a hub id; ``save_pretrained`` and ``push_to_hub`` write contract 2."""

    def __init__(
        self, config: RewardModelConfig, encoder: nn.Module, map_decoder: nn.Module | None, score_head: ScoreHead
    ) -> None:
        super().__init__()
        self.config, self.encoder, self.map_decoder, self.score_head = config, encoder, map_decoder, score_head
        self.digest: str | None = None  # of the checkpoint it was loaded from, or saved as since
        self.stored_dtypes: dict[str, torch.dtype] = {}  # of that checkpoint's tensors
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)
        self.mean: torch.Tensor
        self.std: torch.Tensor

    def forward(self, images: torch.Tensor, lr: torch.Tensor | None = None, lr_known: torch.Tensor | None = None) -> RewardOutput:
        """Score a batch.

        Args:
            images: (N, 3, H, W) float RGB in [0, 1], H and W at least 32 px.
            lr: (N, 3, h, w) float RGB in [0, 1], the low-resolution pictures that the images were made from; None when they are
                not known. Only for a model with ``lr_input``.
            lr_known: (N,) bool, the images whose ``lr`` is to be believed; None: all.

        Raises:
            ValueError: wrong shape or too small, or ``lr`` for a model that has no use for it.
        """
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[-2:]) < MIN_SIDE:
            raise ValueError(f"images must be N×3×H×W with sides of at least {MIN_SIDE} px, got {tuple(images.shape)}")
        size = (images.shape[-2], images.shape[-1])
        evidence = None if lr is None else lr_evidence(self.lr_difference(images, lr), lr_known, size)
        seen = self.perceive(images, evidence)
        return RewardOutput(self.score(seen, size), self.upsample_logits(seen.coarse_logits, size))

    def lr_difference(self, images: torch.Tensor, lr: torch.Tensor) -> torch.Tensor:
        """`lr_difference` of images and LR pictures that fit each other and this model. Raises `ValueError` when they do not."""
        if not self.config.lr_input:
            raise ValueError("this model takes no lr; train one with lr_input")
        fits = lr.ndim == 4 and lr.shape[:2] == (len(images), 3)
        if not fits or any(low < 1 or low > side for low, side in zip(lr.shape[-2:], images.shape[-2:], strict=True)):
            raise ValueError(
                f"lr must be N×3×h×w with as many pictures as images and none larger, got {tuple(lr.shape)} "
                f"for images {tuple(images.shape)}"
            )
        return lr_difference(images, lr)

    def features(self, images: torch.Tensor, evidence: torch.Tensor | None = None) -> list[torch.Tensor]:
        """The encoder's features, the encoder's input first, f_N last. Arguments as in `perceive`."""
        planes = (images - self.mean) / self.std
        if self.config.lr_input:
            planes = torch.cat([planes, no_evidence(images) if evidence is None else evidence.to(planes.dtype)], dim=1)
        bottom, right = (self._padding(side) for side in images.shape[-2:])
        features: list[torch.Tensor] = self.encoder(F.pad(planes, (0, right, 0, bottom), mode="reflect"))
        return features

    def perceive(self, images: torch.Tensor, evidence: torch.Tensor | None = None) -> Perception:
        """Run encoder and decoder.

        Args:
            images: (N, 3, H, W); sides are padded by reflection to a multiple of f_N's stride.
            evidence: (N, 4, H, W) of `lr_evidence`; None when no LR picture is known.
        """
        features = self.features(images, evidence)
        return Perception(features[-1], None if self.map_decoder is None else self.map_decoder(features))

    def score(self, seen: Perception, size: tuple[int, int]) -> torch.Tensor:
        """S in [0, 1], (N,), of images of ``size`` (height, width): what lies in the padding has no weight."""
        logit = self.score_head(seen.deep, self.map_for_score(seen, size), self._inside(seen.deep, size, self.config.deep_stride))
        return torch.sigmoid(self.config.score_scale * logit.float() + self.config.score_shift)

    def map_for_score(self, seen: Perception, size: tuple[int, int]) -> MapForScore | None:
        """The map as the score of images of ``size`` sees it; None for RM_0."""
        if seen.coarse_logits is None:
            return None
        stride = self.config.map_stride or 1
        padded = seen.coarse_logits.sigmoid()
        inside = self._inside(padded, size, stride)
        rows, columns = (_blocks(side, stride) for side in size)
        own = padded[:, :rows, :columns]
        return MapForScore(own, bring_to_deep(padded, inside, self.config.deep_stride // stride, self.config.map_pooling))

    def _inside(self, planes: torch.Tensor, size: tuple[int, int], stride: int) -> torch.Tensor:
        """The share of each position of ``planes`` (at ``stride``, padding included) that lies inside the image, (h, w)."""
        rows, columns = (
            F.avg_pool1d(F.pad(planes.new_ones(1, 1, side), (0, self._padding(side))), stride)[0, 0] for side in size
        )
        return rows[:, None] * columns[None, :]

    def _padding(self, side: int) -> int:
        return _blocks(side, self.config.deep_stride) * self.config.deep_stride - side

    def upsample_logits(self, coarse_logits: torch.Tensor | None, size: tuple[int, int]) -> torch.Tensor | None:
        """Map logits at the rung's stride, padding included → calibrated logits (N, H, W) at input resolution."""
        if coarse_logits is None:
            return None
        stride = self.config.map_stride or 1
        full = F.interpolate(coarse_logits[:, None].float(), scale_factor=stride, mode="bilinear", align_corners=False)
        return self.config.map_scale * full[:, 0, : size[0], : size[1]] + self.config.map_shift

    def digest_now(self) -> str:
        """Digest of the weights as they are: ``digest`` is that of the checkpoint, and they may have been changed since."""
        return digest_of(self.config.to_json(), as_stored(self.state_dict(), self.stored_dtypes))

    def save_pretrained(self, save_directory: str | Path) -> None:  # type: ignore[override]  # the mixin's writes its own config
        """Write contract 2 into a folder. An unchanged model keeps the precision it was stored in, and so its digest."""
        state = as_stored(self.state_dict(), self.stored_dtypes)
        self.digest = write_checkpoint(Path(save_directory), self.config.to_json(), state)

    def push_to_hub(  # type: ignore[override]  # fewer options than the mixin's
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        message: str = "Upload a FinPercep reward model",
        licence: str | None = None,
        notes: str = "",
        api: HubApi | None = None,
    ) -> str:
        """Upload contract 2 and a model card; `from_pretrained` takes the same ``repo_id``.

        Args:
            repo_id: NAME or OWNER/NAME; made when absent.
            private: whether a new repository is.
            token: the hub's; by default the one of `hf auth login`.
            message: of the commit.
            licence: the card's licence, as the hub names it (``apache-2.0``).
            notes: Markdown for the card: data, training, figures, limits.
            api: the hub's client.

        Returns:
            The commit's address.

        Raises:
            WeightsError: the hub cannot be reached or refused.
        """
        with TemporaryDirectory() as name:
            self.save_pretrained(name)
            card = model_card(self.config, self.digest, repo_id=repo_id, licence=licence, notes=notes)
            card.save(Path(name) / "README.md")
            return upload(Path(name), repo_id, api or HfApi(token=token), private=private, message=message)

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
        model.stored_dtypes = {name: tensor.dtype for name, tensor in checkpoint.state.items()}
        return model.eval()

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the mixin's also builds from its own config format, which is not ours
        cls, pretrained_model_name_or_path: str | Path, *, subfolder: str = "", revision: str | None = None, **hub: Any
    ) -> FinPercepRM:
        """The rung in a folder or on the hub; ``hub`` are options of `huggingface_hub.snapshot_download`.

        Args:
            pretrained_model_name_or_path: a folder, or OWNER/NAME on the hub.
            subfolder: where the rung is in it; of a ladder, ``RM_2``.
            revision: branch, tag or commit on the hub.

        Raises:
            WeightsError: neither a folder nor a model that can be downloaded.
            SchemaError: what is there breaks contract 2.
        """
        folder = Path(pretrained_model_name_or_path)
        found = folder if folder.is_dir() else download(str(pretrained_model_name_or_path), revision, hub)
        return cls.load(found / subfolder)


def _blocks(side: int, stride: int) -> int:
    """How many blocks of ``stride`` cover ``side``. No negative numbers: ONNX divides them towards 0, Python downwards."""
    return (side + stride - 1) // stride
