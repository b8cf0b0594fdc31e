"""Attention control in MM-DiT networks (Stable Diffusion 3, FLUX): text and image in one softmax.

With text tokens t (L of them) and image tokens i (N = height x width), Q, K, V by the projections
and norms of their streams, in FLUX turned by the rotary embedding of their positions:

    P = softmax([Q_t; Q_i] [K_t; K_i]^T / sqrt(d)) = [P_tt P_ti; P_it P_ii]
    output = P [V_t; V_i]

A layer has two sites of one size: "cross" is P_it, [heads, N, L], and "self" is P_ii, [heads, N,
N]. A pixel's row sums to 1 over both together. The controller is asked for both, and its actions
combine, for the prompt rows (redirect: for all rows, null rows included):

    edit        P_it, or P_ii, is what the controller returns; the other block stays as it is
    borrow      Q_i and K_i are made of other hidden states; Q_t, K_t and all V are the rows' own
    redirect    K_i and V_i are made of other hidden states, one or several; with shares s_r and
                biases b_r the image's output is the sum over r of
                    s_r softmax(Q_i [K_t; K_r]^T / sqrt(d) + [0; b_r]) [V_t; V_r]
                and the text's the mean over r, without bias
    observe     in itself changes nothing: the output of a layer that is observed or ignored alone
                is bit for bit its own processor's. Probabilities are read as they act, after
                borrowing and redirecting

So the text's queries always attend plainly, to the keys and values that the image has at this
layer. Probabilities are made as tensors only where a controller reads or edits, for the image's
queries, some heads at a time (see `controller`); all else goes through the fused kernel.

Stable Diffusion 3.5's second layers `attn2` have no text (L = 0): they are "self" sites. FLUX's
single blocks are given [text; image] in one sequence; controllers see the two parts.
Source: Esser et al. 2024 (Stable Diffusion 3), sec. 4; FLUX has no paper: Black Forest Labs' and
diffusers' code; the blocks in the places of cross- and self-attention: ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from nulltext.attention.controller import (
    Action,
    Heads,
    Kind,
    Layer,
    Redirection,
    Site,
    by_head,
    keys,
    queries,
    slices,
)
from nulltext.attention.layers import ControlledProcessor, Extent, Group, Inputs, Place, ReadExtent
from nulltext.errors import ModelError

Rotary: TypeAlias = tuple[Tensor, Tensor]
"""Cosines and sines by position, [L + N, d] each, the text's first."""

Output: TypeAlias = Tensor | tuple[Tensor, Tensor]
"""What a processor returns: image, or image and text [B, L, C], or [text; image]."""


@dataclass(frozen=True)
class Projected:
    """Queries, keys and values of one stream, [B, heads, tokens, d] each."""

    query: Tensor
    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class Attended:
    """Keys and values of text and image, as the image's queries attend to them."""

    key: Tensor
    """[B, heads, L + N, d]."""
    value: Tensor
    """[B, heads, L + N, d]."""
    bias: Tensor | None = None
    """[B, 1, 1, L + N], added to the scores of the image's queries."""
    share: Tensor | None = None
    """[B, 1, N, 1]: how much of it each of the image's queries takes; None: all."""


