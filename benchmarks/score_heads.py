"""Which form of S = MLP(f_N ⊙ interpolate(M)) orders small defects best?

    python -m benchmarks.score_heads --data runs/data [--model runs/ladder] [--seeds 5]

One trained rung is frozen; its features and its map on `--train` training and `--test` test samples are turned into what each
form hands the MLP (`modulated_features`), and for every form and seed a fresh MLP learns from them with the loss of
`finpercep train-rm` (ranking and quality). So the forms see the same features and the same maps, and only the head differs; what
a form would have done to the features in joint training is not measured. Figure: share of test triplets with
S_GT > S_syn > S_SR by visibly degraded area, mean and spread over seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.report import print_table, write_result
from data_synth.schema import read_split
from finpercep.predictor import load_predictor, packaged_model_folder
from finpercep.reward_model.model import FinPercepRM, Perception
from finpercep.reward_model.score_head import MapForScore, modulated_features
from finpercep.training.data import Samples, whole_batch
from finpercep.training.dataset_evaluation import DEFECT_AREAS, area_label
from finpercep.training.losses import margins, quality_loss, ranking_loss
from finpercep.training.metrics import VISIBLE, ranking_quality
from finpercep.training.objective import LossWeights

FORMS = ("literal", "complement", "residual", "statistics", "readout", "attended")
ROLES = ("gt", "syn", "sr")
Seen = Callable[[torch.Tensor, torch.Tensor, MapForScore], torch.Tensor]


def heads() -> dict[str, Seen]:
    """What each row of the table hands its MLP, from (f at stride 4, f_N, the map)."""

    def form(name: Any) -> Seen:
        return lambda _, deep, seen: modulated_features(deep, seen, deep.new_ones(deep.shape[-2:]), name)

    def finer(fine: torch.Tensor, deep: torch.Tensor, seen: MapForScore) -> torch.Tensor:
        at_fine = F.interpolate(seen.own[:, None], fine.shape[-2:], mode="area")[:, 0]
        vector = modulated_features(fine, MapForScore(seen.own, at_fine), fine.new_ones(fine.shape[-2:]), "attended")
        return torch.cat([deep.mean(dim=(-2, -1)), vector], dim=1)

    def bilinear(_: torch.Tensor, deep: torch.Tensor, seen: MapForScore) -> torch.Tensor:
        at_deep = F.interpolate(seen.own[:, None], deep.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        return modulated_features(deep, MapForScore(seen.own, at_deep), deep.new_ones(deep.shape[-2:]), "literal")

    return {
        "no map: f alone": lambda _, deep, __: deep.mean(dim=(-2, -1)),
        "literal, M sampled bilinearly": bilinear,
        **{name: form(name) for name in FORMS},
        "attended, at f of stride 4": finer,
    }


@torch.no_grad()
def vectors(model: FinPercepRM, samples: Samples, count: int, batch_size: int = 8) -> dict[str, Any]:
    """For every head its inputs of gt, syn and sr, (3, N, width); and qualities (2, N) and visible areas (N,)."""
    rows = np.unique(np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int))
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in heads()}
    qualities, areas = [], []
    for start in range(0, len(rows), batch_size):
        batch = whole_batch(samples, [int(i) for i in rows[start : start + batch_size]])
        images = torch.cat([getattr(batch, role) for role in ROLES])
        features = model.features(images)
        assert model.map_decoder is not None, "a rung with a map"
        fine, perception = features[2], Perception(features[-1], model.map_decoder(features))
        degradation = model.map_for_score(perception, (images.shape[-2], images.shape[-1]))
        assert degradation is not None
        for name, head in heads().items():
            seen[name].append(head(fine, perception.deep, degradation).unflatten(0, (3, -1)))
        qualities.append(torch.stack([batch.quality_syn, batch.quality_sr]))
        areas.append((batch.map > VISIBLE).float().mean(dim=(1, 2)))
    return {
        "inputs": {name: torch.cat(parts, dim=1) for name, parts in seen.items()},
        "quality": torch.cat(qualities, dim=1),
        "area": torch.cat(areas).numpy(),
    }


def train_head(inputs: torch.Tensor, quality: torch.Tensor, seed: int, steps: int) -> nn.Module:
    """A fresh MLP of the model's shape, trained on the inputs of gt, syn and sr."""
    torch.manual_seed(seed)
    spread = inputs.flatten(0, 1).std(dim=0).clamp_min(1e-4)
    head = nn.Sequential(Scale(1 / spread), nn.Linear(inputs.shape[-1], 64), nn.ReLU(), nn.Linear(64, 1))
    optimiser = torch.optim.AdamW(head.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    weights, draws = LossWeights(), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(inputs.shape[1], (128,), generator=draws)
        scores = head(inputs[:, chosen])[..., 0].sigmoid()
        syn, sr = quality[:, chosen]
        gt = torch.ones_like(syn)
        loss = weights.rank * ranking_loss(
            *scores, margin_sr=margins(syn, sr, weights.margin_sr), margin_gt=margins(gt, syn, weights.margin_gt)
        ) + weights.quality * quality_loss(scores.flatten(), torch.cat([gt, syn, sr]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return head.eval()


class Scale(nn.Module):
    """Features differ in size from form to form: brought to one, so that none learns faster for that."""

    def __init__(self, factor: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * self.factor


@torch.no_grad()
def order_by_area(head: nn.Module, inputs: torch.Tensor, area: np.ndarray) -> dict[str, tuple[float, int]]:
    gt, syn, sr = head(inputs)[..., 0].double().numpy()
    groups = {area_label(low + 1e-9): (area > max(low, 0)) & (area < high) for low, high in DEFECT_AREAS}
    found = {str(label): ranking_quality(gt, syn, sr, inside) for label, inside in (groups | {"all": area > 0}).items()}
    return {label: (one.triplet, one.count) for label, one in found.items() if one.triplet is not None}


def mean_and_spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=packaged_model_folder())
    parser.add_argument("--rung", default=None, help="default: the last")
    parser.add_argument("--train", type=int, default=1500, help="training samples")
    parser.add_argument("--test", type=int, default=1000, help="test samples")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1500, help="of each head")
    arguments = parser.parse_args()
    predictor = load_predictor(arguments.model, arguments.rung)
    learn = vectors(predictor.model, read_split(arguments.data, "train"), arguments.train)
    test = vectors(predictor.model, read_split(arguments.data, "test"), arguments.test)
    figures: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for name, inputs in learn["inputs"].items():
        trained = (train_head(inputs, learn["quality"], seed, arguments.steps) for seed in range(arguments.seeds))
        found = [order_by_area(head, test["inputs"][name], test["area"]) for head in trained]
        counts = {label: count for label, (_, count) in found[0].items()}
        figures[name] = {label: mean_and_spread([one[label][0] for one in found]) for label in counts}
    columns = [f"{label} (n={count})" for label, count in counts.items()]
    rows = [[name, *(f"{one[label]['mean']:.3f} ± {one[label]['std']:.3f}" for label in counts)] for name, one in figures.items()]
    print_table(["form", *columns], rows)
    about = {"rung": predictor.rung, "digest": predictor.digest, "form_in_training": predictor.model.config.modulation}
    print(write_result("score_heads", about | {"seeds": arguments.seeds, "counts": counts, "forms": figures}))


if __name__ == "__main__":
    main()
