"""SR models of `finpercep synth`: what `--sr` may name, and the packaged models as `data_synth` sees SR models."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from data_synth.sr_models.protocol import Span, SRCall
from finpercep.cli.console import warn
from finpercep.cli.libraries import hush

if TYPE_CHECKING:
    import torch

    from data_synth.shards import NetworkFactory, Networks
    from data_synth.sr_models.protocol import SRModel
    from data_synth.sr_models.sources import Source
    from finpercep.sr.policy import SRPolicy
    from finpercep.sr.tiny import TinyDiffusionSR

DEFAULT_SOURCES = ("tiny", "zoo", "random")
"""All that ships with the package: the diffusion SR and its early snapshots, the SR zoo, and random networks."""


class DiffusionSRModel:
    """`data_synth.sr_models.protocol.SRModel` over a diffusion policy: steps, η and starting noise vary from call to call.

    One step blurs, several invent, too much noise at the start leaves grain: all of these defects are wanted.
    """

    family = "diffusion"
    settings: Mapping[str, Span] = {"steps": Span(1, 4, "integer"), "eta": Span(0, 1), "noise": Span(0.7, 1.3)}

    def __init__(self, policy: TinyDiffusionSR, name: str, version: str) -> None:
        self.policy, self.name, self.version = policy, name, version
        self.scale = policy.scale

    @property
    def module(self) -> torch.nn.Module:
        """The denoiser."""
        return self.policy.unet  # type: ignore[no-any-return]

    def covers(self, source_id: str) -> bool:  # noqa: ARG002
        """It serves any photo."""
        return True

    def __call__(self, lr: torch.Tensor, calls: Sequence[SRCall]) -> torch.Tensor:
        """SR images of ``lr`` (N×3×h×w in [0, 1]), one by one, since every call has its own schedule."""
        import torch

        from finpercep.sr.policy import seeded_generators
        from finpercep.sr.transition import Sampler

        images = []
        for image, call in zip(lr, calls, strict=True):
            variant = self.policy.with_sampler(Sampler(int(call.settings["steps"]), eta=call.settings["eta"]))
            generators = seeded_generators([call.seed])
            images.append(variant.sample(image[None], generators, initial_noise=call.settings["noise"]).cpu())
        return torch.cat(images)


class PolicySRModel:
    """`data_synth.sr_models.protocol.SRModel` over a policy of any kind, sampled as it samples itself."""

    family = "diffusion"
    settings: Mapping[str, Span] = {}

    def __init__(self, policy: SRPolicy, name: str, version: str) -> None:
        self._policy, self.name, self.version = policy, name, version
        self.scale = policy.scale

    @classmethod
    def load(cls, folder: Path, name: str, device: str = "auto") -> PolicySRModel:
        """The policy that a run saved in ``folder``."""
        from data_synth.device import device_mark, resolve_device
        from finpercep.sr.loading import load_policy

        policy = load_policy(str(folder), device=resolve_device(device))
        return cls(policy, name, policy_digest(folder) + device_mark(policy.device))

    def covers(self, source_id: str) -> bool:  # noqa: ARG002
        """It serves any photo."""
        return True

    def __call__(self, lr: torch.Tensor, calls: Sequence[SRCall]) -> torch.Tensor:
        """SR images of ``lr`` (N×3×h×w in [0, 1]), the noise of each by its call's seed."""
        import torch

        from finpercep.sr.policy import sample_images

        with torch.no_grad():
            return sample_images(self._policy, lr.to(self._policy.device), [call.seed for call in calls]).cpu()


def diffusion_sr_models(folder: Path, name: str, device: str = "auto") -> dict[str, SRModel]:
    """The policy in ``folder`` and its early snapshots, as ``NAME`` and ``NAME@STEP``."""
    from data_synth.device import computes_bf16, device_mark, resolve_device
    from finpercep.sr.tiny import TinyDiffusionSR, with_snapshots

    models: dict[str, SRModel] = {}
    for own_name, path in with_snapshots(name, folder).items():
        on = resolve_device(device)
        autocast = bool(computes_bf16(on))
        policy = TinyDiffusionSR.from_pretrained(path, device=on, autocast=autocast)
        policy.unet.requires_grad_(False).eval()
        models[own_name] = DiffusionSRModel(
            policy, own_name, policy_digest(path) + "+bfloat16" * autocast + device_mark(policy.device)
        )
    return models


def load_networks(
    sources: Sequence[str], *, scale: int, perturb: bool = True, segmenter: str | None = None, device: str = "auto"
) -> Networks:
    """The SR models that ``--sr`` names, and the segmenter. Raises `SRModelError` when one cannot be had."""
    hush()  # this also runs in worker processes, which no command line has prepared
    from data_synth.segments import SamSegmenter
    from data_synth.shards import Networks
    from data_synth.sr_models.sources import load_sources

    schemes = {"tiny": _load_policy, "policy": _load_policy, "zoo": _load_zoo}
    models = load_sources(sources, scale=scale, device=device, perturb=perturb, extra_schemes=schemes)
    return Networks(models, SamSegmenter(segmenter, device=device) if segmenter else None)


def _load_policy(source: Source, scale: int, device: str) -> Mapping[str, SRModel]:  # noqa: ARG001
    """``tiny``, the packaged diffusion SR, or ``policy:DIR``, one that train-sr or finetune wrote."""
    from finpercep.sr.loading import is_tiny, policy_folder

    folder = policy_folder(source.target or "tiny")
    name = source.name or (folder.name if source.target else "tiny")
    if not is_tiny(folder):
        return {name: PolicySRModel.load(folder, name, device)}
    return diffusion_sr_models(folder, name, device)


def _load_zoo(source: Source, scale: int, device: str) -> Mapping[str, SRModel]:
    """``zoo``, the packaged one, or ``zoo:DIR``, one that train-zoo wrote."""
    from data_synth.device import resolve_device
    from data_synth.zoo.model import load_zoo

    folder = Path(source.target) if source.target else packaged_zoo_folder()
    return load_zoo(folder, scale, prefix=source.name or "zoo", device=resolve_device(device))


def packaged_zoo_folder() -> Path:
    """Folder of the SR zoo that ships with the package."""
    return Path(str(files("finpercep"))) / "weights" / "sr-zoo"


def network_factory(
    sources: Sequence[str], *, scale: int, perturb: bool = True, segmenter: str | None = None, device: str = "auto"
) -> NetworkFactory:
    """`load_networks` to be called in worker processes."""
    return partial(load_networks, tuple(sources), scale=scale, perturb=perturb, segmenter=segmenter, device=device)


def default_sources(scale: int) -> tuple[str, ...]:
    """What ships with the package at this scale: trained networks are x4, random ones any. Says what is missing."""
    if scale == 4:
        return DEFAULT_SOURCES
    warn(f"the packaged SR networks are x4: at x{scale} there are random ones alone; add your own with --sr")
    return ("random",)


def policy_digest(policy: Path | str) -> str:
    """Digest of what decides the output of the policy that `load_policy` calls so: choices, schedulers and weights.

    Published weights beneath it count, a model card or log beside it does not. Raises `WeightsError` when there is no such one.
    """
    from data_synth.sr_models.pipeline_files import files_digest
    from finpercep.sr.loading import is_tiny, policy_sources

    folders = policy_sources(str(policy))
    tiny = (folders[0] / "policy.json").is_file() and is_tiny(folders[0])
    return _tiny_digest(folders[0]) if tiny else files_digest(folders, salt="")


def _tiny_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted([folder / "policy.json", *(folder / "scheduler").iterdir(), *(folder / "unet").iterdir()]):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
