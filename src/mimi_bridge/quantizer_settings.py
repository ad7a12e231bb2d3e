"""A quantizer's settings that may be changed at any time: λ, the codebooks' decay, loss weights, distances.

Each has one owner, the object in `settings`: the config, where the quantizer is a model's, so that what is in force is
what `save_pretrained` writes; one of its own, where it is used alone. They are read and checked at every use.
"""

from collections.abc import Iterator, MutableMapping
from numbers import Real
from typing import Any

from .configuration_mimi_bridge import check_setting

LOSSES = ("commitment", "codebook", "qwen", "wavlm")  # each weighed by the setting of its name and `_weight`


class Setting:
    """An attribute that is read from, and written to, the setting of its name in its object's `settings`."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else setting(instance.settings, self._name)

    def __set__(self, instance: Any, value: Any) -> None:
        change_setting(instance.settings, self._name, value)


class LossWeights(MutableMapping[str, float]):
    """The weight of each loss by name, read from and written to `settings`."""

    def __init__(self, settings: Any):
        self._settings = settings

    def __getitem__(self, loss: str) -> float:
        if loss not in LOSSES:
            raise KeyError(loss)
        return setting(self._settings, f"{loss}_weight")

    def __setitem__(self, loss: str, weight: float) -> None:
        if loss not in LOSSES:
            raise ValueError(f"loss_weights must name losses of {LOSSES}, got {loss!r}.")
        change_setting(self._settings, f"{loss}_weight", weight)

    def __delitem__(self, loss: str) -> None:
        raise ValueError(f"the weight of {loss!r} cannot be left out; set it to 0 to do without that loss.")

    def __iter__(self) -> Iterator[str]:
        return iter(LOSSES)

    def __len__(self) -> int:
        return len(LOSSES)

    def __repr__(self) -> str:
        return repr(dict(self))


def setting(settings: Any, name: str) -> Any:
    """The value of a setting; a `ValueError` if it breaks a rule of the config."""
    value = getattr(settings, name)
    check_setting(name, value)
    return value


def change_setting(settings: Any, name: str, value: Any) -> None:
    """Give a setting another value; a `ValueError` if that breaks a rule of the config, and then it stays as it is."""
    check_setting(name, value)
    setattr(settings, name, float(value) if isinstance(value, Real) else value)
