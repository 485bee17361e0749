"""The program: `finpercep`, and `python -m finpercep`."""

from __future__ import annotations

import sys

from finpercep.memory import keep_freed_memory

_SAME_SIZES = {"serve", "train-rm", "train-sr", "train-zoo", "finetune"}
"""Commands that compute with buffers of the same sizes again and again."""


def main() -> None:
    """The command line; the memory of long work is seen to before anything is imported that starts threads."""
    if not _SAME_SIZES.isdisjoint(sys.argv):
        keep_freed_memory()
    from finpercep.cli import main

    main()


if __name__ == "__main__":
    main()
