"""Does an advantage for every position teach more than one for the picture, at equal samples?

    python -m benchmarks.credit_assignment [--seeds 10] [--pairs 3] [--draws 8] [--group 8] [--truth 32]

Two questions.

``toy``: images whose positions are independent (a Gaussian with a known denoiser, 8×8), reward 1 − mean (image − target)²: the
optimum is known. How far from it is the policy's mean after a number of samples, as a share of where it began? Each credit at the
best of four learning rates of Adam. Mean over seeds, 95 % interval by Student's t.

``tiny``: the packaged SR model and reward model, at the weights they are shipped with. The reward is differentiable, so the
gradient of its expectation in the steps with noise is known by backpropagation, over many draws (``truth``). What is the cosine
between it and the gradient estimated from one group? A random direction has 0. Mean over photos and draws, 95 % interval.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats

from benchmarks.report import print_table, write_result
from data_synth.degradations import DegradationConfig
from data_synth.photos import gather
from finpercep.cli.photo_pairs import PhotoPairs, load_photos
from finpercep.local_reward import LocalReward
from finpercep.predictor import load_predictors, packaged_model_folder
from finpercep.reward import RewardFn, Rewards, RewardWeights
from finpercep.rl.algorithm import Batch, Trainee
from finpercep.rl.grpo import Credit, GrpoConfig
from finpercep.sr.loading import load_policy
from finpercep.sr.policy import SRPolicy, seeded_generators
from finpercep.sr.transition import Sampler
from tests.toy_policies import Collect, GaussianPolicy

CREDITS: dict[str, dict[str, Any]] = {
    "global": {"credit": "global"},
    "map, weight 1": {"credit": "map", "map_weight": 1.0},
    "map, weight 4": {"credit": "map", "map_weight": 4.0},
}
RATES = (0.005, 0.01, 0.02, 0.04)
WEIGHTS = (0.0, 0.1, 0.3, 1.0, 4.0)
REWARDS = {"R": RewardWeights(), "1 − mean of the map": RewardWeights(score=0.0, max=0.0, mean=1.0)}
CROP = 64


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the 95 % interval of it."""
    array = np.asarray(values)
    return float(array.mean()), float(stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array)))


def told(mean: float, half: float) -> str:
    return f"{mean:.3f} ± {half:.3f}"


# -- toy --------------------------------------------------------------------------------------------------------------


class TargetReward:
    """R = 1 − mean M, M = (image − target)²."""

    def __init__(self, target: torch.Tensor) -> None:
        self.target = target

    def __call__(self, images: torch.Tensor) -> Rewards:
        return self.with_map(images)[0]

    def with_map(self, images: torch.Tensor) -> tuple[Rewards, torch.Tensor]:
        degradation = (images - self.target).square().mean(dim=1)
        reward = 1 - degradation.mean(dim=(1, 2))
        return Rewards(reward, reward, degradation.amax((1, 2)), 1 - reward), degradation


class Descend:
    """`Optimise` with Adam."""

    def __init__(self, policy: SRPolicy, lr: float) -> None:
        self.adam = torch.optim.Adam(policy.parameters(), lr=lr)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.adam.step()
        self.adam.zero_grad()


def toy_run(settings: dict[str, Any], seed: int, lr: float, marks: Sequence[int]) -> list[float]:
    """Squared distance to the optimum after each number of updates in ``marks``, as a share of the first."""
    target = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(seed))
    start = torch.full((1, 8, 8), 0.5)
    policy = GaussianPolicy(start, Sampler(3, "ddim", 1.0), spread=0.2)
    config = GrpoConfig(group_size=8, kl_weight=0.0, map_blur=0.0, **settings)
    algorithm, optimise = config.build(Trainee(policy, policy.frozen_copy(), lambda images: [images])), Descend(policy, lr)
    batch, left = Batch(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)), []
    for update in range(1, max(marks) + 1):
        algorithm.update(batch, TargetReward(target), np.random.default_rng((seed, update)), optimise)
        if update in marks:
            gap = (policy.network.mean.detach() - target).square().mean() / (start - target).square().mean()
            left.append(float(gap))
    return left


def toy(seeds: int) -> list[dict[str, Any]]:
    """Rows of the toy's table."""
    marks, rows = (10, 30, 100), []
    for name, settings in CREDITS.items():
        runs = {lr: np.array([toy_run(settings, seed, lr, marks) for seed in range(seeds)]) for lr in RATES}
        for column, mark in enumerate(marks):
            best = min(RATES, key=lambda lr: runs[lr][:, column].mean())
            mean, half = interval(runs[best][:, column].tolist())
            rows.append({"credit": name, "samples": 8 * mark, "left": mean, "interval": half, "lr": best})
    return rows


