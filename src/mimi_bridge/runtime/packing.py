"""The parts of a model laid out for inference, kept for as long as the weights are those that they were made from.

They are no part of the model's state: neither saved, copied nor moved with it, but made again.
"""

from threading import Lock
from typing import Any

from .codec import DecoderRuntime, EncoderRuntime
from .invalidation import Snapshot, Unsupported, check_attention, check_half, check_weights
from .layout import lay_out
from .quantizer import PackedQuantizer

Packed = EncoderRuntime | DecoderRuntime | PackedQuantizer


class PackedModel:
    """The packed parts of one model, made when they are first asked for and again when the weights have changed.

    Several threads may ask at once: one of them packs, the others wait for it.

    Args:
        exportable: See `layout.lay_out`.
    """

    def __init__(self, exportable: bool = False) -> None:
        self._exportable = exportable
        self._kept: dict[str, tuple[Snapshot, Packed]] = {}
        self._lock = Lock()

    def __reduce__(self):
        return PackedModel, (self._exportable,)  # copies of a model and saved models start without

    def get(self, name: str, module: Any) -> Any:
        """The packed form of a part.

        Args:
            name: `"encoder"`, `"decoder"` or `"quantizer"`.
            module: The part.

        Raises:
            Unsupported: If there is none, with the reason.
        """
        for part in _with_attention(name, module):
            check_attention(part.config)  # may be set at any time, and is no part of the module
        kept = self._kept.get(name)
        if kept is not None and not module.training and kept[0].is_current():
            return kept[1]
        with self._lock:
            stale, kept = kept, self._kept.get(name)
            if kept is None or kept is stale or module.training or not kept[0].is_current():
                self._kept.pop(name, None)  # first, or old and new weights would lie side by side
                kept = self._kept[name] = self._pack(name, module)
            return kept[1]

    def require(self, name: str, module: Any) -> Any:
        """As `get`, for what has no other way.

        Raises:
            ValueError: If there is no packed form.
        """
        try:
            return self.get(name, module)
        except Unsupported as reason:
            raise ValueError(
                f"this model cannot stream, because of its {name}: {reason}. Encode and decode whole recordings."
            ) from reason

    def clear(self) -> None:
        """Let go of all packed weights."""
        self._kept.clear()

    def _pack(self, name: str, module: Any) -> tuple[Snapshot, Packed]:
        if name == "quantizer":
            check_weights(module)
            for transformer in _with_attention(name, module):
                check_half(transformer)
            return Snapshot(module), PackedQuantizer(module, self._exportable)
        check_half(module)
        return Snapshot(module), lay_out(name, module, self._exportable)


def _with_attention(name: str, module: Any) -> list[Any]:
    # The half itself, or the transformers of the quantizer's heads.
    if name != "quantizer":
        return [module]
    return [head.context.transformer for head in module.heads.values() if head.context is not None]
