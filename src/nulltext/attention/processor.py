"""Attach a controller to the attention layers of a UNet, and restore them.

Inside `attach(unet, controller)` every attention layer of the UNet's transformers asks the
controller what to do at its site (name, kind, true height and width):

    ignore    the layer's own processor runs, unchanged (fused kernels and all);
    observe   the layer's own processor runs, and the controller reads the layer: its inputs and,
              computed beside it if it reads them, the probabilities of the prompt rows. The output
              is bit for bit the plain one;
    edit      the prompt rows are attended with the controller's probabilities; the null rows
              still go through the layer's own processor;
    borrow    the prompt rows are attended with queries and keys of other hidden states, which the
              controller gives, and their own values, by the fused kernel; null rows as above;
    redirect  all rows, null rows included, go through the layer's own processor, but with keys and
              values of other hidden states, which the controller gives: fused kernels stay.

    probabilities = softmax(Q K^T / sqrt(d)),    output = probabilities V

A UNet batch is [null rows, prompt rows] in equal halves under guidance, else prompt rows alone.
The site's size is read where it is known, at the entrance of the surrounding transformer.
One thread at a time may attach to a UNet, others wait; what another thread samples meanwhile goes
through the layers' own processors.
Source: Hertz et al. 2022 (Prompt-to-Prompt), sec. 3.1, eq. 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import Lock, RLock, get_ident
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nulltext.attention.controller import (
    AttentionController,
    Kind,
    Layer,
    Site,
    by_head,
    keys,
    queries,
)
from nulltext.errors import ModelError

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

Found: TypeAlias = list[tuple[torch.nn.Module, list[tuple[str, Any]]]]
"""Transformers, each with its attention layers by their names in the UNet."""

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
    depth: float
    extent: _Extent = field(repr=False)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Run attention with the controller's hooks; shapes as in diffusers' processors."""
        if get_ident() != self.extent.thread:
            return self._plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        kind: Kind = "self" if encoder_hidden_states is None else "cross"
        site = Site(self.name, kind, self.extent.height, self.extent.width, self.depth)
        assert hidden_states.shape[1] == site.pixels, f"{site}: {hidden_states.shape}"
        action = self.controller.action(site)
        if action == "ignore":
            return self._plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        assert attention_mask is None, "Stable Diffusion's prompts are attended without a mask"
        batch = hidden_states.shape[0]
        rows = batch // 2 if self.controller.guided else batch
        layer = Layer(attn, hidden_states, encoder_hidden_states, rows)
        if action in ("edit", "borrow"):
            own = self._edited(layer, site) if action == "edit" else self._borrowed(layer, site)
            return self._beside_null_rows(own, layer, temb)
        if action == "redirect":
            return self._redirected(layer, site, temb)
        self.controller.observe(layer, site)
        if self.controller.reads(site):
            for some, own in layer.probabilities():
                self.controller.read(own, site, some)
        return self._plain(attn, hidden_states, encoder_hidden_states, None, temb)

    def _edited(self, layer: Layer, site: Site) -> Tensor:
        """The prompt rows' values, mixed by the controller's probabilities: [rows, heads, N, d]."""
        context = layer.hidden_states if layer.context is None else layer.context
        value = by_head(layer.attn, layer.attn.to_v(context[-layer.rows :]))
        mixed = [
            self.controller.edit(own, site, some).to(value.dtype) @ value[:, some.span]
            for some, own in layer.probabilities()
        ]
        return torch.cat(mixed, dim=1)

    def _borrowed(self, layer: Layer, site: Site) -> Tensor:
        """The prompt rows' values, mixed by what the controller asks: [rows, heads, N, d]."""
        assert layer.context is None, f"{site}: only self-attention is borrowed"
        attn, asked = layer.attn, self.controller.borrow(layer, site)
        value = by_head(attn, attn.to_v(layer.hidden_states[-layer.rows :]))
        return scaled_dot_product_attention(
            queries(attn, asked), keys(attn, asked), value, scale=attn.scale
        )

    def _beside_null_rows(self, mixed: Tensor, layer: Layer, temb: Tensor | None) -> Tensor:
        """The layer's output: null rows as ever, prompt rows of their mixed values."""
        first = layer.hidden_states.shape[0] - layer.rows
        output = _projected(layer.attn, mixed, layer.hidden_states[first:])
        if first == 0:
            return output
        null_context = None if layer.context is None else layer.context[:first]
        null_rows = self._plain(layer.attn, layer.hidden_states[:first], null_context, None, temb)
        return torch.cat([null_rows, output])

    def _redirected(self, layer: Layer, site: Site, temb: Tensor | None) -> Tensor:
        """All rows, with keys and values of what the controller names."""
        output: Tensor | None = None
        for to in self.controller.redirect(layer, site):
            one = self._plain(layer.attn, layer.hidden_states, to.hidden_states, to.bias, temb)
            # A layer's output is affine in what it attends to: shares that sum to 1 mix outputs.
            one = one if to.share is None else to.share * one
            output = one if output is None else output + one
        assert output is not None, f"{site}: redirected to nothing"
        return output

    def _plain(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None,
        temb: Tensor | None,
    ) -> Tensor:
        from diffusers.models.attention_processor import AttnProcessor2_0

        options = {"attention_mask": attention_mask, "temb": temb}  # not all processors take both
        given = {name: value for name, value in options.items() if value is not None}
        processor = self.original
        redirected = encoder_hidden_states is not None and not attn.is_cross_attention
        if redirected and attn.fused_projections:  # those take one input for all three
            processor = AttnProcessor2_0()
        output: Tensor = processor(
            attn, hidden_states, encoder_hidden_states=encoder_hidden_states, **given
        )
        return output


