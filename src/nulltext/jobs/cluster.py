"""Units on Ray: one model per actor, whoever is idle takes the next group.

The driver keeps everything that must not be lost: which units are open, who does which, and the
rows that have come. An actor has one unit at a time, so there is never more under way than there
are actors, and what goes to and fro is plain data: a unit there, a row back.

- Units that share an inversion go to one actor, one after the other. Where no group is left, an
  idle actor takes half of the longest one whose inversion is made.
- An actor that dies, or whose machine does, is replaced; its unit is done again, going on from the
  partial inversion, and the rest of its group goes to whoever is next. A unit during which
  `MOST_DEATHS` actors have died is recorded as failed.

All machines must see the photos and the folder of results under the same paths.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections import Counter, deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from nulltext.errors import (
    ExtraError,
    ModelError,
    OptionError,
    OutputError,
    UserError,
    reason_of,
)
from nulltext.jobs.ledger import Row
from nulltext.jobs.worker import Identity, Setup, Unit, Worker, failed

LOCAL = "local"
"""The address that stands for a cluster of this machine alone, made for the occasion."""

MOST_DEATHS = 10
"""Actors that may die over one unit."""

OBJECT_STORE = 100 * 2**20
"""Bytes of a local cluster's object store: units and rows are small."""

PATIENCE = 1.0
"""Seconds after which a wait is looked at again, so that Ctrl-C is heard."""


class Actor:
    """A worker in a process of its own; what it raises would have to be understood elsewhere, so
    it says it in words."""

    def start(self, setup: Setup, threads: int) -> dict[str, Any]:
        """Load the model; {"identity"} or {"error"}."""
        import torch

        torch.set_num_threads(threads)
        try:
            self.worker = Worker(setup)
        except UserError as error:
            return {"error": str(error)}
        return {"identity": self.worker.identity}

    def do(self, unit: Unit) -> dict[str, Any]:
        """{"row"}, or {"stop"} where the folder cannot be written."""
        try:
            return {"row": self.worker.do(unit)}
        except OutputError as error:
            return {"stop": str(error)}


@dataclass
class _Seat:
    """A place for an actor, and what it has to do."""

    actor: Any = None
    ready: bool = False
    """Whether its model is loaded."""
    unit: Unit | None = None
    """Under way."""
    rest: deque[Unit] = field(default_factory=deque)
    """Of the group, still to do."""
    shareable: bool = False
    """Whether the group's inversion is made."""


