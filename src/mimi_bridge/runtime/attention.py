"""Mimi's transformer on rows that each have their own position: sliding-window attention over a ring of keys.

A row's key for position `p` lies in slot `p % slots`. With `slots >= window - 1 + steps`, the keys that a call writes
never take the place of one that it still needs. So `steps` queries at a time, their keys are written first, and then
they attend to the ring. Positions alone say which slots count, so a row that is reset needs nothing cleared; and
since a key lies in its slot whoever asks, the sums over keys have one order however a recording is divided into calls.

Source: transformers `models/mimi/modeling_mimi.py`: rotary embedding, `(window - 1)` past keys, layer scale.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .linear import LinearMap, filled, has_too_few_rows

SPARE_SLOTS = 16  # queries at a time, at least: what fits beside the window
SLOT_MULTIPLE = 16  # attention kernels like round numbers


@dataclass(frozen=True)
class TransformerLayer:
    """The maps and tensors of one layer; norms are `(weight, bias)`."""

    attention_norm: tuple[Tensor, Tensor]
    query_key_value: LinearMap
    attention_out: LinearMap
    attention_scale: Tensor
    feedforward_norm: tuple[Tensor, Tensor]
    feedforward_in: LinearMap
    feedforward_out: LinearMap
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
    def ring_shape(self) -> tuple[int, int, int]:
        """Shape of a row's ring in one layer: heads of the keys and then of the values, slots, size."""
        return 2 * self.num_key_value_heads, self.num_slots, self.head_dim

    @property
    def steps_at_once(self) -> int:
        """Steps of a call that writes over no key that the call before still needed."""
        return self.num_slots - (self.window - 1)

    def new_ring(self, batch_size: int) -> Tensor:
        """Rings of all layers, of rows that begin: `(layers, batch, *ring_shape)`."""
        return self.layers[0].attention_scale.new_zeros(len(self.layers), batch_size, *self.ring_shape)

    def __call__(self, x: Tensor, keys_values: Tensor, positions: Tensor, is_active: Tensor | None) -> Tensor:
        """Run all layers; `keys_values` is moved on in place, `positions` are not.

        Args:
            x: `(batch, steps, hidden_size)`.
            keys_values: `(layers, batch, *ring_shape)`.
            positions: Steps that each row has seen before, `(batch,)`.
            is_active: False on rows whose keys and values must stay as they are, `(batch,)`; None if there is none.

        Returns:
            `(batch, steps, hidden_size)`; of inactive rows it means nothing.
        """
        batch_size, num_real, _ = x.shape
        if batch_size == 1 and has_too_few_rows(x):  # fill up here, once for all products
            x = filled(x)
        num_heads, num_slots, _ = self.ring_shape
        steps = positions[:, None] + torch.arange(x.shape[1], device=x.device)
        turn = rotary_table(steps, self.inverse_frequencies, self.rotary_scaling, x.dtype)
        slots = torch.arange(num_slots, device=x.device)
        rings = torch.arange(batch_size * num_heads, device=x.device).view(batch_size, num_heads, 1) * num_slots
        where, biases = [], []
        for block in steps.split(self.steps_at_once, dim=1):
            written = block[:, :num_real]
            newest = written[:, -1:]
            in_slots = newest - torch.remainder(newest - slots, num_slots)
            biases.append(window_bias(block, in_slots, self.window, x.dtype))
            where.append((rings + torch.remainder(written[:, None], num_slots)).flatten())

        for layer, ring in zip(self.layers, keys_values, strict=True):
            normed = functional.layer_norm(x, x.shape[-1:], *layer.attention_norm, self.norm_epsilon)
            query, new = self._split(_mapped(normed, layer.query_key_value), turn)
            queries, news = (each.split(self.steps_at_once, dim=2) for each in (query, new[:, :, :num_real]))
            blocks = zip(queries, news, where, biases, strict=True)
            attended = [self._attend(ring, is_active, *block) for block in blocks]
            together = attended[0] if len(attended) == 1 else torch.cat(attended, dim=1)
            x = torch.addcmul(x, _mapped(together, layer.attention_out), layer.attention_scale)
            normed = functional.layer_norm(x, x.shape[-1:], *layer.feedforward_norm, self.norm_epsilon)
            inner = self.activation(_mapped(normed, layer.feedforward_in))
            x = torch.addcmul(x, _mapped(inner, layer.feedforward_out), layer.feedforward_scale)
        return x[:, :num_real]

    def _split(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Queries, and keys with values, turned to their positions; `(batch, heads, steps, head_dim)` each."""
        num_turned = self.num_heads + self.num_key_value_heads
        halves = x.view(*x.shape[:2], -1, 2, self.head_dim // 2)
        turned = halves[:, :, :num_turned]
        cosines, sines = turn
        turned = torch.addcmul(turned * cosines, turned.flip(3), sines)
        query, key, value = turned[:, :, : self.num_heads], turned[:, :, self.num_heads :], halves[:, :, num_turned:]
        return query.flatten(3).transpose(1, 2), torch.cat([key, value], dim=2).flatten(3).transpose(1, 2)

    def _attend(
        self, ring: Tensor, is_active: Tensor | None, query: Tensor, new: Tensor, where: Tensor, bias: Tensor
    ) -> Tensor:
        """Write keys and values, then attend to the ring: `(batch, steps, heads * head_dim)`."""
        flat, num_steps = ring.view(-1, self.head_dim), query.shape[2]
        if is_active is not None:
            new = torch.where(is_active[:, None, None, None], new, flat.index_select(0, where).view(new.shape))
        flat.index_copy_(0, where, new.reshape(-1, self.head_dim))
        if has_too_few_rows(query):
            query, bias = filled(query), filled(bias)
        key, value = ring.chunk(2, dim=1)
        shares = {} if self.num_heads == self.num_key_value_heads else {"enable_gqa": True}
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, **shares)
        return attended[:, :, :num_steps].transpose(1, 2).flatten(2)


def _mapped(x: Tensor, linear: LinearMap) -> Tensor:
    return linear(x.view(-1, x.shape[-1])).view(*x.shape[:-1], -1)


def rotary_table(
    steps: Tensor, inverse_frequencies: Tensor, scaling: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines, and sines with the sign that each half of a head wants, `(batch, steps, 1, 2, head_dim / 2)`."""
    angles = steps[:, :, None].float() * inverse_frequencies.float()
    cosines, sines = angles.cos() * scaling, angles.sin() * scaling
    pairs = torch.stack([cosines, cosines], dim=2), torch.stack([-sines, sines], dim=2)
    return pairs[0][:, :, None].to(dtype), pairs[1][:, :, None].to(dtype)


def window_bias(query_positions: Tensor, key_positions: Tensor, window: int, dtype: torch.dtype) -> Tensor:
    """0 where a query sees a key, minus infinity elsewhere: `(batch, 1, queries, keys)`; no key is older than 0."""
    age = query_positions[:, :, None] - key_positions[:, None]
    sees = (age >= 0) & (age < window) & (key_positions >= 0)[:, None]
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, -torch.inf)[:, None]
