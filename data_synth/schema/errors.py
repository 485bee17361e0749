"""The root of every error this distribution raises on purpose.

    FinpercepError
    ├── ImageError        a file or body that is not a picture we can read
    ├── StorageError      a file that cannot be written
    ├── SchemaError       a dataset, checkpoint or wire message that breaks its contract
    └── …                 each package adds its own below this root

A message states the requirement, what was received, and what to do next; the command line prints it as one line.
"""

from __future__ import annotations


class FinpercepError(Exception):
    """Base class: catching it catches everything finpercep raises on purpose."""


class ImageError(FinpercepError):
    """Bytes or a file that cannot be read as a picture."""


class StorageError(FinpercepError):
    """A file that cannot be written: the disk is full, or the folder is not ours to write to."""


class SchemaError(FinpercepError):
    """A contract broken: names the file, the field, what was expected and what was received."""

    def __init__(self, where: str, field: str, expected: str, received: object) -> None:
        self.where, self.field, self.expected, self.received = where, field, expected, received
        super().__init__(f"{where}: {field}: expected {expected}, got {received!r}")

    def __reduce__(self) -> tuple[type[SchemaError], tuple[str, str, str, object]]:
        """Pickled by its parts, so that it survives the way back from a worker process."""
        return type(self), (self.where, self.field, self.expected, self.received)
