"""CONTRACT 1: the data set on disk, version 1. A Hugging Face `datasets` directory that plain `load_dataset` reads.

    DIR/README.md                                  card with YAML header: splits and features
    DIR/finpercep.json                             version, seed, config, shards (`manifest`)
    DIR/data/SPLIT-00000-of-00004.parquet          Parquet shards; a row's split is its shard's

A row holds pictures as PNG bytes (`datasets.Image`): gt, lr, sr, syn 8-bit RGB; mask 8-bit grey, 255 = 1.0; map 16-bit grey,
65535 = 1.0, 1 = degraded. Knows nothing about how samples are made; needs neither torch nor `datasets`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_synth.schema.errors import SchemaError
from data_synth.schema.manifest import MANIFEST_NAME, Split, read_manifest
from data_synth.schema.pixels import RGB8, encode_png, write_atomically

COLUMNS: Mapping[str, str] = {
    "gt": "image",
    "lr": "image",
    "sr": "image",
    "syn": "image",
    "mask": "image",
    "map": "image",
    "recipe": "string",
    "source_id": "string",
    "index": "int64",
    "quality_gt": "float32",
    "quality_sr": "float32",
    "quality_syn": "float32",
}
"""Column name → `datasets` dtype, in order. Changing anything here is a new contract version."""

_ROWS_A_GROUP = 8  # a random row read decodes one group, so groups are small
_METADATA_KEY = b"finpercep"


@dataclass(frozen=True)
class Row:
    """One sample, decoded.

    Attributes:
        gt, sr, syn: uint8 H×W×3 RGB.
        lr: uint8 h×w×3 RGB.
        mask: float32 H×W in [0, 1], 1 where sr replaces gt; of a clean sample, where gt was put in its own place.
        map: float32 H×W in [0, 1], 1 = degraded: M_gt of syn.
        recipe: JSON of everything that went into the sample.
        source_id: the photo; no photo stands in two splits.
        index: the sample's number in the data set.
        quality_gt, quality_sr, quality_syn: pseudo quality in [0, 1], 1 = identical to gt.
    """

    gt: RGB8
    lr: RGB8
    sr: RGB8
    syn: RGB8
    mask: npt.NDArray[np.float32]
    map: npt.NDArray[np.float32]
    recipe: str
    source_id: str
    index: int
    quality_gt: float
    quality_sr: float
    quality_syn: float


# -- writing --------------------------------------------------------------------------------------------------------


def write_shard(path: Path, rows: Sequence[Row], metadata: Mapping[str, Any]) -> None:
    """Write rows as one Parquet shard, atomically. ``metadata`` (JSON) goes into its footer, for `read_shard_metadata`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    encoded = [_encode(row) for row in rows]
    schema = _arrow_schema().with_metadata(
        {b"huggingface": _huggingface_features(), _METADATA_KEY: json.dumps(metadata, sort_keys=True)}
    )
    table = pa.table({name: [row[name] for row in encoded] for name in COLUMNS}, schema=schema)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=_ROWS_A_GROUP, compression="none", write_statistics=False)  # PNGs are compressed
    write_atomically(path, buffer.getvalue())


def _encode(row: Row) -> dict[str, Any]:
    mask = np.rint(row.mask * 255).astype(np.uint8)
    degradation = np.rint(row.map * 65535).astype(np.uint16)
    pictures: dict[str, Any] = {"gt": row.gt, "lr": row.lr, "sr": row.sr, "syn": row.syn, "mask": mask, "map": degradation}
    encoded: dict[str, Any] = {name: {"bytes": encode_png(pixels), "path": None} for name, pixels in pictures.items()}
    return encoded | {name: getattr(row, name) for name in COLUMNS if name not in pictures}


def _arrow_schema() -> Any:
    import pyarrow as pa

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    types = {"image": image, "string": pa.string(), "int64": pa.int64(), "float32": pa.float32()}
    return pa.schema([(name, types[dtype]) for name, dtype in COLUMNS.items()])


def _huggingface_features() -> str:
    features = {
        name: {"_type": "Image"} if dtype == "image" else {"dtype": dtype, "_type": "Value"} for name, dtype in COLUMNS.items()
    }
    return json.dumps({"info": {"features": features}})


# -- reading --------------------------------------------------------------------------------------------------------


def read_shard_metadata(path: Path) -> dict[str, Any]:
    """The ``metadata`` a shard was written with, and its ``rows``. Raises `SchemaError` unless it is a shard of this contract."""
    footer = _checked_footer(path)
    metadata: dict[str, Any] = json.loads(footer.metadata[_METADATA_KEY])
    return metadata | {"rows": footer.num_rows}


