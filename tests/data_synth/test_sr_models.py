"""Sources of SR models: checkpoints, ready outputs, and the specifications that name them."""

from __future__ import annotations

import pickle
import re
import warnings
from functools import partial
from importlib import metadata

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from data_synth.device import DeviceError, device_mark, resolve_device
from data_synth.schema.pixels import encode_png
from data_synth.sr_models.checkpoint import load_checkpoint
from data_synth.sr_models.perturbed import KIND, STRENGTH, PerturbedSR
from data_synth.sr_models.protocol import Crop, SRCall, SRModelError, check_output
from data_synth.sr_models.random_networks import RandomNetworkSR
from data_synth.sr_models.ready_outputs import ready_outputs, shows_same_scene
from data_synth.sr_models.sources import Source, load_sources, parse_source

CALL = SRCall(0, {}, Crop("photo", 0, 0, 64))


@pytest.fixture
def lr(crop):
    """The temple, 40×40."""
    return F.avg_pool2d(torch.from_numpy(crop.copy()).permute(2, 0, 1)[None], 4)


# -- checkpoints ----------------------------------------------------------------------------------------------------------


def _compact(seed=0, scale=4):
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(seed)
    return Compact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=2, upscale=scale).eval()


@pytest.fixture
def weights(tmp_path):
    """A real architecture's weights, as .safetensors."""
    path = tmp_path / "compact.safetensors"
    save_file(_compact().state_dict(), path)
    return path


def _refused(path, match):
    with pytest.raises(SRModelError, match=match) as error:
        load_checkpoint(path, device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt"])
@torch.no_grad()
def test_a_checkpoint_gives_what_its_network_gives(tmp_path, lr, suffix):
    network = _compact()
    path = tmp_path / f"net{suffix}"
    if suffix == ".safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save({"params_ema": network.state_dict()}, path)
    model = load_checkpoint(path, device="cpu")
    assert (model.name, model.scale, model.settings) == ("net", 4, {}) and model.covers("any photo")
    batch = torch.cat([lr, lr.flip(-1)])
    out = check_output(model, batch, model(batch, [CALL, CALL]))
    assert torch.allclose(out, network(batch).clamp(0, 1), atol=1e-6)
    assert torch.equal(out[:1], model(lr, [CALL])), "an image's output must not depend on its batch"


@torch.no_grad()
def test_sizes_the_network_cannot_take_are_padded_and_cropped_back(tmp_path, lr):
    from spandrel.architectures.SwinIR import SwinIR

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.meshgrid without indexing
        network = SwinIR(
            img_size=16, embed_dim=12, depths=[1], num_heads=[2], window_size=8, upscale=2, upsampler="pixelshuffledirect"
        )
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, tmp_path / "swin.safetensors")
    model = load_checkpoint(tmp_path / "swin.safetensors", device="cpu")
    small = lr[..., :13, :15]
    out = check_output(model, small, model(small, [CALL]))
    reflected = F.pad(small, (0, 1, 0, 3), mode="reflect")
    assert torch.allclose(out, network.eval()(reflected).clamp(0, 1)[..., :26, :30], atol=1e-5)


def test_the_version_follows_the_file(tmp_path, weights):
    other = tmp_path / "other.safetensors"
    save_file(_compact(seed=1).state_dict(), other)
    first = load_checkpoint(weights, device="cpu")
    assert first.version == load_checkpoint(weights, name="renamed", device="cpu").version
    assert first.version != load_checkpoint(other, device="cpu").version


class _Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return self.marker.write_text, ("ran",)


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".pt"])
def test_a_pickle_with_code_is_refused_and_its_code_is_not_run(tmp_path, suffix):
    marker = tmp_path / "marker"
    torch.save({"params": _compact().state_dict(), "payload": _Payload(marker)}, tmp_path / f"bad{suffix}")
    _refused(tmp_path / f"bad{suffix}", "expected weights alone, got a pickle with other objects or code")
    (tmp_path / f"plain{suffix}").write_bytes(pickle.dumps(_Payload(marker)))
    _refused(tmp_path / f"plain{suffix}", "expected weights alone|not a readable checkpoint")
    assert not marker.exists()


