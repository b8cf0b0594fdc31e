"""Grounding: the attention of a caption's words is drawn to the part of the picture they speak of.

    G = (1 - sum over the word's part of the picture of A / sum over all of A)^2

A is the attention that the words of the flower (its kind, its colour) or of the background get, at
every site whose maps are given; their part of the picture is the flower's outline, or what is
outside it. Without it a small model paints what the words say but its attention does not say where,
and editing by attention has nothing to hold on to.
Source: Wang et al. 2024 (TokenCompose), eq. 3, which grounds nouns by segmentation masks in the
same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional

from nulltext.attention.maps import StepMaps
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.training.dataset import Caption, Role

ROLES: tuple[Role, ...] = get_args(Role)
TINY = 1e-6


class TokenizedCaption(NamedTuple):
    """Token ids of a caption, and the positions of each word's tokens among them."""

    ids: list[int]
    spans: list[list[int]]


class CaptionTokenizer:
    """A model's tokenizer for captions, with the captions that it has met."""

    def __init__(self, model: LatentDiffusion) -> None:
        self.model = model
        self.known: dict[tuple[str, ...], TokenizedCaption] = {}

    def __call__(self, caption: Caption) -> TokenizedCaption:
        """Tokenize a caption, the empty one included."""
        if caption.words not in self.known:
            prompt = self.model.tokenize(caption.text, allow_empty=True)
            spans, start = [], 0
            for text in caption.words:
                end = start + len(text)
                words = [word for word in prompt.words if start <= word.start < end]
                spans.append([token for word in words for token in word.tokens])
                start = end + 1
            self.known[caption.words] = TokenizedCaption(list(prompt.token_ids), spans)
        return self.known[caption.words]


def grounding_loss(
    maps: StepMaps,
    captions: Sequence[Caption],
    spans: Sequence[Sequence[Sequence[int]]],
    masks: Tensor,
) -> Tensor:
    """Compute G: how much of the words' attention is outside their part of the picture, squared.

    Args:
        maps: attention of one pass of B captioned rows.
        spans: per caption and word, the positions of its tokens.
        masks: [B, h, w] in [0, 1], the flower's share of each latent pixel; all 0 where unknown.

    Returns: a scalar in [0, 1]; 0 where no caption has a grounded word.
    """
    tokens = next(iter(maps.sites.values())).shape[1]
    words = role_tokens(captions, spans, length=tokens).to(masks)
    known = masks.flatten(1).amax(dim=1) > 0
    valid = (words.amax(dim=-1) > 0) & known[:, None]
    if not bool(valid.any()):
        return masks.new_zeros(())
    losses = []
    for site in maps.sites.values():
        size = (site.shape[-2], site.shape[-1])
        flower = functional.adaptive_avg_pool2d(masks[:, None], size)
        parts = torch.cat([flower, 1.0 - flower], dim=1)  # in the order of ROLES
        attention = torch.einsum("brl,blhw->brhw", words, site)
        share = (attention * parts).sum((-2, -1)) / (attention.sum((-2, -1)) + TINY)
        losses.append((1.0 - share[valid]).square().mean())
    return torch.stack(losses).mean()


def role_tokens(
    captions: Sequence[Caption], spans: Sequence[Sequence[Sequence[int]]], *, length: int
) -> Tensor:
    """Mark the tokens that speak of each part of the picture: [B, roles, length], 0 or 1."""
    marks = torch.zeros(len(captions), len(ROLES), length)
    for row, caption in enumerate(captions):
        for role, span in zip(caption.roles, spans[row], strict=True):
            if role is not None:
                marks[row, ROLES.index(role), list(span)] = 1.0
    return marks
