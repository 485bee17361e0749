"""Draws the pictures of docs/method.md beside this file, from the packaged weights and the sample photos: `make figures`.

    python docs/figures/draw.py [sample] [ladder] [small_defects] [curriculum] [hacking]      # all when none is named

Seeds are fixed. `hacking` fine-tunes the packaged SR model twice, which takes minutes; its numbers are kept in hacking.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from data_synth.artefacts import ArtefactKind, apply_artefact, artefact_of_severity
from data_synth.degradations import DegradationConfig, degrade, sample_degradation
from data_synth.ground_truth import GroundTruthConfig, ground_truth_map
from data_synth.images import to_8bit, to_float
from data_synth.photos import sample_photos
from data_synth.sample import swap_region
from data_synth.schema.pixels import RGB8
from finpercep.cli.photo_pairs import PhotoPairs
from finpercep.curriculum.optimiser import PolicyOptimiser
from finpercep.curriculum.schedule import RungSchedule
from finpercep.heatmap import heat_colours, overlay
from finpercep.local_reward import LocalSource
from finpercep.predictor import load_predictors, packaged_model_folder
from finpercep.reward import RewardWeights
from finpercep.rl.algorithm import Batch, Trainee
from finpercep.rl.refl import ReflConfig
from finpercep.sr.loading import load_policy
from finpercep.sr.panel import panel_scores
from finpercep.sr.policy import sample_images, seeded_generators

HERE = Path(__file__).parent
SIDE = 256
plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})

Panel = tuple[str, RGB8]


def photo(name: str) -> RGB8:
    """A sample photo, by its name."""
    return next(one.read() for one in sample_photos() if one.source_id.endswith(name))


def crop(pixels: RGB8, top: int, left: int, side: int = SIDE) -> RGB8:
    """A square of it."""
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def ellipse(cy: float, cx: float, ry: float, rx: float, side: int = SIDE) -> np.ndarray:
    """A mask with a soft rim, float32 side×side."""
    rows, columns = np.mgrid[:side, :side]
    radius = np.hypot((rows - cy) / ry, (columns - cx) / rx)
    return np.clip((1 - radius) * 8, 0, 1).astype(np.float32)


def planted(clean: RGB8, kind: ArtefactKind, mask: np.ndarray, severity: float = 1.0, seed: int = 0) -> RGB8:
    """``clean`` with an artefact where ``mask`` is."""
    broken = apply_artefact(artefact_of_severity(np.random.default_rng(seed), kind, severity), to_float(clean))
    return swap_region(clean, to_8bit(broken), mask)


def strip(panels: Sequence[Panel], file: str) -> None:
    """Pictures side by side, each with a caption over it."""
    figure, axes = plt.subplots(1, len(panels), figsize=(2.15 * len(panels), 2.55))
    for axis, (caption, pixels) in zip(axes, panels, strict=True):
        axis.imshow(pixels, interpolation="nearest")
        axis.set_title(caption, fontsize=8.5)
        axis.set_axis_off()
    figure.subplots_adjust(left=0.005, right=0.995, top=0.82, bottom=0.01, wspace=0.03)
    figure.savefig(HERE / file, pil_kwargs={"quality": 85})
    plt.close(figure)


def sample() -> None:
    """One sample of the dataset: gt, lr, sr, mask, syn, map."""
    gt = crop(photo("coffee"), 70, 180)
    lr = degrade(to_float(gt), sample_degradation(np.random.default_rng(3), DegradationConfig.light()))
    policy = load_policy("tiny")
    sr = policy.sample(torch.from_numpy(lr).permute(2, 0, 1)[None], seeded_generators([0]))
    inside = to_8bit(np.ascontiguousarray(sr[0].permute(1, 2, 0).clamp(0, 1).numpy()))
    mask = ellipse(105, 135, 62, 80)
    syn = swap_region(gt, inside, mask)
    truth = ground_truth_map(to_float(gt), to_float(syn), mask, GroundTruthConfig())
    grey = np.repeat((mask * 255).astype(np.uint8)[..., None], 3, axis=2)
    panels: list[Panel] = [
        ("gt: the photo", gt),
        ("lr: degraded, x4 smaller", np.kron(to_8bit(lr), np.ones((4, 4, 1), np.uint8))),
    ]
    panels += [("sr: an SR model's output", inside), ("mask", grey), ("syn = mask·sr + (1−mask)·gt", syn)]
    strip([*panels, ("M_gt: where syn is broken", heat_colours(truth))], "sample.jpg")


def ladder() -> None:
    """What the rungs of the packaged ladder say of a photo and of the same with a planted defect."""
    clean = crop(photo("chelsea"), 22, 100)
    mask = ellipse(98, 160, 34, 40)
    broken = planted(clean, "texture", mask)
    truth = ground_truth_map(to_float(clean), to_float(broken), mask, GroundTruthConfig())
    rungs = load_predictors(packaged_model_folder())
    before = {name: rung.assess(clean) for name, rung in rungs.items()}
    after = {name: rung.assess(broken) for name, rung in rungs.items()}

    def words(name: str) -> str:
        return f"S {before[name].score:.2f} → {after[name].score:.2f}"

    panels: list[Panel] = [("the photo", clean), ("a defect is planted", broken), ("where: ground truth", overlay(broken, truth))]
    for name in ("RM_1", "RM_2"):
        found = after[name].map
        assert found is not None
        panels.append(
            (
                f"{name}: {words(name)}\nmax M {before[name].max_degradation:.2f} → {after[name].max_degradation:.2f}",
                overlay(broken, found.numpy()),
            )
        )
    panels[1] = (f"a defect is planted\nRM_0: {words('RM_0')}", broken)
    strip(panels, "ladder.jpg")


def small_defects() -> None:
    """How much each number moves, in its own spread over clean photos, as a planted defect covers more of the picture."""
    areas = [0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2]
    kinds: tuple[ArtefactKind, ...] = ("texture", "checkerboard", "displaced_detail", "grain")
    rungs = load_predictors(packaged_model_folder())
    found: dict[str, list[list[float]]] = {
        name: [[] for _ in areas] for name in ("RM_0: score", "RM_2: score", "RM_2: max of the map")
    }
    side, rng = 192, np.random.default_rng(0)
    for one in sample_photos():
        pixels = one.read()
        top, left = ((length - side) // 2 for length in pixels.shape[:2])
        clean = crop(pixels, top, left, side)
        before = {name: rung.assess(clean) for name, rung in rungs.items()}
        for place, area in enumerate(areas):
            for kind in kinds:
                radius = side * np.sqrt(area / np.pi)
                low, high = min(radius, side / 2), side - min(radius, side / 2)
                cy, cx = rng.uniform(low, max(low + 1e-6, high), size=2)
                broken = planted(clean, kind, ellipse(cy, cx, radius, radius, side), seed=int(rng.integers(1 << 30)))
                after = {name: rungs[name].assess(broken) for name in ("RM_0", "RM_2")}
                found["RM_0: score"][place].append(before["RM_0"].score - after["RM_0"].score)
                found["RM_2: score"][place].append(before["RM_2"].score - after["RM_2"].score)
                found["RM_2: max of the map"][place].append(after["RM_2"].max_degradation - before["RM_2"].max_degradation)  # type: ignore[operator]
    figure, axis = plt.subplots(figsize=(5.6, 3.1))
    for (name, values), style in zip(found.items(), ("o--", "s-", "D-"), strict=True):
        means = [np.mean(v) for v in values]
        errors = [np.std(v, ddof=1) / np.sqrt(len(v)) for v in values]
        print(f"{name}, by area: " + ", ".join(f"{100 * area:g} % {mean:.3f}" for area, mean in zip(areas, means, strict=True)))
        axis.errorbar([100 * area for area in areas], means, yerr=errors, fmt=style, label=name, capsize=2, markersize=4)
    axis.set(xscale="log", xlabel="share of the picture that is broken, %", ylabel="how far the number moves")
    axis.set_xticks([100 * area for area in areas], [f"{100 * area:g}" for area in areas])
    axis.minorticks_off()
    axis.axhline(0, color="grey", linewidth=0.6)
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(HERE / "small_defects.png")
    plt.close(figure)


def curriculum() -> None:
    """Each rung's share in the reward over a run of 300 steps, and the rungs' maps of one picture."""
    steps, rungs = 300, 3
    schedule = RungSchedule.even(steps, rungs)
    shares = np.zeros((rungs, steps))
    for step in range(steps):
        blend = schedule.at(step)
        shares[blend.rung, step] += 1 - blend.weight
        if blend.next is not None:
            shares[blend.next, step] += blend.weight
    figure, axis = plt.subplots(figsize=(5.6, 2.1))
    axis.stackplot(
        range(steps),
        shares,
        labels=["RM_0: a score", "RM_1: coarse map", "RM_2: fine map"],
        colors=["#cbb9e6", "#8e6cc4", "#4a2a82"],
    )
    axis.set(xlim=(0, steps - 1), ylim=(0, 1), xlabel="fine-tuning step", ylabel="share of the reward", yticks=[0, 0.5, 1])
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.28), ncol=3, frameon=False)
    figure.tight_layout()
    figure.savefig(HERE / "curriculum.png")
    plt.close(figure)


STEPS, EVERY, CROPS = 20, 5, 8
RUNS: dict[str, tuple[str, ReflConfig]] = {
    "RM_0 alone, nothing else": (
        "RM_0",
        ReflConfig(reward_weight=1.0, pretraining_weight=0.0, gram_weight=0.0, views=False),
    ),
    "RM_2, and ReFL as finpercep has it": ("RM_2", ReflConfig()),
}


def hacking() -> None:
    """Two fine-tuning runs against the packaged ladder: held-out reward, and PSNR that no reward contains."""
    file = HERE / "hacking.json"
    photos = [one.read() for one in sample_photos()]
    train = PhotoPairs(photos[:-2], 64, DegradationConfig.light())
    hr, lr = PhotoPairs(photos[-2:], 96, DegradationConfig.light()).fixed(CROPS, seed=1)
    source = LocalSource(load_predictors(packaged_model_folder()))
    curves: dict[str, list[dict[str, float]]] = {}
    for name, (rung, config) in RUNS.items():
        torch.manual_seed(0)
        policy = load_policy("tiny")
        features = load_predictors(packaged_model_folder())["RM_2"].model.features
        reward = source.reward_fn(rung, RewardWeights())
        algorithm = config.build(Trainee(policy, policy.frozen_copy(), lambda images, of=features: of(images)[1:]))
        optimiser = PolicyOptimiser(policy, lr=5e-5, max_grad_norm=1.0, ema=0.0)
        curves[name] = []
        for step in range(STEPS + 1):
            if step % EVERY == 0:
                out = sample_images(policy, lr, range(CROPS))
                with torch.no_grad():
                    judged = float(reward(out).reward.mean())
                panel = panel_scores(out, hr).means()
                curves[name].append({"step": step, "reward": judged, **{key: float(value) for key, value in panel.items()}})
                print(name, curves[name][-1], flush=True)
            rng = np.random.default_rng((0, step))
            pairs = [train(rng) for _ in range(2)]
            batch = Batch(torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs]))
            algorithm.update(batch, reward, rng, optimiser)
    file.write_text(json.dumps(curves, indent=1) + "\n")
    draw_hacking(curves)


def draw_hacking(curves: dict[str, list[dict[str, float]]]) -> None:
    """The picture of hacking.json."""
    figure, axes = plt.subplots(1, 2, figsize=(6.8, 2.9))
    for (name, points), style in zip(curves.items(), ("o--", "D-"), strict=True):
        steps = [point["step"] for point in points]
        for axis, key in zip(axes, ("reward", "psnr"), strict=True):
            axis.plot(steps, [point[key] - points[0][key] for point in points], style, label=name, markersize=4)
    axes[0].set(title="what is trained for: the reward", xlabel="step", ylabel="change")
    axes[1].set(title="what it never saw: PSNR", xlabel="step", ylabel="change, dB")
    for axis in axes:
        axis.axhline(0, color="grey", linewidth=0.6)
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="upper center", ncols=2)
    figure.tight_layout(rect=(0, 0, 1, 0.92))
    figure.savefig(HERE / "hacking.png")
    plt.close(figure)


FIGURES: dict[str, Callable[[], None]] = {
    "sample": sample,
    "ladder": ladder,
    "small_defects": small_defects,
    "curriculum": curriculum,
    "hacking": hacking,
}

if __name__ == "__main__":
    for chosen in sys.argv[1:] or FIGURES:
        FIGURES[chosen]()
