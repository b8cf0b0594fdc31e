"""Run units on Ray, with one model per actor.

The driver keeps what must not be lost: the units that are open, which actor has which, and the rows
that have come. An actor inverts the photos of some groups side by side, and then has one unit at a
time; units go to it and a row comes back, all plain data.

- Units that share an inversion go to one actor, one after the other, with as many other groups as
  it inverts side by side, but no more than leave work for the other actors. Where no group is left,
  an idle actor takes half of the longest rest whose inversions are made.
- An actor that dies, or whose machine does, is replaced. Its unit is done again, from the partial
  inversion, and the rest of its units go to the next idle actor. A unit during which `MOST_DEATHS`
  actors have died is recorded as failed. Where it died inverting side by side, the groups are done
  one by one from then on.

All machines must see the photos and the folder of results under the same paths.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
from collections import Counter, deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import chain
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
from nulltext.jobs.worker import Identity, Setup, Unit, Worker, cut, failed

LOCAL = "local"
"""The address of a new cluster of this machine alone, which ends with the command."""

MOST_DEATHS = 10
"""Actors that may die during one unit, or one after the other while loading."""

OBJECT_STORE = 100 * 2**20
"""Bytes of a local cluster's object store: units and rows are small."""

POLL_SECONDS = 1.0
"""Longest wait in one piece, since Ctrl-C takes effect between two."""


class Actor:
    """A worker in a process of its own; it returns its errors as text, not as exceptions."""

    def start(self, setup: Setup, threads: int) -> dict[str, Any]:
        """Load the model; returns {"identity"} or {"error"}."""
        import torch

        torch.set_num_threads(threads)
        try:
            self.worker = Worker(setup)
        except UserError as error:
            return {"error": str(error)}
        return {"identity": self.worker.identity, "batch_size": self.worker.batch_size}

    def invert(self, units: Sequence[Unit]) -> dict[str, Any]:
        """Make inversions of units that come next; returns {}, or {"stop"} as `do`."""
        try:
            self.worker.invert(units)
        except OutputError as error:
            return {"stop": str(error)}
        return {}

    def do(self, unit: Unit) -> dict[str, Any]:
        """Make the row of a unit; returns {"row"}, or {"stop"} if the folder is not writable."""
        try:
            return {"row": self.worker.do(unit)}
        except OutputError as error:
            return {"stop": str(error)}


@dataclass
class _Slot:
    """An actor, which is replaced when it dies, and its work."""

    actor: Any = None
    ready: bool = False
    """Whether its model is loaded."""
    unit: Unit | None = None
    together: Sequence[Sequence[Unit]] = ()
    """Groups whose photos it is inverting side by side."""
    rest: deque[Unit] = field(default_factory=deque)
    """Units that come after."""
    shareable: bool = False
    """Whether their inversions are made."""

    @property
    def idle(self) -> bool:
        return self.ready and self.unit is None and not self.together