def test_torchscript_is_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, its files are still about
        torch.jit.save(torch.jit.trace(torch.nn.Conv2d(3, 3, 1), torch.zeros(1, 3, 4, 4)), tmp_path / "script.pt")
    _refused(tmp_path / "script.pt", "not a readable checkpoint of weights: Cannot use")


def test_what_is_no_sr_checkpoint_is_refused_with_its_reason(tmp_path, weights):
    _refused(tmp_path / "absent.pth", "no such checkpoint file")
    (tmp_path / "a.txt").write_text("x")
    _refused(tmp_path / "a.txt", r"expected \.safetensors, \.pth, \.ckpt or \.pt, got \.txt")
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:-100])
    _refused(tmp_path / "cut.safetensors", r"damaged \.safetensors")
    (tmp_path / "empty.pth").write_bytes(b"")
    _refused(tmp_path / "empty.pth", "not a readable checkpoint")
    torch.save([1, 2], tmp_path / "list.pth")
    _refused(tmp_path / "list.pth", "expected a state dict .*, got list")
    save_file({"some.weight": torch.zeros(3)}, tmp_path / "unknown.safetensors")
    _refused(tmp_path / "unknown.safetensors", r"that spandrel .* knows, got 1 entries such as some\.weight")
    state = _compact().state_dict()
    state["body.2.weight"] = state["body.2.weight"][:, :4].clone()
    save_file(state, tmp_path / "wrong.safetensors")
    _refused(tmp_path / "wrong.safetensors", "looks like an architecture spandrel knows, but cannot be loaded")
    with pytest.raises(SRModelError, match=r"expected an x2 model, got .* x4"):
        load_checkpoint(weights, scale=2, device="cpu")


def test_a_restoration_model_is_refused(tmp_path):
    from spandrel.architectures.DnCNN import DnCNN

    save_file(DnCNN().state_dict(), tmp_path / "denoise.safetensors")
    _refused(tmp_path / "denoise.safetensors", "expected a super-resolution model, got DnCNN for Restoration")


def test_a_checkpoint_can_be_perturbed_and_is_whole_again(weights, lr):
    model = load_checkpoint(weights, device="cpu")
    intact = model(lr, [CALL])
    broken = PerturbedSR(model)
    outs = [broken(lr, [SRCall(seed, {KIND: 0.0, STRENGTH: 0.03}, CALL.crop)]) for seed in range(3)]
    assert any((out - intact).abs().max() > 0.01 for out in outs)
    assert torch.equal(model(lr, [CALL]), intact)


def test_devices():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("quantum", "meta"):
        with pytest.raises(DeviceError, match="must be auto, cpu or cuda"):
            resolve_device(name)
    with pytest.raises(DeviceError, match="this machine has"):
        resolve_device("cuda:99")


def test_a_version_says_what_decides_the_bits(weights):
    assert [device_mark(torch.device(name)) for name in ("cpu", "cuda", "cuda:1")] == ["", "+cuda", "+cuda"]
    model = load_checkpoint(weights, device="cpu")
    assert re.fullmatch(rf"[0-9a-f]{{16}}\+spandrel{re.escape(metadata.version('spandrel'))}", model.version)
    on_cpu = PerturbedSR(model).version
    assert on_cpu.startswith(f"{model.version}~")
    model.module.to("meta")  # a device every machine has
    assert PerturbedSR(model).version == f"{on_cpu}+meta"
    model.version += "+meta"
    assert PerturbedSR(model).version == f"{on_cpu}+meta", "the mark is last, and there once"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_version_names_a_gpu(weights):
    model = load_checkpoint(weights, device="cuda")
    versions = [model.version, PerturbedSR(model).version, RandomNetworkSR(4, device="cuda").version]
    assert all(version.endswith("+cuda") and version.count("+cuda") == 1 for version in versions)