@dataclass(frozen=True)
class Mixing:
    """One joint attention, of what it acts with."""

    query: Tensor
    """Q_i: [B, heads, N, d]."""
    text: Projected
    attended: Sequence[Attended]

    def fused(self) -> tuple[Tensor, Tensor]:
        """Outputs of text [B, heads, L, d] and image [B, heads, N, d], by the fused kernel."""
        length, first = self.text.query.shape[2], self.attended[0]
        if len(self.attended) == 1 and first.bias is None and first.share is None:
            query = torch.cat([self.text.query, self.query], dim=2)
            mixed = scaled_dot_product_attention(query, first.key, first.value)
            return mixed[:, :, :length], mixed[:, :, length:]
        parts = []
        for to in self.attended:
            part = scaled_dot_product_attention(self.query, to.key, to.value, attn_mask=to.bias)
            parts.append(part if to.share is None else to.share * part)
        return self.fused_text(), torch.stack(parts).sum(dim=0)

    def fused_text(self) -> Tensor:
        """Output of the text, [B, heads, L, d]."""
        if self.text.query.shape[2] == 0:
            return self.text.value
        parts = [
            scaled_dot_product_attention(self.text.query, to.key, to.value) for to in self.attended
        ]
        return torch.stack(parts).mean(dim=0)

    def probabilities(self) -> Iterator[tuple[Heads, list[Tensor]]]:
        """Of the image's queries, some heads at a time: for each that is attended to its share of
        the softmax, [B, heads, N, L + N], float32 for float32 or half inputs."""
        query = self.query
        precision, scale = torch.promote_types(query.dtype, torch.float32), query.shape[-1] ** -0.5
        size = len(query) * query.shape[2] * self.attended[0].key.shape[2] * precision.itemsize
        for some in slices(query.shape[1], size):
            found = []
            for to in self.attended:
                scores = query[:, some.span].to(precision) @ (
                    to.key[:, some.span].to(precision).transpose(-1, -2)
                )
                scores *= scale
                if to.bias is not None:
                    scores += to.bias
                softmax = scores.softmax(dim=-1)
                found.append(softmax if to.share is None else to.share * softmax)
            yield some, found


@dataclass(frozen=True)
class Tokens:
    """What a layer is given: the hidden states of both streams."""

    attn: Any
    text: Tensor
    """[B, L, C]; L = 0 in a layer of the image alone."""
    image: Tensor
    """[B, N, C]."""
    rotary: Rotary | None

    @property
    def length(self) -> int:
        """L."""
        return self.text.shape[1]

    def batch(self, some: slice) -> Tokens:
        """Some rows of it."""
        return Tokens(self.attn, self.text[some], self.image[some], self.rotary)

    def acting(
        self, borrowed: Tensor | None = None, redirected: Sequence[Redirection] = ()
    ) -> Mixing:
        """The attention of these rows.

        Args:
            borrowed: [B, N, C], of which the image's queries and keys are made instead.
            redirected: what the image's keys and values are made of instead; not with `borrowed`.
        """
        attn, text = self.attn, self._text()
        asked = self.image if borrowed is None else borrowed
        if redirected:
            attended = [self._redirected(text, to) for to in redirected]
        else:
            attended = [self._attended(text, asked, self.image)]
        return Mixing(self._turned(queries(attn, asked)), text, attended)

    def _attended(self, text: Projected, keyed: Tensor, valued: Tensor) -> Attended:
        key = self._turned(keys(self.attn, keyed))
        value = by_head(self.attn, self.attn.to_v(valued))
        return Attended(
            torch.cat([text.key, key], dim=2),
            torch.cat([text.value, value], dim=2),
        )

    def _redirected(self, text: Projected, to: Redirection) -> Attended:
        plain = self._attended(text, to.hidden_states, to.hidden_states)
        bias, share, dtype = to.bias, to.share, plain.key.dtype  # which the fused kernel expects
        return Attended(
            plain.key,
            plain.value,
            None if bias is None else pad(bias.to(dtype), (self.length, 0))[:, None],
            None if share is None else share.to(dtype)[:, None],
        )

    def _text(self) -> Projected:
        """Q_t, K_t and V_t, by the text's own projections where it has some."""
        attn, text = self.attn, self.text
        if attn.added_kv_proj_dim is None:
            query, key, value = (
                queries(attn, text),
                keys(attn, text),
                by_head(attn, attn.to_v(text)),
            )
        else:
            added = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            query, key, value = (by_head(attn, project(text)) for project in added)
            query = query if attn.norm_added_q is None else attn.norm_added_q(query)
            key = key if attn.norm_added_k is None else attn.norm_added_k(key)
        return Projected(self._turned(query, text=True), self._turned(key, text=True), value)

    def _turned(self, heads: Tensor, *, text: bool = False) -> Tensor:
        """Queries or keys [B, heads, tokens, d] of one stream, by their positions."""
        if self.rotary is None:
            return heads
        from diffusers.models.embeddings import apply_rotary_emb

        span = slice(None, self.length) if text else slice(self.length, None)
        cosines, sines = self.rotary
        turned: Tensor = apply_rotary_emb(heads, (cosines[span], sines[span]), sequence_dim=2)
        return turned


