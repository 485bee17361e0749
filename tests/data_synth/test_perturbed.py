"""Networks broken on purpose, and networks that never learnt."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from data_synth.sr_models.input_faults import INPUT_FAULTS, draw_input_fault, gaussian_blur
from data_synth.sr_models.low_band import low_band, with_low_band_of
from data_synth.sr_models.network_faults import NETWORK_FAULTS, WEIGHT_FAULTS, draw_fault
from data_synth.sr_models.perturbed import (
    DEFAULT_STRENGTH,
    KIND,
    PERTURBATIONS,
    STRENGTH,
    PerturbedSR,
    busiest_window,
    is_lost,
    is_network,
)
from data_synth.sr_models.protocol import Crop, Span, SRCall, SRModelError, check_output
from data_synth.sr_models.random_networks import NONLINEARITIES, SETTINGS, RandomNetworkSR

CROP = Crop("photo", 0, 0, 160)


class TinyNetwork(nn.Module):
    """Bicubic upsampling plus a small learnt-looking residual; a linear layer scales its channels, as in attention."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.gate, self.last = nn.Linear(12, 12), nn.Conv2d(12, 48, 1, bias=False)

    def forward(self, x):
        features = self.middle(F.relu(self.first(x)))
        features = features * self.gate(features.mean((2, 3))).sigmoid()[..., None, None]
        return F.interpolate(x, scale_factor=4, mode="bicubic") + F.pixel_shuffle(0.4 * self.last(F.relu(features)), 4)


class TinySR:
    """`NetworkSR` that counts the LR pixels it is given."""

    name, version, scale, family = "tiny", "v", 4, "regression"

    def __init__(self, module=None, settings=None):
        self.module = (module or TinyNetwork()).eval().requires_grad_(False)
        self.settings = settings or {}
        self.pixels = 0

    def covers(self, source_id):
        return source_id == "photo"

    def __call__(self, lr, calls):
        assert all(set(call.settings) == set(self.settings) for call in calls)
        self.pixels += lr.shape[-1] * lr.shape[-2]
        return self.module(lr)


def _call(kind, *, strength=0.03, seed=0, **more):
    return SRCall(seed, {KIND: float(PERTURBATIONS.index(kind)), STRENGTH: strength, **more}, CROP)


def _state(module):
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def _rms(difference):
    return float(difference.square().mean().sqrt())


@pytest.fixture
def lr(crop):
    """The temple, 40×40."""
    return F.avg_pool2d(torch.from_numpy(crop.copy()).permute(2, 0, 1)[None], 4)


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_a_perturbation_changes_the_output_is_replayed_exactly_and_leaves_no_trace(lr, kind):
    base = TinySR()
    model, before, intact = PerturbedSR(base), _state(base.module), base(lr, [SRCall(0, {}, CROP)])
    outs = [check_output(model, lr, model(lr, [_call(kind, seed=seed)])) for seed in (1, 1, 2, 3)]
    assert torch.equal(outs[0], outs[1])
    assert not all(torch.equal(outs[0], other) for other in outs[2:])
    assert _rms(outs[0] - intact) > 1e-3
    assert _state(base.module) == before
    assert torch.equal(base(lr, [SRCall(0, {}, CROP)]), intact), "no hook is left behind"


@pytest.mark.parametrize("kind", [kind for kind in PERTURBATIONS if kind != "wrong_scale"])
def test_the_output_changes_about_as_much_as_asked_whatever_the_layer(lr, kind):
    base = TinySR()
    model, intact = PerturbedSR(base), base(lr, [SRCall(0, {}, CROP)])
    found = [
        _rms(model(lr, [_call(kind, strength=strength, seed=seed)]) - intact) for strength in (0.012, 0.04) for seed in range(9)
    ]
    weak, strong = np.median(found[:9]), np.median(found[9:])
    assert weak < strong
    assert 0.012 / 3 < weak < 0.012 * 3


def test_images_of_a_batch_do_not_touch_each_other(lr):
    model = PerturbedSR(TinySR())
    calls = [_call("weight_noise", seed=1), _call("bent_activations", seed=2), _call("extra_noise", seed=3)]
    batch = torch.cat([lr, lr.flip(-1), lr.flip(-2)])
    together = model(batch, calls)
    for index, call in enumerate(calls):
        assert torch.equal(together[index : index + 1], model(batch[index : index + 1], [call]))


@pytest.mark.parametrize("kind", NETWORK_FAULTS)
def test_weights_come_back_bit_for_bit_even_after_an_error(kind):
    network = TinyNetwork()
    before = _state(network)
    fault = draw_fault(network, kind, np.random.default_rng(3))
    with pytest.raises(RuntimeError, match="in the middle"), fault.at(0.7):
        raise RuntimeError("in the middle")
    assert _state(network) == before
    assert not any(part._forward_hooks for part in network.modules())


