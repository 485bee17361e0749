"""Segmentation models: a tiny SAM built here, through the same pipeline as a real one."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from data_synth.regions import MaskRecipe, render_mask
from data_synth.segments import SamSegmenter, SegmenterError


@pytest.fixture(scope="module")
def tiny_sam(tmp_path_factory):
    """A SAM of a few thousand weights, random."""
    from transformers import (
        SamConfig,
        SamImageProcessor,
        SamMaskDecoderConfig,
        SamModel,
        SamProcessor,
        SamPromptEncoderConfig,
        SamVisionConfig,
    )

    torch.manual_seed(0)
    vision = SamVisionConfig(
        hidden_size=16,
        output_channels=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        mlp_dim=16,
        window_size=2,
        global_attn_indexes=[0],
        num_pos_feats=4,
    )
    prompt = SamPromptEncoderConfig(hidden_size=8, image_size=64, patch_size=8, mask_input_channels=4)
    decoder = SamMaskDecoderConfig(
        hidden_size=8, mlp_dim=16, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=8, iou_head_depth=2
    )
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    processor = SamImageProcessor(
        size={"longest_edge": 64},
        pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )
    folder = tmp_path_factory.mktemp("segmenters") / "tiny-sam"
    SamModel(config).eval().save_pretrained(folder)
    SamProcessor(processor).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def segmenter(tiny_sam):
    return SamSegmenter(str(tiny_sam), device="cpu", points=4, iou=0.0, stability=0.0)


def test_segments_are_masks_of_the_photo(segmenter, china):
    photo = np.ascontiguousarray(china[100:180, 200:320])
    segments = segmenter(photo)
    assert segments.dtype == bool
    assert segments.shape[1:] == (80, 120)
    assert len(segments) > 0
    assert np.array_equal(segments, segmenter(photo))
    mask = render_mask(MaskRecipe("segments", 0.2, 0.0, 1, 0), photo.astype(np.float32) / 255, segments)
    assert mask.max() == 1


def test_segments_are_those_of_transformers_own_model(segmenter, tiny_sam, china):
    """Another route: prompt the model with one point of the grid and threshold its mask."""
    from transformers import SamModel, SamProcessor

    photo = np.ascontiguousarray(china[100:196, 200:296])
    model, processor = SamModel.from_pretrained(tiny_sam), SamProcessor.from_pretrained(tiny_sam)
    points = [[[[12 + 24 * i, 12 + 24 * j]] for j in range(4) for i in range(4)]]
    inputs = processor(photo, input_points=points, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).pred_masks
    sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
    expected = processor.image_processor.post_process_masks(logits, *sizes)[0].flatten(0, 1).numpy()
    segments = segmenter(photo)
    assert len(segments) > 0
    for segment in segments:
        assert (segment == expected).mean(axis=(1, 2)).max() == 1


def test_a_photo_without_segments(tiny_sam, china):
    strict = SamSegmenter(str(tiny_sam), device="cpu", points=2, iou=0.999, stability=0.999)
    assert strict(china[:64, :80].copy()).shape == (0, 64, 80)


def test_version_follows_weights_and_settings(segmenter, tiny_sam, tmp_path):
    import shutil

    same, other = tmp_path / "same", tmp_path / "other"
    shutil.copytree(tiny_sam, same)
    shutil.copytree(tiny_sam, other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    versions = [SamSegmenter(str(folder), points=4, iou=0.0, stability=0.0).version for folder in (tiny_sam, same, other)]
    assert versions[0] == versions[1] == segmenter.version != versions[2]
    assert SamSegmenter(str(tiny_sam), points=8, iou=0.0, stability=0.0).version != versions[0]
    assert segmenter.name == "sam:tiny-sam"


def test_only_settings_travel_to_workers(segmenter, china):
    segmenter(china[:64, :64].copy())
    sent = pickle.dumps(segmenter)
    assert len(sent) < 1000
    received = pickle.loads(sent)
    assert received == segmenter
    assert np.array_equal(received(china[:64, :64].copy()), segmenter(china[:64, :64].copy()))


def test_what_is_no_sam_is_one_line(tmp_path):
    with pytest.raises(SegmenterError, match="no SAM checkpoint could be loaded") as caught:
        SamSegmenter(str(tmp_path), device="cpu")(np.zeros((64, 64, 3), dtype=np.uint8))
    assert len(str(caught.value).splitlines()) == 1


def test_an_unreachable_hub_is_one_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # read when the library is imported, so in another process
    code = (
        "from data_synth.segments import *\n"
        "try: SamSegmenter('nobody/nothing', device='cpu').version\n"
        "except SegmenterError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert len(done.stdout.splitlines()) == 1
    assert "segmenter nobody/nothing: no SAM checkpoint could be loaded" in done.stdout
