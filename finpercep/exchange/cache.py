"""Scores that a client has had before, by the model that gave them, the options, and the content of the image.

A model is its rung and digest, so what another model said is never given, and a score is kept, not the promise that the server
still serves that model: a server that changed is noticed by the next image that must be asked about.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import torch

from finpercep.exchange.pictures import ImageScore
from finpercep.wire import ScoreResponse

ENTRY_BYTES = 2048
"""What an entry takes besides its tensors, about."""


class ScoreCache:
    """Results of single images; those that were used longest ago give way. Threads may share one.

    What goes in and what comes out is copied, so that nobody changes what another is given.

    Args:
        most_bytes: of all entries together; a larger one is not kept.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Any:
        """What was put there, or None."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            result, _ = self._entries[key]
        return copy.deepcopy(result)

    def put(self, key: Hashable, result: ImageScore | ScoreResponse) -> None:
        """Keep the result of one image."""
        size = ENTRY_BYTES + sum(tensor.nbytes for tensor in _tensors(result))
        result = copy.deepcopy(result)
        with self._lock:
            if key in self._entries:
                self._bytes -= self._entries.pop(key)[1]
            self._entries[key] = result, size
            self._bytes += size
            while self._bytes > self.most_bytes:
                _, (_, freed) = self._entries.popitem(last=False)
                self._bytes -= freed


def content_of(image: bytes | torch.Tensor, lr: bytes | torch.Tensor | None) -> bytes:
    """A digest of an image, and of the LR picture that goes with it: dtype, shape and values, or the bytes of the files."""
    sha = hashlib.sha256()
    for one in (image, lr):
        if isinstance(one, torch.Tensor):
            sha.update(f"{one.dtype} {tuple(one.shape)}\0".encode())
            sha.update(one.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif one is not None:
            sha.update(f"{len(one)}\0".encode())
            sha.update(one)
    return sha.digest()


def _tensors(result: ImageScore | ScoreResponse) -> list[torch.Tensor]:
    if isinstance(result, ImageScore):
        return [] if result.map is None else [result.map]
    return [one for stack in (result.maps, result.grads) for one in stack or () if one is not None]
