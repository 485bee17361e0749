"""A fine-tuning run from its settings: the policy and the Gram term's network loaded, watched, its curves written."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finpercep.cli.console import warn
from finpercep.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    import torch

    from finpercep.cli.photo_pairs import PhotoPairs
    from finpercep.curriculum.at_work import HeldOutPairs
    from finpercep.curriculum.logbook import Logbook
    from finpercep.curriculum.loop import FinetuneConfig, StepMetrics
    from finpercep.curriculum.refresh import Refresher
    from finpercep.reward import RewardSource
    from finpercep.rl.gram import FeatureExtractor
    from finpercep.rl.world import World
    from finpercep.sr.policy import SRPolicy
    from finpercep.sr.settings import PolicySettings
    from finpercep.weighted_reward import WeightedSource

TYPICAL = 16
"""Crops on which the scales of several rewards are measured."""


@dataclass(frozen=True)
class GramFeatures:
    """The frozen extractor of the Gram term, and what a run's config says of it."""

    extractor: FeatureExtractor
    described: dict[str, str]


def gram_features(name: str, device: torch.device | str) -> GramFeatures:
    """``reward``: the frozen encoder of the packaged RM_0; ``vgg19``: RFSR's, with its published weights.

    Raises:
        ConfigError: neither of these.
        WeightsError: VGG19's weights cannot be had.
    """
    from finpercep.predictor import load_predictors, packaged_model_folder

    if name == "vgg19":
        from finpercep.rl.vgg import load_vgg19

        return GramFeatures(load_vgg19(device), {"network": "vgg19"})
    if name != "reward":
        raise ConfigError(f"--features must be reward or vgg19, got {name!r}")
    predictor = next(iter(load_predictors(packaged_model_folder(), device).values()))
    model = predictor.model
    return GramFeatures(lambda images: model.features(images)[1:], {"rung": predictor.rung, "digest": predictor.digest})


@dataclass(frozen=True)
class NamedPolicy:
    """An SR policy, the name it was loaded by, and what was decided about it."""

    name: str
    settings: PolicySettings
    policy: SRPolicy

    @classmethod
    def load(cls, name: str, settings: PolicySettings | None = None, device: torch.device | str = "cpu") -> NamedPolicy:
        """Raises as `finpercep.sr.loading.load_policy`."""
        from finpercep.cli.libraries import hush_progress
        from finpercep.sr.loading import load_policy
        from finpercep.sr.settings import PolicySettings

        hush_progress()
        settings = settings or PolicySettings()
        return cls(name, settings, load_policy(name, device=device, settings=settings))

    def described(self) -> dict[str, Any]:
        """What a run's config says of it."""
        from finpercep.cli.finetune_config import POLICY_TABLE
        from finpercep.cli.sr_models import policy_digest

        return {"policy": {"name": self.name, "digest": policy_digest(self.name)}, POLICY_TABLE: self.settings.said()}


def run_finetuning(
    chosen: NamedPolicy,
    source: RewardSource,
    pairs: PhotoPairs,
    config: FinetuneConfig,
    out: Path,
    features: GramFeatures,
    described: dict[str, Any],
    *,
    held_out: HeldOutPairs | None = None,
    refresher: Refresher | None = None,
    device: torch.device | str = "cpu",
    world: World | None = None,
) -> dict[str, float | str | None] | None:
    """Fine-tune the ``chosen`` policy and show how it goes.

    The run's config names what ``described`` says of data and rewards, and the digests of the photos, of the policy and of the
    Gram term's network, so that a run is never continued with another of them. ``held_out`` is what the monitor looks at. Of
    the processes of a ``world`` the main one alone writes and shows.

    Returns:
        The metrics of the last step done now, None when the run was complete.
    """
    from finpercep.cli.photo_pairs import digest_of_photos
    from finpercep.cli.reward_sources import keep_scales
    from finpercep.cli.run_view import RunView
    from finpercep.curriculum.loop import finetune as finetune_steps
    from finpercep.curriculum.run_directory import RunDirectory
    from finpercep.rl.world import ALONE
    from finpercep.training.provenance import Session
    from finpercep.weighted_reward import WeightedSource

    world = world or ALONE
    photos = {"count": len(pairs.photos), "digest": digest_of_photos(pairs.photos)}
    described = {**described, "photos": photos, **chosen.described(), "features": features.described}

    def prepare() -> None:
        if isinstance(source, WeightedSource):
            measured = partial(measure_scales, source, chosen.policy, pairs, config)
            keep = partial(keep_scales, source, out / "reward_scales.json", measured)
            world.from_main(keep)
            keep()

    last = None
    with ExitStack() as stack:
        view = stack.enter_context(RunView(f"finetune {out}", config.steps)) if world.rank == 0 else None
        logbook = stack.enter_context(curves_of(out)) if world.rank == 0 else None
        run = RunDirectory(out, logbook=logbook, session=Session.now(sys.argv[1:], str(device), world.size))
        for metrics in finetune_steps(
            chosen.policy,
            source,
            pairs,
            features.extractor,
            config,
            run,
            described=described,
            held_out=held_out,
            refresher=refresher,
            prepare=prepare,
            world=world,
        ):
            if view is not None:
                view.add(metrics)
            last = flat(metrics)
    return last


def curves_of(out: Path) -> AbstractContextManager[Logbook | None]:
    """The run's curves for TensorBoard; without tensorboard one line says that there will be none."""
    from finpercep.curriculum.logbook import Logbook

    try:
        return Logbook(out)
    except MissingExtraError as error:
        warn(f"{error}; the run goes on without curves for TensorBoard")
        return nullcontext()


def measure_scales(source: WeightedSource, policy: SRPolicy, pairs: PhotoPairs, config: FinetuneConfig) -> None:
    """Measure the scales of several rewards on a few clean crops and what the policy makes of their LR images."""
    import torch

    from finpercep.sr.policy import sample_images

    hr, lr = (side.to(policy.device) for side in pairs.fixed(TYPICAL, config.seed))
    images = torch.cat([hr, sample_images(policy, lr, range(TYPICAL))])
    source.measure(images, config.reward, lr.repeat(2, 1, 1, 1) if config.show_lr else None)


def flat(metrics: StepMetrics) -> dict[str, float | str | None]:
    """A step's metrics in one dict, losses as ``loss NAME``."""
    record = dataclasses.asdict(metrics)
    losses, figures = record.pop("losses"), record.pop("figures")
    verdict, decision = record.pop("verdict"), record.pop("decision")
    record["panel change"] = verdict and verdict["change"]
    record["decision"] = decision and decision["move"]
    return {**record, **{f"loss {name}": value for name, value in losses.items()}, **figures}