class Cluster:
    """An executor on Ray, to be closed; see `batch.Executor`.

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
        self._asked: dict[Any, _Slot] = {}
        self._open: deque[Sequence[Sequence[Unit]]] = deque()
        self._batch_size = 1
        self._deaths: Counter[str] = Counter()
        self._false_starts = 0
        try:
            self._resources = self._actor_resources()
            self._slots = [_Slot() for _ in range(self._count(workers))]
            for slot in self._slots:
                self._start_actor(slot)
            while self._identity is None:  # the other actors may follow later
                for slot, answer in self._answers():
                    self._handle(slot, answer)
        except BaseException:
            self.close()
            raise

    @property
    def identity(self) -> Identity:
        assert self._identity is not None, "a cluster is ready when it is made"
        return self._identity

    @property
    def workers(self) -> int:
        return len(self._slots)

    def close(self) -> None:
        """Disconnect from the cluster; a local one ends."""
        self.ray.shutdown()

    def rows(self, groups: Sequence[Sequence[Unit]]) -> Generator[Row, None, None]:
        most = min(self._batch_size, math.ceil(len(groups) / self.workers) or 1)
        self._open.extend(cut(groups, most))
        left = sum(map(len, groups))
        while left:
            for slot in self._slots:
                self._assign(slot)
            for slot, answer in self._answers():
                row = self._handle(slot, answer)
                if row is not None:
                    left -= 1
                    yield row

    def _actor_resources(self) -> dict[str, float]:
        device = self.setup.chosen.device
        has_gpus = self.ray.cluster_resources().get("GPU", 0) >= 1
        wants_gpu = device.startswith("cuda") if device else has_gpus
        return {"num_cpus": 1, "num_gpus": 1 if wants_gpu else 0}

    def _count(self, workers: int | None) -> int:
        """Return the number of actors: as many as asked for, or as fit."""
        kind = "GPU" if self._resources["num_gpus"] else "CPU"
        room = int(self.ray.cluster_resources().get(kind, 0))
        if room < (workers or 1):
            raise OptionError(
                f"The cluster has {room} {kind}s, and each worker takes one; pass fewer --workers, "
                "or another --device."
            )
        return workers or room

    def _start_actor(self, slot: _Slot) -> None:
        slot.actor = self.ray.remote(Actor).options(max_restarts=0, **self._resources).remote()
        slot.ready, slot.unit, slot.together = False, None, ()
        self._asked[slot.actor.start.remote(self.setup, self.threads)] = slot

    def _assign(self, slot: _Slot) -> None:
        """Give an idle actor its next work, if there is some."""
        if not slot.idle:
            return
        if not slot.rest and self._open:
            together, slot.shareable = self._open.popleft(), False
            slot.rest = deque(chain(*together))
            if len(together) > 1:
                slot.together = together
                self._asked[slot.actor.invert.remote([group[0] for group in together])] = slot
                return
        if not slot.rest:
            slot.rest, slot.shareable = self._half_of_the_longest(), True
        if slot.rest:
            slot.unit = slot.rest.popleft()
            self._asked[slot.actor.do.remote(slot.unit)] = slot

    def _half_of_the_longest(self) -> deque[Unit]:
        """Take units from another actor, whose inversions are made."""
        longest = max(self._slots, key=lambda slot: len(slot.rest) if slot.shareable else 0)
        taken: deque[Unit] = deque()
        if longest.shareable:
            for _ in range((len(longest.rest) + 1) // 2):
                taken.appendleft(longest.rest.pop())
        return taken

    def _answers(self) -> list[tuple[_Slot, dict[str, Any] | None]]:
        """Wait for answers; None is that of an actor that has died."""
        errors = self.ray.exceptions
        gone = (errors.RayActorError, errors.WorkerCrashedError, errors.ObjectLostError)
        ready, _ = self.ray.wait([*self._asked], num_returns=1, timeout=POLL_SECONDS)
        found = []
        for ref in ready:
            slot = self._asked.pop(ref)
            try:
                found.append((slot, self.ray.get(ref)))
            except gone:
                found.append((slot, None))
        return found

    def _handle(self, slot: _Slot, answer: dict[str, Any] | None) -> Row | None:
        """Note an answer; returns its row, if it has one."""
        if answer is None:
            return self._replace(slot)
        if "error" in answer:
            raise ModelError(str(answer["error"]))
        if "stop" in answer:
            raise OutputError(str(answer["stop"]))
        self._false_starts = 0
        if "identity" in answer:
            if self._identity not in (None, answer["identity"]):
                raise ModelError(
                    "The machines of the cluster have different weights, or another precision, "
                    f"under '{self.setup.chosen.model}'; give them the same files, and pass "
                    "--dtype."
                )
            self._identity, slot.ready = answer["identity"], True
            self._batch_size = answer["batch_size"]
            return None
        slot.unit, slot.together, slot.shareable = None, (), True
        return answer.get("row")

    def _replace(self, slot: _Slot) -> Row | None:
        """Replace an actor that died; its units come next, or a row says that its unit failed."""
        unit, rest, row = slot.unit, slot.rest, None
        slot.rest = deque()
        self._false_starts += not slot.ready
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
        if slot.together:  # which of the photos it died over is not known
            self._open.extendleft([group] for group in reversed(slot.together))
        elif rest:
            self._open.appendleft([rest])
        self._start_actor(slot)
        return row


def _connected(address: str, workers: int | None) -> Any:
    """Connect to Ray, without its log lines and its usage statistics."""
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
