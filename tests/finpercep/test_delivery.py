"""Delivered images: tiles that cover and blend, and colours corrected."""

from __future__ import annotations

import pytest
import torch

from finpercep.errors import ConfigError
from finpercep.sr.colour import adain, corrected, low_band
from finpercep.sr.loading import load_policy
from finpercep.sr.policy import seeded_generators
from finpercep.sr.settings import Delivery, PolicySettings
from finpercep.sr.tiled import Tile, tiles_of
from tests.tiny_pipelines import PIPELINES


def image(height=64, width=64, seed=0):
    coarse = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)


# -- colour -----------------------------------------------------------------------------------------------------------


def test_the_low_band_keeps_constants_and_is_linear_and_bounded():
    assert torch.allclose(low_band(torch.full((1, 3, 40, 50), 0.3)), torch.tensor(0.3), atol=1e-6)
    a, b = torch.rand(2, 1, 3, 40, 50)
    assert torch.allclose(low_band(0.3 * a + 0.7 * b), 0.3 * low_band(a) + 0.7 * low_band(b), atol=1e-5)
    assert low_band(a).min() >= a.min() and low_band(a).max() <= a.max()


def test_one_level_is_the_binomial_kernel():
    kernel = torch.tensor([1.0, 2.0, 1.0])
    weight = (kernel[:, None] * kernel / 16)[None, None]
    x = torch.rand(1, 1, 9, 11)
    expected = torch.nn.functional.conv2d(torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), weight)
    assert torch.allclose(low_band(x, levels=1), expected, atol=1e-6)


def test_wavelet_correction_undoes_a_colour_cast_and_keeps_detail():
    clean = 0.25 + 0.5 * image()
    detail = clean + 0.02 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    cast = detail + torch.tensor([0.1, -0.1, 0.05])[:, None, None]
    assert torch.allclose(corrected(cast, clean, "wavelet"), detail, atol=0.01)
    assert torch.equal(corrected(clean, clean, "wavelet"), clean) or torch.allclose(
        corrected(clean, clean, "wavelet"), clean, atol=1e-6
    )


def test_adain_gives_the_references_mean_and_deviation():
    reference = 0.3 + 0.4 * image(seed=1)
    out = adain(image(), reference)
    for ours, theirs in zip(torch.std_mean(out, dim=(-2, -1)), torch.std_mean(reference, dim=(-2, -1)), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_none_changes_nothing_and_others_are_refused():
    assert torch.equal(corrected(image(), image(seed=1), "none"), image())
    with pytest.raises(ConfigError, match="colour must be one of none, wavelet, adain"):
        corrected(image(), image(), "sepia")


def test_delivered_colours_are_those_of_the_lr_image(small_policy):
    lr = 0.2 + 0.6 * image(16, 24)
    raw = small_policy.sample(lr, seeded_generators([0]))
    small_policy.delivery = Delivery(colour="adain")
    out = small_policy.sample(lr, seeded_generators([0]))
    upsampled = torch.nn.functional.interpolate(lr, scale_factor=4, mode="bicubic", align_corners=False).clamp(0, 1)
    assert torch.equal(out, corrected(raw, upsampled, "adain"))


# -- tiles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (100, 36), (36, 100)])
def test_tiles_cover_the_image_overlap_and_lie_on_the_grid(size):
    tiles = tiles_of(size, 32, 7, 4)
    covered = torch.zeros(size)
    for tile in tiles:
        assert tile.top % 4 == tile.left % 4 == 0 and (tile.height, tile.width) == (32, 32)
        tile.of(covered, size).add_(1)
    assert covered.min() >= 1
    for before, after in zip(sorted({t.top for t in tiles}), sorted({t.top for t in tiles})[1:], strict=False):
        assert after - before <= 32 - 8
    assert Tile(4, 8, 4, 4).of(torch.arange(64.0).reshape(8, 8), (16, 16)).tolist() == [[20.0, 21.0], [28.0, 29.0]]


@pytest.mark.parametrize("name", ["tiny", *PIPELINES])
def test_an_image_that_fits_one_tile_is_sampled_as_without_tiles(published, name):
    settings = {"steps": 1 if name == "one-step" else 2}
    plain, tiled = (
        load_policy(published.get(name, name), settings=PolicySettings(**settings, tile=tile, overlap=4)) for tile in (0, 16)
    )
    lr = image(15, 9)
    assert torch.equal(plain.sample(lr, seeded_generators([0])), tiled.sample(lr, seeded_generators([0])))


@pytest.mark.parametrize("name", ["tiny", *PIPELINES])
def test_tiles_share_their_noise_so_the_whole_is_nearly_the_untiled_image(published, name):
    """Random networks, so attention and norms that see a tile only do show; noise of each tile's own would differ wholly."""
    settings = {"steps": 1 if name == "one-step" else 2}
    plain, tiled = (
        load_policy(published.get(name, name), settings=PolicySettings(**settings, tile=tile, overlap=8)) for tile in (0, 24)
    )
    lr = torch.cat([image(40, 32), image(40, 32, seed=1)])
    whole, pieces, other = (p.sample(lr, seeded_generators(s)) for p, s in ((plain, [0, 1]), (tiled, [0, 1]), (plain, [2, 3])))
    assert pieces.shape == whole.shape == (2, 3, 160, 128)
    apart = (whole - pieces).abs().mean()
    # nothing is drawn in one step; a random VQ codebook jumps at the smallest difference
    assert name in ("one-step", "residual-latent") or apart < 0.5 * (whole - other).abs().mean()
    assert torch.allclose(tiled.sample(lr[1:], seeded_generators([1])), pieces[1:], atol=1e-4)


def test_the_packaged_model_shows_no_seam():
    """Across tile borders the result changes no more from pixel to pixel than the untiled one does."""
    plain, tiled = (load_policy("tiny", settings=PolicySettings(tile=tile, overlap=16)) for tile in (0, 48))
    lr = image(48, 120)
    whole, pieces = (p.sample(lr, seeded_generators([0])) for p in (plain, tiled))
    assert (whole - pieces).abs().mean() < 0.004
    steps = (pieces[..., 1:] - pieces[..., :-1]).abs().mean(dim=(0, 1, 2))
    assert steps.max() < 1.5 * (whole[..., 1:] - whole[..., :-1]).abs().mean(dim=(0, 1, 2)).max()