class Cluster:
    """An executor on Ray: see `batch.Executor`. Close it.

    Args:
        address: of a cluster, or `LOCAL`.
        workers: actors; by default one per GPU, or per CPU where there are none.
        threads: of each, for the arithmetic on CPUs; other numbers round differently.

    Raises:
        ExtraError: Ray is not installed. OptionError: there is no such cluster, or no room in it.
        ModelError: the model cannot be loaded.
    """

    def __init__(
        self, setup: Setup, *, address: str = LOCAL, workers: int | None = None, threads: int = 1
    ) -> None:
        self.setup, self.threads = setup, threads
        self._identity: Identity | None = None
        self.ray = _connected(address, workers)
        self._asked: dict[Any, _Seat] = {}
        self._open: deque[deque[Unit]] = deque()
        self._deaths: Counter[str] = Counter()
        self._false_starts = 0
        try:
            self._claims = self._claim()
            self._seats = [_Seat() for _ in range(self._room(workers))]
            for seat in self._seats:
                self._hire(seat)
            while self._identity is None:  # the other actors may follow later
                for seat, answer in self._answers():
                    self._heard(seat, answer)
        except BaseException:
            self.close()
            raise

    @property
    def identity(self) -> Identity:
        """Of all workers alike."""
        assert self._identity is not None, "a cluster is ready when it is made"
        return self._identity

    @property
    def workers(self) -> int:
        """Actors."""
        return len(self._seats)

    def close(self) -> None:
        """Let the cluster go; a local one ends."""
        self.ray.shutdown()

    def rows(self, groups: Sequence[Sequence[Unit]]) -> Generator[Row, None, None]:
        """A row for each unit, as they come."""
        self._open.extend(deque(group) for group in groups)
        left = sum(map(len, groups))
        while left:
            for seat in self._seats:
                self._feed(seat)
            for seat, answer in self._answers():
                row = self._heard(seat, answer)
                if row is not None:
                    left -= 1
                    yield row

    def _claim(self) -> dict[str, float]:
        """What an actor takes of the cluster."""
        device = self.setup.chosen.device
        has_gpus = self.ray.cluster_resources().get("GPU", 0) >= 1
        wants_gpu = device.startswith("cuda") if device else has_gpus
        return {"num_cpus": 1, "num_gpus": 1 if wants_gpu else 0}

    def _room(self, workers: int | None) -> int:
        """How many actors there shall be."""
        kind = "GPU" if self._claims["num_gpus"] else "CPU"
        room = int(self.ray.cluster_resources().get(kind, 0))
        if room < (workers or 1):
            raise OptionError(
                f"The cluster has {room} {kind}s, and each worker takes one; pass fewer --workers, "
                "or another --device."
            )
        return workers or room

    def _hire(self, seat: _Seat) -> None:
        """A new actor, loading its model."""
        seat.actor = self.ray.remote(Actor).options(max_restarts=0, **self._claims).remote()
        seat.ready, seat.unit = False, None
        self._asked[seat.actor.start.remote(self.setup, self.threads)] = seat

    def _feed(self, seat: _Seat) -> None:
        """Give an idle actor something to do, if there is anything."""
        if not seat.ready or seat.unit is not None:
            return
        if not seat.rest:
            seat.rest, seat.shareable = self._next()
        if seat.rest:
            seat.unit = seat.rest.popleft()
            self._asked[seat.actor.do.remote(seat.unit)] = seat

    def _next(self) -> tuple[deque[Unit], bool]:
        """(what an idle actor does next, whether its inversion is there)."""
        if self._open:
            return self._open.popleft(), False
        longest = max(self._seats, key=lambda seat: len(seat.rest) if seat.shareable else 0)
        taken: deque[Unit] = deque()
        if longest.shareable:
            for _ in range((len(longest.rest) + 1) // 2):
                taken.appendleft(longest.rest.pop())
        return taken, True

    def _answers(self) -> list[tuple[_Seat, dict[str, Any] | None]]:
        """What has come back; None from an actor that is no more."""
        errors = self.ray.exceptions
        gone = (errors.RayActorError, errors.WorkerCrashedError, errors.ObjectLostError)
        ready, _ = self.ray.wait([*self._asked], num_returns=1, timeout=PATIENCE)
        found = []
        for ref in ready:
            seat = self._asked.pop(ref)
            try:
                found.append((seat, self.ray.get(ref)))
            except gone:
                found.append((seat, None))
        return found

    def _heard(self, seat: _Seat, answer: dict[str, Any] | None) -> Row | None:
        """Take an answer in; returns the row that came with it."""
        if answer is None:
            return self._lost(seat)
        if "error" in answer:
            raise ModelError(str(answer["error"]))
        if "stop" in answer:
            raise OutputError(str(answer["stop"]))
        self._false_starts = 0
        if "identity" in answer:
            self._welcome(seat, answer["identity"])
            return None
        seat.unit, seat.shareable = None, True
        row: Row = answer["row"]
        return row

    def _welcome(self, seat: _Seat, identity: Identity) -> None:
        if self._identity not in (None, identity):
            raise ModelError(
                f"The machines of the cluster have different weights, or another precision, under "
                f"'{self.setup.chosen.model}'; give them the same files, and pass --dtype."
            )
        self._identity, seat.ready = identity, True

    def _lost(self, seat: _Seat) -> Row | None:
        """Replace an actor that died; its work goes back, ahead of everything else."""
        unit, rest, row = seat.unit, seat.rest, None
        seat.rest = deque()
        self._false_starts += unit is None
        if self._false_starts >= MOST_DEATHS:
            raise ModelError(
                f"{MOST_DEATHS} workers in a row died while loading '{self.setup.chosen.model}'; "
                "see that their machines have nulltext installed, and memory enough."
            )
        if unit is not None:
            self._deaths[unit.id] += 1
            if self._deaths[unit.id] < MOST_DEATHS:
                rest.appendleft(unit)
            else:
                said = f"{unit.place}: {MOST_DEATHS} workers died over it, perhaps of memory."
                row = failed(unit, said, user_error=False)
        if rest:
            self._open.appendleft(rest)
        self._hire(seat)
        return row


def _connected(address: str, workers: int | None) -> Any:
    """Ray, connected, quiet, and sending nothing anywhere."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_worker_niceness", "0")  # as urgent as the command itself
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning per actor
    try:
        import ray
    except ImportError as error:
        raise ExtraError(
            "Ray is not installed; pip install 'nulltext[ray]', or leave --ray out."
        ) from error
    options: dict[str, Any] = {"address": address}
    if address == LOCAL:
        options |= {"num_cpus": workers, "object_store_memory": OBJECT_STORE}
        options |= {"include_dashboard": False}
    try:
        with contextlib.redirect_stdout(sys.stderr):
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise OptionError(
            f"There is no Ray cluster at '{address}' ({reason_of(error)}); start one with "
            "`ray start --head`, or pass --ray alone for a local one."
        ) from error
    return ray
