"""Does the packaged model see faults of kinds that its dataset does not have?

    python -m benchmarks.unseen_faults --photos photos/ [--model runs/ladder] [--limit 46] [--sheet sheet.png]

Each fault is made in a way that no artefact of `data_synth` is, on whole photos, and swapped into a masked region; M_gt and the
LR picture (half of them degraded mildly, half blindly) come about as in the dataset. The photos should be ones the model was
not trained on. Some faults have a relative among the training families, as any smoothing has; the column says which. Beside the
rungs, shown the image alone and with its LR picture, stand the two baselines that have learnt nothing.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from skimage import exposure, restoration, segmentation, transform, util

from benchmarks.ground_truth_sanity import crops
from benchmarks.report import print_table, write_result
from data_synth.degradations import DegradationConfig, degrade, sample_degradation
from data_synth.ground_truth import GroundTruthConfig, ground_truth_map
from data_synth.images import to_8bit, to_float
from data_synth.regions import MaskConfig, render_mask, sample_mask
from data_synth.sample import swap_region
from data_synth.schema import Row
from finpercep.predictor import load_predictors, packaged_model_folder
from finpercep.training.dataset_evaluation import Provenance, evaluate_judges
from finpercep.training.judges import baselines, rung_judges

Picture = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Fault:
    """A way to break a picture, float32 H×W×3 in [0, 1] → the same, and the training family nearest to it, if any."""

    apply: Callable[[Picture, np.random.Generator], Any]
    relative: str


def _jpeg2000(image: Picture, _: np.random.Generator) -> Picture:
    file = io.BytesIO()
    Image.fromarray(to_8bit(image)).save(file, "JPEG2000", quality_mode="rates", quality_layers=[60])
    return to_float(np.array(Image.open(file)))


def _dithered(image: Picture, _: np.random.Generator) -> Picture:
    return to_float(np.array(Image.fromarray(to_8bit(image)).quantize(12, dither=Image.Dither.FLOYDSTEINBERG).convert("RGB")))


def _superpixels(image: Picture, _: np.random.Generator) -> Any:
    labels = segmentation.slic(image, n_segments=900, compactness=8, channel_axis=-1, start_label=0)
    numbers = np.arange(labels.max() + 1)
    return np.stack([np.asarray(ndimage.mean(plane, labels, numbers))[labels] for plane in np.moveaxis(image, -1, 0)], -1)


def _shuffled_blocks(image: Picture, rng: np.random.Generator) -> Picture:
    """8 px blocks change places with a neighbour: local statistics stay, structure goes."""
    side, broken = 8, image.copy()
    for top in range(0, image.shape[0] - 2 * side + 1, 2 * side):
        for left in range(0, image.shape[1] - 2 * side + 1, 2 * side):
            places = [(top + i * side, left + j * side) for i in (0, 1) for j in (0, 1)]
            for (row, column), (from_row, from_column) in zip(places, rng.permutation(places), strict=True):
                broken[row : row + side, column : column + side] = image[
                    from_row : from_row + side, from_column : from_column + side
                ]
    return broken


def _rotated_detail(image: Picture, _: np.random.Generator) -> Picture:
    """The fine detail of the picture turned upside down, on its own coarse structure."""
    coarse = ndimage.gaussian_filter(image, (2.5, 2.5, 0))
    return coarse + np.rot90(image - coarse, 2)


def _deconvolved(image: Picture, _: np.random.Generator) -> Any:
    kernel = ndimage.gaussian_filter(np.pad([[1.0]], 6), 1.6)
    return np.stack([restoration.richardson_lucy(plane, kernel, num_iter=12) for plane in np.moveaxis(image, -1, 0)], -1)


def _swirls(image: Picture, rng: np.random.Generator) -> Any:
    broken: Any = image
    for centre in rng.uniform(20, image.shape[0] - 20, (12, 2)):
        broken = transform.swirl(broken, center=centre, strength=2.5, radius=28, mode="reflect")
    return broken


FAULTS: dict[str, Fault] = {
    "median filter, 7 px": Fault(lambda image, _: ndimage.median_filter(image, (7, 7, 1)), "smoothing"),
    "total-variation denoising": Fault(
        lambda image, _: restoration.denoise_tv_chambolle(image, 0.12, channel_axis=-1), "smoothing"
    ),
    "non-local means": Fault(
        lambda image, _: restoration.denoise_nl_means(image, 5, 7, h=0.08, fast_mode=True, channel_axis=-1), "smoothing"
    ),
    "wavelet thresholding": Fault(
        lambda image, _: restoration.denoise_wavelet(image, sigma=0.15, channel_axis=-1, rescale_sigma=True), "none"
    ),
    "superpixel painting": Fault(_superpixels, "none"),
    "JPEG 2000": Fault(_jpeg2000, "compression (another codec)"),
    "12 colours, dithered": Fault(_dithered, "noise"),
    "salt and pepper": Fault(lambda image, rng: util.random_noise(image, "s&p", rng=rng, amount=0.04), "noise"),
    "Richardson-Lucy deconvolution": Fault(_deconvolved, "sharpening"),
    "adaptive histogram equalisation": Fault(lambda image, _: exposure.equalize_adapthist(image, clip_limit=0.03), "none"),
    "swirls": Fault(_swirls, "geometry"),
    "shuffled blocks": Fault(_shuffled_blocks, "hallucination"),
    "detail from elsewhere": Fault(_rotated_detail, "hallucination"),
}


def sample(name: str, image: Picture, number: int) -> Row:
    rng = np.random.default_rng((number, list(FAULTS).index(name)))
    gt = to_8bit(image)
    sr = to_8bit(np.clip(FAULTS[name].apply(image, rng), 0, 1).astype(np.float32))
    mask = (np.rint(render_mask(sample_mask(rng, MaskConfig()), image) * 255) / 255).astype(np.float32)
    syn = swap_region(gt, sr, mask)
    settings = DegradationConfig() if number % 2 else DegradationConfig.light()
    lr = to_8bit(degrade(image, sample_degradation(rng, settings)))
    return Row(
        gt=gt,
        lr=lr,
        sr=sr,
        syn=syn,
        mask=mask,
        map=ground_truth_map(image, to_float(syn), mask, GroundTruthConfig()),
        recipe=name,
        source_id=str(number),
        index=number,
        quality_gt=1.0,
        quality_sr=float("nan"),  # not measured: nothing here reads it
        quality_syn=float("nan"),
    )


def write_sheet(path: Path, rows: list[Row]) -> None:
    """One sample of every fault: gt, syn, sr and M_gt side by side."""
    pictures = []
    for name in FAULTS:
        row = next(one for one in rows if one.recipe == name and one.map.max() > 0)
        grey = np.repeat(to_8bit(row.map)[..., None], 3, axis=-1)
        pictures.append(np.concatenate([row.gt, row.syn, row.sr, grey], axis=1))
    Image.fromarray(np.concatenate(pictures)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", action="append", help="folder of photos; default: the packaged samples")
    parser.add_argument("--model", type=Path, default=packaged_model_folder())
    parser.add_argument("--limit", type=int, default=46, help="photos used")
    parser.add_argument("--sheet", type=Path, help="write a picture of every fault")
    arguments = parser.parse_args()
    images = crops(arguments.photos or ["samples"], arguments.limit)
    rows = [sample(name, image, number) for name in FAULTS for number, image in enumerate(images)]
    if arguments.sheet:
        write_sheet(arguments.sheet, rows)
    predictors = load_predictors(arguments.model)
    judges = [*rung_judges(predictors.values()), *baselines()]
    reports = evaluate_judges(judges, rows, lambda name: Provenance("unseen", frozenset({name})))
    finest = list(predictors)[-1]
    print_table(
        ["judge", "map AUROC, paired", "map on gt", "gt > syn > sr", "gt > syn"],
        [[one.name, *_figures(one.overall)] for one in reports],
    )
    shown = [report for report in reports if report.name.startswith(finest) or report.overall.map is not None]
    columns = ["fault", "nearest in training", *(f"{one.name}: paired" for one in shown), f"{finest}: gt > syn > sr"]
    own = next(report for report in reports if report.name == finest)
    table = [
        [
            name,
            fault.relative,
            *(_figures(one.by_family[name])[0] for one in shown),
            _figures(own.by_family[name])[2],
        ]
        for name, fault in FAULTS.items()
    ]
    print_table(columns, table)
    about = {"photos": len(images), "digest": own.digest, "relatives": {name: fault.relative for name, fault in FAULTS.items()}}
    print(write_result("unseen_faults", about | {"judges": {report.name: report.to_json() for report in reports}}))


def _figures(group: Any) -> list[str]:
    found, order = group.map, group.ranking
    numbers = [found and found.pooled.paired_auroc, found and found.clean_mean, order.triplet, order.gt_over_syn]
    return ["–" if number is None else f"{number:.3f}" for number in numbers]


if __name__ == "__main__":
    main()
