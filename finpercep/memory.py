"""The C library's allocator, told to keep what a model frees for the next batch."""

from __future__ import annotations

import ctypes
import platform

# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Stop glibc from giving large buffers back to the system; whether it could be told.

    By default it returns a buffer of more than 32 MiB when it is freed, and smaller ones in threads, whose heaps are small. The
    next image or step takes the same buffers anew, and the kernel clears each page of them: a quarter of the time of a 512²
    image, a tenth of a training step's, on two cores. Kept instead, memory stays at its peak. Call it before any thread begins,
    those of numpy's libraries too: a thread that has a heap of its own passes it on.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(M_ARENA_MAX, 1), mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, 2**31 - 1)])
