"""The simulator of reward servers and trainers: against queueing theory, against a measured server, and against itself."""

from __future__ import annotations

import pytest

from benchmarks.queueing import Simulation, Tier, Trainers, fixed
from benchmarks.queueing_theory import wait_md1, wait_mm1
from benchmarks.scale_simulation import BATCH_PIXELS, beside_measured, closed_forms
from rm_server.service import CPU_BATCH_PIXELS


def test_it_agrees_with_queueing_theory():
    rows = closed_forms()
    assert len(rows) == 6
    for name, closed, simulated in rows:  # of 140,000 requests at load 0.7, 0.05 is two standard errors of M/M/1's mean
        assert simulated == pytest.approx(closed, rel=0.05), name


def test_closed_forms_are_the_textbooks():
    assert wait_mm1(0.5, 1.0) == 1.0 and wait_md1(0.5, 1.0) == 0.5  # half the service time is spare: one, and half a service time


def test_it_predicts_the_server_that_was_measured():
    """From the bare model alone. 2026-11-30: 18.0 images a second predicted, 21.3 measured; with gradients 11.4 and 12.1."""
    for row in beside_measured():
        assert row["predicted_images_per_second"] == pytest.approx(row["measured_images_per_second"], rel=0.25)
        assert row["predicted_p50_ms"] == pytest.approx(row["measured_p50_ms"], rel=0.25)


def test_the_servers_batch_is_the_one_that_is_simulated():
    assert BATCH_PIXELS == CPU_BATCH_PIXELS


def test_a_link_and_a_batch_take_their_time():
    """One trainer, by hand: 1 s of thought, 2 s up, 0.5 s of computing, 1 s down."""
    simulation = Simulation(Tier(1, fixed(0.5), bytes_a_second=10))
    simulation.train(Trainers(1, lambda _: 1.0, bytes_up=20, bytes_down=10))
    seen = simulation.run(45.0)
    assert seen.latencies == pytest.approx([3.5] * 10) and seen.asked == 10 == seen.answered


def test_requests_that_wait_share_a_batch():
    """Four trainers at once, a batch of up to four images takes 1 s: one is alone, three come together."""
    simulation = Simulation(Tier(1, fixed(1.0), batch_images=4))
    simulation.train(Trainers(4, lambda _: 1.0, images=1))
    seen = simulation.run(2.9)
    assert seen.answered == 1
    simulation = Simulation(Tier(1, fixed(1.0), batch_images=4))
    simulation.train(Trainers(4, lambda _: 1.0, images=1))
    assert simulation.run(3.5).answered == 4
    simulation = Simulation(Tier(1, fixed(1.0), batch_images=4))
    simulation.train(Trainers(4, lambda _: 1.0, images=2))
    assert simulation.run(3.5).answered == 3  # two of the three fit


def test_trainers_that_go_together_wait_for_the_slowest():
    """Four requests at once on one server of 0.5 s: a step is 1 s of thought and 2 s of waiting; on four servers 0.5 s."""
    for replicas, step in ((1, 3.0), (4, 1.5)):
        simulation = Simulation(Tier(replicas, fixed(0.5)), seed=1)
        simulation.train(Trainers(4, lambda _: 1.0, together=True))
        steps = simulation.run(300.0).steps
        assert min(steps) == pytest.approx(step) and max(steps) <= 3.0  # two choices at random may crowd


@pytest.mark.parametrize("replicas", [1, 3])
def test_nothing_is_lost_when_replicas_fail(replicas):
    simulation = Simulation(Tier(replicas, fixed(0.2), mean_seconds_to_failure=20, repair_seconds=10), seed=2)
    simulation.train(Trainers(6, lambda rng: rng.uniform(0, 1)))
    seen = simulation.run(2000.0)
    assert seen.retries > 20
    assert seen.asked - seen.answered == seen.open <= 6  # what is on its way, one for each trainer at most
    alike = Simulation(Tier(replicas, fixed(0.2), mean_seconds_to_failure=20, repair_seconds=10), seed=2)
    alike.train(Trainers(6, lambda rng: rng.uniform(0, 1)))
    assert alike.run(2000.0) == seen  # the seed decides all