@dataclass(frozen=True)
class JointLayer(Layer):
    """One site of a joint layer: hidden states are the image's, the context is the text's."""

    tokens: Tokens
    """Of all rows."""

    def probabilities(self) -> Iterator[tuple[Heads, Tensor]]:
        """The prompt rows' own block at this site, [rows, heads, N, L or N]; over both sites of the
        layer together a row sums to 1."""
        kind: Kind = "self" if self.context is None else "cross"
        for some, (own,) in self.tokens.batch(slice(-self.rows, None)).acting().probabilities():
            yield some, own[..., _columns(kind, self.tokens.length)]


def _columns(kind: Kind, length: int) -> slice:
    """Keys of a site among the keys of text and image."""
    return slice(None, length) if kind == "cross" else slice(length, None)


@dataclass(frozen=True)
class _Asked:
    """A site with what the controller wants there."""

    site: Site
    layer: JointLayer
    action: Action
    reads: bool
    """Whether its probabilities are read, unchanged."""

    @property
    def explicit(self) -> bool:
        """Whether probabilities are needed as tensors."""
        return self.reads or self.action == "edit"


class JointProcessor(ControlledProcessor):
    """Stands in for the processor of an MM-DiT's layer."""

    joint = True

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> Output:
        """Run attention with the controller's hooks; shapes as in diffusers' processors."""
        plain = _Plain(self.original, attn, hidden_states, encoder_hidden_states, image_rotary_emb)
        if self.extent.elsewhere:
            return plain.output(attention_mask=attention_mask)
        actions = {kind: self.controller.action(self.site(kind)) for kind in self.place.names}
        if set(actions.values()) == {"ignore"}:
            return plain.output(attention_mask=attention_mask)
        assert attention_mask is None, "prompts are attended without a mask"
        tokens = plain.tokens(self.extent.text_length if "cross" in actions else 0)
        assert tokens.image.shape[1] == self.site("self").pixels, f"{tokens.image.shape}"
        batch = len(hidden_states)
        rows = batch // 2 if self.controller.guided else batch
        asked = [self._asked(kind, action, tokens, rows) for kind, action in actions.items()]
        if {each.action for each in asked} <= {"ignore", "observe"}:
            if any(each.reads for each in asked):
                for _ in self._probabilities(tokens.batch(slice(-rows, None)).acting(), asked):
                    pass
            return plain.output()
        return self._changed(plain, tokens, asked, batch - rows)

    def _asked(self, kind: Kind, action: Action, tokens: Tokens, rows: int) -> _Asked:
        """Show a layer to the controller at one of its sites."""
        site, context = self.site(kind), tokens.text if kind == "cross" else None
        assert kind == "self" or action not in ("borrow", "redirect"), f"{site}: {action}"
        layer = JointLayer(tokens.attn, tokens.image, context, rows, tokens)
        observed = action == "observe"
        if observed:
            self.controller.observe(layer, site)
        return _Asked(site, layer, action, observed and self.controller.reads(site))

    def _changed(
        self, plain: _Plain, tokens: Tokens, asked: Sequence[_Asked], first: int
    ) -> Output:
        """The layer's output, where the rows from `first` on are prompt rows that change."""
        attn, prompt_rows, null_rows = plain.attn, slice(first, None), slice(None, first)
        borrowed, redirected = self._instead(asked)
        prompts = tokens.batch(prompt_rows)
        acting = prompts.acting(borrowed, _rows_of(redirected, prompt_rows))
        if any(each.action == "edit" for each in asked):
            text, image = acting.fused_text(), self._edited(acting, asked)
        else:
            text, image = acting.fused()
            if any(each.reads for each in asked):
                for _ in self._probabilities(acting, asked):
                    pass
        output = _projected(attn, text, image)
        if first == 0:
            return output
        if not redirected:
            return _below(plain.output(null_rows), output)
        null = tokens.batch(null_rows).acting(redirected=_rows_of(redirected, null_rows))
        return _below(_projected(attn, *null.fused()), output)

    def _instead(self, asked: Sequence[_Asked]) -> tuple[Tensor | None, Sequence[Redirection]]:
        """What the controller puts in the place of the image's hidden states."""
        for each in asked:
            if each.action == "borrow":
                return self.controller.borrow(each.layer, each.site), ()
            if each.action == "redirect":
                redirected = self.controller.redirect(each.layer, each.site)
                assert redirected, f"{each.site}: redirected to nothing"
                return None, redirected
        return None, ()

    def _edited(self, acting: Mixing, asked: Sequence[_Asked]) -> Tensor:
        """The image's output by the controller's probabilities, [rows, heads, N, d]."""
        length, mixed = acting.text.query.shape[2], []
        for some, text, images in self._probabilities(acting, asked):
            value = acting.text.value[:, some.span]
            part = text.to(value.dtype) @ value
            for to, image in zip(acting.attended, images, strict=True):
                part = part + image.to(value.dtype) @ to.value[:, some.span, length:]
            mixed.append(part)
        return torch.cat(mixed, dim=1)

    def _probabilities(
        self, acting: Mixing, asked: Sequence[_Asked]
    ) -> Iterator[tuple[Heads, Tensor, list[Tensor]]]:
        """Probabilities as the controller leaves them, some heads at a time.

        Returns: P_it [rows, heads, N, L], and for all that is attended to P_ii [rows, heads, N, N].
        """
        length = acting.text.query.shape[2]
        for some, found in acting.probabilities():
            text = torch.stack([each[..., :length] for each in found]).sum(dim=0)
            images = [each[..., length:] for each in found]
            for each in asked:
                if not each.explicit:
                    continue
                if each.site.kind == "cross":
                    text = self._shown(text, each, some)
                else:
                    (own,) = images
                    images = [self._shown(own, each, some)]
            yield some, text, images

    def _shown(self, own: Tensor, asked: _Asked, heads: Heads) -> Tensor:
        """A block as the controller leaves it."""
        if asked.action == "edit":
            return self.controller.edit(own, asked.site, heads)
        self.controller.read(own, asked.site, heads)
        return own

    @classmethod
    def check(cls, place: Place) -> None:
        """Refuse processors whose arithmetic is not the module's formula, and fused projections."""
        from diffusers.models.attention_processor import JointAttnProcessor2_0
        from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor

        attn, name, processor = place.attn, place.names["self"], place.attn.processor
        while isinstance(processor, cls):  # attached to already, by this thread
            processor = processor.original
        flux = isinstance(attn, FluxAttention)
        expected = FluxAttnProcessor if flux else JointAttnProcessor2_0
        if type(processor) is not expected:
            raise ModelError(
                f"The attention layer {name} has the processor {type(processor).__name__}, "
                f"which attention control does not know; set {expected.__name__}, in a pipeline "
                "by unfuse_qkv_projections() or unload_ip_adapter()."
            )
        if flux and attn.fused_projections:
            raise ModelError(
                f"The attention layer {name} has fused projections, which attention control would "
                "pass by; call the network's unfuse_qkv_projections() first."
            )


