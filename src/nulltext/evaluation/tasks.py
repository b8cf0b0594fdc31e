"""One row of a study to be: what it is called, what it needs, and how it is measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from nulltext.evaluation.measures import Figure
from nulltext.evaluation.workbench import Workbench
from nulltext.inversion.record import Inversion

SettingValue: TypeAlias = str | int | float

Key: TypeAlias = tuple[str, str, str, str]
"""(experiment, image, variant, setting as JSON): what no two rows have in common."""


@dataclass(frozen=True)
class Measurement:
    """What came of a task."""

    figures: Mapping[str, Figure]
    pictures: Mapping[str, Tensor] = field(default_factory=dict)
    """[3, H, W] in [-1, 1], by what they show."""
    inversion: Inversion | None = None
    """Whose cost the row reports."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Words to be kept with the row: prompts, say."""


@dataclass(frozen=True)
class Task:
    """A row that is still to be made."""

    experiment: str
    image: str
    variant: str
    setting: Mapping[str, SettingValue]
    measure: Callable[[Workbench], Measurement]
    needs: Mapping[Hashable, int] = field(default_factory=dict)
    """What the bench has to make, unless another task had it make it: inversions, their replays,
    edits, and the UNet evaluations that each will take."""
    evaluations: int = 0
    """UNet evaluations besides."""

    @property
    def key(self) -> Key:
        """Which row it is."""
        return row_key(self.experiment, self.image, self.variant, self.setting)


def row_key(experiment: str, image: str, variant: str, setting: Mapping[str, SettingValue]) -> Key:
    """The identity of a row."""
    return experiment, image, variant, json.dumps(dict(setting), sort_keys=True)
