"""Registries: dicts of things by name, which answer a wrong name with the right ones and know which rows a reader added."""

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from ccdlib.base import sources

GOES_ON = "The same command goes on from here; what is finished is kept."  # said wherever a training is interrupted


class CcdError(ValueError):
    """A mistake that the caller can correct; the message says what was given, what is allowed and what to do."""


class UnknownName(CcdError, KeyError):
    """A name that a registry does not have. It is also a KeyError, because registries are dicts."""

    __str__ = ValueError.__str__  # KeyError would print the message in quotes


def unknown(kind: str, name: object, allowed: Iterable, hint: str = "") -> UnknownName:
    """The error for a `name` that no `kind` has: it suggests the nearest allowed name, lists all of them, and adds `hint`."""
    allowed = [str(a) for a in allowed]
    by_lower = {a.lower(): a for a in allowed}
    near = get_close_matches(str(name).lower(), by_lower, n=1)
    guess = f" Did you mean {by_lower[near[0]]!r}?" if near else ""
    return UnknownName(f"unknown {kind} {name!r}.{guess} Allowed: {', '.join(allowed)}.{hint}")


class Added(NamedTuple):
    """A row that a reader's own code added to a registry."""

    kind: str  # of the registry
    name: str
    thing: Any
    options: dict
    file: str | None  # of the module that added it; None: a notebook cell, a prompt or a script, which cannot be imported
    sent: str | None = None  # its digest in the process that sent it; None for a row that was added in this process

    def digest(self) -> str:
        """The digest of the thing and its options, and of everything of the reader's own that they refer to (see sources).

        Errors: CcdError where they refer to an object whose content cannot be read.
        """
        try:
            return self.sent or sources.digest((self.thing, self.options))
        except TypeError as error:
            raise CcdError(
                f"later changes of the {self.kind} {self.name!r} could not be noticed: {error}. Refer to numbers, text, "
                "tensors and functions only, or create the object inside the function"
            ) from None


REGISTRIES: dict[str, "Registry"] = {}  # by kind
_sealed = False


def seal() -> None:
    """Declare the kit's own rows complete: rows that are added later are a reader's, and their digests name runs."""
    global _sealed
    _sealed = True


class Registry(dict):
    """A dict of one kind of thing ("loss", "model", ...), filled where the things are defined.

    row: a function (name, thing, **options) that makes the value of a row; None: the value is the thing itself. options: those
    that add() takes, with their defaults. `added` holds the rows of a reader by name, `options` the options of every row. A
    missing name raises UnknownName.
    """

    def __init__(self, kind: str, row: Callable | None = None, **options: Any):
        super().__init__()
        self.kind, self._row, self._defaults = kind, row, options
        self.options: dict[str, dict] = {}
        self.added: dict[str, Added] = {}
        self._followers: list[tuple[Registry, Callable]] = []
        REGISTRIES[kind] = self

    def __missing__(self, name):
        raise unknown(self.kind, name, self)

    def add(self, name: str, **options: Any) -> Callable:
        """A decorator that makes a definition a row: `@LOSSES.add("kd")`.

        A reader's own row may be defined again, as when a notebook cell is executed again. Errors: CcdError for a name of the
        kit's own, for options that the registry does not know, and for a reader's thing that cannot be digested.
        """

        for option in options:
            if option not in self._defaults:
                raise unknown(f"option of a {self.kind}", option, self._defaults or ["(it has none)"])

        def keep(thing):
            self._put(name, thing, options)
            return thing

        return keep

    def __setitem__(self, name, thing):
        self._put(name, thing, {})

    def update(self, *others: Mapping | Iterable[tuple[str, Any]], **rows: Any) -> None:
        """Add several rows, as dict.update does; errors as in add()."""
        for other in (*others, rows):
            for name, thing in dict(other).items():
                self._put(name, thing, {})

    def __ior__(self, rows: Mapping):
        self.update(rows)
        return self

    def follow(self, other: "Registry", row: Callable) -> None:
        """Keep a row, row(name, thing, **options), for every row that another registry has or will have."""
        other._followers.append((self, row))
        for name, thing in other.items():
            dict.__setitem__(self, name, row(name, thing, **other.options[name]))
            self.options[name] = other.options[name]

    def _put(self, name, thing, options):
        options = self._defaults | options
        for registry in (self, *(follower for follower, _ in self._followers)):
            registry._check_free(name)
        added = None
        if _sealed:
            if not (isinstance(name, str) and re.fullmatch(r"\w[\w.+-]*", name)):
                raise CcdError(f"{self.kind} {name!r}: allowed are letters, digits, `_`, `.`, `+` and `-`, but no path")
            caller = _caller()
            sources.remember(caller.f_code.co_filename)
            added = Added(self.kind, name, thing, options, _file_of(caller))
            added.digest()  # raises its error here rather than in a training
        self._keep(name, thing, options, added)

    def _check_free(self, name):
        if name in self and name not in self.added:
            raise CcdError(f"the {self.kind} {name!r} is the kit's own; give yours another name")

    def _keep(self, name, thing, options, added):
        rows = [(self, self._row or (lambda name, thing, **options: thing)), *self._followers]
        for registry, row in rows:
            dict.__setitem__(registry, name, row(name, thing, **options))
            registry.options[name] = options
            if added:
                registry.added[name] = added

    def receive(self, added: Added) -> None:
        """Add a row that another process sent; its digest stays the one that it has there."""
        self._keep(added.name, added.thing, added.options, added)

    def remove(self, name: str) -> None:
        """Remove a row that a reader added. Errors: CcdError for any other name."""
        if name not in self.added:
            raise unknown(f"{self.kind} of your own", name, self.added or ["(there is none)"])
        for registry in (self, *(follower for follower, _ in self._followers)):
            del registry[name], registry.added[name], registry.options[name]


def _caller():
    """The frame of the code outside of this module that adds a row."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    return frame


def _file_of(frame):
    """The file of the importable module that a frame belongs to; None for a notebook cell, a prompt or a script."""
    file = frame.f_globals.get("__file__")
    return str(Path(file).resolve()) if file and frame.f_globals.get("__name__") != "__main__" else None


class Subset(Mapping):
    """A live view of the rows of a registry for which belongs(row) is true; UnknownName names them as a `kind`."""

    def __init__(self, registry: Registry, kind: str, belongs: Callable[[Any], bool]):
        self.registry, self.kind, self.belongs = registry, kind, belongs

    def __getitem__(self, name):
        if name not in self:
            raise unknown(self.kind, name, self)
        return self.registry[name]

    def __contains__(self, name):
        return name in self.registry and self.belongs(self.registry[name])

    def __iter__(self):
        return (name for name, row in self.registry.items() if self.belongs(row))

    def __len__(self):
        return sum(1 for _ in self)
