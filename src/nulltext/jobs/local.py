"""Units one after the other, in this process."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

from nulltext.jobs.ledger import Row
from nulltext.jobs.units import Unit
from nulltext.jobs.worker import Identity, Setup, Worker

if TYPE_CHECKING:
    from nulltext.diffusion.loops import StepInfo


class Local:
    """An executor: see `batch.Executor`.

    Raises:
        UserError: the model cannot be loaded.
    """

    def __init__(
        self,
        setup: Setup,
        on_step: Callable[[StepInfo], None] | None = None,
        on_bytes: Callable[[int, int], None] | None = None,
    ) -> None:
        self.worker, self.on_step = Worker(setup, on_bytes), on_step

    @property
    def identity(self) -> Identity:
        """The worker's."""
        return self.worker.identity

    @property
    def workers(self) -> int:
        """One."""
        return 1

    def rows(self, groups: Sequence[Sequence[Unit]]) -> Generator[Row, None, None]:
        """A row for each unit, in their order."""
        for group in groups:
            for unit in group:
                yield self.worker.do(unit, self.on_step)
