"""Photos in a Hugging Face data set, by name or local path: opened once a process, read by row.

Rows are taken as they were encoded and decoded like any file, so orientation, profiles and sample depths mean the same. Opening
goes through the `datasets` library alone: its cache, its mirror settings, its offline mode.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_synth.library_errors import first_line
from data_synth.photos.photo import Photo, PhotoError
from data_synth.schema.errors import ImageError

HUB_SCHEME = "hf:"
_SPECIFICATION = re.compile(r"(?P<name>[^:\[\]]+)(?::(?P<split>[^:\[\]]+(?:\[[^\[\]]*\])?))?(?::(?P<column>[^:\[\]]+))?")


@dataclass(frozen=True)
class HubTable:
    """One split of a data set.

    Attributes:
        name: repository (``owner/name``), or path of a folder (of any layout `datasets` reads) or a Parquet file.
        split: ``train``, or any slice `datasets` understands, such as ``train[:1000]``; empty: the only split, or ``train``.
        column: the column of images; empty: the only one.
    """

    name: str
    split: str = ""
    column: str = ""


@dataclass(frozen=True)
class HubRow:
    """One row: what a `Photo` carries to worker processes, which open the data set themselves."""

    table: HubTable
    index: int

    def encoded(self) -> bytes:
        """The picture as stored.

        Raises:
            ImageError: the row has no picture, or points to a file that is gone.
            PhotoError: the data set cannot be opened any more.
        """
        table = open_table(self.table)
        cell: dict[str, Any] | None = table[self.index][table.column_names[0]]
        if cell and cell["bytes"]:
            return bytes(cell["bytes"])
        where = f"row {self.index} of {self.table.name}"
        if not cell or not cell["path"]:
            raise ImageError(f"{where}: holds no picture")
        try:
            return Path(cell["path"]).read_bytes()
        except OSError as error:
            raise ImageError(f"{where}: {cell['path']}: {error.strerror}") from error


def parse_table(specification: str) -> HubTable:
    """``NAME_OR_PATH[:SPLIT[:COLUMN]]``. Raises `PhotoError` when it is written otherwise."""
    match = _SPECIFICATION.fullmatch(specification)
    if match is None:
        raise PhotoError(f"a Hugging Face data set is written hf:NAME_OR_PATH[:SPLIT[:COLUMN]], got hf:{specification}")
    return HubTable(match["name"], match["split"] or "", match["column"] or "")


def hub_photos(table: HubTable) -> list[Photo]:
    """All rows, in order; nothing is decoded yet. Names hold the data set's own name, not where it lies.

    Raises:
        PhotoError: the data set cannot be opened, or it is not clear which split or column is meant.
    """
    opened = open_table(table)
    if not len(opened):
        raise PhotoError(f"hf:{table.name}: the split holds no row")
    name = Path(table.name).name if Path(table.name).exists() else table.name
    prefix = f"{HUB_SCHEME}{name}/{opened.split or 'all'}"
    return [Photo(f"{prefix}/{index:07d}", row=HubRow(table, index)) for index in range(len(opened))]


def hub_licence(table: HubTable) -> tuple[str, str]:
    """Licence and homepage as the data set states them, in its metadata or on its card; ``not stated`` where it does not."""
    info = open_table(table).info
    licence = info.license or _card_licence(table.name) or "not stated"
    homepage = info.homepage or ("" if Path(table.name).exists() else f"https://huggingface.co/datasets/{table.name}")
    return licence, homepage


def _card_licence(name: str) -> str:
    from huggingface_hub import DatasetCard

    try:
        card = DatasetCard.load(Path(name) / "README.md" if Path(name).exists() else name, ignore_metadata_errors=True)
    except (OSError, ValueError):  # no card, no network, or not YAML: the licence is not stated then
        return ""
    licence = card.data.license
    return ", ".join(licence) if isinstance(licence, list) else licence or ""


_opening = threading.Lock()


def open_table(table: HubTable) -> Any:
    """The `datasets.Dataset` of one column, undecoded images; opened once in a process."""
    with _opening:
        return _open(table)


@lru_cache(maxsize=8)
def _open(table: HubTable) -> Any:
    from datasets import Image

    loaded = _choose_split(table, _load(table))
    images = [name for name, feature in loaded.features.items() if isinstance(feature, Image)]
    column = table.column or (images[0] if len(images) == 1 else "")
    if column not in images:
        wanted = f"column {table.column!r} holds no images" if table.column else f"{len(images)} columns hold images"
        raise PhotoError(
            f"hf:{table.name}: {wanted}; write hf:{table.name}:{table.split or loaded.split}:COLUMN with one of "
            f"{', '.join(images) or '(none: this is no data set of images)'}"
        )
    return loaded.select_columns([column]).cast_column(column, Image(decode=False))


def _load(table: HubTable) -> Any:
    """What the library makes of the name: a `Dataset`, or a `DatasetDict` when no split is asked for."""
    try:
        import datasets
    except ImportError as error:
        raise PhotoError("Hugging Face data sets need the datasets library: pip install 'finpercep[train]'") from error
    path = Path(table.name)
    is_saved = (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
    if is_saved and "[" in table.split:
        raise PhotoError(f"hf:{table.name}: a saved data set has no slices, got {table.split}; name a split alone")
    try:
        if is_saved:
            return datasets.load_from_disk(str(path))
        if path.is_file():
            return datasets.load_dataset("parquet", data_files={"train": str(path)}, split=table.split or None)
        return datasets.load_dataset(table.name, split=table.split or None)
    except ConnectionError as error:
        raise PhotoError(
            f"hf:{table.name}: no such folder here, and the hub cannot be reached ({first_line(error)}); "
            "check the path, or download the data set where there is a network"
        ) from error
    except Exception as error:  # its loaders raise whatever their parsers raise
        raise PhotoError(f"hf:{table.name}: cannot be opened ({type(error).__name__}: {first_line(error)})") from error


def _choose_split(table: HubTable, loaded: Any) -> Any:
    if not isinstance(loaded, dict):
        saved = str(loaded.split or "")
        if table.split and saved.partition("[")[0] != table.split.partition("[")[0]:
            has = f"split {saved}" if saved else "no split"
            raise PhotoError(f"hf:{table.name}: the data set is of {has}, got {table.split}; name that one, or leave it out")
        return loaded
    name = table.split or ("train" if "train" in loaded or len(loaded) != 1 else next(iter(loaded)))
    if name not in loaded:
        raise PhotoError(f"hf:{table.name}: no split {name!r}; write hf:{table.name}:SPLIT with one of {', '.join(loaded)}")
    return loaded[name]
