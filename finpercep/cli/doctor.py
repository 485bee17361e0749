"""`finpercep doctor`: what is installed, what it can run on, which weights are here, and what to do about the rest."""

from __future__ import annotations

import dataclasses
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from finpercep import __version__
from finpercep.cli.console import fail
from finpercep.cli.installation import Device, Extra, Package, core_packages, devices, extras, opencv_fault
from finpercep.cli.options import TokenFile, read_token
from finpercep.cli.weights_found import CanaryResult, OptionalWeights, Packaged, optional_weights, other_packaged, try_ladder
from finpercep.errors import ConfigError, FinpercepError

ANSWER_SECONDS = 20.0


@dataclass(frozen=True)
class Served:
    """What a server at an address says, or what is wrong with it."""

    url: str
    model: str | None
    rungs: dict[str, str]
    fault: str | None


@dataclass(frozen=True)
class Findings:
    """All that was found. The names are what ``--json`` prints.

    Attributes:
        finpercep, python, platform: versions.
        packages: what every command needs.
        extras: groups of optional libraries.
        devices: where networks can run.
        ladder: every packaged rung, tried on the canary, on the CPU and on the first GPU.
        packaged: the other packaged weights.
        weights: published weights that something can use.
        server: what answers at ``--reward``; None when not asked.
        problems: what keeps the core, or a server that was asked for, from working; empty when all is well.
        advice: what else could be better.
    """

    finpercep: str
    python: str
    platform: str
    packages: tuple[Package, ...]
    extras: tuple[Extra, ...]
    devices: tuple[Device, ...]
    ladder: tuple[CanaryResult, ...]
    packaged: tuple[Packaged, ...]
    weights: tuple[OptionalWeights, ...]
    server: Served | None
    problems: tuple[str, ...]
    advice: tuple[str, ...]


