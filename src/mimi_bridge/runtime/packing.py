"""The parts of a model laid out for inference, kept for as long as the weights are those that they were made from.

They are no part of the model's state: neither saved, copied nor moved with it, but made again.
"""

from threading import Lock
from typing import Any

from .codec import DecoderRuntime, EncoderRuntime
from .invalidation import Snapshot, Unsupported, check_half, check_weights
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
        kept = self._current(name, module)  # without the lock, which a forked process would find taken for ever
        if kept is None:
            with self._lock:
                kept = self._current(name, module)  # another thread may have packed it meanwhile
                if kept is None:
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

    def _current(self, name: str, module: Any) -> tuple[Snapshot, Packed] | None:
        kept = self._kept.get(name)
        return kept if kept is not None and not module.training and kept[0].is_current() else None

    def _pack(self, name: str, module: Any) -> tuple[Snapshot, Packed]:
        check_weights(module)
        if name == "quantizer":
            for head in module.heads.values():
                if head.context is not None:
                    check_half(head.context.transformer)
            return Snapshot(module), PackedQuantizer(module, self._exportable)
        check_half(module)
        return Snapshot(module), lay_out(name, module, self._exportable)
