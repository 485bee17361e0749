"""What would a million photos and 64 trainer GPUs cost? On paper: counted, measured elsewhere, assumed, and simulated.

    python -m benchmarks.scale_plan [--peak-tflops 312] [--share 0.35] [--share-small 0.1] [--link-gbit 25]

Counted here: multiplications of the published networks (built without memory, as `benchmarks.policy_memory` builds them) and of
the packaged RM_2; bytes of real messages and of real samples. Measured: CPU time a sample (``results/synth_speed.json``) and what
a request costs beyond its model (`REQUEST_SECONDS`). **Assumed**: the GPU, as the options say, for nothing of this project
was measured on one. GPU hours go as one over ``--peak-tflops``. Simulated: trainers and reward servers together
(`benchmarks.queueing`).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import policy_memory
from benchmarks.queueing import Simulation, Tier, Trainers
from benchmarks.report import print_table, write_result
from benchmarks.scale_simulation import REQUEST_SECONDS, RESULTS
from benchmarks.synth_speed import plan
from data_synth.engines.processes import ProcessEngine
from finpercep.predictor import packaged_model_folder
from finpercep.reward_model.model import FinPercepRM
from finpercep.wire import ScoreRequest, encode_request

PHOTOS, CROP = 1_000_000, 512
TRAINERS, BATCH = 64, 4
"""Trainer GPUs, and photos a step on each."""

DENOISING_STEPS, GROUP = 40, 8


@dataclass(frozen=True)
class Assumed:
    """What was not measured; `OPTIONS` says what each is."""

    peak_tflops: float = 312.0
    share: float = 0.35
    share_small: float = 0.10
    link_gbit: float = 25.0
    copy_gb: float = 1.0
    seconds_to_failure: float = 600.0
    repair_seconds: float = 120.0

    def seconds(self, tflop: float) -> float:
        """Of a GPU, for so much of a large network."""
        return tflop / (self.peak_tflops * self.share)

    def seconds_small(self, tflop: float) -> float:
        """Of a GPU, for so much of the reward model."""
        return tflop / (self.peak_tflops * self.share_small)


OPTIONS = {
    "--peak-tflops": "of a GPU in bfloat16; 312 is an A100's",
    "--share": "of it that large diffusion networks reach",
    "--share-small": "of it that the small reward model reaches",
    "--link-gbit": "of a machine's network, each way",
    "--copy-gb": "that a reward server's Python thread takes in or gives out in a second, in GB",
    "--seconds-to-failure": "of a reward server where failures are simulated: far sooner than a real one, so that many are seen",
    "--repair-seconds": "until it is back",
}


# -- counted ----------------------------------------------------------------------------------------------------------


def tflop(call: Callable[[], object]) -> float:
    """Of a call; a multiplication and its addition are two."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e12


def evaluation(parts: Any, latent: int) -> float:
    """TFLOP of one denoising evaluation of an image: the network, and the ControlNet where there is one."""
    networks = parts.networks
    main = networks.get("unet") or networks["transformer"]
    with torch.device("meta"), torch.no_grad():
        x = torch.empty(1, main.config.in_channels, latent, latent)
        time = torch.zeros(1, dtype=torch.long)
        if "transformer" in networks:
            text, pooled = torch.empty(1, 77, main.config.joint_attention_dim), torch.empty(1, main.config.pooled_projection_dim)
            both = {"hidden_states": x, "encoder_hidden_states": text, "pooled_projections": pooled, "timestep": time}
            return tflop(lambda: main(**both)) + tflop(lambda: networks["controlnet"](**both, controlnet_cond=x))
        arguments: dict[str, Any] = {}
        if "cross_attention_dim" in main.config:
            arguments["encoder_hidden_states"] = torch.empty(1, 77, main.config.cross_attention_dim)
        labelled = {"class_labels": time} if main.config.get("num_class_embeds") else {}
        total = tflop(lambda: main(x, time, **arguments, **labelled))
        if "controlnet" in networks:
            picture = torch.empty(1, 3, CROP, CROP)
            total += tflop(lambda: networks["controlnet"](x, time, **arguments, controlnet_cond=picture))
        return total


def decoding(parts: Any, latent: int) -> float:
    """TFLOP of the autoencoder's decoder for an image."""
    vae = parts.networks["vae"]
    with torch.device("meta"), torch.no_grad():
        return tflop(lambda: vae.decoder(torch.empty(1, vae.config.latent_channels, latent, latent)))


def esrgan() -> nn.Module:
    """RRDBNet of 23 blocks, x4: Real-ESRGAN's, Real-ESRNet's, BSRGAN's and ESRGAN's network."""
    from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet

    with torch.device("meta"):
        return RRDBNet().eval()


@dataclass(frozen=True)
class SRCost:
    """Of one image of `CROP` px by one SR model: denoising evaluations (with guidance, two a step), and TFLOP in all."""

    model: str
    evaluations: int
    tflop: float