@pytest.mark.parametrize("kind", NETWORK_FAULTS)
@torch.no_grad()
def test_magnitude_zero_changes_nothing_and_magnitude_one_is_the_distortion(lr, kind):
    network = TinyNetwork()
    intact = network(lr)
    changed = 0
    for seed in range(5):
        fault = draw_fault(network, kind, np.random.default_rng(seed))
        with fault.at(0.0):
            assert torch.allclose(network(lr), intact, atol=1e-6)
        with fault.at(1.0):
            changed += not torch.allclose(network(lr), intact, atol=1e-4)
    assert changed >= 4


@pytest.mark.parametrize("kind", sorted(WEIGHT_FAULTS))
def test_a_weight_fault_keeps_shape_and_most_of_the_energy(kind):
    weight = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    out = WEIGHT_FAULTS[kind](weight, np.random.default_rng(0))
    assert out.shape == weight.shape
    assert not torch.equal(out, weight)
    if kind in {"swapped_channels", "turned_kernels", "flipped_signs"}:
        assert torch.allclose(out.abs().flatten().sort().values, weight.abs().flatten().sort().values)
    if kind in {"dropped_channels", "zeroed_weights"}:
        assert torch.equal(out[out != 0], weight[out != 0])
    if kind == "rescaled_weights":
        ratio = out / weight
        assert torch.allclose(ratio, ratio[:, :1, :1, :1].expand_as(ratio), rtol=1e-3)
        assert ratio.min() >= 1 / 3 - 1e-3 and ratio.max() <= 3 + 1e-3
    if kind == "weight_noise":
        assert float((out - weight).std()) == pytest.approx(float(weight.std()), rel=0.1)


@pytest.mark.parametrize("kind", INPUT_FAULTS)
def test_an_input_fault_starts_from_the_image_itself(lr, kind):
    fault = draw_input_fault(kind, np.random.default_rng(1))
    assert torch.allclose(fault(lr, 0.0), lr, atol=1e-6)
    assert not torch.allclose(fault(lr, 1.0)[..., :8, :8], lr[..., :8, :8], atol=1e-3)
    if kind == "wrong_scale":
        sizes = {draw_input_fault(kind, np.random.default_rng(seed))(lr, 1.0).shape[-1] for seed in range(20)}
        assert min(sizes) >= 26 and max(sizes) <= 60 and min(sizes) < 40 < max(sizes)


class Exploding(TinyNetwork):
    """Right with its own weights; with any others not a number, or black."""

    def __init__(self, value):
        super().__init__()
        self.value, self.own = value, [p.detach().clone() for p in self.parameters()]

    def forward(self, x):
        intact = all(torch.equal(p, own) for p, own in zip(self.parameters(), self.own, strict=True))
        return super().forward(x) if intact else torch.full((*x.shape[:2], x.shape[2] * 4, x.shape[3] * 4), self.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 5.0])
def test_an_output_that_never_becomes_an_image_gives_way_to_the_base(lr, value):
    base = TinySR(Exploding(value))
    intact = base(lr, [SRCall(0, {}, CROP)])
    outs = [PerturbedSR(base)(lr, [_call("weight_noise", seed=seed)]) for seed in range(6)]
    lost = [torch.equal(out, intact) for out in outs]
    # a finite constant that takes the image's own low band is still an image, a blurred one
    assert all(lost) if value != 5.0 else any(lost)
    assert all(not is_lost(out, lr) for out in outs)


def test_what_counts_as_lost(lr):
    up = F.interpolate(lr, scale_factor=4, mode="bicubic").clamp(0, 1)
    assert not is_lost(up, lr)
    assert not is_lost(up + 0.05 * torch.randn(up.shape, generator=torch.Generator().manual_seed(0)), lr)
    assert is_lost(1 - up, lr)
    assert is_lost(torch.where(up == up.max(), torch.nan, up), lr)


def test_the_low_band_comes_from_the_input_and_the_rest_stays(lr):
    lr = 0.2 + 0.6 * lr  # away from the ends of the range, so that nothing is clamped
    up = F.interpolate(lr, scale_factor=4, mode="bicubic")
    tinted = up + torch.tensor([0.1, -0.05, 0.08])[None, :, None, None]
    fixed = with_low_band_of(tinted, lr)
    assert (fixed.mean((2, 3)) - up.mean((2, 3))).abs().max() < 0.01
    assert _rms((fixed - low_band(fixed, 16)) - (up - low_band(up, 16))) < 0.01


