"""Co-evolution: the reward of a rung is made anew for the policy that has come to it. What the loop asks for, and no more."""

from __future__ import annotations

from typing import Any, Protocol

from finpercep.sr.policy import SRPolicy

Record = dict[str, Any]
"""Plain data that says which model a rung has from now on; ``said``: what came of it, in a line."""


class Refresher(Protocol):
    """Makes a rung anew, and has the reward's source serve it."""

    def make(self, rung: str, policy: SRPolicy) -> Record:
        """Train ``rung`` on what ``policy`` puts out now. All processes call it; called again, it goes on where it stopped."""
        ...

    def adopt(self, rung: str, record: Record) -> None:
        """Have the source serve what `make` made; every process calls it, and again when a run is continued."""
        ...
