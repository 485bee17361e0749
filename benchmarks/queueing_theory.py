"""Closed forms of queueing theory, which a simulation must agree with."""

from __future__ import annotations


def wait_md1(rate: float, seconds: float) -> float:
    """Mean seconds in the queue of M/D/1: ρs / 2(1 − ρ) (Pollaczek and Khinchine)."""
    load = rate * seconds
    return load * seconds / (2 * (1 - load))


def wait_mm1(rate: float, seconds: float) -> float:
    """Mean seconds in the queue of M/M/1: ρs / (1 − ρ)."""
    load = rate * seconds
    return load * seconds / (1 - load)


def rate_repairman(count: int, think: float, seconds: float) -> float:
    """Answers a second of M/M/1//N, ``count`` clients that think and wait in turn (the machine-repairman model)."""
    weights = [1.0]
    for inside in range(1, count + 1):
        weights.append(weights[-1] * (count - inside + 1) * seconds / think)
    return (1 - weights[0] / sum(weights)) / seconds
