"""`--sr` specifications → the SR models of a build.

    spandrel:PATH            a checkpoint                        checkpoint.py
    diffusers:DIR_OR_ID      a pipeline; BASE+CONTROLNET         pipelines.py
    folder:DIR               ready outputs                       ready_outputs.py
    random                   random networks                     random_networks.py
    NAME=SCHEME:TARGET       any of them, called NAME

The command line adds schemes of its own (the packaged model, the zoo). A `functools.partial` of `load_sources` can be pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_synth.sr_models.protocol import SRModel, SRModelError


@dataclass(frozen=True)
class Source:
    """A parsed specification: ``[NAME=]SCHEME[:TARGET]``.

    Attributes:
        scheme: what kind of source.
        target: a path or hub id; empty where the scheme needs none.
        name: what to call the model; None leaves it to the source.
    """

    scheme: str
    target: str = ""
    name: str | None = None

    def __str__(self) -> str:
        return f"{self.name}=" * bool(self.name) + self.scheme + f":{self.target}" * bool(self.target)


Loader = Callable[[Source, int, str], Mapping[str, SRModel]]
"""(source, wanted scale, device) → its models by name; a module-level function, so that worker processes can be told of it.

A loader that cannot have the wanted scale may return its own: `load_sources` checks."""


def _load_checkpoint(source: Source, scale: int, device: str) -> Mapping[str, SRModel]:
    from data_synth.sr_models.checkpoint import load_checkpoint

    return _by_name([load_checkpoint(Path(_target(source)), name=source.name, scale=scale, device=device)])


def _load_pipeline(source: Source, scale: int, device: str) -> Mapping[str, SRModel]:
    from data_synth.sr_models.pipelines import load_pipeline

    return _by_name([load_pipeline(_target(source), scale=scale, name=source.name, device=device)])


def _load_folder(source: Source, scale: int, device: str) -> Mapping[str, SRModel]:  # noqa: ARG001
    from data_synth.sr_models.ready_outputs import ready_outputs

    return _by_name([ready_outputs(Path(_target(source)), scale=scale, name=source.name)])


def _load_random(source: Source, scale: int, device: str) -> Mapping[str, SRModel]:
    from data_synth.sr_models.random_networks import RandomNetworkSR

    if source.target:
        raise SRModelError(f"{source}: random networks need no target; write random")
    return _by_name([RandomNetworkSR(scale, name=source.name or "random", device=device)])


SCHEMES: Mapping[str, Loader] = {
    "spandrel": _load_checkpoint,
    "diffusers": _load_pipeline,
    "folder": _load_folder,
    "random": _load_random,
}


def parse_source(spec: str, *, schemes: Iterable[str] = SCHEMES) -> Source:
    """Parse ``[NAME=]SCHEME[:TARGET]``.

    Raises:
        SRModelError: no such scheme (they are listed), or an empty name.
    """
    head, colon, target = spec.strip().partition(":")
    name, equals, scheme = head.rpartition("=")
    if scheme not in schemes:
        hint = "; to use a checkpoint write spandrel:PATH" if Path(spec).suffix in {".pth", ".safetensors", ".ckpt"} else ""
        raise SRModelError(
            f"--sr {spec}: expected SCHEME:TARGET with a scheme of {', '.join(sorted(schemes))}, got {scheme!r}{hint}"
        )
    if (equals and not name) or (colon and not target):
        raise SRModelError(
            f"--sr {spec}: expected [NAME=]SCHEME[:TARGET], got an empty {'target' if name or not equals else 'name'}"
        )
    return Source(scheme, target, name or None)


def load_sources(
    specs: Sequence[str],
    *,
    scale: int,
    device: str = "auto",
    perturb: bool = True,
    extra_schemes: Mapping[str, Loader] | None = None,
) -> Mapping[str, SRModel]:
    """Load the models that ``specs`` name.

    Args:
        specs: `--sr` specifications, see `parse_source`.
        scale: the data set's upscaling factor; every model must have it.
        device: ``auto``, ``cpu`` or ``cuda[:i]``.
        perturb: every model with a network also comes perturbed, as ``NAME~perturbed``.
        extra_schemes: loaders of the caller's own schemes; they may replace the ones here.

    Raises:
        SRModelError: an unknown scheme, a model that cannot be loaded, another scale, or two models of one name.
    """
    schemes = {**SCHEMES, **(extra_schemes or {})}
    models: dict[str, SRModel] = {}
    origins: dict[str, str] = {}
    for spec in specs:
        source = parse_source(spec, schemes=schemes)
        for model in _variants(schemes[source.scheme](source, scale, device), perturb=perturb):
            if model.scale != scale:
                raise SRModelError(f"SR model {model.name} ({spec}) is x{model.scale}, the data set is x{scale}; leave one out")
            if model.name in models:
                both = f"--sr {origins[model.name]} and --sr {spec}"
                raise SRModelError(f"{both} are both called {model.name}; name one, as in NAME={source.scheme}:…")
            models[model.name], origins[model.name] = model, spec
    return models


def _variants(loaded: Mapping[str, SRModel], *, perturb: bool) -> list[SRModel]:
    from data_synth.sr_models.perturbed import PerturbedSR, is_network

    models = list(loaded.values())
    perturbed: list[SRModel] = [PerturbedSR(model) for model in models if perturb and is_network(model)]
    return [*models, *perturbed]


def _target(source: Source) -> str:
    if not source.target:
        raise SRModelError(f"--sr {source}: expected {source.scheme}:TARGET, got no target")
    return source.target


def _by_name(models: Sequence[SRModel]) -> Mapping[str, SRModel]:
    return {model.name: model for model in models}
