"""docs/policies.md: its example runs, and its figures are the computed ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from finpercep.reward import Rewards
from finpercep.rl.algorithm import Batch, Trainee
from finpercep.rl.refl import ReflConfig
from finpercep.sr.loading import KINDS
from finpercep.sr.policy import seeded_generators

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "policies.md").read_text()


class Network(nn.Module):
    """Stands for a repository's own."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x, timestep, latent, words):
        return self.mix(torch.cat([x, latent + words[:, :, None, None]], dim=1)) + 0.001 * timestep.reshape(-1, 1, 1, 1)


def test_the_wrapped_system_samples_trains_and_is_saved(tmp_path):
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    body = block[block.index("@dataclass") :]
    assert len(body.splitlines()) < 60
    names: dict[str, object] = {"__name__": "policies"}
    exec(compile(block, "policies.md", "exec"), names)
    torch.manual_seed(0)
    encoder, decoder = nn.Conv2d(3, 4, 8, stride=8), nn.ConvTranspose2d(4, 3, 8, stride=8)
    policy = names["ForeignPolicy"](Network(), encoder, decoder, lambda lr: lr.mean(dim=(2, 3))[:, [0, 1, 2, 0]])
    lr = torch.rand(2, 3, 9, 8)
    out = policy.sample(lr, seeded_generators([0, 1]))
    assert out.shape == (2, 3, 36, 32)
    assert torch.allclose(policy.sample(lr[1:], seeded_generators([1])), out[1:], atol=1e-5)

    def reward(images):
        mean = images.mean(dim=(1, 2, 3))
        return Rewards(mean, mean, torch.zeros_like(mean), torch.zeros_like(mean))

    algorithm = ReflConfig().build(Trainee(policy, policy.frozen_copy(), lambda images: [images]))
    losses = algorithm.losses(Batch(torch.ones(2, 3, 32, 32), lr[..., :8, :]), reward, np.random.default_rng(0))
    losses.total.backward()
    assert all(p.grad.isfinite().all() for p in policy.parameters())
    policy.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "foreign.safetensors")) == set(policy.state_dict())


def test_every_kind_and_the_computed_memory_are_in_the_page():
    assert all(f"| `{kind}` |" in PAGE for kind in KINDS)
    lines = json.loads((ROOT / "benchmarks" / "results" / "policy_memory.json").read_text())["lines"]
    totals: dict[str, list[float]] = {}
    for name, figures in lines.items():
        networks = re.sub(r"(, full|, LoRA, rank 16)$", "", name)
        totals.setdefault(networks, []).append(figures["total"])
    for networks, (full, lora) in totals.items():
        assert f"| {full:.1f} | {lora:.1f} |\n" in PAGE, networks
