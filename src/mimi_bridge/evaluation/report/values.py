"""Figures of an evaluation as a page prints them, each with its place in the json.

A figure is looked up by its keys and printed as `<data data-at="/codes/bridge/0/used">1,204</data>`: what stands on
the page can be held against the file, figure by figure. What is missing, null, NaN or infinite is a dash.

Source: RFC 6901, how the place is written.
"""

import math
from typing import Any

from markupsafe import Markup

Key = str | int | tuple["Key", ...]
DASH = "–"


class Values:
    """An evaluation, looked up by keys and printed."""

    def __init__(self, evaluation: dict[str, Any]):
        self.evaluation = evaluation

    def get(self, *keys: Key) -> Any:
        """What lies under the keys, which may be tuples of keys, as a template holds them; None if nothing does."""
        value: Any = self.evaluation
        for key in flat(keys):
            if isinstance(value, dict):
                value = value.get(key)
            elif isinstance(value, list) and isinstance(key, int) and 0 <= key < len(value):
                value = value[key]
            else:
                return None
        return value

    def number(self, *keys: Key) -> float | None:
        """The finite number under the keys; None if there is none."""
        value = self.get(*keys)
        return value if isinstance(value, int | float) and math.isfinite(value) else None

    def figure(self, *keys: Key, decimals: int | None = None) -> Markup:
        """The number under the keys, printed; a text as it is; a dash if there is neither.

        Args:
            keys: Where it lies.
            decimals: After the point; None takes what `decimals_of` says.
        """
        value = self.get(*keys)
        if isinstance(value, str | bool):
            return Markup("{}").format(value)
        number = self.number(*keys)
        if number is None:
            return Markup('<span class="none">{}</span>').format(DASH)
        return Markup('<data data-at="{}">{}</data>').format(pointer(*keys), printed(number, decimals))

    def interval(self, *keys: Key, decimals: int | None = None) -> Markup:
        """`low` to `high` under the keys, with the decimals of the `mean` by default; nothing if they are missing."""
        low, high, mean = (self.number(*keys, name) for name in ("low", "high", "mean"))
        if low is None or high is None:
            return Markup("")
        if decimals is None:
            decimals = decimals_of(high if mean is None else mean)
        return Markup("{} to {}").format(
            self.figure(*keys, "low", decimals=decimals), self.figure(*keys, "high", decimals=decimals)
        )


def flat(keys: tuple[Key, ...]) -> list[str | int]:
    """Keys without the tuples around them."""
    return [
        key for keys_or_key in keys for key in (flat(keys_or_key) if isinstance(keys_or_key, tuple) else [keys_or_key])
    ]


def pointer(*keys: Key) -> str:
    """The keys as a JSON pointer.

    >>> pointer("systems", 0, "a/b")
    '/systems/0/a~1b'
    """
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in flat(keys))


def decimals_of(number: float) -> int:
    """How many decimals make three digits of a number, at most three.

    >>> [decimals_of(number) for number in (0.1234, 9.87, 12.34, 123.4)]
    [3, 2, 1, 0]
    """
    size = abs(number)
    return 3 if size <= 1 else 2 if size < 10 else 1 if size < 100 else 0


def printed(number: float, decimals: int | None = None) -> str:
    """A number for readers: a true minus, thousands apart, tiny ones by their exponent.

    >>> printed(2048), printed(-1.2345), printed(0.00004), printed(10.0)
    ('2,048', '−1.23', '4.0e−05', '10.0')
    """
    if isinstance(number, int):
        text = f"{number:,}"
    elif decimals is None and 0 < abs(number) < 0.0005:
        text = f"{number:.1e}"
    else:
        text = f"{number:,.{decimals_of(number) if decimals is None else decimals}f}"
    return text.replace("-", "−")
