"""The program: `finpercep`, and `python -m finpercep`."""

from __future__ import annotations

import sys


def main() -> None:
    """The command line; a server's memory is seen to before anything is imported that starts threads."""
    if "serve" in sys.argv:
        from rm_server.memory import keep_freed_memory

        keep_freed_memory()
    from finpercep.cli import main

    main()


if __name__ == "__main__":
    main()
