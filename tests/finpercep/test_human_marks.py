"""Human artefact masks and human scores: layouts and files that are refused clearly, and judges whose figures are known."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from data_synth.schema.pixels import encode_png
from finpercep.errors import ConfigError, ImageError
from finpercep.training.artefact_masks import evaluate_masks, find_marked, read_marked
from finpercep.training.human_scores import evaluate_opinions, read_opinions

SIDE = 32


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(pixels))


def mask(index: int, level: int = 255):
    marks = np.zeros((SIDE, SIDE), dtype=np.uint8)
    marks[: 8 * (index + 1), :16] = level
    return marks


def broken(index: int):
    """A grey picture, white where it is marked."""
    return np.repeat(np.maximum(mask(index), 90)[..., None], 3, axis=2)


def folders(root, count=3, originals=True):
    for index in range(count):
        write(root / "images" / f"{index}.png", broken(index))
        write(root / "masks" / f"{index}.png", mask(index))
        if originals:
            write(root / "originals" / f"{index}.png", np.full((SIDE, SIDE, 3), 90, dtype=np.uint8))


def bright(pixels):
    """A judge that knows: what is white is broken."""
    return (pixels[..., 0] > 200).astype(np.float32)


def same_everywhere(pixels):
    return np.full(pixels.shape[:2], 0.3, dtype=np.float32)


@pytest.mark.parametrize(
    "content",
    [
        "image,mos\nbär.png,3\n".encode("latin-1"),
        b"image,mos\n" + b"x" * 200_000 + b",3\n",
        b"image,mos\n" + b"x" * 300 + b",3\n",
    ],
    ids=["not UTF-8", "a field beyond the limit", "no file has such a name"],
)
def test_a_file_that_is_no_csv_is_named(tmp_path, content):
    (tmp_path / "mos.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=r"mos\.csv: expected a CSV in UTF-8, which cannot be read"):
        read_opinions(tmp_path / "mos.csv")


def test_a_map_that_knows_gets_ones_and_one_that_does_not_gets_chance(tmp_path):
    folders(tmp_path)
    perfect, blind = evaluate_masks({"perfect": bright, "blind": same_everywhere}, find_marked(tmp_path))
    for figures in (perfect.map.pooled, perfect.map.per_image):
        assert (figures.paired_auroc, figures.auroc, figures.auprc, figures.iou_fixed, figures.iou_best) == (1.0,) * 5
    assert perfect.map.pointing == 1.0
    shares = [8 * (index + 1) * 16 / SIDE**2 for index in range(3)]
    chance = np.mean(shares)
    figures = blind.map.pooled
    assert (figures.paired_auroc, figures.auroc, figures.iou_fixed) == (0.5, 0.5, 0.0)
    assert figures.auprc == pytest.approx(chance) and figures.auprc_over_chance == pytest.approx(1.0)
    assert figures.iou_best == pytest.approx(chance)  # everything marked
    assert blind.map.pointing == pytest.approx(chance) == blind.map.pointing_chance


def test_without_originals_there_is_no_paired_figure(tmp_path):
    folders(tmp_path, originals=False)
    figures = evaluate_masks({"perfect": bright}, find_marked(tmp_path))[0].map
    assert figures.pooled.paired_auroc is None and figures.per_image.paired_auroc is None
    assert figures.pooled.auroc == 1.0 and figures.clean_mean is None


def test_some_originals_pair_where_they_are(tmp_path):
    folders(tmp_path)
    (tmp_path / "originals" / "0.png").unlink()
    (report,) = evaluate_masks({"perfect": bright}, find_marked(tmp_path))
    assert [case.figures.paired_auroc for case in report.cases] == [None, 1.0, 1.0]
    assert report.map.pooled.paired_auroc == report.map.per_image.paired_auroc == 1.0


def test_files_side_by_side(tmp_path):
    write(tmp_path / "a.png", broken(0))
    write(tmp_path / "a.mask.png", mask(0))
    write(tmp_path / "a.original.png", broken(0))
    Image.fromarray(broken(1)).save(tmp_path / "b.jpg")
    write(tmp_path / "b.png", mask(1))
    first, second = find_marked(tmp_path)
    assert (first.image.name, first.mask.name, first.original.name) == ("a.png", "a.mask.png", "a.original.png")
    assert (second.image.name, second.mask.name, second.original) == ("b.jpg", "b.png", None)


def test_both_layouts_give_the_same_figures(tmp_path):
    folders(tmp_path / "folders")
    for index in range(3):
        for role, suffix in (("images", ""), ("masks", ".mask"), ("originals", ".original")):
            data = (tmp_path / "folders" / role / f"{index}.png").read_bytes()
            (tmp_path / "flat").mkdir(exist_ok=True)
            (tmp_path / "flat" / f"{index}{suffix}.png").write_bytes(data)
    reports = [evaluate_masks({"p": lambda x: x[..., 0] / 300}, find_marked(tmp_path / f))[0] for f in ("folders", "flat")]
    assert reports[0].map == reports[1].map


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigError, match="expected a folder, found none"):
        find_marked(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"found no picture; expected images/NAME.EXT with masks/NAME.png"):
        find_marked(tmp_path / "empty")
    folders(tmp_path / "a")
    (tmp_path / "a" / "masks" / "1.png").unlink()
    with pytest.raises(ConfigError, match=r"1 picture\(s\) without a mask of the same name: 1.png"):
        find_marked(tmp_path / "a")
    folders(tmp_path / "b")
    (tmp_path / "b" / "images" / "2.png").unlink()
    with pytest.raises(ConfigError, match=r"1 mask\(s\) without a picture of the same name: 2.png"):
        find_marked(tmp_path / "b")
    write(tmp_path / "c" / "x.png", broken(0))
    with pytest.raises(ConfigError, match=r"1 picture\(s\) without a mask"):
        find_marked(tmp_path / "c")


def test_a_mask_that_cannot_be_meant_is_refused(tmp_path):
    folders(tmp_path)
    write(tmp_path / "masks" / "0.png", mask(0)[:16])
    with pytest.raises(ImageError, match=r"masks.0.png: must have the size of 0.png, 32x32, got 32x16"):
        evaluate_masks({"perfect": bright}, find_marked(tmp_path))
    write(tmp_path / "masks" / "0.png", mask(0, level=1))
    with pytest.raises(ImageError, match="at least 128 of 255, and the brightest is 1"):
        read_marked(find_marked(tmp_path)[0])
    write(tmp_path / "masks" / "0.png", np.zeros((SIDE, SIDE), dtype=np.uint8))  # nothing to mark is an opinion too
    assert not read_marked(find_marked(tmp_path)[0]).marks.any()


@pytest.mark.parametrize("colour", [(128, 0, 0), (255, 0, 0), (0, 0, 255), (255, 255, 255)])
def test_marks_of_any_colour_count_and_what_is_transparent_does_not(tmp_path, colour):
    folders(tmp_path)
    marked = mask(0) > 0
    painted = np.zeros((SIDE, SIDE, 4), dtype=np.uint8)
    painted[marked] = (*colour, 255)
    for name, picture in (("RGBA", Image.fromarray(painted)), ("P", Image.fromarray(painted[..., :3]).quantize(4))):
        picture.save(tmp_path / "masks" / "0.png")
        assert np.array_equal(read_marked(find_marked(tmp_path)[0]).marks, marked), name


def test_a_picture_that_cannot_be_mapped_is_named(tmp_path):
    def small(pixels):
        raise ImageError("image must be at least 32 px")

    folders(tmp_path)
    with pytest.raises(ImageError, match=r"images.0.png: image must be at least 32 px"):
        evaluate_masks({"small": small}, find_marked(tmp_path))


# -- human scores ----------------------------------------------------------------------------------------------------------


def rated(folder, count=12, header="image,mos,std"):
    for index in range(count):
        write(folder / f"{index}.png", np.full((SIDE, SIDE, 3), 20 * index, dtype=np.uint8))
    lines = [header, *(f"{index}.png,{index * 3.5},1" for index in range(count))]
    (folder / "mos.csv").write_text("\n".join(lines) + "\n")
    return folder / "mos.csv"


def test_scores_are_compared_with_the_right_pictures(tmp_path):
    opinions = read_opinions(rated(tmp_path))
    up, down = evaluate_opinions(
        {"up": lambda p: float(p.mean()), "down": lambda p: -float(p.mean())}, opinions, seed=0, replicates=30
    )
    assert (up.agreement.srcc.value, up.agreement.krcc.value) == pytest.approx((1.0, 1.0))
    assert (down.agreement.srcc.value, down.agreement.krcc.value) == pytest.approx((-1.0, -1.0))
    assert down.agreement.plcc.value > 0.99  # the fit may fall
    assert [case.opinion.image.name for case in up.cases[:2]] == ["0.png", "1.png"]
    assert up.cases[5].expected == pytest.approx(17.5, abs=1.5)


def test_pictures_are_found_beside_the_csv_in_its_images_folder_or_where_told(tmp_path):
    path = rated(tmp_path)
    moved = tmp_path / "images"
    moved.mkdir()
    for file in tmp_path.glob("*.png"):
        file.rename(moved / file.name)
    assert read_opinions(path)[3].image == moved / "3.png"
    moved.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"line 2: no picture '0.png' in .*name their folder with --images"):
        read_opinions(path)
    assert read_opinions(path, tmp_path / "elsewhere")[0].mos == 0.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,score\n0.png,1\n", r"needs the columns image and mos, got image, score"),
        ("", r"needs the columns image and mos, got none"),
        ("image,mos\n0.png,good\n", r"line 2: mos must be a number, got 'good'"),
        ("image,mos\n0.png,nan\n", r"line 2: mos must be finite, got 'nan'"),
        ("image,mos\n0.png,1\n", r"needs at least 8 rated pictures, got 1"),
        ("image,mos\n0.png\n", r"line 2: mos must be a number, got ''"),
    ],
)
def test_a_csv_that_cannot_be_used_is_refused(tmp_path, text, message):
    path = rated(tmp_path)
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_opinions(path)
    with pytest.raises(ConfigError, match="found no such file"):
        read_opinions(tmp_path / "none.csv")


def test_a_picture_that_cannot_be_scored_is_named(tmp_path):
    def small(pixels):
        raise ImageError("image must be at least 32 px")

    opinions = read_opinions(rated(tmp_path))
    with pytest.raises(ImageError, match=r"0.png: image must be at least 32 px"):
        evaluate_opinions({"small": small}, opinions)
    opinions[0].image.write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"0.png"):
        evaluate_opinions({"mean": lambda p: float(p.mean())}, opinions)
