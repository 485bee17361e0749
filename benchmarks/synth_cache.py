"""What does the SR cache save when only the masks change?

    python -m benchmarks.synth_cache --photos photos/ [--samples 96]

Every sample from the packaged diffusion SR (1 to 4 steps) or its early snapshot, 256 px: a light example of neural SR, since
large diffusion models cost far more. Baseline: the first build. Then the same build with other masks, on the cache the first
one filled.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

from benchmarks.report import print_table, write_result
from data_synth.build import plan_build
from data_synth.engines.processes import ProcessEngine
from data_synth.photos import gather
from data_synth.plan import BuildConfig
from data_synth.recipe import OriginMix, RecipeConfig
from data_synth.regions import MaskConfig
from finpercep.cli.sr_models import network_factory


def seconds(photos: list[str], out: Path, config: BuildConfig, cache: Path) -> float:
    build = plan_build(gather(photos), out, config, networks=network_factory(["tiny"], scale=4, perturb=False), sr_cache=cache)
    started = time.perf_counter()
    for _ in build.run(ProcessEngine()):
        pass
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", action="append", help="folder of photos; default: the packaged samples")
    parser.add_argument("--samples", type=int, default=96)
    arguments = parser.parse_args()
    photos = arguments.photos or ["samples"]
    mix = OriginMix(model=1.0, perturbed=0.0, hallucination=0.0, artefact=0.0)
    recipe = RecipeConfig(mix=mix, artefact_on_model_share=0.0)
    config = BuildConfig(count=arguments.samples, validation=0.0, test=0.0, shard_size=32, recipe=recipe)
    masks = dataclasses.replace(config, recipe=dataclasses.replace(recipe, mask=MaskConfig(area=(0.05, 0.3))))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = seconds(photos, folder / "first", config, folder / "cache")
        again = seconds(photos, folder / "again", masks, folder / "cache")
        size = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
    rows = [("first build", first), ("other masks, cached", again), ("ratio", first / again)]
    print_table(["build", "seconds"], rows)
    figures = {"samples": arguments.samples, "first_s": first, "cached_s": again, "ratio": first / again}
    print(write_result("synth_cache", figures | {"cache_kib_a_sample": size / 1024 / arguments.samples}))


if __name__ == "__main__":
    main()
