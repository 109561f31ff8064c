"""Strict reading of files that people write: UTF-8 text, YAML with unique keys of type string, and plain names."""

import re
from pathlib import Path

import yaml

from ccdlib.base.registry import CcdError


def text_of(file: str | Path) -> str:
    """The text of a file; `~` in its path is expanded. Errors: CcdError for a file that cannot be read or is not UTF-8."""
    path = Path(file).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CcdError(f"{path} is not UTF-8 text (byte {error.start} is invalid); save it as UTF-8") from error
    except OSError as error:
        raise CcdError(f"{path} cannot be read ({error.strerror}); give an existing file that you may read") from error


class _Strict(yaml.SafeLoader):
    """A YAML loader for which a repeated key, or one that is no string, is an error; YAML silently takes the last one."""

    def construct_mapping(self, node, deep=False):
        merge = "tag:yaml.org,2002:merge"  # of the key `<<`, which inserts the keys of another mapping
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != merge]
        for key in keys:
            if not isinstance(key, str):
                raise CcdError(f"the key {key!r} is of type {type(key).__name__}; keys must be strings, so put it in quotes")
            if keys.count(key) > 1:
                raise CcdError(f"the key {key!r} appears {keys.count(key)} times; write it once")
        return super().construct_mapping(node, deep)


# Built whole (deep), where PyYAML itself uses generators, so that a value that contains itself is an error.
_Strict.add_constructor("tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node, deep=True))
_Strict.add_constructor("tag:yaml.org,2002:seq", lambda loader, node: loader.construct_sequence(node, deep=True))


def value_of(text: str, where: object, advice: str = "write one `name: value` a line") -> object:
    """The value that YAML or JSON `text` stands for.

    where: the place of the text, for messages; advice: what to do about text that is no YAML. Errors: CcdError for a text
    that cannot be read, and for mappings with repeated keys or keys that are no strings.
    """
    try:
        return yaml.load(text, _Strict)
    except CcdError as error:
        raise CcdError(f"{where}: {error}") from None
    except RecursionError:
        raise CcdError(f"{where} is nested too deeply; write it with fewer levels") from None
    except ValueError as error:  # an impossible date, or a number of thousands of digits
        raise CcdError(f"{where} has a value that cannot be read ({error}); write another one, or put it in quotes") from None
    except yaml.YAMLError as error:
        raise CcdError(f"{where} cannot be read as YAML ({error}); {advice}") from error


def check_name(name: str, what: str) -> None:
    """Raise CcdError unless `name` can name a file or folder and is no path; what: the thing it names, for the message."""
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise CcdError(f"{what} {name!r} is not a valid name; allowed are letters, digits, `_`, `.`, `+` and `-`, but no path")
