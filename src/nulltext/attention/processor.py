"""Attach a controller to the attention layers of a network, and restore them.

Inside `attach(network, controller)` every attention layer asks the controller what to do at its
site (name, kind, true height and width). In a UNet's transformers, a layer is one site; the two
that a layer of an MM-DiT is, and how their actions combine, are in `joint`:

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

A batch is [null rows, prompt rows] in equal halves under guidance, else prompt rows alone.
The site's size is read where it is known, at the entrance of the surrounding transformer.
One thread at a time may attach to a network, others wait; what another thread samples meanwhile
goes through the layers' own processors.
Source: Hertz et al. 2022 (Prompt-to-Prompt), sec. 3.1, eq. 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock, RLock, get_ident
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nulltext.attention.controller import (
    AttentionController,
    Layer,
    Site,
    by_head,
    keys,
    queries,
)
from nulltext.attention.joint import joint_groups
from nulltext.attention.layers import ControlledProcessor, Extent, Group, Inputs, Place, depths_of
from nulltext.errors import ModelError

_LOCKS: WeakKeyDictionary[Any, RLock] = WeakKeyDictionary()
"""One lock per network."""

_LOCKS_GUARD = Lock()


@contextmanager
def attach(network: torch.nn.Module, controller: AttentionController) -> Iterator[None]:
    """Run a network's attention with a controller for the length of the block.

    The processors that were there are back afterwards, also after an exception.

    Args: network: diffusers' UNet of Stable Diffusion, `SD3Transformer2DModel` or
        `FluxTransformer2DModel`.

    Raises:
        ModelError: the network has no attention layer to attach to, or has layers or processors
            that are not as the formulae say.
    """
    with _LOCKS_GUARD:
        lock = _LOCKS.setdefault(network, RLock())
    with lock, ExitStack() as restore:
        groups = _groups(network)
        depths = depths_of(groups)
        if not depths:
            raise ModelError(
                f"No attention layer was found in the network ({type(network).__name__}), so words "
                "cannot steer it; pass a Stable Diffusion UNet with cross-attention, or the "
                "transformer of Stable Diffusion 3 or FLUX."
            )
        for group in groups:
            extent = Extent(get_ident())
            handle = group.entrance.register_forward_pre_hook(group.hook(extent), with_kwargs=True)
            restore.callback(handle.remove)
            for place in group.places:
                group.processor.check(place)
                attn = place.attn
                restore.callback(attn.set_processor, attn.processor)
                attn.set_processor(
                    group.processor(attn.processor, controller, place, depths, extent)
                )
        yield


def self_depths(network: torch.nn.Module) -> list[float]:
    """`Site.depth` of all self-attention layers, in the order in which they run."""
    groups = _groups(network)
    depths = depths_of(groups)
    places = (place for group in groups for place in group.places)
    return sorted(depths[place.names["self"]] for place in places if "self" in place.names)


def _groups(network: torch.nn.Module) -> list[Group]:
    """The network's attention layers, in the order in which they run; empty if there are none."""
    return _unet_groups(network) or joint_groups(network)


class UNetProcessor(ControlledProcessor):
    """Stands in for the processor of a UNet's layer."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Run attention with the controller's hooks; shapes as in diffusers' processors."""
        if self.extent.elsewhere:
            return self._plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        site = self.site("self" if encoder_hidden_states is None else "cross")
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

    @classmethod
    def check(cls, place: Place) -> None:
        """Refuse layers whose arithmetic is more than the module's formula."""
        extras = ("group_norm", "spatial_norm", "norm_cross", "added_kv_proj_dim")
        present = [extra for extra in extras if getattr(place.attn, extra, None)]
        if present:
            (name,) = place.names.values()
            raise ModelError(
                f"The attention layer {name} has {', '.join(present)}, which Stable Diffusion's "
                "layers do not have; attention control cannot be trusted on this UNet."
            )


def _projected(attn: Any, mixed: Tensor, hidden_states: Tensor) -> Tensor:
    """[B, heads, N, d] to [B, N, channels], with the layer's own residual."""
    output: Tensor = attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(-2)))
    if attn.residual_connection:
        output = output + hidden_states
    return output / attn.rescale_output_factor


STAGES = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
"""The order in which a UNet runs its blocks, which is not the order in which it holds them."""


def _unet_groups(network: torch.nn.Module) -> list[Group]:
    """The layers of each transformer of a UNet."""
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    named = [(n, m) for n, m in network.named_modules() if isinstance(m, Transformer2DModel)]
    named.sort(key=lambda pair: STAGES.get(pair[0].split(".")[0], len(STAGES)))
    return [
        Group(transformer, _read_map, _places(name, transformer), UNetProcessor)
        for name, transformer in named
    ]


def _read_map(extent: Extent, _: Any, inputs: Inputs) -> None:
    """Read the size of the feature map that a transformer is given."""
    extent.height, extent.width = inputs.get("hidden_states", 0).shape[-2:]


def _places(prefix: str, transformer: torch.nn.Module) -> list[Place]:
    """A transformer's attention layers, with their names in the UNet."""
    from diffusers.models.attention_processor import Attention

    return [
        Place(attn, {"cross" if attn.is_cross_attention else "self": f"{prefix}.{name}"})
        for name, attn in transformer.named_modules()
        if isinstance(attn, Attention)
    ]
