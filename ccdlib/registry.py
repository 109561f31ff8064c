"""Things by name: every registry of the kit is a dict whose wrong names get a helpful answer."""

from difflib import get_close_matches

GOES_ON = "The same command goes on from here; what is finished is kept."  # said where a training was stopped


class CcdError(ValueError):
    """A mistake of the caller that can be put right; the text says what was given, what is allowed and what to do."""


class UnknownName(CcdError, KeyError):
    """A name that no registry row has. Also a KeyError, because registries are dicts."""

    __str__ = ValueError.__str__  # KeyError would print the message in quotes


def unknown(kind, name, allowed, hint=""):
    """The error for a wrong name: the near misses first, then everything that is allowed."""
    allowed = [str(a) for a in allowed]
    by_lower = {a.lower(): a for a in allowed}
    near = get_close_matches(str(name).lower(), by_lower, n=1)
    guess = f" Did you mean {by_lower[near[0]]!r}?" if near else ""
    return UnknownName(f"unknown {kind} {name!r}.{guess} Allowed: {', '.join(allowed)}.{hint}")


class Registry(dict):
    """A dict of one kind of thing ("loss", "model", ...), filled where the things are defined."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def __missing__(self, name):
        raise unknown(self.kind, name, self)

    def add(self, name):
        """Decorator: `@LOSSES.add("kd")` above a definition makes it a row."""

        def keep(thing):
            if name in self:
                raise CcdError(f"the {self.kind} {name!r} is defined twice; give one of them another name")
            self[name] = thing
            return thing

        return keep