@dataclass(frozen=True)
class _Plain:
    """A call of a layer's own processor."""

    processor: Any
    attn: Any
    hidden_states: Tensor
    encoder_hidden_states: Tensor | None
    rotary: Rotary | None

    def output(self, rows: slice = slice(None), attention_mask: Tensor | None = None) -> Output:
        """The processor's output for some rows."""
        encoder = self.encoder_hidden_states
        options = {"attention_mask": attention_mask, "image_rotary_emb": self.rotary}
        given = {name: value for name, value in options.items() if value is not None}
        output: Output = self.processor(
            self.attn,
            self.hidden_states[rows],
            encoder_hidden_states=None if encoder is None else encoder[rows],
            **given,
        )
        return output

    def tokens(self, length: int) -> Tokens:
        """Both streams, which the layer is given apart or, with so much text, in one."""
        text, image = self.encoder_hidden_states, self.hidden_states
        if text is None:
            text, image = image[:, :length], image[:, length:]
        return Tokens(self.attn, text, image, self.rotary)


def _projected(attn: Any, text: Tensor, image: Tensor) -> Output:
    """The layer's output of mixed values [B, heads, tokens, d], in the form of its processor."""
    text, image = (mixed.transpose(1, 2).flatten(-2) for mixed in (text, image))
    if getattr(attn, "pre_only", False):  # FLUX's single blocks project attention and MLP at once
        return torch.cat([text, image], dim=1)
    projected: Tensor = attn.to_out[1](attn.to_out[0](image))
    if attn.added_kv_proj_dim is None:
        return projected
    return projected, text if attn.context_pre_only else attn.to_add_out(text)