def _projected(attn: Any, mixed: Tensor, hidden_states: Tensor) -> Tensor:
    """[B, heads, N, d] to [B, N, channels], with the layer's own residual."""
    output: Tensor = attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(-2)))
    if attn.residual_connection:
        output = output + hidden_states
    return output / attn.rescale_output_factor


@contextmanager
def attach(unet: UNet2DConditionModel, controller: AttentionController) -> Iterator[None]:
    """Run the UNet's attention with a controller for the length of the block.

    The processors that were there are back afterwards, also after an exception.

    Raises:
        ModelError: the UNet has no attention layer inside a transformer to attach to.
    """
    with _LOCKS_GUARD:
        lock = _LOCKS.setdefault(unet, RLock())
    with lock, ExitStack() as restore:
        found = _attention(unet)
        depths = _depths(found)
        if not depths:
            raise ModelError(
                f"No attention layer was found in the UNet ({type(unet).__name__}), so words "
                "cannot steer it; pass a Stable Diffusion UNet with cross-attention."
            )
        for transformer, layers in found:
            extent = _Extent(get_ident())
            handle = transformer.register_forward_pre_hook(extent.read, with_kwargs=True)
            restore.callback(handle.remove)
            for name, attn in layers:
                _check_plain(attn, name)
                restore.callback(attn.set_processor, attn.processor)
                attn.set_processor(
                    ControlledProcessor(attn.processor, controller, name, depths[name], extent)
                )
        yield


def self_depths(unet: UNet2DConditionModel) -> list[float]:
    """`Site.depth` of all self-attention layers, in the order in which they run."""
    found = _attention(unet)
    depths, layers = _depths(found), dict(layer for _, layers in found for layer in layers)
    return sorted(depths[name] for name in depths if not layers[name].is_cross_attention)


STAGES = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
"""The order in which a UNet runs its blocks, which is not the order in which it holds them."""


def _depths(found: Found) -> dict[str, float]:
    """Layer name to `Site.depth`."""
    by_kind: dict[bool, list[str]] = {False: [], True: []}
    for _, layers in found:
        for name, attn in layers:
            by_kind[attn.is_cross_attention].append(name)
    return {name: i / len(names) for names in by_kind.values() for i, name in enumerate(names)}


def _attention(unet: torch.nn.Module) -> Found:
    """The UNet's transformers with their layers, in the order in which they run."""
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    named = [(n, m) for n, m in unet.named_modules() if isinstance(m, Transformer2DModel)]
    named.sort(key=lambda pair: STAGES.get(pair[0].split(".")[0], len(STAGES)))
    return [(transformer, _layers(name, transformer)) for name, transformer in named]


def _layers(prefix: str, transformer: torch.nn.Module) -> list[tuple[str, Any]]:
    """A transformer's attention layers with their names in the UNet."""
    from diffusers.models.attention_processor import Attention

    modules = transformer.named_modules()
    return [(f"{prefix}.{name}", m) for name, m in modules if isinstance(m, Attention)]


def _check_plain(attn: Any, name: str) -> None:
    """Refuse layers whose arithmetic is more than the module's formula."""
    extras = ("group_norm", "spatial_norm", "norm_cross", "added_kv_proj_dim")
    present = [extra for extra in extras if getattr(attn, extra, None)]
    if present:
        raise ModelError(
            f"The attention layer {name} has {', '.join(present)}, which Stable Diffusion's "
            "layers do not have; attention control cannot be trusted on this UNet."
        )
