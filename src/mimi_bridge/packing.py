"""The model's halves laid out for inference, kept for as long as the weights are those that they were made from.

They are no part of the model's state: neither saved, copied nor moved with it, but made again.
"""

from threading import Lock
from typing import Any

from transformers import PreTrainedModel

from .inference import DecoderHalf, EncoderHalf
from .layout import lay_out
from .watch import Unsupported, Watch, check_can_be_packed, has_stock_attention


class PackedHalves:
    """The packed halves of one model, made when they are first asked for and again when the weights have changed.

    Several threads may ask at once: one of them packs, the others wait for it.

    Args:
        plain: See `layout.lay_out`.
    """

    def __init__(self, plain: bool = False) -> None:
        self._plain = plain
        self._kept: dict[str, tuple[Watch, EncoderHalf | DecoderHalf | Unsupported]] = {}
        self._lock = Lock()

    def __reduce__(self):
        return PackedHalves, (self._plain,)  # copies of a model and saved models start without

    def get(
        self, name: str, module: PreTrainedModel, thoroughly: bool = True
    ) -> EncoderHalf | DecoderHalf | Unsupported:
        """The packed form of a half, or why there is none.

        Args:
            name: `"encoder"` or `"decoder"`.
            module: The half.
            thoroughly: Compare some values of all tensors, not of a part of them.
        """
        if not has_stock_attention(module.config):
            return Unsupported(f"its attention is not transformers' own but {module.config._attn_implementation!r}")
        kept = self._kept.get(name)
        if kept is None or not kept[0].finds_all_as_it_was(thoroughly):
            with self._lock:
                stale, kept = kept, self._kept.get(name)
                if kept is None or kept is stale or not kept[0].finds_all_as_it_was(thoroughly):
                    return self._packed_again(name, module)
        return kept[1]

    def _packed_again(self, name: str, module: PreTrainedModel) -> EncoderHalf | DecoderHalf | Unsupported:
        self._kept.pop(name, None)
        try:
            check_can_be_packed(module)
        except Unsupported as reason:
            return reason  # looked into at each call: offloaded weights are other tensors each time
        watch = Watch(module)
        packed: EncoderHalf | DecoderHalf | Unsupported
        try:
            packed = lay_out(name, module, self._plain)
        except Unsupported as reason:
            packed = reason
        self._kept[name] = watch, packed
        return packed

    def require(self, name: str, module: PreTrainedModel, thoroughly: bool = True) -> Any:
        """As `get`, for what has no other way.

        Raises:
            ValueError: If the half has no packed form.
        """
        packed = self.get(name, module, thoroughly)
        if isinstance(packed, Unsupported):
            raise ValueError(
                f"this model cannot stream, because of its {name}: {packed}. Encode and decode whole recordings."
            )
        return packed

    def clear(self) -> None:
        """Let go of all packed weights."""
        self._kept.clear()
