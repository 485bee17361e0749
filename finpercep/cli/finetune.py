"""`finpercep finetune`: curriculum fine-tuning of an SR model against a served reward."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finpercep.cli.console import figures_table, say, show
from finpercep.cli.options import Device, Policy, TokenFile, read_token
from finpercep.errors import ConfigError

if TYPE_CHECKING:
    from finpercep.cli.publishing import ServerAccess


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
    policy: Policy = "tiny",
    steps: Annotated[int | None, typer.Option(help="Updates in all (300), divided evenly over the rungs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Photos a step (4).")] = None,
    crop: Annotated[int | None, typer.Option(help="Side of the HR crop in px, a multiple of 8 (128).")] = None,
    degradation: Annotated[
        str | None, typer.Option(help="Of the photos: light (default), slight blur and noise, or blind, as Real-ESRGAN's.")
    ] = None,
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

    Example: finpercep finetune --reward http://127.0.0.1:8000 --policy tiny@00300 --data photos/ --out runs/ft --lr 1e-4
    """
    from data_synth.device import resolve_device
    from finpercep.cli.finetune_config import REFRESH_TABLE, finetune_config, policy_settings, refresh_config
    from finpercep.cli.finetune_run import NamedPolicy, gram_features, run_finetuning
    from finpercep.cli.photo_pairs import PhotoPairs, degradation_config, digest_of_photos
    from finpercep.cli.publishing import unrefreshed
    from finpercep.cli.refresh import FOLDER, open_refresher
    from finpercep.cli.reward_sources import open_rewards
    from finpercep.cli.training_photos import photos_of
    from finpercep.rl.world import join_world

    flags = {
        "steps": steps,
        "batch_size": batch_size,
        "crop": crop,
        "degradation": degradation,
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
    if on_alarm and not resolved.monitor.every:
        raise ConfigError("--on-alarm is of --monitor, and nothing is watched")
    access = _access(model_root, admin_token_file, refreshes=renewal.samples > 0)
    photos = photos_of(data, resolved.crop, hold_out=resolved.monitor.every > 0, seed=resolved.seed)
    world, where = join_world(resolve_device(device))
    gram = gram_features(features, where)
    chosen = NamedPolicy.load(policy, policy_settings(config, policy_set or ()), where)
    scale = chosen.policy.scale
    if resolved.crop % (whole := scale * chosen.policy.lr_multiple):
        raise ConfigError(f"--crop must be a multiple of {whole} for the policy's networks at x{scale}, got {resolved.crop}")
    degradation_ranges = degradation_config(scale, blind=resolved.degradation == "blind")
    pairs, watched = (PhotoPairs(pixels, resolved.crop, degradation_ranges) for pixels in (photos.train, photos.held_out))
    held_out = watched.held_out(resolved.monitor.images, resolved.seed, photos.photo_of) if photos.held_out else None
    with open_rewards(reward, where, read_token(token_file)) as (source, rewards):
        described: dict[str, Any] = {"data": data.resolve().name, "rewards": rewards}
        if photos.held_out:
            described["held_out"] = {"count": len(photos.held_out), "digest": digest_of_photos(photos.held_out)}
        refresher = None
        if renewal.samples:
            if photos.source is None:
                raise ConfigError(f"--refresh swaps regions of photos: --data must be a folder of them, got the dataset {data}")
            described[REFRESH_TABLE] = dataclasses.asdict(renewal)
            for about in rewards.values():
                if "rungs" in about:
                    about["rungs"] = unrefreshed(out / FOLDER, about["rungs"])
            refresher = open_refresher(
                reward,
                source,
                photos.source,
                renewal,
                out,
                seed=resolved.seed,
                device=where,
                world=world,
                access=access,
                blind=resolved.degradation == "blind",
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


def _access(model_root: Path | None, admin_token_file: Path | None, *, refreshes: bool) -> ServerAccess | None:
    """What a served reward is refreshed with. Raises `ConfigError` where half of it is given, or it would be of no use."""
    from finpercep.cli.publishing import ServerAccess

    if (model_root or admin_token_file) and not refreshes:
        raise ConfigError("--model-root and --admin-token-file are of --refresh, and nothing is to be refreshed")
    if bool(model_root) != bool(admin_token_file):
        raise ConfigError("--model-root and --admin-token-file go together")
    admin = read_token(admin_token_file)
    return ServerAccess(model_root, admin) if model_root and admin else None
