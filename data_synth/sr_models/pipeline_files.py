"""The files of a diffusers pipeline: where they are, which pipeline they are, and their digest. Loads no network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from data_synth.library_errors import first_line
from data_synth.sr_models.protocol import SRModelError


def pipeline_class(source: str) -> str:
    """Class name of the pipeline, before anything big is fetched."""
    path = Path(source) / "model_index.json"
    if not Path(source).is_dir():
        path = _download(source, "model_index.json")
    if not path.is_file():
        raise SRModelError(
            f"{source}: expected a diffusers pipeline, got a folder without model_index.json; save_pretrained makes one"
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return str(index["_class_name"])
    except (ValueError, KeyError, TypeError) as error:
        raise SRModelError(f"{path}: expected a JSON object with _class_name, got something else; download it again") from error


def fetched(source: str, *, single: bool = False) -> Path:
    """The folder of a pipeline (or of a ``single`` model), downloaded where it is not local."""
    if Path(source).is_dir():
        return Path(source)
    if single:
        return _download(source, None)
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(source))
    except Exception as error:  # the hub, the network and the cache each fail in their own way
        raise _not_fetched(source, error) from error


def _download(source: str, filename: str | None) -> Path:
    """One file of a hub repository, or its configuration and `.safetensors` weights."""
    if source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise SRModelError(f"{source}: expected a folder with a diffusers pipeline, found none; check the path")
    import huggingface_hub

    try:
        if filename is not None:
            return Path(huggingface_hub.hf_hub_download(source, filename))
        return Path(
            huggingface_hub.snapshot_download(source, allow_patterns=["config.json", "diffusion_pytorch_model.safetensors"])
        )
    except Exception as error:  # the hub, the network and the cache each fail in their own way
        raise _not_fetched(source, error) from error


def _not_fetched(source: str, error: Exception) -> SRModelError:
    return SRModelError(
        f"{source}: neither a folder here nor to be had from the hub ({type(error).__name__}: {first_line(error)}); "
        f"where there is a network run `hf download {source} --local-dir DIR`, copy DIR here, and use diffusers:DIR"
    )


def files_digest(folders: Sequence[Path], *, salt: str) -> str:
    """Digest of what decides the output: configuration and the weights that are loaded, by relative name, and ``salt``."""
    digest = hashlib.sha256(salt.encode())
    for folder in folders:
        for path in sorted(_deciding_files(folder)):
            digest.update(path.relative_to(folder).as_posix().encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _deciding_files(folder: Path) -> list[Path]:
    """Configuration, tokenizer and weights; of weights in two formats those that get loaded, `.safetensors`."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    safe = {path.parent for path in files if path.suffix == ".safetensors"}
    kept = {".json", ".txt", ".model", ".safetensors"}
    return [path for path in files if path.suffix in kept or (path.suffix == ".bin" and path.parent not in safe)]