def _below(null: Output, prompt: Output) -> Output:
    """Null rows, then prompt rows."""
    if isinstance(null, Tensor) and isinstance(prompt, Tensor):
        return torch.cat([null, prompt])
    image, text = (torch.cat(pair) for pair in zip(null, prompt, strict=True))
    return image, text


def _rows_of(redirected: Sequence[Redirection], some: slice) -> list[Redirection]:
    return [
        Redirection(
            to.hidden_states[some],
            None if to.bias is None else to.bias[some],
            None if to.share is None else to.share[some],
        )
        for to in redirected
    ]


TEXT = ".text"
"""What a cross site's name adds to its layer's: the other site of the layer has the layer's own."""


def joint_groups(network: torch.nn.Module) -> list[Group]:
    """The layers of an MM-DiT, in the order in which they run; none of another network."""
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    if isinstance(network, SD3Transformer2DModel):
        return [_group(network, ("transformer_blocks",), _read_latents)]
    if isinstance(network, FluxTransformer2DModel):
        blocks = ("transformer_blocks", "single_transformer_blocks")
        return [_group(network, blocks, _read_ids)]
    return []


def _group(network: Any, stages: Sequence[str], read: ReadExtent) -> Group:
    """Args: stages: the lists of blocks, in the order in which they run."""
    places = []
    for stage in stages:
        for number, block in enumerate(getattr(network, stage)):
            for layer, has_text in (("attn", True), ("attn2", False)):
                attn, name = getattr(block, layer, None), f"{stage}.{number}.{layer}"
                if attn is not None:
                    cross: dict[Kind, str] = {"cross": name + TEXT} if has_text else {}
                    places.append(Place(attn, {**cross, "self": name}))
    return Group(network, read, places, JointProcessor)


def _read_latents(extent: Extent, network: Any, inputs: Inputs) -> None:
    """Read the size from latents [B, C, h, w]; the text comes apart."""
    patch = network.config.patch_size
    extent.height, extent.width = (
        side // patch for side in inputs.get("hidden_states", 0).shape[-2:]
    )


def _read_ids(extent: Extent, _: Any, inputs: Inputs) -> None:
    """Read the size from the positions of packed latents, [N, 3]: 0, row, column.

    Raises:
        ModelError: the tokens are not those of one picture.
    """
    ids, tokens = inputs.get("img_ids", 4), inputs.get("hidden_states", 0).shape[1]
    extent.height, extent.width = (int(ids[..., axis].max()) + 1 for axis in (1, 2))
    extent.text_length = inputs.get("encoder_hidden_states", 1).shape[1]
    if extent.height * extent.width != tokens:
        raise ModelError(
            f"The network is given {tokens} image tokens, but positions of {extent.height} x "
            f"{extent.width}; attention control takes one picture, without reference pictures."
        )
