"""What an attention layer and whoever controls it tell each other; see `processor`.

    probabilities = softmax(Q K^T / sqrt(d))

Source: Hertz et al. 2022 (Prompt-to-Prompt), sec. 3.1, eq. 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["cross", "self"]
Action = Literal["ignore", "observe", "edit", "redirect"]


@dataclass(frozen=True)
class Site:
    """Where in the UNet attention is happening."""

    name: str
    """The layer's module path, unique in the UNet."""
    kind: Kind
    """cross: pixels attend to the prompt's tokens; self: to each other."""
    height: int
    """Rows of the feature map that the queries are."""
    width: int
    """Columns of it."""

    depth: float = 0.0
    """Share of the UNet's layers of this kind that run before this one: 0 for the first."""

    @property
    def pixels(self) -> int:
        """Number of queries."""
        return self.height * self.width


@dataclass(frozen=True)
class Layer:
    """An attention layer at work on one batch; probabilities are computed when asked for."""

    attn: Any
    hidden_states: Tensor
    """[null rows + prompt rows, pixels, channels]."""
    context: Tensor | None
    """[null rows + prompt rows, L, D] of cross-attention; None: the rows attend to themselves."""
    rows: int
    """Prompt rows: all of the batch, or its second half."""

    def probabilities(self) -> Tensor:
        """The prompt rows' own: [rows, heads, queries, keys], float32."""
        context = self.hidden_states if self.context is None else self.context
        return probabilities(self.attn, self.hidden_states[-self.rows :], context[-self.rows :])

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
    """What `attach` consults; a subclass says what it does, and how."""

    guided: bool
    """Whether the first half of each batch are null rows."""

    def action(self, site: Site) -> Action:
        """What to do at a site during this pass."""
        raise NotImplementedError

    def observe(self, layer: Layer, site: Site) -> None:  # noqa: ARG002
        """Look at a layer (only after action "observe")."""
        raise AssertionError(site)

    def edit(self, own: Callable[[], Tensor], site: Site) -> Tensor:  # noqa: ARG002
        """Give the prompt rows' probabilities (only after action "edit").

        Args:
            own: computes the layer's own, [rows, heads, queries, keys], float32.
        """
        raise AssertionError(site)

    def redirect(self, layer: Layer, site: Site) -> Sequence[Redirection]:  # noqa: ARG002
        """Say what to attend to (only after "redirect"); shares of one query sum to 1."""
        raise AssertionError(site)


def heads(attn: Any, projected: Tensor) -> Tensor:
    """[B, N, heads * d] -> [B, heads, N, d]."""
    return projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def probabilities(attn: Any, hidden_states: Tensor, context: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)): [B, heads, N, M], float32 for float32 or half inputs."""
    query, key = heads(attn, attn.to_q(hidden_states)), heads(attn, attn.to_k(context))
    if attn.norm_q is not None:
        query = attn.norm_q(query)
    if attn.norm_k is not None:
        key = attn.norm_k(key)
    precision = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(precision) @ key.to(precision).transpose(-1, -2) * attn.scale
    return scores.softmax(dim=-1)
