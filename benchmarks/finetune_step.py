"""What does one fine-tuning step cost, and how long does it wait for the reward?

    python -m benchmarks.finetune_step [--steps 5] [--policy tiny] [--algorithms grpo,draft] [--batch-size 2] [--crop 64]

Each algorithm in turn, in a process of its own, on the packaged policy, with the packaged ladder's finest rung: in the same
process, and behind `finpercep serve` on this machine, which then shares its cores. Medians over the steps after the first.

- ``step``: seconds of a whole update.
- ``waiting``: share of it during which nothing but the reward was waited for: of algorithms that sample groups, what overlap
  left of the scoring; of the others, every call, the model's own gradient included.
- ``peak``: the process's largest resident memory.
"""

from __future__ import annotations

import argparse
import contextlib
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
from finpercep.cli.server_process import ServerProcess
from finpercep.client import RewardClient
from finpercep.curriculum.loop import finetune
from finpercep.curriculum.run_directory import RunDirectory
from finpercep.curriculum.settings import FinetuneConfig
from finpercep.local_reward import LocalSource
from finpercep.predictor import load_predictors, packaged_model_folder
from finpercep.rl.algorithms import ALGORITHMS, algorithm_class
from finpercep.sr.loading import load_policy

SETTINGS: dict[str, dict[str, Any]] = {"grpo with maps": {"credit": "map"}, "draft": {"last_steps": 2}}
FINEST = "RM_2"


def measure(case: str, url: str | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """One algorithm against one reward, in this process."""
    torch.set_num_threads(arguments.threads)
    settings = SETTINGS.get(case, {})
    kind = algorithm_class(case.split()[0])
    if "group_size" in kind.__dataclass_fields__:
        settings = {"group_size": arguments.group, **settings}
    config = FinetuneConfig(
        algorithm=kind(**settings), steps=arguments.steps + 2, rungs=(FINEST,),
        batch_size=arguments.batch_size, crop=arguments.crop, save_every=10**6,
    )  # fmt: skip
    predictors = load_predictors(packaged_model_folder())
    policy = load_policy(arguments.policy)
    pairs = PhotoPairs(load_photos(gather(["samples"])[0].photos, arguments.crop), arguments.crop, DegradationConfig.light())
    with contextlib.ExitStack() as stack:
        source = LocalSource(predictors) if url is None else stack.enter_context(RewardClient(url))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run = finetune(policy, source, pairs, gram_features("reward", "cpu").extractor, config, RunDirectory(folder))
        metrics = list(run)[2:]
    return {
        "step_s": statistics.median(m.seconds for m in metrics),
        "waiting": statistics.median(m.reward_seconds / m.seconds for m in metrics),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_own_process(case: str, url: str | None, given: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.finetune_step", *given, "--only", case, "--url", url or ""]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--policy", default="tiny")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="Of the trainer; the server has its own.")
    parser.add_argument("--algorithms", default=",".join([*ALGORITHMS, "grpo with maps"]))
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments.url or None, arguments)))
        return
    rows = []
    with ServerProcess() as server:
        for case in arguments.algorithms.split(","):
            for where, url in (("in process", None), ("served", server.url)):
                found = in_own_process(case, url, sys.argv[1:])
                rows.append({"algorithm": case, "reward": where, **found})
    print_table(
        ["algorithm", "reward", "step, s", "waiting", "peak, MiB"],
        [[r["algorithm"], r["reward"], r["step_s"], f"{r['waiting']:.1%}", round(r["peak_mib"])] for r in rows],
    )
    chosen = {name: value for name, value in vars(arguments).items() if name not in ("only", "url")}
    print(write_result("finetune_step", {"settings": chosen, "rows": rows}))


if __name__ == "__main__":
    main()
