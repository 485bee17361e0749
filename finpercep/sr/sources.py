"""Where a policy's published weights are: a diffusers folder or a hub id, or two of them joined by ``+``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from finpercep.errors import WeightsError


def pipeline_class(folder: Path) -> str:
    """Class name of the diffusers pipeline in ``folder``. Raises `WeightsError` when there is none."""
    return str(_index(folder)["_class_name"])


def _index(folder: Path) -> dict[str, Any]:
    path = folder / "model_index.json"
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        str(index["_class_name"])
        return index
    except FileNotFoundError as error:
        raise WeightsError(
            f"{folder}: expected a diffusers pipeline, found no model_index.json; save_pretrained makes one"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: expected a JSON object with _class_name; download it again") from error


def fetched(source: str, *, single: bool = False) -> Path:
    """The folder of a pipeline (or of a ``single`` model), downloaded from the hub where it is not local.

    Raises:
        WeightsError: neither here nor to be had; says what to do.
    """
    if Path(source).is_dir():
        return Path(source)
    if not source or source.startswith(("/", ".", "~")) or source.count("/") != 1:
        raise WeightsError(f"{source!r}: expected a folder with a diffusers model or a hub id OWNER/NAME, found neither")
    try:
        if single:
            import huggingface_hub

            return Path(huggingface_hub.snapshot_download(source, allow_patterns=["config.json", "*.safetensors"]))
        from diffusers import DiffusionPipeline

        return Path(DiffusionPipeline.download(source))
    except Exception as error:  # the hub, the network and the cache each fail in their own way
        raise WeightsError(
            f"{source}: neither a folder here nor to be had from the hub ({type(error).__name__}: {first_line(error)}); "
            f"where there is a network run `hf download {source} --local-dir DIR`, copy DIR here and name it instead"
        ) from error


def load_pipeline(loader: Any, folder: Path, words_in: torch.dtype, **options: Any) -> Any:
    """`load_from` of a whole pipeline in float32, its text encoders in ``words_in``; parts that were saved as absent stay so."""
    absent = {name: None for name, value in _index(folder).items() if value == [None, None]}
    pipeline = load_from(loader, folder, **{**absent, **options})
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        if getattr(pipeline, name, None) is not None:
            getattr(pipeline, name).to(words_in)
    return pipeline


def load_from(loader: Any, folder: Path, **options: Any) -> Any:
    """``loader.from_pretrained(folder)``, nothing downloaded. Raises `WeightsError` when the folder holds no such thing."""
    try:
        return loader.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, AttributeError) as error:
        raise WeightsError(f"{folder}: cannot be loaded as {loader.__name__}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
