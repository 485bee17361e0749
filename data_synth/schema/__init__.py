"""CONTRACT 1 and what every entry into the system shares: error types, and how a picture becomes pixels.

The only part of `data_synth` that the rest of the distribution imports. Light: neither torch nor `datasets` is imported here.
"""

from data_synth.schema.dataset import COLUMNS, Row, Samples, read_split
from data_synth.schema.errors import FinpercepError, ImageError, SchemaError, StorageError
from data_synth.schema.manifest import CONTRACT_VERSION, MANIFEST_NAME, SPLITS, Manifest, ShardRecord, Split, read_manifest
from data_synth.schema.pixels import RGB8, decode_rgb, encode_png, write_atomically

__all__ = [
    "COLUMNS",
    "CONTRACT_VERSION",
    "MANIFEST_NAME",
    "RGB8",
    "SPLITS",
    "FinpercepError",
    "ImageError",
    "Manifest",
    "Row",
    "Samples",
    "SchemaError",
    "ShardRecord",
    "Split",
    "StorageError",
    "decode_rgb",
    "encode_png",
    "read_manifest",
    "read_split",
    "write_atomically",
]
