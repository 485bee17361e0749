"""`finpercep finetune`: curriculum fine-tuning of an SR model against a served reward."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from finpercep.cli.console import figures_table, say, show, warn
from finpercep.cli.options import Device, TokenFile, read_token
from finpercep.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    import torch

    from data_synth.photos import PhotoSource
    from data_synth.schema import RGB8
    from finpercep.cli.photo_pairs import PhotoPairs
    from finpercep.curriculum.logbook import Logbook
    from finpercep.curriculum.loop import FinetuneConfig, StepMetrics
    from finpercep.curriculum.refresh import Refresher
    from finpercep.reward import RewardSource
    from finpercep.rl.gram import FeatureExtractor
    from finpercep.rl.world import World
    from finpercep.sr.policy import SRPolicy
    from finpercep.sr.settings import PolicySettings

TYPICAL = 16
"""Crops on which the scales of several rewards are measured."""


def finetune(
    reward: Annotated[
        list[str],
        typer.Option(
            help="URL of a running `finpercep serve` (or several, separated by commas), 'packaged', a ladder's folder, "
            "pyiqa:METRIC, imagereward, or python:MODULE:FUNCTION; repeatable, each with a weight: 0.5*pyiqa:clipiqa."
        ),
    ],
    data: Annotated[Path, typer.Option(help="Folder of photos or a dataset; its photos are degraded on the fly, reproducibly.")],
    out: Annotated[Path, typer.Option(help="Run directory; run again to resume.")],
    algorithm: Annotated[str | None, typer.Option(help="refl (default), rfsr, draft, ddpo, grpo, dpo or nft.")] = None,
    policy: Annotated[
        str, typer.Option(help="'tiny', a folder that finetune or train-sr wrote, or KIND:SOURCE (docs/policies.md).")
    ] = "tiny",
    steps: Annotated[int | None, typer.Option(help="Updates in all (300), divided evenly over the rungs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Photos a step (4).")] = None,
    crop: Annotated[int | None, typer.Option(help="Side of the HR crop in px, a multiple of 8 (128).")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate (1e-5); the higher, the sooner the reward is hacked.")] = None,
    ema: Annotated[float | None, typer.Option(help="Keep the average of the weights, with this decay (0: none).")] = None,
    rungs: Annotated[str | None, typer.Option(help="Rungs to use, in order, such as RM_0 or RM_1,RM_2 (all).")] = None,
    show_lr: Annotated[
        bool | None, typer.Option("--show-lr", help="Show the reward the LR pictures too, on rungs that take them.")
    ] = None,
    curriculum: Annotated[str | None, typer.Option(help="fixed (default): equal rungs; adaptive: it decides by itself.")] = None,
    monitor: Annotated[
        int | None,
        typer.Option(help="Look for reward hacking every so many steps, on a tenth of the photos, held out (0: never)."),
    ] = None,
    on_alarm: Annotated[str | None, typer.Option(help="Of the monitor: warn, fallback (default) or stop.")] = None,
    snapshot_every: Annotated[
        int | None, typer.Option(help="Steps between pictures in OUT/images (the monitor's, or a tenth of the run; 0: none).")
    ] = None,
    refresh: Annotated[
        int | None,
        typer.Option(
            help="When a finer rung is reached, first train it on so many region swaps of the policy's own outputs (0: never)."
        ),
    ] = None,
    features: Annotated[
        str, typer.Option(help="Of the Gram term: 'reward', the ladder's frozen encoder, or 'vgg19'.")
    ] = "reward",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE of the algorithm, such as reward_weight=0.2; repeatable.")
    ] = None,
    policy_set: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE of the policy, such as lora_rank=16 or steps=10; repeatable.")
    ] = None,
    refresh_set: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE of --refresh, such as steps=300 or data=runs/data; repeatable.")
    ] = None,
    model_root: Annotated[
        Path | None, typer.Option(help="Of --refresh against a server: its --model-root, as this machine sees it.")
    ] = None,
    admin_token_file: Annotated[
        Path | None, typer.Option(help="Of --refresh against a server: file with its admin token.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings; flags win. A run's own config.toml will do.")
    ] = None,
    token_file: TokenFile = None,
    seed: Annotated[int | None, typer.Option(help="Decides everything that is drawn at random (0).")] = None,
    device: Device = "auto",
) -> None:
    """Fine-tune an SR model against a served reward, moving from RM_0 to RM_N.

    Example: finpercep finetune --reward http://127.0.0.1:8000 --policy tiny --data photos/ --out runs/ft --steps 300
    """
    from data_synth.degradations import DegradationConfig
    from data_synth.device import resolve_device
    from finpercep.cli.finetune_config import REFRESH_TABLE, finetune_config, policy_settings, refresh_config
    from finpercep.cli.photo_pairs import PhotoPairs
    from finpercep.cli.publishing import ServerAccess, unrefreshed
    from finpercep.cli.refresh import FOLDER, open_refresher
    from finpercep.cli.reward_sources import open_rewards
    from finpercep.rl.world import join_world

    flags = {
        "steps": steps,
        "batch_size": batch_size,
        "crop": crop,
        "lr": lr,
        "ema": ema,
        "seed": seed,
        "curriculum": curriculum,
        "rungs": None if rungs is None else [rung.strip() for rung in rungs.split(",")],
        "show_lr": show_lr,
        "monitor.every": monitor,
        "monitor.on_alarm": on_alarm,
        "snapshot_every": snapshot_every,
    }
    resolved = finetune_config(config, algorithm, flags, settings or ())
    renewal = refresh_config(config, refresh, refresh_set or ())
    photos = photos_of(data, resolved.crop, hold_out=resolved.monitor.every > 0, seed=resolved.seed)
    pairs, watched = (PhotoPairs(pixels, resolved.crop, DegradationConfig.light()) for pixels in (photos.train, photos.held_out))
    held_out = watched.fixed(resolved.monitor.images, resolved.seed) if photos.held_out else None
    world, where = join_world(resolve_device(device))
    gram = gram_features(features, where)
    chosen = (policy, policy_settings(config, policy_set or ()))
    with open_rewards(reward, where, read_token(token_file)) as (source, rewards):
        described: dict[str, Any] = {"data": str(data), "rewards": rewards}
        refresher = None
        if renewal.samples:
            if photos.source is None:
                raise ConfigError(f"--refresh swaps regions of photos: --data must be a folder of them, got the dataset {data}")
            described[REFRESH_TABLE] = dataclasses.asdict(renewal)
            for about in rewards.values():
                if "rungs" in about:
                    about["rungs"] = unrefreshed(out / FOLDER, about["rungs"])
            admin = read_token(admin_token_file)
            access = ServerAccess(model_root, admin) if model_root and admin else None
            refresher = open_refresher(
                reward, source, photos.source, renewal, out, seed=resolved.seed, device=where, world=world, access=access
            )
        last = run_finetuning(
            chosen,
            source,
            pairs,
            resolved,
            out,
            gram,
            described,
            held_out=held_out,
            refresher=refresher,
            device=where,
            world=world,
        )
    if world.rank:
        return
    if last is not None:
        rows = [(name, f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in last.items()]
        show(figures_table("last step", rows))
    say(f"fine-tuned model written to {out / 'final'}")


HELD_OUT = 0.1
"""Share of a folder's photos that the monitor looks at and nothing is trained on."""


