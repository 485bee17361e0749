"""`finpercep finetune --refresh`: train the reward anew on what the policy puts out, where the curriculum comes to a finer rung.

The policy's outputs for training photos are region-swapped with the photos (`data_synth`), half of the samples are of the kind
that the reward model knows already, and RM_{k+1} goes on from its weights under the same anchor RM_0 (method §5). It takes the
old one's place unless it is worse, by more than a margin, on the frozen test split of that known data.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from finpercep.cli.console import say
from finpercep.cli.publishing import (
    RECORD_NAME,
    LocalPublisher,
    Publisher,
    ServedPublisher,
    ServerAccess,
    copy_folder,
    ladder_behind,
    unrefreshed,
)
from finpercep.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from data_synth.photos import PhotoSource
    from data_synth.plan import BuildConfig
    from data_synth.shards import NetworkFactory, Networks
    from finpercep.curriculum.refresh import Record
    from finpercep.reward import RewardSource
    from finpercep.reward_model.model import FinPercepRM
    from finpercep.rl.world import World
    from finpercep.sr.policy import SRPolicy
    from finpercep.training.data import Samples
    from finpercep.training.train_config import TrainConfig

FOLDER = "refresh"
"""In the run directory."""

HELD_OUT = 0.15
"""Shares of the photos of either data set for validation, and for the test."""


@dataclass(frozen=True)
class RefreshConfig:
    """How a rung is refreshed.

    Attributes:
        samples: region swaps of the policy's own outputs; 0 refreshes nothing.
        steps: training steps of the rung.
        batch_size: triplets a step, half of them of the policy's outputs.
        crop: side of the samples in px, a multiple of 16.
        lr: peak learning rate, lower than for a new ladder: the rung knows most of it.
        margin: of the validation figure, in [0, 1], that the refreshed rung may lose on the frozen test split.
        data: data set of `finpercep synth` that stands for what the reward model knows; None builds one from the training photos
            and the packaged SR models. Its samples must be of ``crop`` px.
    """

    samples: int = 0
    steps: int = 150
    batch_size: int = 16
    crop: int = 128
    lr: float = 2e-4
    margin: float = 0.02
    data: str | None = None

    def __post_init__(self) -> None:
        if self.samples and self.samples < 20:
            raise ConfigError(f"refresh: samples must be 0 or at least 20, got {self.samples}")
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"refresh: {name} must be at least 1, got {getattr(self, name)}")
        if self.crop < 32 or self.crop % 16:
            raise ConfigError(f"refresh: crop must be a multiple of 16 from 32 on, got {self.crop}")
        if not (self.lr > 0 and 0 <= self.margin <= 1):
            raise ConfigError(f"refresh: lr must be positive and margin lie in [0, 1], got {self.lr} and {self.margin}")


class LadderRefresher:
    """`Refresher` that builds a data set, trains the rung, and publishes it.

    Args:
        folder: of everything that is made; every refresh has a folder of its own, named by rung and policy.
        ladder: the ladder as the run began with it.
        photos: to train on.
        config: settings.
        publisher: to the reward's source.
        device: to train on.
        world: the processes that train together.
        seed: of data and training.
        blind: whether the policy's own samples come from blind LR images (`degradation_config`), as in the run.
    """

    def __init__(
        self,
        folder: Path,
        ladder: Path,
        photos: Sequence[PhotoSource],
        config: RefreshConfig,
        publisher: Publisher,
        *,
        device: torch.device,
        world: World,
        seed: int = 0,
        blind: bool = False,
    ) -> None:
        self._folder, self._ladder, self._photos = folder, ladder, photos
        self._config, self._publisher, self._device = config, publisher, device
        self._world, self._seed, self._blind = world, seed, blind

    def make(self, rung: str, policy: SRPolicy) -> Record:
        """See `Refresher`."""
        folder: Path = self._world.from_main(partial(self._begin, rung, policy))
        if not (folder / RECORD_NAME).exists():
            new, old = (self._splits(data) for data in (folder / "data", self._known))
            self._train(rung, folder / "ladder", new, old)
            self._world.from_main(partial(self._judge, rung, folder, new["test"], old["test"]))
        record: Record = json.loads((folder / RECORD_NAME).read_text())
        return record

    def adopt(self, rung: str, record: Record) -> None:
        """See `Refresher`."""
        if record["accepted"]:
            self._publisher.publish(rung, self._folder / record["folder"] / "ladder", record["digest"])

    @cached_property
    def _known(self) -> Path:
        """The data set of what the reward model knows already."""
        return Path(self._config.data) if self._config.data else self._folder / "known"

    def _begin(self, rung: str, policy: SRPolicy) -> Path:
        """Save the policy and build the data; returns the folder of this refresh."""
        from finpercep.cli.sr_models import policy_digest

        partial_copy = self._folder / "policy.partial"
        shutil.rmtree(partial_copy, ignore_errors=True)
        policy.save_pretrained(partial_copy)
        folder = self._folder / f"{rung}@{policy_digest(partial_copy)[:12]}"
        if not (folder / RECORD_NAME).exists():
            say(f"refreshing {rung} on the policy's own outputs: {folder}")
            shutil.rmtree(folder / "policy", ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            partial_copy.rename(folder / "policy")
            if not self._config.data:
                build_known_data(self._photos, self._known, self._config, policy.scale, self._seed)
            networks = partial(policy_networks, folder / "policy", str(self._device))
            config = own_data_config(self._config, policy.scale, self._seed, blind=self._blind)
            _build(self._photos, folder / "data", config, networks)
        shutil.rmtree(partial_copy, ignore_errors=True)
        return folder

    def _splits(self, data: Path) -> dict[str, Samples]:
        from data_synth.schema import read_split
        from data_synth.schema.manifest import SPLITS

        return {split: read_split(data, split) for split in SPLITS}

    def _train(self, rung: str, out: Path, new: Mapping[str, Samples], old: Mapping[str, Samples]) -> None:
        """Train ``rung`` in ``out`` beside copies of the rungs before it; an interrupted training goes on."""
        import torch

        from finpercep.predictor import load_predictors
        from finpercep.training.data import Joined, repeated
        from finpercep.training.processes import make_accelerator
        from finpercep.training.train import train_ladder

        predictors = load_predictors(self._ladder)
        before = list(predictors)[: list(predictors).index(rung)]
        self._world.from_main(partial(_copy_rungs, before, self._ladder, out))
        config = self._train_config([predictors[name].model for name in [*before, rung]])
        train, validation = (Joined([new[name], repeated(old[name], len(new[name]))]) for name in ("train", "validation"))
        with torch.random.fork_rng():
            reports = train_ladder(
                train,
                validation,
                config,
                out,
                start={rung: predictors[rung].model},
                name=next(iter(predictors.values())).name,
                accelerator=make_accelerator(self._device, config.precision),
            )
            for _ in reports:
                pass

    def _train_config(self, models: Sequence[FinPercepRM]) -> TrainConfig:
        """Of a ladder that ends with the rung to train; ``models`` are its rungs as they are."""
        from finpercep.cli.train_rm_config import train_config

        flags = {
            "ladder.map_strides": [model.config.map_stride for model in models[1:]],
            "steps": [1] * (len(models) - 1) + [self._config.steps],
            "batch_size": self._config.batch_size,
            "crop": self._config.crop,
            "lr": self._config.lr,
            "seed": self._seed,
        }
        return train_config(None, flags, models[-1].config, self._device)

    def _judge(self, rung: str, folder: Path, own: Samples, frozen: Samples) -> None:
        """Measure the rung before and after on both test splits, and write the record."""
        from data_synth.schema import write_atomically
        from finpercep.predictor import load_predictor
        from finpercep.training.evaluate import evaluate_rung
        from finpercep.training.selection import validation_figure

        before, after = (load_predictor(ladder, rung, self._device) for ladder in (self._ladder, folder / "ladder"))
        figures = {
            name: [validation_figure(evaluate_rung(model.model, samples)) for model in (before, after)]
            for name, samples in (("frozen", frozen), ("own", own))
        }
        was, now = figures["frozen"]
        accepted = not_worse(was, now, self._config.margin)
        told = ", ".join(f"{name} test split {_figure(a)} → {_figure(b)}" for name, (a, b) in figures.items())
        said = f"{rung} {'refreshed' if accepted else 'kept as it was'}: {told}"
        record = {
            "rung": rung,
            "said": said,
            "folder": folder.name,
            "digest_before": before.digest,
            "digest": after.digest,
            "accepted": accepted,
            "margin": self._config.margin,
            **figures,
        }
        write_atomically(folder / RECORD_NAME, (json.dumps(record, indent=2) + "\n").encode())
        say(said)


def data_config(config: RefreshConfig, scale: int, seed: int) -> BuildConfig:
    """Settings of a data set of what the reward model knows."""
    from data_synth.plan import BuildConfig
    from data_synth.recipe import RecipeConfig
    from finpercep.cli.photo_pairs import degradation_config

    blind, light = (degradation_config(scale, blind=blind) for blind in (True, False))
    recipe = RecipeConfig(crop=config.crop, degradation=blind, light=light)
    return BuildConfig(config.samples, seed=seed, shard_size=32, validation=HELD_OUT, test=HELD_OUT, recipe=recipe)


def own_data_config(config: RefreshConfig, scale: int, seed: int, *, blind: bool) -> BuildConfig:
    """Settings of a data set of the policy's outputs alone, as they are, of LR images as in fine-tuning: ``blind``, or light."""
    from data_synth.recipe import OriginMix

    known = data_config(config, scale, seed)
    mix, light_share = OriginMix(model=1.0, perturbed=0.0, hallucination=0.0, artefact=0.0), 0.0 if blind else 1.0
    own = replace(known.recipe, mix=mix, artefact_on_model_share=0.0, back_projection_share=0.0, light_share=light_share)
    return replace(known, recipe=own)