# -- ready outputs --------------------------------------------------------------------------------------------------------


def _save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(np.ascontiguousarray(pixels)))


def _lr_of(pixels, crop):
    cut = pixels[crop.top : crop.top + crop.size, crop.left : crop.left + crop.size].astype(np.float32) / 255
    cut = cut[:, ::-1] if crop.flip else cut
    return F.avg_pool2d(torch.from_numpy(cut.copy()).permute(2, 0, 1)[None], 4)


@pytest.mark.parametrize("flip", [False, True])
def test_a_ready_output_is_cut_where_the_call_says(tmp_path, china, flip):
    _save(tmp_path / "out" / "temple_x4.png", china)
    model = ready_outputs(tmp_path / "out", scale=4)
    crop = Crop("temple.jpg", 180, 200, 160, flip, photo_size=china.shape[:2])
    sr = check_output(model, _lr_of(china, crop), model(_lr_of(china, crop), [SRCall(0, {}, crop)]))
    cut = china[180:340, 200:360]
    assert model.name == "out" and model.family == "ready"
    assert np.array_equal((sr[0].permute(1, 2, 0).numpy() * 255).round(), cut[:, ::-1] if flip else cut)


@pytest.mark.parametrize(
    ("output", "photo", "covered"),
    [
        ("a/b.png", "a/b.jpg", True),
        ("a/b_out.png", "a/b.jpg", True),
        ("b-sr.png", "a/b.jpg", True),
        ("a/b.png", "b.jpg", False),
        ("a/b.png", "c/b.jpg", False),
        ("a/1_x4.png", "b/1.png", False),
        ("a/1_x4.png", "c/a/1.png", False),
        ("b_SR.webp", "b.jpg", True),
        ("b_x4_out.png", "b.png", True),
        ("b_4x.png", "b.png", True),
        ("china.png", "sample:china.jpg", True),
        ("b.png", "1:deep/er/b.jpg", True),
        ("img.v2.png", "img.v2.jpg", True),
        ("bx4y.png", "b.png", False),
        ("scout.png", "sc.png", True),  # a tail need not be set off; a longer name of its own wins where there is one
        ("c.png", "b.png", False),
        ("_out.png", "_out.jpg", True),
    ],
)
def test_pairing_by_name(tmp_path, output, photo, covered):
    _save(tmp_path / output, np.zeros((4, 4, 3), np.uint8))
    assert ready_outputs(tmp_path, scale=4).covers(photo) is covered


def test_a_sub_folder_decides_and_ambiguity_is_an_error_that_names_both(tmp_path):
    for name in ("a/p.png", "b/p.png", "q_out.png", "q_x4.png", "r/s.png", "r/s.webp"):
        _save(tmp_path / name, np.zeros((4, 4, 3), np.uint8))
    model = ready_outputs(tmp_path, scale=4)
    assert model.covers("a/p.jpg") and model.covers("b/p.jpg") and not model.covers("c/p.jpg")
    for photo, names in (("q.jpg", "q_out.png, q_x4.png"), ("d/q.jpg", "q_out.png, q_x4.png"), ("r/s.jpg", "r/s.png, r/s.webp")):
        with pytest.raises(SRModelError, match=f"expected one output for photo {photo}, got 2: {names}"):
            model.covers(photo)


def test_a_name_as_it_is_goes_before_one_without_its_ending(tmp_path, china):
    _save(tmp_path / "foo.png", china)
    _save(tmp_path / "foo_x4.png", china[:, ::-1])
    model = ready_outputs(tmp_path, scale=4)
    for photo, pixels in (("foo.png", china), ("foo_x4.png", china[:, ::-1]), ("deep/foo.png", china)):
        crop = Crop(photo, 180, 200, 160)
        sr = model(_lr_of(pixels, crop), [SRCall(0, {}, crop)])
        assert np.array_equal((sr[0].permute(1, 2, 0).numpy() * 255).round(), pixels[180:340, 200:360])