# -- tiny -------------------------------------------------------------------------------------------------------------


def gradient_of(update: Callable[[Collect], Any], policy: SRPolicy) -> torch.Tensor:
    for parameter in policy.parameters():
        parameter.grad = None
    collected = Collect(policy)
    update(collected)
    return collected.gradient().double()


def true_gradient(policy: SRPolicy, batch: Batch, reward: RewardFn, draws: int) -> torch.Tensor:
    """Of −E R in the steps with noise, over ``draws`` draws, by backpropagation through all steps.

    The last step has no density: what its own weights do to the image, no policy gradient sees. Here it is a frozen copy's.
    """
    frozen = policy.frozen_copy()

    def update(collect: Collect) -> None:
        for draw in range(draws):
            generators = seeded_generators([10**6 + draw])
            condition = policy.condition(batch.lr)
            x = policy.initial_state(condition, generators)
            for index in range(policy.num_steps - 1):
                x = policy.step(x, index, condition, generators)
            image = frozen.decode(frozen.step(x, policy.num_steps - 1, condition, generators), condition)
            collect.backward(-reward(image).reward.mean() / draws)

    return gradient_of(update, policy)


def tiny(policy: SRPolicy, reward: RewardFn, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table of cosines. An estimate is linear in the map's weight, so two gradients give those of all weights."""
    pairs = PhotoPairs(load_photos(gather(["samples"])[0].photos, CROP), CROP, DegradationConfig.light())
    hr, lr = pairs.fixed(arguments.pairs, seed=0)
    cosines: dict[float, list[float]] = {weight: [] for weight in WEIGHTS}
    for photo in range(arguments.pairs):
        batch = Batch(hr[photo : photo + 1], lr[photo : photo + 1])
        truth = true_gradient(policy, batch, reward, arguments.truth)
        for draw in range(arguments.draws):
            plain, mapped = (
                estimate(policy, batch, reward, credit, arguments.group, (photo, draw)) for credit in ("global", "map")
            )
            for weight in WEIGHTS:
                cosines[weight].append(_cosine(plain + weight * (mapped - plain), truth))
    rows = []
    for weight, values in cosines.items():
        mean, half = interval(values)
        gain, gain_half = interval([a - b for a, b in zip(values, cosines[0.0], strict=True)])
        rows.append({"map_weight": weight, "cosine": mean, "interval": half, "gain": gain, "gain interval": gain_half})
    return rows


def estimate(policy: SRPolicy, batch: Batch, reward: RewardFn, credit: Credit, group: int, seed: tuple[int, int]) -> torch.Tensor:
    """The gradient of one update on one group; equal seeds draw equal samples."""
    config = GrpoConfig(group_size=group, kl_weight=0.0, credit=credit, advantage_clip=100.0)
    algorithm = config.build(Trainee(policy, policy, lambda images: [images]))
    return gradient_of(lambda collect: algorithm.update(batch, reward, np.random.default_rng(seed), collect), policy)


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--truth", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--questions", default="toy,tiny")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for question in arguments.questions.split(","):
        {"toy": report_toy, "tiny": report_tiny}[question](arguments)


def report_toy(arguments: argparse.Namespace) -> None:
    rows = toy(arguments.seeds)
    table = [[row["credit"], row["samples"], told(row["left"], row["interval"]), row["lr"]] for row in rows]
    print_table(["credit", "samples", "distance left", "lr"], table)
    print(write_result("credit_assignment_toy", {"settings": {"seeds": arguments.seeds}, "rows": rows}))


def report_tiny(arguments: argparse.Namespace) -> None:
    policy = load_policy("tiny")
    predictor = list(load_predictors(packaged_model_folder()).values())[-1]
    rows = []
    for what, weights in REWARDS.items():
        rows += [{"reward": what, **row} for row in tiny(policy, LocalReward(predictor, weights), arguments)]
    table = [[r["reward"], r["map_weight"], told(r["cosine"], r["interval"]), told(r["gain"], r["gain interval"])] for r in rows]
    print_table(["reward", "weight of the map", "cosine to the true gradient", "gain over global, paired"], table)
    settings = {name: getattr(arguments, name) for name in ("pairs", "draws", "group", "truth")}
    print(write_result("credit_assignment_tiny", {"settings": settings, "rows": rows}))


if __name__ == "__main__":
    main()
