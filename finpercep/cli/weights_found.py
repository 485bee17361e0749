"""Which weights are here: the packaged ones, tried on a picture, and optional ones in libraries' caches. Downloads nothing."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

CANARY: Mapping[str, tuple[float, float]] = {
    "sha256:9d54c632037017e6244afd77f24dbf236dab26331efb873d3c3423b10df441bb": (0.24565, 0.0),
    "sha256:a59cdc0e8907ef39a6b78d5819d44d93c82e8c1fbaf882938860be08b27a31cf": (0.38709, 0.11697),
    "sha256:ca64c3e07d107da7b22a4d50adceb0167544cbf1b239abaa1716946265f21566": (0.29280, 0.24885),
}
"""Score and mean degradation of the canary picture by each packaged rung, by digest: measured when the ladder was packaged."""


@dataclass(frozen=True)
class CanaryResult:
    """A packaged rung, run on the canary picture.

    Attributes:
        rung, digest: which.
        device: where it ran.
        score: what it gave.
        expected: what it gave when it was packaged; None for a rung this version does not know.
        fault: what is wrong, or None.
    """

    rung: str
    digest: str
    device: str
    score: float
    expected: float | None
    fault: str | None


@dataclass(frozen=True)
class Packaged:
    """Weights that ship with the package, beside the ladder. ``fault``: why they are not usable, or None."""

    name: str
    digest: str | None
    fault: str | None


@dataclass(frozen=True)
class OptionalWeights:
    """Published weights that something can use.

    Attributes:
        name: what they are.
        use: what for.
        found: where they lie, or None.
        get: the command that fetches them, where there is a network.
    """

    name: str
    use: str
    found: str | None
    get: str


def try_ladder(device: str, folder: Path | None = None) -> tuple[CanaryResult, ...]:
    """Load every rung of the packaged ladder (or of ``folder``) on ``device`` and score the canary: a real inference.

    Raises:
        WeightsError, SchemaError: the ladder cannot be read, or is not what its own files say.
    """
    import torch

    from finpercep.predictor import load_predictors, packaged_model_folder
    from rm_server.canary import TOLERANCE, canary_image

    results = []
    for rung, predictor in load_predictors(folder or packaged_model_folder(), device).items():
        with torch.no_grad():
            scored = predictor.score_one(canary_image())
        numbers = (float(scored.score), 0.0 if scored.map is None else float(scored.map.mean()))
        known = CANARY.get(predictor.digest)
        fault = None
        if known is None:
            fault = f"{rung} ({predictor.digest}) is not the rung this version was packaged with; install finpercep again"
        elif not all(math.isfinite(got) and abs(got - wanted) <= TOLERANCE for got, wanted in zip(numbers, known, strict=True)):
            fault = (
                f"{rung} on {device} gives the canary score {numbers[0]:.5f} and mean degradation {numbers[1]:.5f}, not {known}"
            )
        results.append(CanaryResult(rung, predictor.digest, device, numbers[0], known and known[0], fault))
    return tuple(results)


def other_packaged() -> tuple[Packaged, ...]:
    """The SR model and the SR zoo: whether their files are whole. Networks are not built."""
    folder = Path(str(files("finpercep"))) / "weights"
    return (_whole("tiny-sr", folder / "tiny-sr"), _whole("sr-zoo", folder / "sr-zoo"))


def _whole(name: str, folder: Path) -> Packaged:
    from safetensors import SafetensorError, safe_open

    digest = hashlib.sha256()
    found = sorted(folder.glob("**/*.safetensors"))
    for file in found:
        try:
            with safe_open(file, "pt"):
                digest.update(file.read_bytes())
        except (OSError, SafetensorError) as error:
            return Packaged(name, None, f"{file}: cannot be read ({error}); install finpercep again")
    fault = None if found else f"{folder}: has no weights; install finpercep again"
    return Packaged(name, f"sha256:{digest.hexdigest()}" if found else None, fault)


def optional_weights() -> tuple[OptionalWeights, ...]:
    """What is in the caches of Hugging Face, PyTorch, pyiqa and ImageReward, and how to get the rest."""
    pyiqa = "python -c \"import pyiqa; pyiqa.create_metric('{}')\"".format
    vgg19 = "python -c \"from torchvision.models import vgg19; vgg19(weights='IMAGENET1K_V1')\""
    clip, dinov3 = "timm/resnet50_clip.openai", "timm/vit_small_patch16_dinov3.lvd1689m"
    upscaler = "stabilityai/stable-diffusion-x4-upscaler"
    lpips = _in_torch_hub("checkpoints/alexnet-owt-7be5be79.pth", "pyiqa/LPIPS_v0.1_alex-df73285e.pth")
    dists = _in_torch_hub("checkpoints/vgg16-397923af.pth", "pyiqa/DISTS_weights-f5e65c96.pth")
    return (
        OptionalWeights("CLIP RN50", "encoder tu-resnet50_clip", _in_hub(clip, "model.safetensors"), f"hf download {clip}"),
        OptionalWeights("DINOv3", "synth --features auto", _dinov3(), f"hf download {dinov3}"),
        OptionalWeights("VGG19", "finetune --features vgg19", _in_torch_hub("checkpoints/vgg19-dcbb9e9d.pth"), vgg19),
        OptionalWeights("LPIPS", "quality of synth", lpips, pyiqa("lpips")),
        OptionalWeights("DISTS", "quality of synth", dists, pyiqa("dists")),
        OptionalWeights("CLIP-IQA (OpenAI's RN50)", "--reward pyiqa:clipiqa", _in_torch_hub("clip/RN50.pt"), pyiqa("clipiqa")),
        OptionalWeights("MUSIQ", "--reward pyiqa:musiq", _in_torch_hub("pyiqa/musiq_koniq_ckpt-e95806b9.pth"), pyiqa("musiq")),
        OptionalWeights("MANIQA", "--reward pyiqa:maniqa", _in_torch_hub("pyiqa/ckpt_koniq10k.pt"), pyiqa("maniqa")),
        OptionalWeights(
            "ImageReward",
            "--reward imagereward",
            _file(Path("~/.cache/ImageReward/ImageReward.pt").expanduser()),
            "pip install image-reward; python -c \"import ImageReward; ImageReward.load('ImageReward-v1.0')\"",
        ),
        OptionalWeights(
            "Stable Diffusion x4", "--policy latent-unet:…", _in_hub(upscaler, "model_index.json"), f"hf download {upscaler}"
        ),
    )


def _file(path: Path) -> str | None:
    return str(path) if path.is_file() else None


def _in_torch_hub(*names: str) -> str | None:
    """The first of the files in PyTorch's cache, if all are there."""
    from torch.hub import get_dir

    paths = [Path(get_dir()) / name for name in names]
    return str(paths[0]) if all(path.is_file() for path in paths) else None


def _in_hub(repository: str, name: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, name)
    return path if isinstance(path, str) else None


def _dinov3() -> str | None:
    from data_synth.features.loading import cached_dinov3

    return cached_dinov3()