def test_files_that_are_no_pictures_are_refused_when_the_folder_is_opened(tmp_path, china):
    _save(tmp_path / "good.png", china[:32, :32])
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(SRModelError, match=r"got 2 of 3 files that cannot be read, first bad\.png \(not a picture\)"):
        ready_outputs(tmp_path, scale=4)


def test_an_output_of_another_size_or_scene_is_an_error_that_names_the_file(tmp_path, china, chelsea):
    _save(tmp_path / "small.png", china[:300, :400])
    _save(tmp_path / "cat.png", np.tile(chelsea, (2, 2, 1))[:427, :640])
    (tmp_path / "broken.png").write_bytes((tmp_path / "cat.png").read_bytes()[:5000])
    model = ready_outputs(tmp_path, scale=4)

    def fails(crop, match):
        with pytest.raises(SRModelError, match=match):
            model(_lr_of(china, crop), [SRCall(0, {}, crop)])

    fails(
        Crop("small.jpg", 0, 0, 160, photo_size=(427, 640)),
        r"small\.png: expected the size of photo small\.jpg, 640x427, got 400x300",
    )
    fails(Crop("small.jpg", 180, 240, 160), r"small\.png: expected the size .* reaches at least to 400x340, got 400x300")
    fails(Crop("cat.jpg", 180, 200, 160), r"cat\.png: shows something else than photo cat\.jpg")
    fails(Crop("broken.jpg", 0, 0, 160), r"broken\.png: damaged picture")
    fails(Crop("none.jpg", 0, 0, 160), "holds no output for photo none")
    with pytest.raises(SRModelError, match="does not fit x2"):
        ready_outputs(tmp_path, scale=2)(_lr_of(china, CALL.crop), [SRCall(0, {}, Crop("small.jpg", 0, 0, 64))])


def test_the_version_follows_names_and_content(tmp_path, china):
    _save(tmp_path / "a.png", china[:32, :32])
    first = ready_outputs(tmp_path, scale=4).version
    assert ready_outputs(tmp_path, scale=4, name="other").version == first
    _save(tmp_path / "a.png", china[1:33, :32])
    second = ready_outputs(tmp_path, scale=4).version
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    assert len({first, second, ready_outputs(tmp_path, scale=4).version}) == 3


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(SRModelError, match="holds no picture"):
        ready_outputs(tmp_path, scale=4)
    with pytest.raises(SRModelError, match="expected a folder of SR outputs, found none"):
        ready_outputs(tmp_path / "absent", scale=4)


def test_the_same_scene_is_recognised_through_heavy_degradation(china):
    crop = Crop("p", 180, 200, 160)
    lr, sr = _lr_of(china, crop)[0], torch.from_numpy(china[180:340, 200:360].copy()).permute(2, 0, 1).float() / 255
    noisy = lr + 0.15 * torch.randn(lr.shape, generator=torch.Generator().manual_seed(0))
    assert shows_same_scene(noisy, sr)
    assert shows_same_scene(lr, (0.7 * sr + 0.1).clamp(0, 1))
    assert not shows_same_scene(lr, sr.flip(-1))
    assert not shows_same_scene(lr, 1 - sr)
    flat = torch.full((3, 160, 160), 0.5)
    assert shows_same_scene(flat[:, :40, :40], flat + 0.1) and not shows_same_scene(flat[:, :40, :40], flat + 0.4)