def build_known_data(photos: Sequence[PhotoSource], out: Path, config: RefreshConfig, scale: int, seed: int) -> None:
    """Build, or finish, a data set of what ships with the package, which the packaged reward model knows."""
    from finpercep.cli.sr_models import DEFAULT_SOURCES, network_factory

    _build(photos, out, data_config(config, scale, seed), network_factory(DEFAULT_SOURCES, scale=scale))


def _build(photos: Sequence[PhotoSource], out: Path, config: BuildConfig, networks: NetworkFactory) -> None:
    from data_synth.engines.processes import ProcessEngine
    from finpercep.cli.synth import plan, run_build

    run_build(plan(photos, out, config, networks=networks), ProcessEngine())


def open_refresher(
    specs: Sequence[str],
    source: RewardSource,
    photos: PhotoSource,
    config: RefreshConfig,
    out: Path,
    *,
    seed: int,
    device: torch.device,
    world: World,
    access: ServerAccess | None = None,
    blind: bool = False,
) -> LadderRefresher:
    """The refresher of a run in ``out`` whose reward is ``source``, opened from ``specs`` (`open_rewards`).

    ``blind`` says what makes LR images in this run, see `LadderRefresher`.

    Raises:
        ConfigError: the reward has no ladder that can be trained on, ``access`` is missing of a server's or given of another, the
            photos are too few or too small, or the known data's samples are not of the crop's size.
        SchemaError: the known data cannot be read.
    """
    from finpercep.client import RewardClient
    from finpercep.local_reward import LocalSource
    from finpercep.predictor import packaged_model_folder
    from finpercep.weighted_reward import WeightedSource

    ladder = source.ladder.source if isinstance(source, WeightedSource) else source
    publisher: Publisher
    if isinstance(ladder, LocalSource):
        if access is not None:
            raise ConfigError("--model-root and --admin-token-file are of a served reward, and this one is in the same process")
        digests, publisher = ladder.digests(), LocalPublisher(ladder, device)
        folders = [packaged_model_folder(), *(Path(spec.rpartition("*")[2]) for spec in specs)]
    elif isinstance(ladder, RewardClient):
        if access is None:
            raise ConfigError("--refresh of a served reward needs --model-root and --admin-token-file, to have it serve the rung")
        digests = {rung.name: rung.digest for rung in ladder.model().rungs}
        publisher = ServedPublisher(ladder, access.model_root, access.admin_token, world)
        folders = [packaged_model_folder(), *sorted(access.model_root.iterdir())]
    else:
        raise ConfigError("--refresh needs a ladder as --reward: packaged, a ladder's folder, or a server's URL")
    _check_photos(photos, config.crop, seed)
    if config.data is not None:
        _check_known(Path(config.data), config.crop)
    folder = out / FOLDER
    behind = ladder_behind(unrefreshed(folder, digests), folders)
    return LadderRefresher(folder, behind, [photos], config, publisher, device=device, world=world, seed=seed, blind=blind)


