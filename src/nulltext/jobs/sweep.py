"""`--sweep`: the same edits over the values of one knob, or of two.

The first knob goes across, the second down. All cells are edits like any other, sampled in one
batch beside the one that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nulltext.errors import OptionError

if TYPE_CHECKING:
    from nulltext.editing.spec import EditSpec

DEFAULT = "strength=0:1:5"
"""What is swept if nobody says."""

MOST_CELLS = 64
"""Pictures per target, at most: more cannot be read."""


@dataclass(frozen=True)
class Knob:
    """Something that a sweep can vary."""

    field: str
    """Of `EditSpec`, or of its editor if that has it; "strength" sets several."""
    apply: Callable[[EditSpec, float], EditSpec]


def _of_editor(field: str) -> Knob:
    """A field of the editor."""

    def apply(spec: EditSpec, value: float) -> EditSpec:
        return replace(spec, editor=replace(spec.editor, **{field: value}))

    return Knob(field, apply)


KNOBS = {
    "strength": Knob("strength", lambda spec, value: spec.at_strength(value)),
    "cross": _of_editor("cross_steps"),
    "self": _of_editor("self_steps"),
    "masa-start": _of_editor("start"),
    "masa-layer": _of_editor("start_layer"),
    "target-guidance": Knob(
        "guidance_scale", lambda spec, value: replace(spec, guidance_scale=value)
    ),
}
STEERED = ("cross", "self", "masa-start")
"""Knobs that a strength turns as well."""


@dataclass(frozen=True)
class Axis:
    """A knob and its values."""

    name: str
    values: tuple[float, ...]

    @property
    def labels(self) -> list[str]:
        """What stands beside the grid."""
        return [f"{self.name} {value:g}" for value in self.values]


def axes_of(texts: Sequence[str], base: EditSpec) -> list[Axis]:
    """Read `--over`s, at most two, and try their values on an edit.

    Raises:
        OptionError: one is malformed, out of range, does not fit the editor or the other one.
    """
    axes = [parse_axis(text) for text in texts or [DEFAULT]]
    names = [axis.name for axis in axes]
    if len(axes) > 2:
        raise OptionError(
            f"A grid has two sides, so --over may stand twice, not {len(axes)} times."
        )
    if len(set(names)) < len(names):
        raise OptionError(f"--over {names[0]} stands twice; put all its values into one.")
    if "strength" in names and len(names) > 1:
        other = names[1 - names.index("strength")]
        if other in STEERED:
            raise OptionError(f"strength turns {other}, too; sweep one of them.")
    cells = 1
    for axis in axes:
        cells *= len(axis.values)
        _try(axis, base)
    if cells > MOST_CELLS:
        raise OptionError(
            f"The grid would have {cells} pictures per target; choose values for {MOST_CELLS} "
            "at most."
        )
    return axes


def parse_axis(text: str) -> Axis:
    """Read `KNOB=A:B:N` (N values from A to B) or `KNOB=V,V,…`.

    Raises:
        OptionError: it is neither, or there is no such knob.
    """
    name, _, listed = text.partition("=")
    name = name.strip()
    if name not in KNOBS:
        raise OptionError(
            f"--over '{text}' names no knob; write {', '.join(KNOBS)}, an equals sign and values, "
            "such as --over strength=0:1:5."
        )
    try:
        if ":" in listed:
            first, last, count = listed.split(":")
            values = _spread(float(first), float(last), int(count))
        else:
            values = tuple(float(value) for value in listed.split(","))
    except ValueError:
        raise OptionError(
            f"--over '{text}' has no values that can be read; write {name}=FIRST:LAST:COUNT with "
            f"a count from 2, or {name}=VALUE,VALUE."
        ) from None
    return Axis(name, values)


def _spread(first: float, last: float, count: int) -> tuple[float, ...]:
    if not 2 <= count <= MOST_CELLS:
        raise ValueError(count)
    return tuple(first + (last - first) * i / (count - 1) for i in range(count))


def _try(axis: Axis, base: EditSpec) -> None:
    knob = KNOBS[axis.name]
    known = {"strength", *vars(base), *vars(base.editor)}
    if knob.field not in known:
        raise OptionError(f"--over {axis.name} is a knob of another --editor; leave it out.")
    for value in axis.values:
        knob.apply(base, value)


@dataclass(frozen=True)
class Sweep:
    """The edits of a grid."""

    axes: Sequence[Axis]
    cells: Sequence[Sequence[Sequence[EditSpec]]]
    """[down][across][prompt]."""

    @classmethod
    def of(
        cls, axes: Sequence[Axis], base: EditSpec, edits: Callable[[EditSpec], list[EditSpec]]
    ) -> Sweep:
        """Turn the knobs of a base and make the edits of each cell."""
        across, *further = axes
        bases = [base]
        if further:
            down = further[0]
            bases = [KNOBS[down.name].apply(base, value) for value in down.values]
        turn = KNOBS[across.name].apply
        return cls(axes, [[edits(turn(one, v)) for v in across.values] for one in bases])

    @property
    def specs(self) -> list[EditSpec]:
        """All edits."""
        return [spec for row in self.cells for cell in row for spec in cell]
