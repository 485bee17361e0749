"""How fast is a reward model, how much memory does it take, and how does that compare with other quality metrics?

    python -m benchmarks.rm_speed [--quick] [--device cpu|cuda] [--threads 2] [--model runs/ladder] [--baselines musiq,piqe]

In one run, as Markdown: seconds per 512² image beside pyiqa's networks, and what a gradient to the image costs; images/s and
memory of every rung at 256², 512² and 1024², batches of 1, 8 and 32, as float32, bf16 (autocast) and compiled; a 4K frame and
a 48-megapixel photo through the predictor's tiles. pyiqa's networks have random weights, which
cost what trained ones cost; pyiqa builds some only from downloads, and here those are built without.

Memory is the peak above the loaded model, warmed up on a small image, measured in a fresh process for each line. Times are
medians; those that make a ratio are taken in turns, so that a busy machine slows both. The first run is never counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import print_table, write_result
from data_synth.device import computes_bf16
from finpercep.checkpoint import read_ladder
from finpercep.predictor import Predictor, load_predictor, packaged_model_folder

PRECISIONS = ("fp32", "bf16", "compile")
BASELINES = "musiq,topiq_nr,hyperiqa,dbcnn,nima,cnniqa,piqe"
PHOTOS = {"4K": (2160, 3840), "48 MP": (6000, 8000)}
MIB = 2**20
LARGEST_BATCH_PIXELS = 8 * 1024 * 1024
"""A batch of more pixels is left out: it says nothing that one of half the size does not."""

LONGEST = 300
"""Seconds after which a line is given up, compiling included."""

Step = Callable[[], object]


@dataclass(frozen=True)
class Line:
    """One configuration, measured in a process of its own.

    Attributes:
        rung: which rung.
        precision: one of `PRECISIONS`.
        height: of the images, in px.
        width: of the images, in px.
        batch: images at a time; 0 is one photo through `Predictor.assess`, in tiles.
        patience: a process stops repeating after so many seconds, but not before the third run.
        device: cpu or cuda.
        threads: of PyTorch.
        model: folder of the ladder.
    """

    rung: str
    precision: str
    height: int
    width: int
    batch: int
    patience: float
    device: str
    threads: int
    model: str


def repeat(steps: Mapping[str, Step], seconds: float, device: str, least: int = 3, most: int = 30) -> dict[str, float]:
    """Median seconds of each step, taken in turns, after one run that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    started = time.perf_counter()
    while len(next(iter(taken.values()))) < most:
        for name, step in steps.items():
            before = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            taken[name].append(time.perf_counter() - before)
        if len(next(iter(taken.values()))) >= least and time.perf_counter() - started > seconds:
            break
    return {name: statistics.median(times) for name, times in taken.items()}


def measure(line: Line) -> dict[str, float]:
    """Seconds per image, peak MiB above the model, and seconds of compiling; to be run in a fresh process."""
    torch.set_num_threads(line.threads)
    predictor = load_predictor(Path(line.model), line.rung, line.device)
    score = scorer(predictor, line.precision)
    score(torch.zeros(1, 3, 64, 64, device=line.device))
    before = memory(line.device, "VmRSS")
    images = torch.rand(max(1, line.batch), 3, line.height, line.width, device=line.device) if line.batch else None
    pixels = photo(line.height, line.width)
    started = time.perf_counter()
    step: Step = (lambda: predictor.assess(pixels)) if images is None else (lambda: score(images))
    step()
    first = time.perf_counter() - started
    peak = memory(line.device, "VmHWM") - before
    if images is None and first > line.patience:
        return {"seconds": first, "peak_mib": peak / MIB, "first_s": first}  # a photo of many tiles repeats itself
    usual = repeat({"step": step}, line.patience, line.device)["step"]
    return {"seconds": usual / max(1, line.batch), "peak_mib": peak / MIB, "first_s": first}