def test_settings_and_names_are_the_base_s_and_its_own(lr):
    base = TinySR(settings={"steps": Span(1, 4, "integer")})
    model = PerturbedSR(base)
    assert model.name == "tiny~perturbed" and model.family == "perturbed" and model.scale == 4
    assert model.version.startswith("v~") and model.version != base.version
    assert set(model.settings) == {"steps", KIND, STRENGTH} and model.settings[STRENGTH] == DEFAULT_STRENGTH
    assert model.covers("photo") and not model.covers("another")
    assert not is_network(model), "what is broken once is not broken again"
    model(lr, [_call("zeroed_weights", steps=2.0)])  # the base asserts that it gets its own settings alone


def test_only_networks_can_be_perturbed():
    with pytest.raises(SRModelError, match="only a model with a network"):
        PerturbedSR(RandomNetworkSR(4, device="cpu"))


def test_the_search_costs_little_beside_the_image():
    base = TinySR()
    model = PerturbedSR(base)
    lr = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    kinds = PERTURBATIONS
    for index in range(48):
        model(lr, [_call(kinds[index % len(kinds)], seed=index)])
    assert base.pixels / (48 * 64 * 64) < 2.5


def test_the_busiest_window_is_where_the_detail_is():
    lr = torch.full((1, 3, 64, 64), 0.5)
    lr[..., 40:60, 2:20] += 0.2 * torch.randn(1, 3, 20, 18, generator=torch.Generator().manual_seed(0))
    assert torch.equal(busiest_window(lr, 32), lr[..., 32:64, :32])
    assert busiest_window(lr[..., :20, :], 32).shape[-2:] == (20, 32)


def test_blurring_keeps_constants_and_has_the_deviation_it_says():
    assert torch.allclose(gaussian_blur(torch.full((1, 3, 9, 9), 0.3), 1.0), torch.tensor(0.3))
    impulse = torch.zeros(1, 1, 41, 41)
    impulse[..., 20, 20] = 1
    column = gaussian_blur(impulse, 2.0).sum((0, 1, 3))
    assert float((column * (torch.arange(41) - 20) ** 2).sum()) == pytest.approx(4.0, rel=0.05)


def test_drawn_strengths_lie_where_faults_are_visible_but_the_image_is_there(lr):
    model, rng = PerturbedSR(TinySR()), np.random.default_rng(0)
    for seed in range(12):
        drawn = {name: span.sample(rng) for name, span in model.settings.items()}
        assert not is_lost(model(lr, [SRCall(seed, drawn, CROP)]), lr)


# -- networks that never learnt -------------------------------------------------------------------------------------------


def _random_call(seed, **more):
    rng = np.random.default_rng(seed)
    return SRCall(seed, {name: span.sample(rng) for name, span in SETTINGS.items()} | more, CROP)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([2, 3, 4]), height=st.integers(9, 24), width=st.integers(9, 24))
def test_every_random_network_gives_an_image_of_the_right_size_with_the_input_s_low_band(seed, scale, height, width):
    lr = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
    model, call = RandomNetworkSR(scale, device="cpu"), _random_call(seed)
    sr = check_output(model, lr, model(lr, [call]))
    assert torch.equal(sr, model(lr, [call]))
    assert not is_lost(sr, lr)


def test_random_networks_differ_from_call_to_call_and_do_what_their_strength_says(lr):
    model = RandomNetworkSR(4, device="cpu")
    up = F.interpolate(lr, scale_factor=4, mode="bicubic", align_corners=False)
    plain = {"kept_detail": 1.0, "focus": 0.3}
    outs = [model(lr, [_random_call(7, strength=strength, **plain)]) for strength in (0.01, 0.03)]
    assert _rms(outs[0] - up) == pytest.approx(0.01, rel=0.15)
    assert _rms(outs[1] - up) == pytest.approx(0.03, rel=0.15)
    assert not torch.equal(model(lr, [_random_call(1)]), model(lr, [_random_call(2)]))


@pytest.mark.parametrize("kind", range(len(NONLINEARITIES)))
@pytest.mark.parametrize("grid", [0, 1])
def test_every_nonlinearity_on_both_grids_leaves_a_constant_image_alone(kind, grid):
    lr = torch.full((1, 3, 16, 16), 0.4)
    sr = RandomNetworkSR(4, device="cpu")(lr, [_random_call(kind, nonlinearity=float(kind), grid=float(grid))])
    assert (sr - 0.4).abs().max() < 0.1
    assert float((sr - 0.4).mean()) == pytest.approx(0, abs=5e-3)


def test_a_random_network_needs_a_scale():
    with pytest.raises(SRModelError, match="at least 2, got 1"):
        RandomNetworkSR(1)
    with pytest.raises(SRModelError, match="one call an image"):
        RandomNetworkSR(2, device="cpu")(torch.zeros(2, 3, 16, 16), [_random_call(0)])
