"""Settings of methods: arguments with defaults, whose annotations say which values are allowed; checked before any training.

A setting has the type of its default. An annotation such as `Annotated[float, Range(0, 1)]` limits a number, and one such as
`Annotated[str, WEIGHTS]` or a `Literal` says which words are allowed.
"""

import inspect
import math
import typing
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

from ccdlib.base.registry import CcdError, Registry, unknown

MOST = 1_000_000  # the largest number that Size and Whole allow


class Range(NamedTuple):
    """The numbers from `low` to `high`; above: `low` itself is not allowed."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def holds(self, value: float) -> bool:
        """Whether a value lies in the range; infinity and NaN never do."""
        return math.isfinite(value) and self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self):
        low = f"{'above' if self.above else 'from'} {self.low:,.15g} " if self.low > -math.inf else ""
        return f"{low}up to {self.high:,.15g}" if self.high < math.inf else low.strip() or "that are finite"


Above = Annotated[float, Range(0, 1000, above=True)]  # a temperature
Size = Annotated[float, Range(0, MOST)]  # how much a term counts
Part = Annotated[float, Range(0, 1)]  # a share
Whole = Annotated[int, Range(1, MOST)]  # a count


@lru_cache(maxsize=256)
def defaults_of(function: Callable) -> dict[str, Any]:
    """{setting: default} of a loss or of a method's constructor: its arguments that have a default."""
    parameters = inspect.signature(function).parameters
    return {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}


def check(name: str, function: Callable, settings: Mapping[str, Any]) -> None:
    """Raise CcdError unless `settings` are settings of the method `name`, of the right type and in their range."""
    known, hints = defaults_of(function), _hints(function)
    for key, value in settings.items():
        if key not in known:
            raise unknown(f"setting of method {name!r}", key, known or ["(this method has none)"])
        _check_type(name, key, value, type(known[key]), known[key])
        limits = getattr(hints.get(key), "__metadata__", ())
        words = typing.get_args(hints[key]) if typing.get_origin(hints.get(key)) is typing.Literal else ()
        for allowed in [limit for limit in limits if isinstance(limit, Registry)] + [words] * bool(words):
            if value not in allowed:
                raise unknown(f"{key} of method {name!r}", value, allowed)
        if isinstance(value, int | float) and not isinstance(value, bool):
            bounds = next((limit for limit in limits if isinstance(limit, Range)), Range())
            _check_number(name, key, value, isinstance(known[key], int), bounds)


def _check_type(name, key, value, kind, default):
    right = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    if default is not None and not right:
        raise CcdError(f"setting {key} = {value!r} of method {name!r}: it must be a {kind.__name__}, such as {default!r}")


def _check_number(name, key, value, whole, limits):
    if not limits.holds(value):
        what = "whole numbers" if whole else "numbers"
        raise CcdError(f"setting {key} = {value!r} of method {name!r}: allowed are {what} {limits}")


@lru_cache(maxsize=256)
def _hints(function):
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # annotations of a reader's function may name what no longer exists; then its settings have no limits
        return {}


def words_in(function: Callable, settings: Mapping[str, Any]) -> list[tuple[Registry, str]]:
    """The rows of registries that settings or their defaults name, as [(registry, name)], such as (WEIGHTS, "cosine")."""
    hints, found = _hints(function), defaults_of(function) | dict(settings)
    return [
        (limit, value)
        for key, value in found.items()
        for limit in getattr(hints.get(key), "__metadata__", ())
        if isinstance(limit, Registry)
    ]
