"""What does a fine-tuning step cost on diffusers' classes, whole or by LoRA, and does it stay finite?

    python -m benchmarks.policy_steps [--policies controlnet,flow-controlnet] [--algorithms refl,grpo] [--steps 5]
    python -m benchmarks.policy_steps --sd2 --device cuda --crop 512 --steps 200 --ranks 16 --precision bfloat16

Random weights: the cost is the same. By default the tests' tiny configurations of every class; ``--sd2`` builds a ControlNet
policy of Stable Diffusion 2 base's size (866 M parameters in the UNet), which wants a GPU. The reward is the packaged RM_2 in the
same process. Each line is a process of its own; step: median seconds after the first; peak: of the process on a CPU, of the
allocator on a GPU; finite: every loss, gradient norm and weight at the end.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import print_table, write_result
from data_synth.degradations import DegradationConfig
from data_synth.photos import gather
from finpercep.cli.finetune_run import gram_features
from finpercep.cli.photo_pairs import PhotoPairs, load_photos
from finpercep.curriculum.loop import finetune
from finpercep.curriculum.run_directory import RunDirectory
from finpercep.curriculum.settings import FinetuneConfig
from finpercep.local_reward import LocalSource
from finpercep.predictor import load_predictors, packaged_model_folder
from finpercep.rl.algorithms import ALGORITHMS, algorithm_class
from finpercep.sr.loading import load_policy
from finpercep.sr.settings import PolicySettings
from tests import tiny_pipelines

SD2 = "sd2-controlnet"


def build(name: str, root: Path) -> str:
    """Save a pipeline of random weights; returns the name that `load_policy` takes."""
    torch.manual_seed(0)
    (root / "text").mkdir()
    if name == SD2:
        sd2_controlnet(root / "text").save_pretrained(root / name)
        return f"controlnet:{root / name}"
    kind, pipeline = tiny_pipelines.PIPELINES[name]
    pipeline(root / "text").save_pretrained(root / name)
    return f"{kind}:{root / name}"


def sd2_controlnet(scratch: Path) -> Any:
    """Stable Diffusion 2 base's UNet and autoencoder, a ControlNet made of the UNet, and a text encoder of the same width."""
    from diffusers import AutoencoderKL, ControlNetModel, StableDiffusionControlNetImg2ImgPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer, _ = tiny_pipelines.text_parts(scratch)
    text = CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=1024, num_hidden_layers=2, num_attention_heads=16)
    unet = UNet2DConditionModel(
        sample_size=64, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
    )
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return StableDiffusionControlNetImg2ImgPipeline(
        vae=AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, **levels),
        unet=unet,
        controlnet=ControlNetModel.from_unet(unet),
        scheduler=tiny_pipelines.ddim("epsilon"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(text),
    )


def measure(name: str, algorithm: str, rank: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One policy, one algorithm, in this process."""
    kind = algorithm_class(algorithm)
    grouped = {"group_size": arguments.group, "micro_batch": arguments.group} if "group_size" in kind.__dataclass_fields__ else {}
    config = FinetuneConfig(
        algorithm=kind(**grouped), steps=arguments.steps + 3, rung_steps=(1, 1, arguments.steps + 1), blend_share=0.0,
        batch_size=arguments.batch_size, crop=arguments.crop, lr=1e-6, save_every=10**6,
    )  # fmt: skip
    settings = PolicySettings(
        steps=4, eta=1.0, lora_rank=rank, precision=arguments.precision, gradient_checkpointing=arguments.sd2
    )
    photos = load_photos(gather(["samples"])[0].photos, min(arguments.crop, 256))
    crop = min(arguments.crop, *(side for photo in photos for side in photo.shape[:2]))
    with tempfile.TemporaryDirectory() as folder:
        policy = load_policy(build(name, Path(folder)), device=arguments.device, settings=settings)
        pairs = PhotoPairs(photos, crop, DegradationConfig.light())
        source = LocalSource(load_predictors(packaged_model_folder(), arguments.device))
        features = gram_features("reward", arguments.device).extractor
        metrics = list(finetune(policy, source, pairs, features, config, RunDirectory(Path(folder) / "run")))
    figures = [[m.grad_norm, *m.losses.values()] for m in metrics]
    finite = bool(torch.tensor(figures).isfinite().all()) and all(bool(p.isfinite().all()) for p in policy.parameters())
    gpu = torch.device(arguments.device).type == "cuda"
    peak = torch.cuda.max_memory_allocated() / 2**20 if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    trained = sum(p.numel() for p in policy.parameters())
    return {"step_s": statistics.median(m.seconds for m in metrics[3:]), "peak_mib": peak, "finite": finite, "trained": trained}


def in_own_process(name: str, algorithm: str, rank: int, given: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.policy_steps", *given, "--only", name, algorithm, str(rank)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"failed": done.returncode}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", default="controlnet,flow-controlnet")
    parser.add_argument("--algorithms", default=",".join(ALGORITHMS))
    parser.add_argument("--ranks", default="0,4", help="Of the LoRA adapters; 0 trains all weights.")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sd2", action="store_true")
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        name, algorithm, rank = arguments.only
        print(json.dumps(measure(name, algorithm, int(rank), arguments)))
        return
    rows = []
    for name in [SD2] if arguments.sd2 else arguments.policies.split(","):
        for algorithm in arguments.algorithms.split(","):
            for rank in map(int, arguments.ranks.split(",")):
                found = in_own_process(name, algorithm, rank, sys.argv[1:])
                rows.append({"policy": name, "algorithm": algorithm, "lora_rank": rank, **found})
                print(rows[-1], file=sys.stderr, flush=True)
    keys = ("policy", "algorithm", "lora_rank", "trained", "step_s", "peak_mib", "finite")
    print_table([*keys], [[row.get(key, "failed") for key in keys] for row in rows])
    chosen = {key: value for key, value in vars(arguments).items() if key != "only"}
    print(write_result("policy_steps", {"settings": chosen, "rows": rows}))


if __name__ == "__main__":
    main()
