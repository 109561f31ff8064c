"""The rooms of the library: arrows that point down, small modules, and doors that say what is behind them."""

import ast
import inspect
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ccdlib"
ROOMS = ("cli", "kit", "analyses", "evidence", "training", "methods", "models", "views", "data", "base")  # the top floor first
SCIENCE = ("data", "views", "models", "methods", "evidence/stats.py")
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "plugins" not in path.parts)
SLOW = ("ccdlib.base.vision",)  # may be imported inside a function: torchvision takes a second


def name_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path):
    return ast.parse(path.read_text())


def imported(path, nodes=None):
    """The modules of the library that a module imports, `from ccdlib.x import y` as ccdlib.x.y where that is a module."""
    known = {name_of(other) for other in MODULES}
    for node in ast.walk(tree(path)) if nodes is None else nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ccdlib"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("ccdlib"))


def floor(module):
    room = module.split(".")[1]
    return ROOMS.index(room)


def test_every_module_is_in_a_room():
    rooms = {path.relative_to(PACKAGE).parts[0] for path in MODULES}
    assert rooms == {*ROOMS, "__init__.py", "__main__.py"}


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent != PACKAGE], ids=name_of)
def test_arrows_point_down(path):
    up = [other for other in imported(path) if floor(other) < floor(name_of(path))]
    assert not up, f"{name_of(path)} imports from a floor above: {up}"


def test_no_modules_import_each_other_in_a_circle():
    arrows = {name_of(path): {*imported(path)} - {name_of(path)} for path in MODULES}
    # A package's own door imports what is behind it; a module that names the door of its own room would be a circle.
    while leaves := [name for name, others in arrows.items() if not others & arrows.keys()]:
        for name in leaves:
            del arrows[name]
    assert not arrows, f"these import each other: {sorted(arrows)}"


def test_nothing_is_imported_inside_a_function_to_hide_a_circle():
    for path in MODULES:
        inside = [n for f in ast.walk(tree(path)) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)]
        assert {*imported(path, inside)} <= {*SLOW}, name_of(path)


@pytest.mark.parametrize("room", ROOMS)
def test_a_door_says_in_a_few_lines_what_lives_there_and_what_it_may_import(room):
    said = ast.get_docstring(tree(PACKAGE / room / "__init__.py"))
    assert "import" in said
    assert len(said.splitlines()) <= 9
    if room not in ("cli", "analyses"):
        missing = [path.name for path in (PACKAGE / room).glob("[a-z]*.py") if path.name not in said]
        assert not missing, f"the docstring of ccdlib/{room} does not name {missing}"


def test_sizes():
    lines = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert not {path.name: n for path, n in lines.items() if n > 450}
    science = sum(n for path, n in lines.items() if path.relative_to(PACKAGE).as_posix().startswith(SCIENCE))
    # With docstrings and annotations of everything public: about a third of all lines are words.
    assert science < 5300
    assert sum(lines.values()) < 15200


def public():
    """(where, thing) of every public function, class and method of the library."""
    for path in MODULES:
        __import__(name_of(path)) if name_of(path) != "ccdlib.__main__" else None
        module = sys.modules.get(name_of(path))
        for name, thing in vars(module).items() if module else ():
            if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
                continue
            if inspect.isclass(thing):
                yield f"{module.__name__}.{name}", thing
                for inner, method in vars(thing).items():
                    function = getattr(method, "__func__", getattr(method, "fget", method))
                    if not inner.startswith("_") and inspect.isfunction(function) and function.__module__ == module.__name__:
                        yield f"{module.__name__}.{name}.{inner}", function
            elif inspect.isfunction(thing):
                yield f"{module.__name__}.{name}", thing


def test_everything_public_says_what_it_is():
    assert not [where for where, thing in public() if not inspect.getdoc(thing)]


def test_every_public_function_is_annotated():
    lacking = []
    for where, thing in public():
        if inspect.isfunction(thing):
            signature = inspect.signature(thing)
            bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name not in ("self", "cls")]
            bare = [name for name in bare if signature.parameters[name].kind not in (2, 4)]  # *args and **options say little
            if bare or signature.return_annotation is signature.empty:
                lacking.append(f"{where}: {', '.join(bare) or 'what it returns'}")
    assert not lacking, f"{len(lacking)} without annotations"
