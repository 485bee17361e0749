"""Pictures of a run underway: what the policy makes of a few fixed crops, beside what it made of them at the start.

Every few steps ``images/step-000050.jpg`` shows the crops side by side, and ``images/cases.safetensors`` keeps the latest ones
without loss, with their figures, for the report. Image i's noise comes from seed i alone, so that only the weights change a
picture. What a resumed run does again it draws again, the same.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save

from data_synth.schema.pixels import RGB8, write_atomically
from finpercep.curriculum.contact_sheet import Shown, contact_sheet
from finpercep.curriculum.logbook import Logbook
from finpercep.curriculum.watch import Look, look_at
from finpercep.errors import ConfigError
from finpercep.reward import RewardFn, Rewards, beside, score_with_map
from finpercep.sr.policy import DrawPair, SRPolicy

IMAGES_NAME = "images"
CASES_NAME = "cases.safetensors"
SHOWN = 4
"""Crops on a picture."""

SHARE = 10
"""Pictures of a run whose monitor is off, if nothing else is set."""

_SHEET = re.compile(r"step-(\d+)(-alarm)?\.jpg")


@dataclass(frozen=True)
class Crops:
    """Fixed crops to look at.

    Attributes:
        hr: (N, 3, H, W) in [0, 1].
        lr: its LR images.
        photo: which photo each is of, where that is known; all are shown alike.
        held_out: whether nothing is trained on their photos.
    """

    hr: torch.Tensor
    lr: torch.Tensor
    photo: torch.Tensor | None = None
    held_out: bool = field(kw_only=True)


@dataclass(frozen=True)
class Side:
    """Fixed crops as the policy restores them.

    Attributes:
        images: uint8 (N, H, W, 3), RGB.
        maps: degradation maps by the rung in force, (N, H, W) in [0, 1]; None where it has none.
        reward: by the rung in force, (N,).
        panel: metric → one value a crop; without pyiqa, the tripwires alone.
    """

    images: RGB8
    maps: npt.NDArray[np.float32] | None
    reward: list[float]
    panel: Mapping[str, list[float]]


@dataclass(frozen=True)
class Cases:
    """The fixed crops at one step of a run: LR, ground truth, and the policy's images at the start and now.

    Attributes:
        step: steps done.
        rung: in force, as `rung_label` says it.
        held_out: whether nothing is trained on their photos.
        lr: uint8 (N, h, w, 3).
        ground_truth: uint8 (N, H, W, 3).
        before: at the start.
        now: after ``step`` steps.
    """

    step: int
    rung: str
    held_out: bool
    lr: RGB8
    ground_truth: RGB8
    before: Side
    now: Side


class Snapshots:
    """Takes the pictures of one run.

    Args:
        folder: the run's.
        crops: what is looked at.
        reference: the policy as it was at the start.
        every: steps between pictures.
        start: what it made of the crops, where that is known.
        logbook: gets the pictures too.
    """

    def __init__(
        self,
        folder: Path,
        crops: Crops,
        reference: SRPolicy,
        every: int,
        start: Look | None = None,
        logbook: Logbook | None = None,
    ) -> None:
        self.folder, self.crops, self.every, self._logbook = folder / IMAGES_NAME, crops, every, logbook
        self._start = self.look(reference) if start is None else start

    def due(self, steps_done: int) -> bool:
        """Whether to take one now; one is taken at the end of a run too."""
        return steps_done % self.every == 0

    def forget(self, steps_done: int) -> None:
        """Remove pictures and cases of later steps: they will be taken again."""
        for path in self.folder.glob("step-*.jpg"):
            if (match := _SHEET.fullmatch(path.name)) and int(match[1]) > steps_done:
                path.unlink()
        cases = self.folder / CASES_NAME
        if cases.exists():
            with safe_open(cases, framework="np") as stored:
                step = _about(stored)["step"]
            if step > steps_done:
                cases.unlink()

    @torch.no_grad()
    def look(self, policy: SRPolicy) -> Look:
        """The crops as the policy restores them now."""
        return look_at(policy, self.crops.hr, self.crops.lr, panel=importlib.util.find_spec("pyiqa") is not None)

    @torch.no_grad()
    def take(self, steps_done: int, rung: str, reward: RewardFn, now: Look, *, alarm: bool = False) -> None:
        """Write the picture of a step and the cases.

        Args:
            steps_done: the step.
            rung: in force.
            reward: in force; says of both sides what it sees.
            now: the crops as the policy restores them.
            alarm: they made the monitor raise an alarm, and are about to be undone; kept beside the step's own picture.
        """
        before, after = (_side(look, self.crops.lr, reward) for look in (self._start, now))
        crops = self.crops
        cases = Cases(steps_done, rung, crops.held_out, _pixels(crops.lr), _pixels(crops.hr), before, after)
        sheet = contact_sheet(_heading(cases, alarm), [_shown(cases, index) for index in range(min(SHOWN, len(crops.hr)))])
        write_atomically(self.folder / f"step-{steps_done:06d}{'-alarm' if alarm else ''}.jpg", sheet)
        if self._logbook is not None:
            self._logbook.add_picture(steps_done, "pictures/alarm" if alarm else "pictures/crops", sheet)
        if not alarm:
            write_atomically(self.folder / CASES_NAME, _packed(cases))


def training_crops(draw_pair: DrawPair, seed: int) -> Crops:
    """Crops of the training photos, always the same, for a run that holds none out."""
    hr, lr = zip(*(draw_pair(np.random.default_rng((seed, index, 2))) for index in range(SHOWN)), strict=True)
    return Crops(torch.stack(hr), torch.stack(lr), held_out=False)


def interval(asked: int | None, steps: int, monitor_every: int) -> int:
    """Steps between pictures: those that were asked for, else the monitor's, else a tenth of the run; 0 for none."""
    return (monitor_every or max(1, steps // SHARE)) if asked is None else asked


def rung_label(rung: str, next_rung: str | None, blend: float) -> str:
    """The rung in force, and what is being blended in."""
    return rung if next_rung is None else f"{rung} → {next_rung} {blend:.0%}"


def read_cases(folder: Path) -> Cases | None:
    """The latest cases of the run in ``folder``; None if it has kept none."""
    path = folder / IMAGES_NAME / CASES_NAME
    if not path.exists():
        return None
    with safe_open(path, framework="np") as stored:
        names = set(stored.keys())
        about = _about(stored)
        array: Callable[[str], npt.NDArray[np.uint8]] = stored.get_tensor
        sides = [
            Side(
                array(side),
                array(f"{side}_map").astype(np.float32) if f"{side}_map" in names else None,
                about[side]["reward"],
                about[side]["panel"],
            )
            for side in ("before", "now")
        ]
        return Cases(about["step"], about["rung"], about["held_out"], array("lr"), array("ground_truth"), *sides)


def _about(stored: Any) -> dict[str, Any]:
    """What an open file of cases says beside its arrays."""
    about: dict[str, Any] = json.loads(stored.metadata()["about"])
    return about


def _packed(cases: Cases) -> bytes:
    arrays = {"lr": cases.lr, "ground_truth": cases.ground_truth}
    about: dict[str, object] = {"step": cases.step, "rung": cases.rung, "held_out": cases.held_out}
    for name, side in (("before", cases.before), ("now", cases.now)):
        arrays[name] = side.images
        if side.maps is not None:
            arrays[f"{name}_map"] = side.maps.astype(np.float16)
        about[name] = {"reward": side.reward, "panel": dict(side.panel)}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    return save(tensors, {"about": json.dumps(about)})


def _side(look: Look, lr: torch.Tensor, reward: RewardFn) -> Side:
    parts = zip(look.images.split(8), lr.split(8), strict=True)
    scored = [_assessed(beside(reward, shown), part) for part, shown in parts]
    maps = [part for _, part in scored if part is not None]
    rewards = torch.cat([one.reward for one, _ in scored])
    panel = {name: values.tolist() for name, values in look.panel.items()}
    return Side(_pixels(look.images), torch.cat(maps).float().cpu().numpy() if maps else None, rewards.tolist(), panel)


def _assessed(reward: RewardFn, images: torch.Tensor) -> tuple[Rewards, torch.Tensor | None]:
    """The rewards, and the maps where the reward has some."""
    try:
        return score_with_map(reward, images)
    except ConfigError:  # a reward without maps, alone or as the part of a sum that is shown
        return reward(images), None


def _shown(cases: Cases, index: int) -> Shown:
    """One crop of the picture, with what there is to say of it."""
    captions = []
    for side in (cases.before, cases.now):
        figures = [f"reward {side.reward[index]:.3f}"]
        if "psnr" in side.panel:
            figures.append(f"{side.panel['psnr'][index]:.2f} dB")
        captions.append(", ".join(figures))
    maps = [None if side.maps is None else side.maps[index] for side in (cases.before, cases.now)]
    pictures = (cases.lr, cases.before.images, cases.now.images, cases.ground_truth)
    lr, before, now, ground_truth = (pictures[index] for pictures in pictures)
    return Shown(lr, before, now, ground_truth, maps[0], maps[1], (captions[0], captions[1]))


def _heading(cases: Cases, alarm: bool) -> str:
    kind = "held-out" if cases.held_out else "training"
    before, now = (sum(side.reward) / len(side.reward) for side in (cases.before, cases.now))
    what = f"step {cases.step}, {cases.rung}: {len(cases.lr)} {kind} crops, reward {before:.4f} → {now:.4f}"
    return f"{what} — the monitor's alarm" if alarm else what


def _pixels(images: torch.Tensor) -> RGB8:
    return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