def _check_photos(photos: PhotoSource, crop: int, seed: int) -> None:
    """The first rung to be refreshed would be late to find too few photos of the crop's size."""
    from data_synth.photos import PhotoError, scan_photos, split_photos

    try:
        scan = scan_photos(photos.photos, min_side=crop)
        split_photos(scan.usable, validation=HELD_OUT, test=HELD_OUT, seed=seed, groups=scan.groups)
    except PhotoError as error:
        raise ConfigError(f"refresh: photos must be of at least crop, {crop} px, and three or more: {error}") from error


def _check_known(data: Path, crop: int) -> None:
    """The first rung to be refreshed would be late to find that the data set is not there."""
    from data_synth.schema import read_split
    from data_synth.schema.manifest import SPLITS

    for split in SPLITS:
        side = min(read_split(data, split)[0].gt.shape[:2])
        if side != crop:  # half of a batch is of these samples, half of the policy's own
            raise ConfigError(f"refresh: crop must be the size of {data}'s samples, {side} px, got {crop}")


def not_worse(before: float | None, after: float | None, margin: float) -> bool:
    """Whether a figure fell by at most ``margin``; one that cannot be had after it could is worse."""
    return before is None or (after is not None and after >= before - margin)


def policy_networks(folder: Path, device: str) -> Networks:
    """The policy saved in ``folder``, and nothing else, for `data_synth`."""
    from data_synth.shards import Networks
    from finpercep.cli.sr_models import PolicySRModel

    model = PolicySRModel.load(folder, "policy", device)
    return Networks({model.name: model})


def _copy_rungs(names: Sequence[str], source: Path, target: Path) -> None:
    """Copy rungs' folders."""
    for name in names:
        copy_folder(source / name, target / name, "config.json")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
