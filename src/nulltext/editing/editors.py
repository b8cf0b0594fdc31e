"""Editors: the ways in which a target can take over from its parent, and the knob over them.

An editor is a set of options for one way of editing; with the prompts at hand it becomes a
`store.Plan`, numbers that steer attention. `editing.targets` reads plans, `EDITORS` has the editors
by name.

    PromptToPrompt   words change, the parent's attention maps stay: colours, materials, kinds
    MasaCtrl         shapes change, the parent's look stays: poses, outlines, added objects

and of rectified-flow models, each in a module of its own, whose plans choose outputs (`rules`):

    FlowEdit         a path from photo to target by the difference of velocities; no inversion
    RFInversionEdit  the target's ODE, drawn to the photo in the first steps
    UniEdit          the target's velocity where both prompts differ, the photo's elsewhere

The strength, one knob over them all, is in `strength`.
Source: Hertz et al. 2022 (Prompt-to-Prompt), sec. 3.2; Cao et al. 2023 (MasaCtrl).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self

from nulltext.attention.mutual import Mutual
from nulltext.attention.processor import self_depths
from nulltext.attention.prompt_to_prompt import Injection, largest_self_site
from nulltext.attention.store import Plan
from nulltext.constants import CROSS_STEPS, MASA_LAYER, MASA_START, SELF_STEPS, Alignment
from nulltext.editing.flow_edit import FlowEdit
from nulltext.editing.rf_inversion import RFInversionEdit
from nulltext.editing.strength import PUBLISHED as PUBLISHED
from nulltext.editing.strength import Steering as Steering
from nulltext.editing.strength import at_strength as at_strength
from nulltext.editing.strength import between, check_fractions, steps_until
from nulltext.editing.uni_edit import UniEdit
from nulltext.errors import OptionError, PromptError
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.plugins import EDITORS_GROUP, Registry
from nulltext.words.alignment import attention_map, token_weights
from nulltext.words.prompts import TokenizedPrompt, find_words, has_word, quoted


class Editor(Protocol):
    """One way to edit, with its options: a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]
    """What it is chosen by, as on the command line."""

    def plan(
        self,
        model: LatentDiffusion,
        line: Sequence[TokenizedPrompt],
        num_steps: int,
        size: tuple[int, int],
    ) -> Plan:
        """The options in numbers.

        Args:
            line: prompts from the source to the target; the last but one is the parent's.
            size: (h, w) of the latents.

        Raises:
            PromptError, OptionError: they do not fit the prompts or the model.
        """
        ...

    def at_strength(self, strength: float) -> Self:
        """Return the editor at a strength in [0, 1]; see `at_strength`."""
        ...

    @property
    def reweights(self) -> bool:
        """Whether it changes a picture whose words stay the same."""
        ...


@dataclass(frozen=True)
class PromptToPrompt:
    """Keeps where words and shapes are, changes what they are."""

    name: ClassVar[str] = "prompt-to-prompt"

    cross_steps: float = CROSS_STEPS
    """Fraction of the steps in which words keep the places that they have in the parent: higher
    keeps the composition, lower lets shapes change."""
    self_steps: float = SELF_STEPS
    """Fraction of the steps in which self-attention is the parent's: higher keeps shapes and
    texture, lower lets them change."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Factors on single words of the target: above 1 stronger, below weaker, negative against."""
    alignment: Alignment = "auto"
    """How parent and target words are paired: "auto" swaps changed words and adds new ones,
    "replace" pairs by position, "refine" injects only words that both prompts have."""

    def __post_init__(self) -> None:
        check_fractions(self, "cross_steps", "self_steps")

    @property
    def reweights(self) -> bool:
        """Whether a weight is not 1."""
        return any(weight != 1 for weight in self.weights.values())

    def at_strength(self, strength: float) -> Self:
        """The editor with the injection of a strength."""
        steering = at_strength(strength)
        return replace(self, cross_steps=steering.cross_steps, self_steps=steering.self_steps)

    def plan(
        self,
        model: LatentDiffusion,
        line: Sequence[TokenizedPrompt],
        num_steps: int,
        size: tuple[int, int],
    ) -> Injection:
        """Mapping, gate and weights, and how long they hold."""
        *earlier, target = line
        words = attention_map(earlier[-1], target, self.alignment)
        # A weight that came down a chain goes when its word goes; one of no prompt is a mistake.
        gone = [
            word
            for word in self.weights
            if not has_word(target, word) and any(has_word(prompt, word) for prompt in earlier[1:])
        ]
        weights = {word: w for word, w in self.weights.items() if word not in gone}
        return Injection(
            mapping=words.mapping.to(model.device, model.precision),
            gate=words.gate.to(model.device, model.precision),
            weights=token_weights(target, weights).to(model.device, model.precision),
            cross_until=steps_until(self.cross_steps, num_steps),
            self_until=steps_until(self.self_steps, num_steps),
            self_pixels=largest_self_site(*size),
        )