@dataclass(frozen=True)
class TrainingPhotos:
    """Photos to train on and photos that nothing is trained on, as pixels; ``source`` are the former as they lie in a folder."""

    train: list[RGB8]
    held_out: list[RGB8]
    source: PhotoSource | None


def photos_of(data: Path, min_side: int, *, hold_out: bool, seed: int) -> TrainingPhotos:
    """The photos of a run.

    Of a dataset, the clean images of its training split, and of the other splits; of a folder, all, or nine tenths and a tenth.

    Raises:
        ConfigError: none to train on, or none to hold out.
    """
    from data_synth.photos import photo_source, split_photos
    from data_synth.schema.manifest import MANIFEST_NAME
    from finpercep.cli.photo_pairs import load_photos

    if (data / MANIFEST_NAME).exists():
        held_out = _clean_images(data, ("validation", "test"), min_side) if hold_out else []
        return TrainingPhotos(_clean_images(data, ("train",), min_side), held_out, None)
    source = photo_source(str(data))
    if not hold_out:
        return TrainingPhotos(load_photos(source.photos, min_side), [], source)
    split = split_photos(source.photos, validation=0.0, test=HELD_OUT, seed=seed)
    if not split.test:
        raise ConfigError(f"{data}: the monitor needs photos to hold out, and of {len(split.train)} none is left; add photos")
    train, unseen = (load_photos(photos, min_side) for photos in (split.train, split.test))
    return TrainingPhotos(train, unseen, dataclasses.replace(source, photos=tuple(split.train)))


