"""A mean, and how sure one can be of it.

    interval = 2.5% and 97.5% quantiles of the means of B resamples with replacement

Resampling draws photos, the unit that varies; the draws are seeded, so a summary is reproducible.
Source: Efron & Tibshirani 1993, ch. 13 (percentile interval).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from nulltext.evaluation.measures import Figure, Undefined

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """One figure over many photos."""

    n: int
    """Photos for which it is defined."""
    mean: float | None
    """None where n is 0."""
    low: float | None
    high: float | None
    """Ends of the 95% interval; None where n is below 2."""
    undefined: Counter[str] = field(default_factory=Counter)
    """How often it was undefined, by reason."""


def summarise(figures: Sequence[Figure], seed: int = 0) -> Summary:
    """Mean and interval of the defined figures; the others are counted by reason."""
    values = np.array([f for f in figures if not isinstance(f, Undefined)], dtype=np.float64)
    undefined = Counter(f.reason for f in figures if isinstance(f, Undefined))
    if len(values) == 0:
        return Summary(0, None, None, None, undefined)
    mean = float(values.mean())
    if len(values) == 1:
        return Summary(1, mean, None, None, undefined)
    draw = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values[draw].mean(axis=1), [tail, 1 - tail])
    return Summary(len(values), mean, float(low), float(high), undefined)
