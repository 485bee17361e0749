"""`finpercep upscale`: run an SR model on pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finpercep.cli.console import progress_bar, say, warn
from finpercep.cli.options import Device, Policy, Seed
from finpercep.errors import ConfigError

TILE = 128
"""LR px: 512 px of the result, the side most diffusion models were trained at."""


def upscale(
    images: Annotated[list[Path], typer.Argument(help="Pictures to upscale.")],
    out: Annotated[Path, typer.Option(help="Folder for the results, STEM.png each.")],
    policy: Policy = "tiny",
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the policy's own number by default.")] = None,
    eta: Annotated[float | None, typer.Option(help="Fresh noise of a step, 0 (none) … 1; the policy's own by default.")] = None,
    tile: Annotated[
        int, typer.Option(help="Side in LR px of the tiles in which larger pictures are sampled; 0 for none.")
    ] = TILE,
    colour: Annotated[str | None, typer.Option(help="Colour correction against the picture: wavelet, adain or none.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What is asked of every picture, of policies that take words.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance; 1 is none.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Upscale pictures with an SR model, x4 as a rule; writes PNG.

    Example: finpercep upscale small.png --policy runs/ft/final --out big/
    """
    import torch

    from data_synth.device import resolve_device
    from data_synth.schema.errors import ImageError
    from data_synth.schema.pixels import decode_rgb, encode_png, write_atomically
    from finpercep.cli.libraries import hush_progress
    from finpercep.sr.loading import load_policy
    from finpercep.sr.policy import seeded_generators
    from finpercep.sr.settings import PolicySettings

    targets = targets_of(images, out)
    settings = PolicySettings(
        steps=steps,
        eta=eta,
        tile=tile,
        colour=colour,  # type: ignore[arg-type]  # checked where it arrives
        prompt=prompt,
        guidance=guidance,
    )
    hush_progress()
    model = load_policy(policy, device=resolve_device(device), settings=settings)
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


def targets_of(images: list[Path], out: Path) -> dict[Path, Path]:
    """Where each picture's result goes. Raises `ConfigError` when two would meet, or one would overwrite a picture."""
    targets = {image: out / f"{image.stem}.png" for image in dict.fromkeys(images)}
    if len(set(targets.values())) < len(targets):
        raise ConfigError("two images would be written under the same name; give them different file names")
    if overwritten := {image.resolve() for image in targets} & {target.resolve() for target in targets.values()}:
        raise ConfigError(f"{sorted(overwritten)[0]} would be overwritten by its own result; use another --out")
    return targets