def _checked_footer(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        footer = pq.read_metadata(path)
    except FileNotFoundError as error:
        raise SchemaError(str(path), "(file)", "a Parquet shard", "no such file") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise SchemaError(str(path), "(file)", "a Parquet shard", f"damaged file ({error})") from error
    found = footer.schema.to_arrow_schema()
    for column in _arrow_schema():
        if column.name not in found.names:
            raise SchemaError(str(path), column.name, f"a column of type {column.type}", f"columns {found.names}")
        if found.field(column.name).type != column.type:
            raise SchemaError(str(path), column.name, str(column.type), str(found.field(column.name).type))
    if _METADATA_KEY not in (footer.metadata or {}):
        raise SchemaError(str(path), "metadata", f"a footer entry {_METADATA_KEY.decode()!r}", "none")
    return footer


class Samples(Sequence[Row]):
    """The rows of one split, read and decoded when asked for. Holds paths and counts only, so it travels to loader workers."""

    def __init__(self, files: Sequence[tuple[Path, int]]) -> None:
        self.files = tuple(files)
        self._starts = np.cumsum([0, *(rows for _, rows in self.files)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row must lie in 0…{len(self) - 1}, got {index}")
        index %= len(self)
        file = int(np.searchsorted(self._starts, index, side="right")) - 1
        path, within = self.files[file][0], index - int(self._starts[file])
        group, offset = divmod(within, _ROWS_A_GROUP)
        (record,) = _read_group(path, group, only=offset)
        return decode_row(record, f"{path}, row {within}")

    def recipes(self) -> list[str]:
        """The recipe of every row, in order; no picture is read."""
        import pyarrow.parquet as pq

        return [recipe for path, _ in self.files for recipe in pq.read_table(path, columns=["recipe"])["recipe"].to_pylist()]

    def __iter__(self) -> Iterator[Row]:
        for path, rows in self.files:
            for group in range(-(-rows // _ROWS_A_GROUP)):
                for offset, record in enumerate(_read_group(path, group)):
                    yield decode_row(record, f"{path}, row {group * _ROWS_A_GROUP + offset}")


def read_split(folder: Path, split: Split) -> Samples:
    """Open one split of a data set; every shard's footer is checked, pictures are decoded when a row is read.

    Raises:
        SchemaError: names the file, the field, what was expected and what was found.
    """
    manifest = read_manifest(folder)
    if not manifest.complete:
        raise SchemaError(str(folder / MANIFEST_NAME), "complete", "true (run the same `finpercep synth` again to finish)", False)
    files = []
    for shard in manifest.shards:
        if shard.split == split:
            rows = _checked_footer(folder / shard.path).num_rows
            if rows != shard.rows:
                raise SchemaError(str(folder / shard.path), "rows", str(shard.rows), rows)
            files.append((folder / shard.path, rows))
    if not files:
        present = sorted({shard.split for shard in manifest.shards})
        raise SchemaError(str(folder / MANIFEST_NAME), "shards", f"shards of split {split!r}", f"only {present}")
    return Samples(files)


def _read_group(path: Path, group: int, only: int | None = None) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            table = file.read_row_group(group, columns=list(COLUMNS), use_threads=False)
            records: list[dict[str, Any]] = (table if only is None else table.slice(only, 1)).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise SchemaError(str(path), f"row group {group}", "readable Parquet data", f"damaged file ({error})") from error
    return records


def decode_row(record: Mapping[str, Any], where: str) -> Row:
    """A row as `datasets` or Parquet give it (pictures as bytes) → `Row`. Raises `SchemaError`, which says ``where``."""
    pictures: dict[str, Any] = {
        name: _decode_png(record[name], where, name) for name, dtype in COLUMNS.items() if dtype == "image"
    }
    size = pictures["gt"].shape[:2]
    for name in ("sr", "syn", "mask", "map"):
        if pictures[name].shape[:2] != size:
            raise SchemaError(where, name, f"the size of gt, {size}", pictures[name].shape[:2])
    pictures["mask"] = pictures["mask"].astype(np.float32) / np.float32(255)
    pictures["map"] = pictures["map"].astype(np.float32) / np.float32(65535)
    rest: dict[str, Any] = {name: record[name] for name, dtype in COLUMNS.items() if dtype != "image"}
    for name, value in rest.items():
        if value is None:
            raise SchemaError(where, name, f"a {COLUMNS[name]}", None)
    return Row(**pictures, **rest)


_PNG_MODES = {"mask": ("L",), "map": ("I;16", "I")}


def _decode_png(value: Mapping[str, Any] | None, where: str, name: str) -> npt.NDArray[Any]:
    if not value or value.get("bytes") is None:
        raise SchemaError(where, name, "PNG bytes", None)
    try:
        with Image.open(io.BytesIO(value["bytes"])) as picture:
            picture.load()
            mode, pixels = picture.mode, np.array(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise SchemaError(where, name, "a readable PNG", f"damaged picture ({error})") from error
    modes = _PNG_MODES.get(name, ("RGB",))
    if mode not in modes:
        raise SchemaError(where, name, f"a picture of mode {modes[0]}", mode)
    return pixels