def doctor(
    reward: Annotated[str | None, typer.Option(help="Address of a reward server that should answer.")] = None,
    token_file: TokenFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Say what is installed, which devices and weights there are, and what to do about what is missing. Downloads nothing.

    Runs the packaged ladder on a picture whose scores are known. Exit code 1 if that fails, or if nothing answers at --reward.

    Example: finpercep doctor --reward http://127.0.0.1:8000
    """
    findings = examine(reward, read_token(token_file))
    if as_json:
        print(json.dumps(dataclasses.asdict(findings), indent=2))
    else:
        _print(findings)
    if findings.problems:
        fail("; ".join(findings.problems))


def examine(reward: str | None = None, token: str | None = None, *, ladder_folder: Path | None = None) -> Findings:
    """Look at everything; what is wrong becomes a sentence in ``problems`` or ``advice``, not an error.

    Args:
        reward: address of a server to ask.
        token: the server's, if it asks for one.
        ladder_folder: the ladder to try in place of the packaged one.
    """
    problems: list[str] = []
    advice: list[str] = []
    packages: tuple[Package, ...] = ()
    optional: tuple[Extra, ...] = ()
    try:
        packages, optional = core_packages(), extras()
    except ConfigError as error:  # the code may run all the same
        advice.append(str(error))
    problems += [_wanting(package) for package in packages if not package.fits]
    found: tuple[Device, ...] = ()
    ladder: tuple[CanaryResult, ...] = ()
    packaged: tuple[Packaged, ...] = ()
    weights: tuple[OptionalWeights, ...] = ()
    try:
        found, remarks = devices()
        advice += remarks
        packaged, weights = other_packaged(), optional_weights()
        for name in _tried(found):
            ladder += try_ladder(name, ladder_folder)
    except (ImportError, FinpercepError, OSError, RuntimeError) as error:  # a broken library, file or driver: the core's end
        problems.append(_sentence(error))
    problems += [rung.fault for rung in ladder if rung.fault]
    advice += [one.fault for one in packaged if one.fault]
    if fault := opencv_fault():
        advice.append(fault)
    server = None if reward is None else ask(reward, token)
    if server and server.fault:
        problems.append(server.fault)
    return Findings(
        finpercep=__version__,
        python=platform.python_version(),
        platform=platform.platform(terse=True),
        packages=packages,
        extras=optional,
        devices=found,
        ladder=ladder,
        packaged=packaged,
        weights=weights,
        server=server,
        problems=tuple(problems),
        advice=tuple(advice),
    )


def _tried(found: tuple[Device, ...]) -> list[str]:
    """The CPU, and the first GPU that this program would run on."""
    usable = [device.name for device in found if device.usable]
    return usable[:2]


def _wanting(package: Package) -> str:
    if package.installed is None:
        return f"{package.name} is not installed: pip install '{package.name}{package.required}'"
    return f"{package.name} {package.required} is needed, got {package.installed}: pip install '{package.name}{package.required}'"


def _sentence(error: Exception) -> str:
    if isinstance(error, FinpercepError):
        return str(error)
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"the packaged ladder cannot be run ({type(error).__name__}: {first}); install finpercep again, into a fresh environment"
    )


def ask(url: str, token: str | None) -> Served:
    """What the server at ``url`` serves."""
    from finpercep.client import RewardClient

    try:
        with RewardClient(url, timeout=ANSWER_SECONDS, patience=0, token=token) as client:
            model = client.model()
    except FinpercepError as error:
        return Served(url, None, {}, str(error))
    return Served(url, model.name, {rung.name: rung.digest for rung in model.rungs}, None)


def _print(findings: Findings) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)

    def table(title: str, *columns: str) -> Table:
        made = Table(title=escape(title), title_justify="left", box=box.SIMPLE)
        for column in columns:
            made.add_column(column, overflow="fold")
        return made

    def say(line: str, style: str = "") -> None:
        console.print(line, style=style, markup=False, soft_wrap=True)

    say(f"finpercep {findings.finpercep}, Python {findings.python}, {findings.platform}\n")

    installed = table("Installed", "library", "version", "needs")
    for package in findings.packages:
        installed.add_row(package.name, package.installed or "[red]missing[/red]", package.required)
    console.print(installed)

    groups = table("Extras", "extra", "for", "here?")
    for extra in findings.extras:
        lacking = ", ".join(package.name for package in extra.missing)
        here = f"[yellow]no: {escape(lacking)}[/yellow]\n{escape(extra.get or '')}" if extra.missing else "yes"
        groups.add_row(extra.name, escape(extra.purpose), here)
    console.print(groups)

    places = table("Devices", "device", "what", "memory, GiB", "free", "bf16 in hardware")
    for device in findings.devices:
        memory, free = ("" if number is None else f"{number:.1f}" for number in (device.memory_gib, device.free_gib))
        bf16 = {None: "unknown", True: "yes", False: "no"}[device.bf16]
        places.add_row(device.name, escape(device.description), memory, free, bf16)
    console.print(places)

    tried = table("Packaged weights", "weights", "digest", "a known picture's score")
    for rung in findings.ladder:
        says = f"[red]{rung.score:.5f}, wrong[/red]" if rung.fault else f"{rung.score:.5f}, as it should be"
        tried.add_row(f"{rung.rung} on {rung.device}", rung.digest[:19], says)
    for weights in findings.packaged:
        tried.add_row(
            weights.name, (weights.digest or "")[:19], "[red]damaged[/red]" if weights.fault else "no score; files are whole"
        )
    console.print(tried)

    caches = table("Optional weights", "weights", "for", "in the cache?")
    for one in findings.weights:
        caches.add_row(escape(one.name), escape(one.use), f"yes: {escape(_shortened(one.found))}" if one.found else "no")
    console.print(caches)
    if absent := [one for one in findings.weights if not one.found]:
        say("To get one, where there is a network:")
        for one in absent:
            say(f"  {one.get}")
        say("")

    if findings.server and not findings.server.fault:
        served = table(f"Server {findings.server.url}: {findings.server.model}", "rung", "digest")
        for name, digest in findings.server.rungs.items():
            served.add_row(escape(name), escape(digest[:19]))
        console.print(served)
    for line in findings.advice:
        say(f"advice: {line}", style="yellow")
    if not findings.problems:
        say("The core works: the packaged ladder scores as it should.")


def _shortened(path: str) -> str:
    """A path with the home folder as ~."""
    home = str(Path.home())
    return "~" + path.removeprefix(home) if path.startswith(home + "/") else path
