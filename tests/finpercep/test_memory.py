"""What the C library's allocator keeps, as the kernel counts it: pages that a process was given anew."""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, threading
from finpercep.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
import torch

for _ in range(9):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work = threading.Thread(target=lambda: torch.full((64 * 2**20,), 1, dtype=torch.uint8))
    work.start()
    work.join()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 64 * 2**20 // 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_large_buffer_is_given_again_without_a_new_page():
    def new_pages(how):
        done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
        return [int(line) for line in done.stdout.split()]

    assert min(new_pages("plain")) > 0.9 * PAGES  # each time
    kept = new_pages("keep")
    assert kept[0] > 0.9 * PAGES
    assert statistics.median(kept) < 0.1 * PAGES  # a small block may have taken a corner of it: then there is a second one
