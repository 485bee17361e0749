"""A discrete-event simulation of reward servers: trainers that think, ask and wait; a router; replicas with a network link, a
queue, batches, and failures.

It knows nothing of images: a request has a number of images and a number of bytes, a batch has a duration. What it takes for
granted: a router knows at once that a replica is gone (Serve's does, of a process; a client notices by the broken connection);
requests are batched whole; a batch's duration depends on its size alone.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

Duration = Callable[[Random, int, int], float]
"""Seconds of a batch: random numbers, images, requests."""


@dataclass(frozen=True)
class Tier:
    """The reward servers.

    Attributes:
        replicas: how many.
        duration: of a batch.
        batch_images: most images of a batch; a single request may have more.
        bytes_a_second: of a replica's link, each way; infinite: the network is not part of the question.
        mean_seconds_to_failure: of one replica, exponentially distributed.
        repair_seconds: until it is back.
        retry_seconds: pause before a request that was lost is sent again.
    """

    replicas: int
    duration: Duration
    batch_images: int = 1
    bytes_a_second: float = math.inf
    mean_seconds_to_failure: float = math.inf
    repair_seconds: float = 60.0
    retry_seconds: float = 0.5


@dataclass(frozen=True)
class Trainers:
    """Who asks.

    Attributes:
        count: trainers, each with one request at a time.
        think: seconds that one computes before it asks.
        images: of a request.
        bytes_up: of a request.
        bytes_down: of its answer.
        together: whether a step begins only when every trainer has its answer of the last one, as processes do that average
            their gradients.
    """

    count: int
    think: Callable[[Random], float]
    images: int = 1
    bytes_up: float = 0.0
    bytes_down: float = 0.0
    together: bool = False


@dataclass
class Outcome:
    """What was seen after the warm-up.

    Attributes:
        seconds: of simulated time.
        latencies: of each request, from when it was first sent to its answer.
        waits: of each request's last try, from its arrival at the replica to the beginning of its batch.
        steps: seconds of each step of trainers that go together.
        busy: seconds that replicas computed, all together.
        asked: requests sent, from the beginning on; tries do not count.
        answered: of these.
        retries: tries beyond the first.
        open: requests without an answer at the end.
    """

    seconds: float
    latencies: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    busy: float = 0.0
    asked: int = 0
    answered: int = 0
    retries: int = 0
    open: int = 0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """Of the latencies, in seconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(eq=False)
class _Request:
    images: int
    up: float
    down: float
    sent: float
    answer: Callable[[], None]
    arrived: float = 0.0
    begun: float = 0.0


class _Link:
    """A wire that carries one thing after another."""

    def __init__(self, bytes_a_second: float) -> None:
        self.bytes_a_second, self.free_at = bytes_a_second, 0.0

    def carry(self, now: float, size: float) -> float:
        """When the last byte is over."""
        self.free_at = max(now, self.free_at) + size / self.bytes_a_second
        return self.free_at


class _Replica:
    """A link in, a queue, one batch at a time, a link out."""

    def __init__(self, world: Simulation) -> None:
        self.world = world
        self.life = 0  # counts failures: what was begun in another life does not count
        self.alive = True
        self.held: dict[_Request, None] = {}  # in order of arrival
        self._empty()
        self._fail_later()

    def _empty(self) -> None:
        self.up, self.down = _Link(self.world.tier.bytes_a_second), _Link(self.world.tier.bytes_a_second)
        self.waiting: deque[_Request] = deque()
        self.computing = False
        self.held.clear()

    def take(self, request: _Request) -> None:
        self.held[request] = None
        self._at(self.up.carry(self.world.now, request.up), lambda: self._arrive(request))

    def _arrive(self, request: _Request) -> None:
        request.arrived = self.world.now
        self.waiting.append(request)
        self._compute()

    def _compute(self) -> None:
        if self.computing or not self.waiting:
            return
        batch = [self.waiting.popleft()]
        images = batch[0].images
        while self.waiting and images + self.waiting[0].images <= self.world.tier.batch_images:
            batch.append(self.waiting.popleft())
            images += batch[-1].images
        seconds = self.world.tier.duration(self.world.rng, images, len(batch))
        for request in batch:
            request.begun = self.world.now
        self.computing = True
        self._at(self.world.now + seconds, lambda: self._computed(batch, seconds))

    def _computed(self, batch: Sequence[_Request], seconds: float) -> None:
        self.computing = False
        self.world.note_busy(seconds)
        for request in batch:
            self._at(self.down.carry(self.world.now, request.down), lambda request=request: self._sent(request))
        self._compute()

    def _sent(self, request: _Request) -> None:
        del self.held[request]
        self.world.answered(request)

    def _fail_later(self) -> None:
        mean = self.world.tier.mean_seconds_to_failure
        if mean < math.inf:
            self._at(self.world.now + self.world.rng.expovariate(1 / mean), self._fail)

    def _fail(self) -> None:
        self.alive = False
        self.life += 1
        lost = list(self.held)
        self._empty()
        self._at(self.world.now + self.world.tier.repair_seconds, self._return)
        self.world.lost(lost)

    def _return(self) -> None:
        self.alive = True
        self._fail_later()
        self.world.place_waiting()

    def _at(self, when: float, what: Callable[[], None]) -> None:
        """Do it then, if this life still lasts."""
        life = self.life
        self.world.at(when, lambda: what() if life == self.life else None)


