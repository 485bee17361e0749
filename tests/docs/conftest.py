"""What the pages speak of, made real: a server, pictures, photos/, outputs/, a dataset, a ladder, a token."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

TOKEN = "a token of this test"


@pytest.fixture(scope="session")
def server(small_ladder):
    """Where the pages write an address, this one answers."""
    from finpercep.cli.server_process import ServerProcess

    with ServerProcess(small_ladder, start_timeout=280) as process:
        yield process


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    from data_synth.build import build_dataset
    from data_synth.photos import photo_source
    from data_synth.plan import BuildConfig
    from data_synth.recipe import RecipeConfig

    folder = tmp_path_factory.mktemp("data")
    config = BuildConfig(count=10, shard_size=5, validation=0.2, test=0.2, recipe=RecipeConfig(crop=192))
    list(build_dataset([photo_source("samples")], folder, config))
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch, small_ladder, dataset):
    """The folder that the pages' reader is in."""
    from tests.fakes import photo

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for folder in ("runs", "photos", "outputs", "inputs"):
        Path(folder).mkdir()
    shutil.copytree(small_ladder, "runs/ladder")
    shutil.copytree(dataset, "runs/data")
    Image.fromarray(photo(96, 120)).save("photo.png")
    Image.fromarray(photo(24, 30)).save("photo.lr.png")
    for seed in range(3):
        Image.fromarray(photo(64, 80, seed)).save(f"photos/{seed}.png")
        Image.fromarray(photo(64, 80, seed)).save(f"outputs/{seed}.png")
        Image.fromarray(photo(16, 20, seed)).save(f"inputs/{seed}.png")
    Path("token.txt").write_text(f"{TOKEN}\n")
    return tmp_path
