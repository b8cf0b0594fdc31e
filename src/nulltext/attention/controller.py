"""The interface between an attention layer and its controller; see `processor`.

    probabilities = softmax(Q K^T / sqrt(d))

They are made as tensors only where a controller reads or replaces them, in cross-attention, and so
many heads at a time that they take at most `SLICE_BYTES` (one head at least): scores,
probabilities and what the controller makes of them are alive together, 3 `SLICE_BYTES`. Up to
12 heads of 4 prompts at 64 x 64 go in one piece, so Stable Diffusion's and SDXL's own sizes do.
Source: Hertz et al. 2022 (Prompt-to-Prompt), sec. 3.1, eq. 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["cross", "self"]
Action = Literal["ignore", "observe", "edit", "borrow", "redirect"]

SLICE_BYTES = 64 * 2**20
"""The most that the probabilities of some heads take."""


@dataclass(frozen=True)
class Site:
    """Where in the network attention is happening."""

    name: str
    """The layer's module path, in joint attention with ".text" for the cross site: unique."""
    kind: Kind
    """cross: pixels attend to the prompt's tokens; self: to each other."""
    height: int
    """Rows of the feature map that the queries are."""
    width: int
    """Columns of it."""

    depth: float = 0.0
    """Share of the network's layers of this kind that run before this one: 0 for the first."""
    joint: bool = False
    """Whether the network is an MM-DiT: there a query's attention to text and image sums to 1
    together, see `joint`, and all sites have one size."""

    @property
    def pixels(self) -> int:
        """Number of queries."""
        return self.height * self.width

    def within(self, pixels: int) -> bool:
        """Whether a limit to small sites, where words have places and layout lives, lets this one.

        In a UNet, where it has at most so many pixels. All sites of an MM-DiT have one size, and
        no smaller ones to prefer: there always.
        """
        return self.joint or self.pixels <= pixels


@dataclass(frozen=True)
class Heads:
    """Some of a layer's heads: those from `first` up to `stop`."""

    first: int
    stop: int
    total: int
    """Heads of the layer."""

    @property
    def span(self) -> slice:
        """Where they are along the heads of a tensor."""
        return slice(self.first, self.stop)


def slices(total: int, size: int) -> Iterator[Heads]:
    """Cut a layer's heads into stretches whose probabilities take at most `SLICE_BYTES`.

    Args: total: heads of the layer. size: bytes of the probabilities of one head, over all rows.
    """
    together = max(1, SLICE_BYTES // size)
    for first in range(0, total, together):
        yield Heads(first, min(first + together, total), total)


@dataclass(frozen=True)
class Layer:
    """An attention layer at work on one batch; probabilities are computed when asked for."""

    attn: Any
    hidden_states: Tensor
    """[null rows + prompt rows, pixels, channels]."""
    context: Tensor | None
    """[null rows + prompt rows, L, D] at a cross site; None: the rows attend to themselves."""
    rows: int
    """Prompt rows: all of the batch, or its second half."""

    def probabilities(self) -> Iterator[tuple[Heads, Tensor]]:
        """The prompt rows' own, some heads at a time: [rows, heads, queries, keys], float32 for
        float32 or half inputs."""
        hidden_states = self.hidden_states[-self.rows :]
        context = hidden_states if self.context is None else self.context[-self.rows :]
        query, key = queries(self.attn, hidden_states), keys(self.attn, context)
        precision, total = torch.promote_types(query.dtype, torch.float32), query.shape[1]
        each = len(query) * query.shape[2] * key.shape[2] * precision.itemsize
        for some in slices(total, each):
            scores = query[:, some.span].to(precision) @ (
                key[:, some.span].to(precision).transpose(-1, -2)
            )
            scores *= self.attn.scale
            yield some, scores.softmax(dim=-1)

    def inputs_of(self, row: int) -> Tensor:
        """Hidden states of one row, of its null branch first if there is one: [1 or 2, N, C]."""
        return self.hidden_states[row :: self.rows]


@dataclass(frozen=True)
class Redirection:
    """What a layer attends to instead of its own rows."""

    hidden_states: Tensor
    """[null rows + prompt rows, M, C]: keys and values are made of these."""
    bias: Tensor | None = None
    """[null rows + prompt rows, 1, M], added to the scores: 0, or -infinity to leave a key out."""
    share: Tensor | None = None
    """[null rows + prompt rows, N, 1] in [0, 1]: how much of it each query takes; None: all."""


class AttentionController:
    """Base of what `attach` consults: a subclass decides the action at each site."""

    guided: bool
    """Whether the first half of each batch are null rows."""

    def action(self, site: Site) -> Action:
        """Return what to do at a site during this pass."""
        raise NotImplementedError

    def observe(self, layer: Layer, site: Site) -> None:  # noqa: ARG002
        """Read a layer's inputs (only after action "observe")."""
        raise AssertionError(site)

    def reads(self, site: Site) -> bool:  # noqa: ARG002
        """Whether an observed layer's probabilities are read as well."""
        return False

    def read(self, own: Tensor, site: Site, heads: Heads) -> None:  # noqa: ARG002
        """Read the prompt rows' probabilities, some heads at a time (only where it `reads`).

        Args: own: [rows, heads, queries, keys], float32.
        """
        raise AssertionError(site)

    def edit(self, own: Tensor, site: Site, heads: Heads) -> Tensor:  # noqa: ARG002
        """Return the prompt rows' probabilities, some heads at a time (only after action "edit").

        Args: own: the layer's, [rows, heads, queries, keys], float32.
        """
        raise AssertionError(site)

    def borrow(self, layer: Layer, site: Site) -> Tensor:  # noqa: ARG002
        """Return the hidden states that queries and keys of the prompt rows are made of, [rows, N,
        C]; values stay the rows' own (only after action "borrow", in self-attention)."""
        raise AssertionError(site)

    def redirect(self, layer: Layer, site: Site) -> Sequence[Redirection]:  # noqa: ARG002
        """Return what to attend to (only after "redirect"); shares of one query sum to 1."""
        raise AssertionError(site)


def by_head(attn: Any, projected: Tensor) -> Tensor:
    """[B, N, heads * d] -> [B, heads, N, d]."""
    return projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def queries(attn: Any, hidden_states: Tensor) -> Tensor:
    """Q: [B, heads, N, d]."""
    query = by_head(attn, attn.to_q(hidden_states))
    normed: Tensor = query if attn.norm_q is None else attn.norm_q(query)
    return normed


def keys(attn: Any, context: Tensor) -> Tensor:
    """K: [B, heads, M, d]."""
    key = by_head(attn, attn.to_k(context))
    normed: Tensor = key if attn.norm_k is None else attn.norm_k(key)
    return normed
