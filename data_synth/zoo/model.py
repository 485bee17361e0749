"""A network of the zoo as an `SRModel`: images in, images out. Knows no training and no build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from data_synth.device import device_mark
from data_synth.sr_models.protocol import Span, SRCall
from data_synth.zoo.errors import ZooError
from data_synth.zoo.networks import Generator, seeded_noise
from data_synth.zoo.store import read_index, read_network


@dataclass(frozen=True)
class ZooModel:
    """One snapshot of one member; satisfies `SRModel`.

    Attributes:
        name: ``zoo-MEMBER@STEP``.
        version: digest of architecture and weights, and what they run on, which decides last bits.
        scale: upscaling factor.
        family: ``regression``, ``perceptual`` or ``gan``.
        module: the network; ``module(lr)`` is N×3×h·scale×w·scale, not clamped. A wrapper may copy and perturb it.
        member: what it is a snapshot of.
        progress: share of the training done when it was kept, in (0, 1].
        autocast: convolve in bfloat16: two to four times as fast on CPUs that have it, but no longer the same pixels on every
            machine.
        settings: none varies from call to call.
    """

    name: str
    version: str
    scale: int
    family: str
    module: Generator
    member: str
    progress: float
    autocast: bool = False
    settings: Mapping[str, Span] = field(default_factory=dict)

    def covers(self, source_id: str) -> bool:  # noqa: ARG002
        """A network serves every photo."""
        return True

    def __call__(self, lr: torch.Tensor, calls: Sequence[SRCall]) -> torch.Tensor:
        """SR images in [0, 1] of ``lr`` (N×3×h×w float32 in [0, 1]); a call's seed decides the noise of networks that take any.

        One image at a time: convolutions of a batch may round differently from those of its parts, and a sample
        must not depend on its neighbours.
        """
        if len(calls) != len(lr):
            raise ZooError(f"{self.name}: needs one call an image, got {len(calls)} for {len(lr)} images")
        device = next(self.module.parameters()).device
        images = []
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
            for one, call in zip(lr.split(1), calls, strict=True):
                noise = seeded_noise(self.module.config, one, [call.seed])
                images.append(self.module(_channels_last(one.to(device)), noise).clamp(0, 1).cpu())
        return torch.cat(images).contiguous()


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def load_zoo(
    folder: Path, scale: int, *, prefix: str = "zoo", device: torch.device | str = "cpu", autocast: bool = False
) -> dict[str, ZooModel]:
    """All networks of a zoo by name, ``PREFIX-MEMBER@STEP``; ``autocast`` as in `ZooModel`.

    Raises:
        ZooError: no zoo there, unreadable weights, or a zoo of another scale.
        SchemaError: a damaged zoo.
    """
    models = {}
    for stored in read_index(folder):
        if stored.generator.scale != scale:
            raise ZooError(
                f"{folder}: a zoo for x{scale} is required, got one for x{stored.generator.scale}; "
                f"train one with `finpercep train-zoo --scale {scale}`"
            )
        module = read_network(folder, stored).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        name = f"{prefix}-{stored.name}"
        progress = stored.step / stored.steps
        version = f"{stored.digest}{'+bfloat16' * autocast}{device_mark(torch.device(device))}"
        models[name] = ZooModel(name, version, scale, stored.family, module, stored.member, progress, autocast)
    return models