def scorer(predictor: Predictor, precision: str) -> Callable[[torch.Tensor], object]:
    network = torch.compile(predictor.network, dynamic=False) if precision == "compile" else predictor.network
    device = predictor.device.type

    def score(images: torch.Tensor) -> object:
        narrow = torch.autocast(device, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
        with torch.no_grad(), narrow:
            return network(images.contiguous(memory_format=torch.channels_last))

    return score


def memory(device: str, field: str) -> int:
    """Bytes: of the GPU, or of this process now (VmRSS) or at its peak (VmHWM).

    Not getrusage: a child's peak there starts at what its parent held.
    """
    if device == "cuda":
        return torch.cuda.memory_allocated() if field == "VmRSS" else torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def photo(height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Photo-like: flat and noisy patches."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return np.ascontiguousarray(noise.repeat(8, axis=0).repeat(8, axis=1)[:height, :width])


def measure_in_fresh_process(line: Line) -> dict[str, float] | None:
    """What `measure` says there; None if it failed or took too long, and then a line says so."""
    label = f"{line.rung} {line.precision} {line.width}×{line.height}, batch {line.batch or 'in tiles'}"
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.rm_speed", "--line", json.dumps(asdict(line))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        print(f"{label}: left out, it took more than {LONGEST} s", file=sys.stderr)
        return None
    if done.returncode:
        print(f"{label}: failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]}", file=sys.stderr)
        return None
    print(f"{label}: measured", file=sys.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def lines(arguments: argparse.Namespace, rungs: list[str]) -> Iterator[Line]:
    finest = rungs[-1]
    fixed = (arguments.seconds, arguments.device, arguments.threads, str(arguments.model))
    imitated = computes_bf16(torch.device(arguments.device)) is False  # some CPUs take half a minute for such an image
    for rung in [finest] if arguments.quick else rungs:
        for precision in [one for one in PRECISIONS if not (arguments.quick and imitated and one == "bf16")]:
            for side in (256,) if arguments.quick else (256, 512, 1024):
                for batch in (1, 8) if arguments.quick else (1, 8, 32):
                    alone = precision == "compile" and batch > 1  # one size compiled a rung and side is enough
                    if batch * side * side <= LARGEST_BATCH_PIXELS and not alone:
                        yield Line(rung, precision, side, side, batch, *fixed)
    for name, (height, width) in PHOTOS.items():
        if name == "4K" or not arguments.quick:
            yield Line(finest, "fp32", height, width, 0, *fixed)


@contextmanager
def without_downloads() -> Iterator[None]:
    """Pyiqa asks timm and torchvision for pretrained backbones, whatever its own options say; here it gets random ones."""
    import timm
    import torchvision
    from pyiqa.archs import dbcnn_arch

    timm_create, vgg, load = timm.create_model, torchvision.models.vgg16, dbcnn_arch.load_pretrained_network
    timm.create_model = lambda *args, **options: timm_create(*args, **{**options, "pretrained": False})
    torchvision.models.vgg16 = lambda **_: vgg(weights=None)
    dbcnn_arch.load_pretrained_network = lambda *_, **__: None
    try:
        yield
    finally:
        timm.create_model, torchvision.models.vgg16, dbcnn_arch.load_pretrained_network = timm_create, vgg, load


def baselines(names: list[str], device: str) -> dict[str, Callable[[torch.Tensor], object]]:
    import pyiqa

    made = {}
    with without_downloads():
        for name in names:
            options = {} if name == "piqe" else {"pretrained": None if name == "cnniqa" else False}
            try:
                made[f"pyiqa {name}"] = pyiqa.create_metric(name, device=device, **options)
            except Exception as error:  # whatever a library of a hundred metrics raises
                print(f"pyiqa {name} cannot be built here: {error}", file=sys.stderr)
    return made


def comparison(arguments: argparse.Namespace, predictors: Mapping[str, Predictor]) -> dict[str, Any]:
    """Seconds per 512² image of every rung and baseline, in turns; and of a gradient to the image."""
    image = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(0)).to(arguments.device)

    def without_gradient(function: Callable[[torch.Tensor], object]) -> Step:
        def step() -> None:
            with torch.no_grad():
                function(image)

        return step

    rivals = baselines([name for name in arguments.baselines.split(",") if name], arguments.device)
    steps = {name: without_gradient(function) for name, function in [*rivals.items()]}
    steps |= {rung: without_gradient(predictor.score) for rung, predictor in predictors.items()}
    seconds = repeat(steps, 5 * arguments.seconds, arguments.device)
    rungs: dict[str, Any] = {}
    for rung, predictor in predictors.items():
        pair = {"forward": without_gradient(predictor.score), "gradient": gradient(predictor, image)}
        got = repeat(pair, 2 * arguments.seconds, arguments.device, least=5)
        faster = {name: seconds[name] / seconds[rung] for name in rivals}
        rungs[rung] = {**got, "gradient_over_forward": got["gradient"] / got["forward"], "times_faster_than": faster}
    return {"seconds_per_512_image": seconds, "rungs": rungs}


def gradient(predictor: Predictor, image: torch.Tensor) -> Step:
    """Score and map forward, and their gradient to the image; parameters are frozen, as everywhere in a predictor."""
    leaf = image.clone().requires_grad_()

    def step() -> None:
        batch = predictor.score(leaf)
        value = batch.score.sum() if batch.map is None else batch.score.sum() - batch.map.mean()
        torch.autograd.grad(value, leaf)

    return step


def say_lines(measured: list[dict[str, Any]]) -> None:
    rows = []
    for one in measured:
        size = f"{one['width']}×{one['height']}"
        batch = one["batch"] or "in tiles"
        first = f"{one['first_s']:.1f}" if one["precision"] == "compile" else ""
        rows.append([one["rung"], one["precision"], size, batch, f"{1 / one['seconds']:.3g}", f"{one['peak_mib']:.0f}", first])
    print_table(["rung", "run as", "image", "batch", "images/s", "peak above model, MiB", "first call, compiling, s"], rows)


def say_comparison(found: dict[str, Any]) -> None:
    rungs = found["rungs"]
    rows = []
    for name, seconds in found["seconds_per_512_image"].items():
        ratios = [f"{rungs[rung]['times_faster_than'][name]:.1f}×" if name not in rungs else "" for rung in rungs]
        cost = f"{rungs[name]['gradient_over_forward']:.2f}" if name in rungs else ""
        rows.append([name, f"{1000 * seconds:.0f}", *ratios, cost])
    print_table(["512² image", "ms", *(f"{rung} is faster by" for rung in rungs), "gradient ÷ forward"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the finest rung at 256², no 48-megapixel photo, no imitated bf16")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--model", type=Path, default=packaged_model_folder(), help="folder of a ladder")
    parser.add_argument("--baselines", default=BASELINES, help="pyiqa metrics; maniqa is left out, at half a minute an image")
    parser.add_argument("--seconds", type=float, default=2.0, help="time given to each line, beyond its third repeat")
    parser.add_argument("--line", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.line:
        print(json.dumps(measure(Line(**json.loads(arguments.line)))))
        return
    torch.set_num_threads(arguments.threads)
    ladder = read_ladder(arguments.model)
    rungs = [entry.rung for entry in ladder.rungs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pyiqa's imports warn about themselves
        found = comparison(arguments, {rung: load_predictor(arguments.model, rung, arguments.device) for rung in rungs})
    say_comparison(found)
    measured = []
    for line in lines(arguments, rungs):
        result = measure_in_fresh_process(line)
        if result is not None:
            measured.append({**asdict(line), **result})
    print()
    say_lines(measured)
    setting = {"device": arguments.device, "threads": arguments.threads, "quick": arguments.quick, "ladder": ladder.name}
    digests = {entry.rung: entry.digest for entry in ladder.rungs}
    for one in measured:
        del one["model"], one["patience"]
    print(write_result("rm_speed", {**setting, "digests": digests, "comparison_512": found, "lines": measured}))


if __name__ == "__main__":
    main()
