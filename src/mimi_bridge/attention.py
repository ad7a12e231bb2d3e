"""Mimi's transformer on rows that each have their own position: sliding-window attention over a ring of keys.

A row's key for position `p` lies in slot `p % slots`. With `slots >= window - 1 + steps`, the keys that a call writes
never take the place of one that it still needs, so a short call writes first and then attends to the ring; a long call
attends to the ring as it was, and its own keys. Positions alone say which slots count, so a row that begins anew needs
nothing cleared, and a call that is broken off leaves the state as good as it was.

Source: transformers `models/mimi/modeling_mimi.py`: rotary embedding, `(window - 1)` past keys, layer scale.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

SPARE_SLOTS = 16  # steps that fit beside the window: the longest call that attends to the ring alone
SLOT_MULTIPLE = 16  # attention kernels like round numbers


@dataclass(frozen=True)
class TransformerLayer:
    """The tensors of one layer, which are the model's own, not copies: `(weight, bias)` of each linear map and norm."""

    attention_norm: tuple[Tensor, Tensor]
    query: tuple[Tensor, Tensor | None]
    key: tuple[Tensor, Tensor | None]
    value: tuple[Tensor, Tensor | None]
    attention_out: tuple[Tensor, Tensor | None]
    attention_scale: Tensor
    feedforward_norm: tuple[Tensor, Tensor]
    feedforward_in: Tensor
    feedforward_out: Tensor
    feedforward_scale: Tensor


@dataclass(frozen=True)
class Transformer:
    """All layers, and what they share.

    Attributes:
        layers: First to last.
        num_heads: Heads of the queries.
        num_key_value_heads: Heads of the keys and values; divides `num_heads`.
        head_dim: Size of a head.
        window: Keys that a query sees, its own included.
        norm_epsilon: Of the layer norms.
        activation: Between the two maps of the feedforward part.
        inverse_frequencies: Rotary frequencies, `(head_dim / 2,)`.
        rotary_scaling: Factor on the rotary cosines and sines.
    """

    layers: Sequence[TransformerLayer]
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    window: int
    norm_epsilon: float
    activation: Callable[[Tensor], Tensor]
    inverse_frequencies: Tensor
    rotary_scaling: float

    @property
    def num_slots(self) -> int:
        """Slots of a row's ring."""
        return -(-(self.window - 1 + SPARE_SLOTS) // SLOT_MULTIPLE) * SLOT_MULTIPLE

    @property
    def key_dim(self) -> int:
        """Size of all heads' keys of one step."""
        return self.num_key_value_heads * self.head_dim

    def __call__(
        self, x: Tensor, keys: Tensor, values: Tensor, positions: Tensor, is_active: Tensor | None, has_past: bool
    ) -> Tensor:
        """Run all layers; `keys` and `values` are moved on in place, `positions` are not.

        Args:
            x: `(batch, steps, hidden_size)`; its memory may be written over.
            keys: `(layers, batch, slots, key_dim)`.
            values: The same.
            positions: Steps that each row has seen before, `(batch,)`.
            is_active: False on rows whose keys and values must stay as they are, `(batch,)`; None if there is none.
            has_past: False if no row has seen a step yet.

        Returns:
            `(batch, steps, hidden_size)`; of inactive rows it means nothing.
        """
        num_steps, num_slots = x.shape[1], keys.shape[2]
        steps = positions[:, None] + torch.arange(num_steps, device=x.device)
        turn = rotary_table(steps, self.inverse_frequencies, self.rotary_scaling, x.dtype)
        reads_ring_alone = num_steps <= num_slots - (self.window - 1)
        slots = torch.arange(num_slots, device=x.device)
        newest = positions + (num_steps if reads_ring_alone else 0) - 1
        in_slot = newest[:, None] - torch.remainder(newest[:, None] - slots, num_slots)  # position that a slot holds
        key_positions = in_slot if reads_ring_alone else torch.cat([in_slot, steps], dim=1) if has_past else steps
        bias = window_bias(steps, key_positions, self.window, x.dtype)
        kept = steps[:, -num_slots:]
        rows = torch.arange(len(x), device=x.device)[:, None] * num_slots
        where = (rows + torch.remainder(kept, num_slots)).flatten()

        for index, layer in enumerate(self.layers):
            normed = functional.layer_norm(x, x.shape[-1:], *layer.attention_norm, self.norm_epsilon)
            query, key, value = (functional.linear(normed, *pair) for pair in (layer.query, layer.key, layer.value))
            query, key = self._turned(query, turn), self._turned(key, turn)
            ring = keys[index], values[index]
            if reads_ring_alone:
                for part, new in zip(ring, (key, value), strict=True):
                    self._write(part, new, where, is_active)
                attended = self._attend(query, *ring, bias)
            else:
                seen = [torch.cat(pair, dim=1) for pair in zip(ring, (key, value), strict=True)]
                attended = self._attend(query, *(seen if has_past else (key, value)), bias)
                for part, new in zip(ring, (key, value), strict=True):
                    self._write(part, new[:, -num_slots:], where, is_active)
            x = torch.addcmul(x, functional.linear(attended, *layer.attention_out), layer.attention_scale)
            normed = functional.layer_norm(x, x.shape[-1:], *layer.feedforward_norm, self.norm_epsilon)
            inner = self.activation(functional.linear(normed, layer.feedforward_in))
            x = torch.addcmul(x, functional.linear(inner, layer.feedforward_out), layer.feedforward_scale)
        return x

    def _turned(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        cosines, sines = turn
        heads = x.view(*x.shape[:2], -1, self.head_dim)
        return torch.addcmul(heads * cosines, heads.roll(self.head_dim // 2, dims=-1), sines).view(x.shape)

    def _write(self, ring: Tensor, new: Tensor, where: Tensor, is_active: Tensor | None) -> None:
        flat = ring.view(-1, self.key_dim)
        if is_active is not None:
            old = flat.index_select(0, where).view(new.shape)
            new = torch.where(is_active[:, None, None], new, old)
        flat.index_copy_(0, where, new.reshape(-1, self.key_dim))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        query, key, value = (
            part.view(*part.shape[:2], -1, self.head_dim).transpose(1, 2) for part in (query, key, value)
        )
        shares = {} if self.num_heads == self.num_key_value_heads else {"enable_gqa": True}
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, **shares)
        return attended.transpose(1, 2).flatten(2)


def rotary_table(steps: Tensor, inverse_frequencies: Tensor, scaling: float, dtype: torch.dtype):
    """Cosines, and sines with the sign that a rotation by halves wants, `(batch, steps, 1, head_dim)` each."""
    angles = steps[:, :, None].float() * inverse_frequencies.float()
    cosines, sines = angles.cos() * scaling, angles.sin() * scaling
    pairs = torch.cat([cosines, cosines], dim=-1), torch.cat([-sines, sines], dim=-1)
    return tuple(pair[:, :, None].to(dtype) for pair in pairs)


def window_bias(query_positions: Tensor, key_positions: Tensor, window: int, dtype: torch.dtype) -> Tensor:
    """0 where a query sees a key, minus infinity elsewhere: `(batch, 1, queries, keys)`; no key is older than 0."""
    age = query_positions[:, :, None] - key_positions[:, None]
    sees = (age >= 0) & (age < window) & (key_positions >= 0)[:, None]
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, -torch.inf)[:, None]
