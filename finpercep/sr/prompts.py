"""Words as the networks see them. Each text is encoded once; where no captions come later, the text encoders are then let go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

Captions = Callable[[torch.Tensor], Sequence[str]]
"""LR images N×3×h×w in [0, 1] → N captions."""

_CLIP_LENGTH = 77


@dataclass(frozen=True)
class Text:
    """Encoded texts: hidden states (N, L, D), and pooled ones (N, P) where the network takes them; float32."""

    hidden: torch.Tensor
    pooled: torch.Tensor | None = None

    def to(self, device: torch.device) -> Text:
        """The same on ``device``."""
        return Text(self.hidden.to(device), None if self.pooled is None else self.pooled.to(device))


class Prompts:
    """Texts → `Text`, through ``encode`` (one text → a `Text` with N = 1), or from memory."""

    def __init__(self, encode: Callable[[str], Text]) -> None:
        self._encode: Callable[[str], Text] | None = encode
        self._known: dict[str, Text] = {}

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], device: torch.device) -> Text:
        """Raises KeyError on a new text after `forget_encoders`."""
        for text in texts:
            if text not in self._known:
                if self._encode is None:
                    raise KeyError(f"{text!r}: the text encoders have been let go")
                encoded = self._encode(text)
                self._known[text] = Text(encoded.hidden.float(), None if encoded.pooled is None else encoded.pooled.float())
        parts = [self._known[text].to(device) for text in texts]
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return Text(torch.cat([part.hidden for part in parts]), torch.cat(pooled) if pooled else None)

    def forget_encoders(self) -> None:
        """Only texts already seen can be had from now on, and the encoders' memory is free."""
        self._encode = None

    @classmethod
    def of_stable_diffusion(cls, pipeline: Any) -> Self:
        """Through the CLIP text encoder of a Stable Diffusion 1 or 2 pipeline."""

        def encode(text: str) -> Text:
            return Text(pipeline.encode_prompt(text, pipeline.text_encoder.device, 1, False)[0])

        return cls(encode)

    @classmethod
    def of_stable_diffusion_3(cls, pipeline: Any) -> Self:
        """Through the two CLIP text encoders of a Stable Diffusion 3 pipeline, and T5 where it is there.

        A pipeline saved without any text encoder sees zeros: a model that was trained without words.
        """

        def encode(text: str) -> Text:
            if pipeline.text_encoder is None:
                config = pipeline.transformer.config
                hidden = torch.zeros(1, _CLIP_LENGTH, config.joint_attention_dim)
                return Text(hidden, torch.zeros(1, config.pooled_projection_dim))
            device = pipeline.text_encoder.device
            hidden, _, pooled, _ = pipeline.encode_prompt(text, None, None, device=device, do_classifier_free_guidance=False)
            return Text(hidden, pooled)

        return cls(encode)
