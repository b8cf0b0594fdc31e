"""Reaching the attention of a UNet, and giving it back untouched.

Inside `attach(unet, controller)` every attention layer of the UNet's transformers asks the
controller what to do at its site (name, kind, true height and width):

    ignore   the layer's own processor runs, as if nobody were there (fused kernels and all);
    observe  the layer's own processor runs, and the controller is shown the probabilities of the
             prompt rows, computed beside it: the output is bit for bit the plain one;
    edit     the prompt rows are attended with the controller's probabilities; the null rows
             still go through the layer's own processor.

    probabilities = softmax(Q K^T / sqrt(d)),    output = probabilities V

A UNet batch is [null rows, prompt rows] in equal halves under guidance, else prompt rows alone.
The site's size is read where it is known, at the entrance of the surrounding transformer.
One thread at a time may attach to a UNet, others wait; what another thread samples meanwhile goes
through the layers' own processors.
Source: Hertz et al. 2022 (Prompt-to-Prompt), sec. 3.1, eq. 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import Lock, RLock, get_ident
from typing import TYPE_CHECKING, Any, Literal, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from nulltext.errors import ModelError

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

Kind = Literal["cross", "self"]
Action = Literal["ignore", "observe", "edit"]


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

    @property
    def pixels(self) -> int:
        """Number of queries."""
        return self.height * self.width


class AttentionController(Protocol):
    """What `attach` consults. Probabilities are [rows, heads, queries, keys], float32."""

    guided: bool
    """Whether the first half of each batch are null rows."""

    def action(self, site: Site) -> Action:
        """What to do at a site during this pass."""
        ...

    def observe(self, probabilities: Tensor, site: Site) -> None:
        """Look at the prompt rows' probabilities (only after action "observe")."""
        ...

    def edit(self, own: Callable[[], Tensor], site: Site) -> Tensor:
        """Give the prompt rows' probabilities; own() computes the layer's own if needed."""
        ...


_LOCKS: WeakKeyDictionary[Any, RLock] = WeakKeyDictionary()
"""One lock per UNet."""

_LOCKS_GUARD = Lock()


@dataclass
class _Extent:
    """Height and width of the feature map that a transformer is working on."""

    thread: int
    """The thread that attached; others are passed by."""
    height: int = 0
    width: int = 0

    def read(self, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook."""
        if get_ident() != self.thread:
            return
        hidden_states = args[0] if args else kwargs["hidden_states"]
        self.height, self.width = hidden_states.shape[-2:]


@dataclass
class ControlledProcessor:
    """Stands in for a layer's processor while a controller is attached."""

    original: Any
    controller: AttentionController
    name: str
    extent: _Extent = field(repr=False)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend, under the controller's eyes; shapes as in diffusers' processors."""
        if get_ident() != self.extent.thread:
            return self._plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        kind: Kind = "self" if encoder_hidden_states is None else "cross"
        site = Site(self.name, kind, self.extent.height, self.extent.width)
        assert hidden_states.shape[1] == site.pixels, f"{site}: {hidden_states.shape}"
        action = self.controller.action(site)
        if action == "ignore":
            return self._plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        assert attention_mask is None, "Stable Diffusion's prompts are attended without a mask"
        batch = hidden_states.shape[0]
        first = batch // 2 if self.controller.guided else 0
        prompt_rows = hidden_states[first:]
        context = prompt_rows if encoder_hidden_states is None else encoder_hidden_states[first:]
        if action == "observe":
            self.controller.observe(_probabilities(attn, prompt_rows, context), site)
            return self._plain(attn, hidden_states, encoder_hidden_states, None, temb)
        edited = self.controller.edit(lambda: _probabilities(attn, prompt_rows, context), site)
        output = _attend(attn, edited, prompt_rows, context)
        if first == 0:
            return output
        null_context = None if encoder_hidden_states is None else encoder_hidden_states[:first]
        null_rows = self._plain(attn, hidden_states[:first], null_context, None, temb)
        return torch.cat([null_rows, output])

    def _plain(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None,
        temb: Tensor | None,
    ) -> Tensor:
        options = {"attention_mask": attention_mask, "temb": temb}  # not all processors take both
        given = {name: value for name, value in options.items() if value is not None}
        output: Tensor = self.original(
            attn, hidden_states, encoder_hidden_states=encoder_hidden_states, **given
        )
        return output


def _heads(attn: Any, projected: Tensor) -> Tensor:
    """[B, N, heads * d] -> [B, heads, N, d]."""
    return projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def _probabilities(attn: Any, hidden_states: Tensor, context: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)): [B, heads, N, M], float32 for float32 or half inputs."""
    query, key = _heads(attn, attn.to_q(hidden_states)), _heads(attn, attn.to_k(context))
    if attn.norm_q is not None:
        query = attn.norm_q(query)
    if attn.norm_k is not None:
        key = attn.norm_k(key)
    precision = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(precision) @ key.to(precision).transpose(-1, -2) * attn.scale
    return scores.softmax(dim=-1)


def _attend(attn: Any, probabilities: Tensor, hidden_states: Tensor, context: Tensor) -> Tensor:
    """Weigh the values and project: [B, N, channels], with the layer's own residual."""
    value = _heads(attn, attn.to_v(context))
    mixed = (probabilities.to(value.dtype) @ value).transpose(1, 2).flatten(-2)
    output = attn.to_out[1](attn.to_out[0](mixed))
    if attn.residual_connection:
        output = output + hidden_states
    return output / attn.rescale_output_factor


@contextmanager
def attach(unet: UNet2DConditionModel, controller: AttentionController) -> Iterator[None]:
    """Put a controller over the UNet's attention for the length of the block.

    The processors that were there are back afterwards, also after an exception.

    Raises:
        ModelError: the UNet has no attention layer inside a transformer to attach to.
    """
    from diffusers.models.attention_processor import Attention
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    with _LOCKS_GUARD:
        lock = _LOCKS.setdefault(unet, RLock())
    with lock, ExitStack() as restore:
        matched = 0
        for transformer_name, transformer in unet.named_modules():
            if not isinstance(transformer, Transformer2DModel):
                continue
            extent = _Extent(get_ident())
            handle = transformer.register_forward_pre_hook(extent.read, with_kwargs=True)
            restore.callback(handle.remove)
            for name, attn in transformer.named_modules():
                if not isinstance(attn, Attention):
                    continue
                _check_plain(attn, f"{transformer_name}.{name}")
                original = attn.processor
                restore.callback(attn.set_processor, original)
                full_name = f"{transformer_name}.{name}"
                attn.set_processor(ControlledProcessor(original, controller, full_name, extent))
                matched += 1
        if not matched:
            raise ModelError(
                f"No attention layer was found in the UNet ({type(unet).__name__}), so words "
                "cannot steer it; pass a Stable Diffusion UNet with cross-attention."
            )
        yield


def _check_plain(attn: Any, name: str) -> None:
    """Refuse layers whose arithmetic is more than the module's formula."""
    extras = ("group_norm", "spatial_norm", "norm_cross", "added_kv_proj_dim")
    present = [extra for extra in extras if getattr(attn, extra, None)]
    if present:
        raise ModelError(
            f"The attention layer {name} has {', '.join(present)}, which Stable Diffusion's "
            "layers do not have; attention control cannot be trusted on this UNet."
        )
