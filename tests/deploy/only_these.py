"""Run a command of finpercep where only some distributions can be imported, as in an image that has no others.

python only_these.py DISTRIBUTION,… ARGUMENT …        # no argument: import rm_server.cluster
"""

from __future__ import annotations

import re
import sys
import sysconfig
from importlib.metadata import packages_distributions
from pathlib import Path

SITE = Path(sysconfig.get_paths()["purelib"])


class Hiding:
    """A finder that does not see packages of other distributions; what one distribution carries inside itself it sees."""

    def __init__(self, finder, allowed: set[str]) -> None:
        self.finder = finder
        self.hidden = {
            package
            for package, owners in packages_distributions().items()
            if not {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners} & allowed
        }

    def find_spec(self, name, path=None, target=None):
        spec = self.finder.find_spec(name, path, target)
        if spec is None or name not in self.hidden:
            return spec
        places = [spec.origin, *(spec.submodule_search_locations or [])]
        return None if any(place and SITE in (Path(place).parent, Path(place).parent.parent) for place in places) else spec

    def __getattr__(self, name):
        return getattr(self.finder, name)


if __name__ == "__main__":
    allowed = set(sys.argv[1].split(","))
    sys.meta_path[:] = [Hiding(finder, allowed) for finder in sys.meta_path]
    sys.argv = ["finpercep", *sys.argv[2:]]
    if sys.argv[1:]:
        from finpercep.cli import main

        main()
    else:
        import rm_server.cluster  # noqa: F401
