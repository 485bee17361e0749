"""What `--reward` may name: a server, a ladder on disk, a metric, a function; several with weights."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finpercep.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from finpercep.reward import RewardSource
    from finpercep.weighted_reward import WeightedSource

PATIENCE = 300.0
"""Seconds during which a server that was lost may come back without the run noticing."""

_WEIGHTED = re.compile(r"(?P<weight>[0-9.eE+-]+)\*(?P<spec>.+)")

Described = dict[str, Any]
"""What a run's config says of its rewards, by name: enough to refuse others when it is continued, but no address of a server."""


@contextmanager
def open_rewards(specs: Sequence[str], device: torch.device | str, token: str | None) -> Iterator[tuple[RewardSource, Described]]:
    """The reward that ``specs`` name, each ``[WEIGHT*]SPEC``; servers' connections are closed at the end.

    A SPEC is a server's URL (several of one ladder, separated by commas), ``packaged`` or a ladder's folder,
    ``pyiqa:METRIC``, ``imagereward`` or ``imagereward:PROMPT``, or ``python:MODULE:FUNCTION``.

    Raises:
        ConfigError: a SPEC that is none of these, a weight that is not a positive number, or one of a single reward.
    """
    from finpercep.weighted_reward import Part, WeightedSource

    with ExitStack() as stack:
        parts, described = [], {}
        for given in specs:
            weight, spec = _split_weight(given)
            source, about = _open(spec, device, token, stack)
            parts.append(Part(_name(spec), weight, source))
            described[_name(spec)] = {"weight": weight, **about}
        if len(parts) == 1 and parts[0].weight != 1:
            raise ConfigError(f"--reward {specs[0]}: a weight is of one of several; the algorithm's is --set reward_weight=…")
        yield parts[0].source if len(parts) == 1 else WeightedSource(parts), described


def keep_scales(source: WeightedSource, path: Path, measure: Callable[[], None]) -> None:
    """Measure a run's scales when it begins and read them when it is continued: the policy is then another."""
    from data_synth.schema import write_atomically

    if path.exists():
        source.set_scales(json.loads(path.read_text()))
    else:
        measure()
        write_atomically(path, (json.dumps(source.scales(), indent=2) + "\n").encode())


def _split_weight(given: str) -> tuple[float, str]:
    match = _WEIGHTED.fullmatch(given)
    if match is None:
        return 1.0, given
    try:
        weight = float(match["weight"])
    except ValueError as error:
        raise ConfigError(f"--reward {given}: expected WEIGHT*REWARD with a number, got {match['weight']!r}") from error
    if not 0 < weight < float("inf"):
        raise ConfigError(f"--reward {given}: a weight must be finite and > 0, got {weight}")
    return weight, match["spec"]


def _name(spec: str) -> str:
    scheme, _, rest = spec.partition(":")
    return "ladder" if rest.startswith("//") or scheme not in ("pyiqa", "python", "imagereward") else (rest or scheme)


def _open(spec: str, device: torch.device | str, token: str | None, stack: ExitStack) -> tuple[RewardSource, Described]:
    from finpercep.metric_reward import MetricSource, image_reward, pyiqa_metric, python_metric
    from finpercep.sr.settings import PROMPT

    scheme, _, rest = spec.partition(":")
    if rest.startswith("//"):
        return _served(spec, token, stack)
    if scheme == "pyiqa":
        return MetricSource(rest, pyiqa_metric(rest, device)), {}
    if scheme == "python":
        return MetricSource(rest, python_metric(rest)), {}
    if scheme == "imagereward":
        return MetricSource("imagereward", image_reward(rest or PROMPT, device)), {}
    return _local(spec, device)


def _served(urls: str, token: str | None, stack: ExitStack) -> tuple[RewardSource, Described]:
    from finpercep.client import RewardClient

    each = [url.strip() for url in urls.split(",")]
    client = stack.enter_context(RewardClient(each, patience=PATIENCE, timeout=2 * PATIENCE, token=token))
    return client, {"rungs": {rung.name: rung.digest for rung in client.model().rungs}}


def _local(folder: str, device: torch.device | str) -> tuple[RewardSource, Described]:
    from finpercep.local_reward import LocalSource
    from finpercep.predictor import load_predictors, packaged_model_folder

    path = packaged_model_folder() if folder == "packaged" else Path(folder)
    if not path.is_dir():
        raise ConfigError(
            f"--reward {folder}: expected a server's URL, packaged, a ladder's folder, pyiqa:METRIC, imagereward or "
            "python:MODULE:FUNCTION"
        )
    predictors = load_predictors(path, device)
    return LocalSource(predictors), {"rungs": {name: predictor.digest for name, predictor in predictors.items()}}
