"""Digests of source code: a short text that changes when a reader's function, class or row would do something else.

A digest covers the code without comments and docstrings, its defaults, the values of its closure, and everything of the
reader's own that it refers to: functions, classes, modules, numbers, text and tensors. Of libraries, and of the kit itself, it
covers the names only. Runs with a reader's rows are named by these digests, so that an edited row never meets an old run.
"""

import ast
import dis
import functools
import hashlib
import inspect
import linecache
import sys
import sysconfig
import textwrap
import types
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import torch

PACKAGE = __name__.partition(".")[0]
LIBRARIES = tuple({str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
PLAIN = (str, bytes, int, float, complex, bool, type(None), type(...), torch.device, torch.dtype, range, slice)


def digest(thing: object) -> str:
    """Sixteen hexadecimal digits for `thing`. Errors: TypeError where it refers to an object whose content cannot be read."""
    return hashlib.sha256("\n".join(_facts(thing, {})).encode()).hexdigest()[:16]


def _facts(thing, seen):
    """Lines of text that determine what a thing does. seen: the ids of objects that are covered already."""
    if isinstance(thing, PLAIN):
        return [repr(thing)]
    if isinstance(thing, torch.Tensor | np.ndarray):
        array = np.ascontiguousarray(thing.detach().cpu() if isinstance(thing, torch.Tensor) else thing)
        return [f"array {array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"]
    if id(thing) in seen:
        return ["seen"]
    seen[id(thing)] = thing  # kept alive, so that no other object gets its number
    if isinstance(thing, types.FunctionType | type | types.ModuleType | types.BuiltinFunctionType):
        return _code(thing, seen)
    return [f"{type(thing).__name__}(", *_content(thing, seen), ")"]


def _content(thing, seen):
    if isinstance(thing, dict):
        pairs = sorted(thing.items(), key=lambda pair: str(pair[0]))
        return [line for pair in pairs for part in pair for line in _facts(part, seen)]
    if isinstance(thing, set | frozenset):
        return sorted(line for part in thing for line in _facts(part, seen))
    if isinstance(thing, list | tuple):
        return [line for part in thing for line in _facts(part, seen)]
    if isinstance(thing, functools.partial):
        return _facts((thing.func, thing.args, thing.keywords), seen)
    if isinstance(thing, types.MethodType):
        return _facts((thing.__func__, thing.__self__), seen)
    if is_dataclass(thing):
        return _facts(type(thing), seen) + _facts([getattr(thing, field.name) for field in fields(thing)], seen)
    if hasattr(thing, "model_dump_json"):  # a RunConfig, say
        return [thing.model_dump_json()]
    if isinstance(thing, torch.nn.Module):
        return _facts(type(thing), seen) + _facts(dict(thing.state_dict()), seen) + [repr(thing)]
    if not _own(type(thing)) and hasattr(thing, "__dict__"):
        return _facts(type(thing), seen) + _facts(vars(thing), seen)
    raise TypeError(f"it refers to a {type(thing).__module__}.{type(thing).__qualname__}, whose content cannot be read")


def _own(thing):
    """Whether a function, class or module belongs to a library or to the kit, so that its name is enough."""
    name = thing.__name__ if isinstance(thing, types.ModuleType) else getattr(thing, "__module__", None) or ""
    if name.partition(".")[0] in (PACKAGE, "builtins"):
        return True
    if name == "__main__":
        return False
    file = getattr(sys.modules.get(name), "__file__", None)
    return str(Path(file).resolve()).startswith(LIBRARIES) if file else name in sys.builtin_module_names


def _code(thing, seen):
    if isinstance(thing, types.BuiltinFunctionType) or _own(thing):
        return [f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', thing.__name__)}"]
    if isinstance(thing, types.ModuleType):
        file = getattr(thing, "__file__", None)
        return [hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else thing.__name__]
    if isinstance(thing, type):
        parts = [part for part in vars(thing).values() if isinstance(_function(part), types.FunctionType)]
        lines = [_class_source(thing, parts), *(line for base in thing.__bases__ for line in _facts(base, seen))]
        values = {name: value for name, value in vars(thing).items() if not name.startswith("__") and isinstance(value, PLAIN)}
        return lines + _facts(values, seen) + [line for part in parts for line in _referred(_function(part), seen)]
    return [_function_source(thing), *_referred(thing, seen)]


def _function(thing):
    """The function inside a static method, class method or property; anything else as it is."""
    thing = getattr(thing, "fget", thing)
    return getattr(thing, "__func__", thing)


def _referred(function, seen):
    """The facts of what a function refers to: defaults, closure, and the globals that its code and its inner functions name."""
    names, codes = {}, [function.__code__]
    while codes:
        code = codes.pop()
        names |= dict.fromkeys(
            step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
        )
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    found = {name: function.__globals__[name] for name in sorted(names) if name in function.__globals__}
    cells = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if name != "__class__":  # the cell that super() needs
            cells[name] = cell.cell_contents
    return _facts([function.__defaults__, function.__kwdefaults__, cells, found], seen)


_LINES: dict[str, list[str]] = {}  # by file name: the source as it was when its code was executed


def remember(filename: str) -> None:
    """Keep the source of a file or notebook cell whose code has just been executed, because the file may be edited later."""
    linecache.checkcache(filename)
    _LINES[filename] = linecache.getlines(filename)


def _lines(code):
    if code.co_filename not in _LINES:
        remember(code.co_filename)
    return _LINES[code.co_filename]


def _function_source(function):
    code = function.__code__
    try:
        block = inspect.getblock(_lines(code)[code.co_firstlineno - 1 :] or [""])
        return _normal(ast.parse(textwrap.dedent("".join(block)))) or _bytecode(code)
    except (SyntaxError, IndexError):  # a prompt keeps no source, and a lambda's may be half a statement
        return _bytecode(code)


def _class_source(cls, parts):
    """The source of a class, found by its methods: `inspect` does not find a class of a notebook cell."""
    for part in parts:
        code = _function(part).__code__
        text = "".join(_lines(code))
        for node in ast.walk(ast.parse(text)) if text else ():
            if (
                isinstance(node, ast.ClassDef)
                and node.name == cls.__name__
                and node.lineno <= code.co_firstlineno <= node.end_lineno
            ):
                return _normal(node)
    return "\n".join(_bytecode(_function(part).__code__) for part in parts)


def code_of(path: Path) -> str:
    """The code of a Python file in a fixed layout, without comments and docstrings, so that better words change nothing."""
    return _normal(ast.parse(path.read_text()))


def _normal(tree):
    """The source of a syntax tree in a fixed layout, without comments and docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Module) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


def _bytecode(code):
    inner = [_bytecode(constant) if isinstance(constant, types.CodeType) else repr(constant) for constant in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {inner}"
