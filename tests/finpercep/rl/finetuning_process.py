"""One of several processes that fine-tune together, as `test_world` starts it; or the lone one it compares them with.

    python -m tests.finpercep.rl.finetuning_process FOLDER

For every algorithm: FOLDER/ALGORITHM-of-COUNT is a run, and FOLDER/ALGORITHM-RANK-of-COUNT.pt what it ended with in this
process. The main process's random weights are those of the lone one; another process begins with others, which must not count.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from finpercep.curriculum.loop import FinetuneConfig, finetune
from finpercep.curriculum.run_directory import RunDirectory
from finpercep.curriculum.watch import MonitorConfig
from finpercep.reward import Rewards
from finpercep.rl.algorithms import ALGORITHMS
from finpercep.rl.world import join_world
from finpercep.sr.tiny import TinyConfig, TinyDiffusionSR, build_scheduler, build_unet

SETTINGS = {
    "refl": {"gram_weight": 1.0},
    "rfsr": {"pretraining_weight": 1.0, "reward_weight": 1.0, "gram_weight": 1.0},
    "draft": {},
    "ddpo": {"group_size": 3, "train_share": 0.5, "pretraining_weight": 0.5, "baseline": "batch"},
    "grpo": {"group_size": 3, "train_share": 0.5, "spread": "batch", "micro_batch": 2, "minibatches": 2},
    "dpo": {"group_size": 2, "draws": 2, "beta": 10.0},
    "nft": {"group_size": 3, "train_share": 0.5, "spread": "batch"},
}


class Uneven:
    """A source of two rungs; of photos brighter than most all samples earn the same, so that processes drop different groups."""

    def rungs(self):
        return ["dim", "bright"]

    def has_map(self, rung):
        return False

    def reward_fn(self, rung, weights):
        def reward(images):
            r = images.float().mean((1, 2, 3)) * (2.0 if rung == "bright" else 1.0)
            if not images.requires_grad:
                r = torch.where(r.mean() > 0.5, torch.full_like(r, 0.5), r)
            return Rewards(r, r.detach(), torch.zeros_like(r), torch.zeros_like(r))

        return reward


def draw_pair(rng: np.random.Generator):
    hr = torch.from_numpy(rng.random() * rng.random((3, 16, 16), dtype=np.float32))
    return hr, torch.nn.functional.avg_pool2d(hr[None], 4)[0]


def policy():
    torch.manual_seed(torch.distributed.get_rank() if torch.distributed.is_initialized() else 0)  # the main process's counts
    return TinyDiffusionSR(build_unet((16, 16, 16)), build_scheduler(), TinyConfig(num_steps=3))


def main(folder: Path) -> None:
    world, _ = join_world(torch.device("cpu"))
    held_out = tuple(torch.stack(side) for side in zip(*(draw_pair(np.random.default_rng(k)) for k in range(2)), strict=True))
    for name, settings in SETTINGS.items():
        config = FinetuneConfig(
            algorithm=ALGORITHMS[name](**settings), steps=4, batch_size=4, crop=16, lr=1e-3, save_every=2, ema=0.5,
            snapshot_every=0, monitor=MonitorConfig(every=2, images=2, on_alarm="warn"),
        )  # fmt: skip
        trained = policy()
        start = {key: tensor.clone() for key, tensor in trained.state_dict().items()}
        run = RunDirectory(folder / f"{name}-of-{world.size}")
        seen = list(finetune(trained, Uneven(), draw_pair, lambda x: [x], config, run, held_out=held_out, world=world))
        shown = [(m.reward, m.grad_norm, m.verdict["change"] if m.verdict else 0.0) for m in seen]
        told = [{**m.losses, **m.figures} for m in seen]
        torch.save(
            {"start": start, "weights": trained.state_dict(), "metrics": shown, "told": told},
            folder / f"{name}-{world.rank}-of-{world.size}.pt",
        )
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