def _clean_images(data: Path, splits: Sequence[Literal["train", "validation", "test"]], min_side: int) -> list[RGB8]:
    """The clean images of a dataset's splits; a photo that gave several samples gives several images."""
    from data_synth.schema import read_split

    photos = [row.gt for split in splits for row in read_split(data, split)]
    if not photos:
        raise ConfigError(f"{data}: the dataset has no sample in {' or '.join(splits)}")
    if min(photos[0].shape[:2]) < min_side:
        raise ConfigError(f"{data}: --crop must be at most the dataset's sample size {photos[0].shape[0]}, got {min_side}")
    return photos


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


def run_finetuning(
    chosen: tuple[str, PolicySettings],
    source: RewardSource,
    pairs: PhotoPairs,
    config: FinetuneConfig,
    out: Path,
    features: GramFeatures,
    described: dict[str, Any],
    *,
    held_out: tuple[torch.Tensor, torch.Tensor] | None = None,
    refresher: Refresher | None = None,
    device: torch.device | str = "cpu",
    world: World | None = None,
) -> dict[str, float | str | None] | None:
    """Fine-tune the ``chosen`` policy (its name, and what is decided about it) and show how it goes.

    The run's config names what ``described`` says of data and rewards, and the digests of the policy and of the Gram term's
    network, so that a run is never continued with another of them. ``held_out`` is what the monitor looks at. Of the
    processes of a ``world`` the main one alone writes and shows.

    Returns:
        The metrics of the last step done now, None when the run was complete.
    """
    from finpercep.cli.finetune_config import POLICY_TABLE
    from finpercep.cli.libraries import hush_progress
    from finpercep.cli.reward_sources import keep_scales
    from finpercep.cli.run_view import RunView
    from finpercep.cli.sr_models import policy_digest
    from finpercep.curriculum.loop import finetune as finetune_steps
    from finpercep.curriculum.run_directory import RunDirectory
    from finpercep.rl.world import ALONE
    from finpercep.sr.loading import load_policy
    from finpercep.training.provenance import Session
    from finpercep.weighted_reward import WeightedSource

    hush_progress()
    world = world or ALONE
    name, settings = chosen
    policy = load_policy(name, device=device, settings=settings)
    described = {
        **described,
        "policy": {"name": name, "digest": policy_digest(name)},
        POLICY_TABLE: settings.said(),
        "features": features.described,
    }
    if isinstance(source, WeightedSource):
        images = partial(typical_images, policy, pairs, config)
        keep = partial(keep_scales, source, out / "reward_scales.json", lambda: source.measure(images(), config.reward))
        world.from_main(keep)
        keep()
    last = None
    with ExitStack() as stack:
        view = stack.enter_context(RunView(f"finetune {out}", config.steps)) if world.rank == 0 else None
        logbook = stack.enter_context(curves_of(out)) if world.rank == 0 else None
        run = RunDirectory(out, logbook=logbook, session=Session.now(sys.argv[1:], str(device), world.size))
        for metrics in finetune_steps(
            policy,
            source,
            pairs,
            features.extractor,
            config,
            run,
            described=described,
            held_out=held_out,
            refresher=refresher,
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


def typical_images(policy: SRPolicy, pairs: PhotoPairs, config: FinetuneConfig) -> torch.Tensor:
    """What the scales of several rewards are measured on: a few clean crops, and what the policy makes of their LR images."""
    import torch

    from finpercep.sr.policy import sample_images

    hr, lr = pairs.fixed(TYPICAL, config.seed)
    return torch.cat([hr.to(policy.device), sample_images(policy, lr, range(TYPICAL))])


def flat(metrics: StepMetrics) -> dict[str, float | str | None]:
    """A step's metrics in one dict, losses as ``loss NAME``."""
    record = dataclasses.asdict(metrics)
    losses, figures = record.pop("losses"), record.pop("figures")
    verdict, decision = record.pop("verdict"), record.pop("decision")
    record["panel change"] = verdict and verdict["change"]
    record["decision"] = decision and decision["move"]
    return {**record, **{f"loss {name}": value for name, value in losses.items()}, **figures}