class Simulation:
    """Events in order of time. Requests go to the less loaded of two replicas chosen at random, as Serve's router does it.

    Args:
        tier: who answers.
        seed: of everything random.
        warm: seconds before which nothing is noted but ``asked``, ``answered`` and ``retries``.
    """

    def __init__(self, tier: Tier, seed: int = 0, warm: float = 0.0) -> None:
        self.tier, self.rng, self.warm, self.now = tier, Random(seed), warm, 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        self._nowhere: list[_Request] = []  # no replica is alive
        self._seen = Outcome(0.0)
        self._replicas = [_Replica(self) for _ in range(tier.replicas)]

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Do it then."""
        heapq.heappush(self._events, (when, next(self._number), what))

    def run(self, seconds: float) -> Outcome:
        """Go on to a moment; what was seen between the warm-up and then."""
        while self._events and self._events[0][0] <= seconds:
            self.now, _, what = heapq.heappop(self._events)
            what()
        self._seen.seconds = seconds - self.warm
        self._seen.open = self._seen.asked - self._seen.answered
        return self._seen

    # -- who asks ------------------------------------------------------------------------------------------------------

    def poisson(self, rate: float, images: int = 1) -> None:
        """Requests at random moments, ``rate`` a second, whatever becomes of those before."""

        def arrive() -> None:
            self.ask(images, 0.0, 0.0, lambda: None)
            self.at(self.now + self.rng.expovariate(rate), arrive)

        self.at(self.rng.expovariate(rate), arrive)

    def train(self, trainers: Trainers) -> None:
        """Trainers that think, ask, wait, and begin again."""
        begun, answers = 0.0, 0

        def think() -> None:
            self.at(
                self.now + trainers.think(self.rng),
                lambda: self.ask(trainers.images, trainers.bytes_up, trainers.bytes_down, go_on),
            )

        def go_on() -> None:
            nonlocal begun, answers
            if not trainers.together:
                think()
                return
            answers += 1
            if answers == trainers.count:
                if begun >= self.warm:
                    self._seen.steps.append(self.now - begun)
                begun, answers = self.now, 0
                for _ in range(trainers.count):
                    think()

        for _ in range(trainers.count):
            think()

    # -- requests ------------------------------------------------------------------------------------------------------

    def ask(self, images: int, up: float, down: float, answer: Callable[[], None]) -> None:
        """Send one; ``answer`` is called when it is answered."""
        self._seen.asked += 1
        self._place(_Request(images, up, down, self.now, answer))

    def _place(self, request: _Request) -> None:
        alive = [replica for replica in self._replicas if replica.alive]
        if not alive:
            self._nowhere.append(request)
            return
        chosen = self.rng.sample(alive, min(2, len(alive)))
        min(chosen, key=lambda replica: len(replica.held)).take(request)

    def place_waiting(self) -> None:
        """A replica is back."""
        waiting, self._nowhere = self._nowhere, []
        for request in waiting:
            self._place(request)

    def lost(self, requests: Sequence[_Request]) -> None:
        """A replica failed with these."""
        for request in requests:
            self._seen.retries += 1
            self.at(self.now + self.tier.retry_seconds, lambda request=request: self._place(request))

    def answered(self, request: _Request) -> None:
        """All of its answer has been sent."""
        self._seen.answered += 1
        if self.now >= self.warm:
            self._seen.latencies.append(self.now - request.sent)
            self._seen.waits.append(request.begun - request.arrived)
        request.answer()

    def note_busy(self, seconds: float) -> None:
        """A batch is done."""
        if self.now >= self.warm:
            self._seen.busy += seconds


def fixed(seconds: float) -> Duration:
    """Every batch takes as long."""
    return lambda _rng, _images, _requests: seconds


def exponential(mean: float) -> Duration:
    """Exponentially distributed."""
    return lambda rng, _images, _requests: rng.expovariate(1 / mean)