# -- specifications -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "source"),
    [
        ("random", Source("random")),
        ("spandrel:a/b.pth", Source("spandrel", "a/b.pth")),
        ("mine=spandrel:C:\\x=1.pth", Source("spandrel", "C:\\x=1.pth", "mine")),
        ("diffusers:org/model", Source("diffusers", "org/model")),
        ("SUPIR=folder:results/out", Source("folder", "results/out", "SUPIR")),
    ],
)
def test_specifications(spec, source):
    assert parse_source(spec) == source
    assert str(source) == spec


@pytest.mark.parametrize("spec", ["x4.pth", "nonsense:a", "", "=", ":", "spandrel:", "=folder:a"])
def test_a_bad_specification_is_an_error(spec):
    with pytest.raises(SRModelError, match="--sr"):
        parse_source(spec)


def test_an_unknown_scheme_lists_those_there_are():
    with pytest.raises(SRModelError, match="diffusers, folder, random, spandrel, tiny, got 'zoo'"):
        parse_source("zoo:dir", schemes=["spandrel", "diffusers", "folder", "random", "tiny"])
    with pytest.raises(SRModelError, match="to use a checkpoint write spandrel:PATH"):
        parse_source("models/x4.pth")


@given(
    st.builds(
        Source,
        st.sampled_from(["spandrel", "folder"]),
        st.text("ab/:=. é\\", min_size=1).filter(lambda text: text == text.strip()),
        st.none() | st.text("abc~-_=1", min_size=1),
    )
)
def test_a_source_reads_as_it_is_written(source):
    assert parse_source(str(source)) == source


def _two_tiny(source, scale, device):
    """A scheme of a caller's own."""
    return {name: RandomNetworkSR(int(source.target or scale), name=name, device=device) for name in ("one", "two")}


def test_sources_load_by_name_and_networks_also_come_perturbed(weights, tmp_path, lr):
    _save(tmp_path / "SUPIR" / "a.png", np.zeros((8, 8, 3), np.uint8))
    specs = [f"spandrel:{weights}", f"folder:{tmp_path / 'SUPIR'}", "random", "own"]
    load = partial(load_sources, specs, scale=4, device="cpu", extra_schemes={"own": _two_tiny})
    models = load()
    assert list(models) == ["compact", "compact~perturbed", "SUPIR", "random", "one", "two"]
    assert all(name == model.name and model.scale == 4 for name, model in models.items())
    assert "compact~perturbed" not in load(perturb=False)
    again = pickle.loads(pickle.dumps(load))()
    assert {name: model.version for name, model in again.items()} == {name: model.version for name, model in models.items()}


def test_a_name_can_be_given_and_must_be_unique(weights, tmp_path):
    models = load_sources(["a=random", f"b=spandrel:{weights}"], scale=4, device="cpu")
    assert list(models) == ["a", "b", "b~perturbed"]
    with pytest.raises(SRModelError, match="--sr random and --sr random are both called random; name one, as in NAME=random"):
        load_sources(["random", "random"], scale=4, device="cpu")


def test_a_model_of_another_scale_is_an_error(weights):
    with pytest.raises(SRModelError, match=r"expected an x2 model, got .* x4"):
        load_sources([f"spandrel:{weights}"], scale=2, device="cpu")
    with pytest.raises(SRModelError, match=r"SR model one \(own:3\) is x3, the data set is x4"):
        load_sources(["own:3"], scale=4, device="cpu", extra_schemes={"own": _two_tiny})
    with pytest.raises(SRModelError, match="random networks need no target"):
        load_sources(["random:3"], scale=4, device="cpu")
    with pytest.raises(SRModelError, match="expected folder:TARGET, got no target"):
        load_sources(["folder"], scale=4, device="cpu")


def test_tiff_and_16_bit_outputs_are_read_as_any_picture(tmp_path, china):
    Image.fromarray(china).save(tmp_path / "p.tif")
    crop = Crop("p.png", 0, 0, 64)
    assert ready_outputs(tmp_path, scale=4)(_lr_of(china, crop), [SRCall(0, {}, crop)]).shape == (1, 3, 64, 64)
