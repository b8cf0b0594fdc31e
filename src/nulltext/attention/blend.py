"""Local blend: an edit stays where its words attend.

With A^s, A^t the token maps of source and target, averaged over heads, sites and the steps so far
(see `attention.maps`), W the tokens of the words to blend that the prompt has, X those of the words
to leave out, k the threshold:

    a_p  = pool(sum over l in W of A^p[l])          p = source, target; maximum over 3 x 3
    m_p  = [U a_p > k max U a_p]                    U: bilinear, to the latents' size
    x_p  = [U b_p > k max U b_p]                    b_p the sum over X, not pooled
    m    = max(m_s, m_t) (1 - max(x_s, x_t))
    z^tgt <- z^src + m (z^tgt - z^src)              from step `start` T on

Source: Hertz et al. 2022 (Prompt-to-Prompt), sec. 3.2 "local editing"; pooling, threshold 0.3 and
the left-out words as in LocalBlend of its published code; the start is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from nulltext.attention.maps import word_map
from nulltext.constants import BLEND_START, BLEND_THRESHOLD
from nulltext.errors import OptionError, PromptError
from nulltext.words.prompts import TokenizedPrompt, find_words, has_word, quoted

POOL = 3
"""Side of the window in which a map takes its maximum, so that masks reach over their borders."""


@dataclass(frozen=True)
class LocalBlend:
    """Which words an edit stays at."""

    words: tuple[str, ...]
    """Words of source or target: the picture may change where they attend."""
    except_words: tuple[str, ...] = ()
    """Words of source or target: it may not change where these attend."""
    threshold: float = BLEND_THRESHOLD
    """Part of a map's maximum above which a place belongs to it: higher changes less."""
    start: float = BLEND_START
    """Fraction of the steps before the blend begins: until then maps are gathered only. Published
    code begins at 0.2, where the source's surroundings hold the change itself back."""

    def __post_init__(self) -> None:
        if not self.words:
            raise OptionError("A local blend needs a word; name one, such as --blend flower.")
        for name in ("threshold", "start"):
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                raise OptionError(
                    f"The blend's {name} is {value:g}; it is a fraction, from 0 up to below 1."
                )


@dataclass(frozen=True)
class PromptTokens:
    """A blend's words as token positions of one prompt; empty where it has none of them."""

    inside: tuple[int, ...]
    outside: tuple[int, ...]


def blend_tokens(
    line: Sequence[TokenizedPrompt], blend: LocalBlend
) -> tuple[PromptTokens, PromptTokens]:
    """Find a blend's words in a target prompt and in the one that it is edited from.

    Args:
        line: prompts from the source to the target. A word of an earlier prompt may be gone by
            now, as long as another word to blend is left.

    Raises:
        PromptError: a word is in none of the prompts, or none is in the last two; lists the words.
    """
    parent, target = line[-2:]
    for word in (*blend.words, *blend.except_words):
        if not any(has_word(prompt, word) for prompt in line):
            _refuse(repr(word), line)
    if not any(has_word(prompt, word) for prompt in (parent, target) for word in blend.words):
        _refuse(" or ".join(map(repr, blend.words)), (parent, target))
    both = [
        PromptTokens(_found(prompt, blend.words), _found(prompt, blend.except_words))
        for prompt in (parent, target)
    ]
    return both[0], both[1]


def _refuse(what: str, prompts: Sequence[TokenizedPrompt]) -> NoReturn:
    texts = " nor of ".join(quoted(prompt.text) for prompt in prompts)
    words = "; ".join(", ".join(word.name for word in prompt.words) for prompt in prompts)
    raise PromptError(
        f"{what} is a word neither of {texts}. Words: {words}. "
        "Pass one of these to --blend or --blend-except."
    )


def _found(prompt: TokenizedPrompt, words: Sequence[str]) -> tuple[int, ...]:
    present = [word for word in words if has_word(prompt, word)]
    return tuple(sorted({place for word in present for place in find_words(prompt, word)}))


def blend_mask(
    maps: tuple[Tensor, Tensor],
    tokens: tuple[PromptTokens, PromptTokens],
    threshold: float,
    size: tuple[int, int],
) -> Tensor:
    """m of the module's formula: [h, w], float32, 0 or 1.

    Args:
        maps: token maps [L, h', w'] of source and target. tokens: of source and target.
        size: (h, w) of the latents.
    """
    inside = torch.zeros(size, device=maps[0].device)
    outside = torch.zeros_like(inside)
    for token_maps, positions in zip(maps, tokens, strict=True):
        if positions.inside:
            pooled = max_pool2d(
                word_map(token_maps, positions.inside)[None], POOL, stride=1, padding=POOL // 2
            )
            inside = torch.maximum(inside, _above(pooled[0], threshold, size))
        if positions.outside:
            plain = word_map(token_maps, positions.outside)
            outside = torch.maximum(outside, _above(plain, threshold, size))
    return inside * (1 - outside)


def _above(heat: Tensor, threshold: float, size: tuple[int, int]) -> Tensor:
    enlarged = interpolate(heat[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    return (enlarged > threshold * enlarged.max()).float()