DIFFUSION = (
    ("Stable Diffusion x4 upscaler", policy_memory.upscaler, 2 * 50, 4),
    ("LDM-SR", policy_memory.ldm, 100, 4),
    ("SD 2 base + ControlNet", policy_memory.controlnet, 2 * 50, 8),
    ("SD 3 medium + ControlNet", policy_memory.flow, 2 * 28, 8),
    ("SD 2 base, one step", policy_memory.stable_diffusion_2, 1, 8),
    ("residual shift (LDM-SR's network)", policy_memory.residual_shift, 15, 4),
)
"""Name, networks, evaluations an image, pixels a latent."""

FEED_FORWARD = ("Real-ESRGAN", "Real-ESRNet", "BSRGAN", "ESRGAN")


def sr_costs() -> list[SRCost]:
    """Of the ten models."""
    costs = []
    for name, build, evaluations, shrink in DIFFUSION:
        with torch.device("meta"):
            parts = build()
        latent = CROP // shrink
        costs.append(SRCost(name, evaluations, evaluations * evaluation(parts, latent) + decoding(parts, latent)))
    network = esrgan()
    with torch.no_grad():
        one = tflop(lambda: network(torch.empty(1, 3, CROP // 4, CROP // 4, device="meta")))
    return costs + [SRCost(name, 0, one) for name in FEED_FORWARD]


def reward_tflop() -> tuple[float, float]:
    """RM_2 on an image of `CROP` px: forward, and forward with ∂R/∂image."""
    model = FinPercepRM.load(packaged_model_folder() / "RM_2").eval().requires_grad_(False)
    image = torch.rand(1, 3, CROP, CROP)
    with torch.no_grad():
        forward = tflop(lambda: model(image))

    def with_gradient() -> None:
        pixels = image.clone().requires_grad_()
        output = model(pixels)
        (output.score.sum() + output.map.sum()).backward()  # not autograd.grad, which the counter does not support

    return forward, tflop(with_gradient)


def sample_bytes(samples: int = 16) -> float:
    """On disk, of a sample of `CROP` px: a small build of the packaged photos."""
    with tempfile.TemporaryDirectory() as name:
        build = plan(["samples"], Path(name) / "data", samples, CROP, networks=False)
        for _ in build.run(ProcessEngine()):
            pass
        return sum(path.stat().st_size for path in Path(name).rglob("*.parquet")) / samples


# -- the data set -----------------------------------------------------------------------------------------------------


def data_plan(assumed: Assumed, costs: list[SRCost], bytes_a_sample: float) -> dict[str, Any]:
    """`PHOTOS` photos, one crop each, through every SR model: a sample each."""
    samples = PHOTOS * len(costs)
    steps = json.loads((RESULTS / "synth_speed.json").read_text())["milliseconds_a_sample"]
    pixels = (CROP / 256) ** 2  # the measured samples were of 256 px; all its steps go by the pixel
    cpu = pixels * sum(ms for step, ms in steps.items() if step != "SR networks") / 1000
    cache_kib = json.loads((RESULTS / "synth_cache.json").read_text())["cache_kib_a_sample"]
    gpu = {cost.model: PHOTOS * assumed.seconds(cost.tflop) / 3600 for cost in costs}
    return {
        "samples": samples,
        "gpu_hours": gpu,
        "gpu_hours_in_all": sum(gpu.values()),
        "cpu_seconds_a_sample": cpu,
        "cpu_core_hours": samples * cpu / 3600,
        "cpu_cores_for_64_gpus": 64 * samples * cpu / (3600 * sum(gpu.values())),
        "bytes_a_sample": bytes_a_sample,
        "dataset_tb": samples * bytes_a_sample / 1e12,
        "sr_cache_tb": samples * pixels * cache_kib * 1024 / 1e12,
        "days_on_64_gpus": sum(gpu.values()) / 64 / 24,
        "written_mb_a_second_on_64_gpus": samples
        * (bytes_a_sample + pixels * cache_kib * 1024)
        / 1e6
        / (sum(gpu.values()) / 64 * 3600),
    }


# -- trainers and the reward ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """What one trainer GPU does in a step.

    Attributes:
        name: of the algorithm.
        think: seconds of its own GPU.
        plain: images to score.
        graded: images to score with gradient.
        up, down: bytes.
    """

    name: str
    think: float
    plain: int
    graded: int
    up: float
    down: float


def loads(assumed: Assumed) -> list[Load]:
    """ReFL and GRPO on Stable Diffusion 2 with a ControlNet, `BATCH` photos of `CROP` px a GPU.

    ReFL: denoising without gradient to a step in the last half, one evaluation with (a backward pass is two forwards), one of the
    reference, and the denoising loss; both decode. GRPO: groups of `GROUP`, half of the steps trained.
    """
    with torch.device("meta"):
        parts = policy_memory.controlnet()
    one, decode = evaluation(parts, CROP // 8), decoding(parts, CROP // 8)
    image = len(encode_request(ScoreRequest(torch.zeros(1, 3, CROP, CROP))))
    before = 0.75 * DENOISING_STEPS
    refl = BATCH * ((before + 3 + 1 + 3) * one + (3 + 1) * decode)
    grpo = BATCH * GROUP * ((DENOISING_STEPS + 3 * DENOISING_STEPS / 2) * one + decode)
    return [
        Load("refl", assumed.seconds(refl), BATCH, BATCH, 2 * BATCH * image, BATCH * image),
        Load("grpo", assumed.seconds(grpo), BATCH * GROUP, 0, BATCH * GROUP * image, 1000.0),
    ]


def server_seconds(load: Load, assumed: Assumed, rewards: tuple[float, float]) -> tuple[float, float]:
    """Of a step's requests of one trainer: on the reward's GPU, and in the server's Python (one thread, beside the GPU)."""
    forward, graded = rewards
    gpu = load.plain * assumed.seconds_small(forward) + load.graded * assumed.seconds_small(graded)
    requests = (load.plain > 0) + (load.graded > 0)
    return gpu, requests * REQUEST_SECONDS + (load.up + load.down) / (assumed.copy_gb * 1e9)


def serve(
    load: Load, assumed: Assumed, rewards: tuple[float, float], replicas: int, *, failing: bool = False
) -> dict[str, float]:
    """`TRAINERS` trainers that go together against ``replicas`` servers, each with a link of its own.

    A replica is as slow as the slower of its GPU and its Python, which work beside each other. A step's requests are one here.
    """
    think, slower = load.think, max(server_seconds(load, assumed, rewards))
    tier = Tier(
        replicas,
        lambda _rng, _images, requests: requests * slower,
        bytes_a_second=assumed.link_gbit * 1e9 / 8,
        mean_seconds_to_failure=assumed.seconds_to_failure if failing else math.inf,
        repair_seconds=assumed.repair_seconds,
    )
    simulation = Simulation(tier, seed=0, warm=5 * think)
    simulation.train(
        Trainers(TRAINERS, lambda rng: think * rng.uniform(0.98, 1.02), bytes_up=load.up, bytes_down=load.down, together=True)
    )
    seen = simulation.run(3600.0 if failing else 65 * think)
    step = statistics.fmean(seen.steps)
    return {
        "replicas": replicas,
        "step_s": step,
        "longer_by": step / (1.02 * think) - 1,  # without a reward a step takes as long as the slowest trainer
        "p99_s": seen.percentile(0.99),
        "busy": seen.busy / (seen.seconds * replicas),
        "retries": seen.retries,
    }


def trainer_plan(assumed: Assumed, rewards: tuple[float, float]) -> dict[str, Any]:
    """By algorithm: what `TRAINERS` GPUs ask, tiers of servers, and the smallest that costs a step no more than a tenth."""
    found: dict[str, Any] = {}
    for load in loads(assumed):
        gpu, python = server_seconds(load, assumed, rewards)
        tiers = [serve(load, assumed, rewards, replicas) for replicas in (1, 2, 4, 8, 16, 32)]
        enough = next((tier["replicas"] for tier in tiers if tier["longer_by"] <= 0.1), None)
        found[load.name] = {
            **asdict(load),
            "images_a_second": TRAINERS * (load.plain + load.graded) / load.think,
            "gbit_a_second_up": 8 * TRAINERS * load.up / load.think / 1e9,
            "gbit_a_second_down": 8 * TRAINERS * load.down / load.think / 1e9,
            "reward_gpus_busy": TRAINERS * gpu / load.think,
            "server_pythons_busy": TRAINERS * python / load.think,
            "in_process_longer_by": gpu / load.think,
            "tiers": tiers,
            "replicas_for_a_tenth": enough,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for (option, meaning), default in zip(OPTIONS.items(), asdict(Assumed()).values(), strict=True):
        parser.add_argument(option, type=float, default=default, help=f"{meaning} (default {default:g})")
    assumed = Assumed(**vars(parser.parse_args()))
    warnings.simplefilter("ignore")
    costs, rewards, size = sr_costs(), reward_tflop(), sample_bytes()
    data = data_plan(assumed, costs, size)
    print_table(
        ("SR model", "evaluations", "TFLOP an image", f"GPU hours for {PHOTOS:,}"),
        [(cost.model, cost.evaluations, cost.tflop, round(data["gpu_hours"][cost.model])) for cost in costs],
    )
    print_table(("data set", "value"), [(name, value) for name, value in data.items() if name != "gpu_hours"])
    trainers = trainer_plan(assumed, rewards)
    for name, load in trainers.items():
        print_table((name, "value"), [(key, value) for key, value in load.items() if key not in ("tiers", "name")])
        print_table(tuple(load["tiers"][0]), [tuple(tier.values()) for tier in load["tiers"]])
    refl = next(load for load in loads(assumed) if load.name == "refl")
    failing = serve(refl, assumed, rewards, 8, failing=True)
    print_table(("refl, 8 replicas that fail, an hour", "value"), list(failing.items()))
    figures = {
        "assumed": asdict(assumed),
        "reward_tflop": {"forward": rewards[0], "with_gradient": rewards[1]},
        "sr_models": [asdict(cost) for cost in costs],
        "data": data,
        "trainers": trainers,
        "failing": failing,
    }
    print(write_result("scale_plan", figures))


if __name__ == "__main__":
    main()
