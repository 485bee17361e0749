"""`finpercep upscale`: run an SR model on pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finpercep.cli.console import progress_bar, say, warn
from finpercep.cli.options import Device, Seed


def upscale(
    images: Annotated[list[Path], typer.Argument(help="Pictures to upscale.")],
    out: Annotated[Path, typer.Option(help="Folder for the results, STEM.png each.")],
    policy: Annotated[str, typer.Option(help="'tiny', or a folder that finetune or train-sr wrote.")] = "tiny",
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Upscale pictures x4 with an SR model; writes PNG.

    Example: finpercep upscale small.png --policy runs/ft/final --out big/
    """
    import torch

    from data_synth.device import resolve_device
    from data_synth.schema.errors import ImageError
    from data_synth.schema.pixels import decode_rgb, encode_png, write_atomically
    from finpercep.errors import ConfigError
    from finpercep.sr.packaged import load_policy
    from finpercep.sr.policy import seeded_generators

    targets = {image: out / f"{image.stem}.png" for image in dict.fromkeys(images)}
    if len(set(targets.values())) < len(targets):
        raise ConfigError("two images would be written under the same name; give them different file names")
    if overwritten := {image.resolve() for image in targets} & {target.resolve() for target in targets.values()}:
        raise ConfigError(f"{sorted(overwritten)[0]} would be overwritten by its own result; use another --out")
    model = load_policy(policy, device=resolve_device(device))
    failed = 0
    with progress_bar() as bar:
        task = bar.add_task("upscale", total=len(targets), figures="")
        for image, target in targets.items():
            try:
                pixels = decode_rgb(image)
            except ImageError as error:
                warn(str(error))
                failed += 1
            else:
                lr = torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255
                sr = model.sample(lr, seeded_generators([seed]))[0]
                array = (sr * 255).round().byte().permute(1, 2, 0).cpu().numpy()
                write_atomically(target, encode_png(array))
            bar.advance(task)
    say(f"{len(targets) - failed} of {len(targets)} pictures written to {out}")
    if failed:
        raise typer.Exit(1)