@dataclass(frozen=True)
class MasaCtrl:
    """Keeps what things look like, lets words change where they are."""

    name: ClassVar[str] = "masactrl"

    start: float = MASA_START
    """Fraction of the steps before the target attends to its parent: until then the words alone lay
    out the picture; later changes more."""
    start_layer: float = MASA_LAYER
    """Share of the UNet's self-attention layers, in the order in which they run, before
    MasaCtrl begins: lower takes over the layout as well."""
    foreground: tuple[str, ...] = ()
    """Words of both prompts: where they look, the target attends to the parent's foreground,
    elsewhere to its background. Without any, no masks are used."""

    def __post_init__(self) -> None:
        check_fractions(self, "start", "start_layer")

    @property
    def reweights(self) -> bool:
        """Never: the same words give the same picture."""
        return False

    def at_strength(self, strength: float) -> Self:
        """The editor with the start of a strength."""
        return replace(self, start=between(strength, 0.0, MASA_START, 1.0))

    def plan(
        self,
        model: LatentDiffusion,
        line: Sequence[TokenizedPrompt],
        num_steps: int,
        size: tuple[int, int],  # noqa: ARG002
    ) -> Mutual:
        """First step, first layer and the tokens of the foreground."""
        depths = self_depths(model.network)
        if not any(depth >= self.start_layer for depth in depths):
            raise OptionError(
                f"No self-attention layer of '{model.name}' comes after a share of "
                f"{self.start_layer:g} of them; it has {len(depths)}, so choose a start layer "
                f"of at most {max(depths, default=0):.2f}."
            )
        tokens = _foreground_tokens(line, self.foreground) if self.foreground else None
        return Mutual(steps_until(self.start, num_steps), self.start_layer, tokens)


def _foreground_tokens(
    line: Sequence[TokenizedPrompt], words: Sequence[str]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Positions of the words in parent and target: each needs one, others may be gone by now."""
    prompts = line[-2:]
    for word in words:
        if not any(has_word(prompt, word) for prompt in line):
            find_words(prompts[-1], word)  # says which words there are
    parent, target = (
        tuple(sorted({t for w in words if has_word(prompt, w) for t in find_words(prompt, w)}))
        for prompt in prompts
    )
    for prompt, tokens in zip(prompts, (parent, target), strict=True):
        if not tokens:
            raise PromptError(
                f"None of the foreground's words ({', '.join(words)}) is in "
                f"{quoted(prompt.text)}; name one of its words, too."
            )
    return parent, target


EDITORS: Registry[Editor] = Registry(
    "editor",
    EDITORS_GROUP,
    [PromptToPrompt, MasaCtrl, FlowEdit, RFInversionEdit, UniEdit],
    required=("plan", "at_strength", "reweights"),
)
"""The editors by name."""

register_editor = EDITORS.register
