"""Parameters of notebooks: what their parameters cell declares, what a profile changes, and what a person asks for."""

import ast
import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ccdlib.base import paths
from ccdlib.base.arithmetic import Arithmetic, resolved
from ccdlib.base.devices import best_device
from ccdlib.base.reading import check_name, text_of, value_of
from ccdlib.base.registry import CcdError, unknown
from ccdlib.data.sources import source_of


def cells_of(path: Path, shown: str) -> list[dict]:
    """The cells of a notebook, each with "cell_type", "source" as one text, and "metadata" with "tags" if it has some; CcdError
    for what is no notebook. shown: its path for messages."""
    try:
        cells = json.loads(text_of(path))["cells"]
        for cell in cells:
            cell["source"] = "".join(cell["source"])
            if not (isinstance(cell["cell_type"], str) and isinstance(cell["metadata"].get("tags", []), list)):
                raise TypeError("a cell has no type, or its tags are not a list")
        return cells
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, CcdError):
            raise
        raise CcdError(f"{shown} is not a notebook ({error!r}); restore it, for example from git") from error


DEFAULT = "lite"  # the profile whose values the parameters cells hold
SMOKE = "smoke"  # the profile for tests, whose results are never published
TYPES = {"int": int, "float": (int, float), "str": str, "bool": bool, "list": list}


def title_of(path: Path) -> str:
    """The title of a notebook: its first heading, or its name where it has none."""
    cells = (cell["source"] for cell in cells_of(path, paths.shown(path)) if cell["cell_type"] == "markdown")
    return next((text.splitlines()[0].removeprefix("# ").strip() for text in cells if text.startswith("# ")), path.stem)


def find(name: str) -> Path:
    """The path of a notebook given by path or by stem; CcdError when there is none."""
    stems = sorted(path.stem for path in paths.NOTEBOOKS.glob("*.ipynb"))
    path = Path(name).expanduser()
    if path.suffix != ".ipynb":
        check_name(str(name), "notebook")
        path = paths.NOTEBOOKS / f"{name}.ipynb"
    elif not path.is_absolute() and not path.exists():
        path = paths.ROOT / path
    if not path.is_file():
        raise unknown("notebook", name, stems, " Give a stem, or the path of an .ipynb file.")
    return path.resolve()


def parameters_of(path: Path) -> dict[str, tuple[str, Any]]:
    """{name: (type name, default)} of a notebook's parameters cell.

    Read from the syntax tree, because the kernel needs it too and papermill takes seconds to import; a test holds it
    against papermill.inspect_notebook. CcdError for a line that papermill could not fill in.
    """
    cells = cells_of(path, paths.shown(path))
    tagged = [cell["source"] for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise CcdError(f"{paths.shown(path)} has {len(tagged)} cells tagged `parameters`; it needs exactly one")
    values = {}
    try:
        lines = ast.parse(tagged[0]).body
    except SyntaxError as error:
        raise CcdError(f"{paths.shown(path)}: the parameters cell is not valid Python: {error}") from error
    for line in lines:
        try:
            kind, default = line.annotation.id, ast.literal_eval(line.value)
        except (AttributeError, ValueError):
            raise CcdError(
                f"{paths.shown(path)}: `{ast.unparse(line)}` in the parameters cell; each line must read `name: type = value`, "
                "with a literal value"
            ) from None
        values[line.target.id] = (
            kind,
            _typed(line.target.id, default, kind, f"the parameters cell of {paths.shown(path)}"),
        )
    return values


def checked(path: Path, given: dict, where: str) -> dict:
    """`given` as the notebook at `path` wants it; CcdError for an unknown name or a wrong type."""
    known = parameters_of(path)
    values = {}
    for name, value in given.items():
        if name == "profile":
            raise CcdError(
                f"profile = {value!r} in {where}: choose the profile by --profile, because it names the folder of the results"
            )
        if name not in known:
            raise unknown(f"parameter in {where}", name, known, f" They are those of {paths.shown(path)}.")
        values[name] = _typed(name, value, known[name][0], where)
    return values


def _typed(name, value, kind, where):
    if kind == "float" and isinstance(value, str):  # YAML reads 1e-3 as a string
        with suppress(ValueError):
            value = float(value)
    if kind not in TYPES:
        raise CcdError(f"parameter {name} in {where} has the type {kind!r}; allowed are {', '.join(TYPES)}")
    right = isinstance(value, TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))
    if not right:
        raise CcdError(f"parameter {name} = {value!r} in {where}: it must be of type {kind}, not {type(value).__name__}")
    return value


def profile_parameters(path: Path, profile: str) -> dict:
    """All parameters of a notebook under a profile: its parameters cell, changed by params/<profile>/<stem>.yaml."""
    values = {name: default for name, (_, default) in parameters_of(path).items()}
    if profile == DEFAULT:
        return values
    check_name(profile, "profile")
    file = paths.PARAMS / profile / f"{path.stem}.yaml"
    if not file.is_file():
        known = sorted([DEFAULT, *(p.parent.name for p in paths.PARAMS.glob(f"*/{path.stem}.yaml"))])
        raise unknown(f"profile of {path.stem}", profile, known)
    return values | read_yaml(path, file) | {"profile": profile}


def profiles() -> list[str]:
    """The names of all profiles."""
    return sorted([DEFAULT, *(folder.name for folder in paths.PARAMS.iterdir() if folder.is_dir())])


def read_yaml(path: Path, file: str | Path) -> dict:
    """The parameters in a yaml file, checked against the notebook at `path`."""
    given = value_of(text_of(file), paths.shown(file)) or {}
    if not isinstance(given, dict):
        raise CcdError(f"{file} holds a {type(given).__name__}; write one `name: value` a line")
    return checked(path, given, paths.shown(file))


def label(path: Path, profile: str, parameters: dict) -> str:
    """The name of the output folder: the profile, with a short hash of whatever differs from it.

    So a run with own parameters never overwrites the profile's results, whichever way the notebook was started.
    """
    expected = profile_parameters(path, profile)
    changed = {name: parameters[name] for name in expected if parameters[name] != expected[name] and name != "profile"}
    if not changed:
        return profile
    return f"{profile}-{hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:6]}"


def asked_for(
    name: str,
    profile: str = DEFAULT,
    files: Sequence[str] = (),
    given: Sequence[tuple[str, str]] = (),
    elsewhere: bool = False,
) -> tuple[Path, dict]:
    """(path, all parameters) of a notebook under a profile, yaml `files` and `given` (name, text) pairs.

    Each overrides what came before. Errors: CcdError for an unknown name, a wrong type, or data that is not there, unless it
    may be `elsewhere`.
    """
    path = find(name)
    values = profile_parameters(path, profile)
    for file in files:
        values |= read_yaml(path, file)
    kinds = parameters_of(path)
    parsed = {key: text if kinds.get(key, "?")[0] == "str" else _parsed(key, text) for key, text in given}
    values |= checked(path, parsed, "-p")
    if "data" in values and (present(values["data"]) or not elsewhere):
        values["data"] = _absolute(values["data"])
    return path, values


def present(data: str) -> bool:
    """Whether a data set that is named by a path is there; True for the others."""
    _, path = source_of(data)
    return path is None or path.exists() or (paths.ROOT / path).exists()


def _absolute(data):
    """A data set's name with an absolute path, because the kernel runs elsewhere; CcdError when it is not there."""
    _, path = source_of(data)
    if path is None:
        return data
    found = path if path.exists() else paths.ROOT / path
    if not found.exists():
        raise CcdError(
            f"there is no {path} (data {data!r}); give an existing file (npz:PATH) or folder (folder:, imagenet:, coco:PATH)"
        )
    return f"{data.partition(':')[0]}:{found.resolve()}"


def _parsed(name, text):
    return value_of(text, f"-p {name} {text!r}", "write a number, a word, or a list such as [1, 2]")


def arithmetic_of(parameters: dict) -> Arithmetic:
    """The arithmetic that the parameters of a notebook ask for on this machine."""
    return resolved(parameters.get("precision", "auto"), parameters.get("portable", False), best_device().type)


CHECKED = "CCD_CHECKED"  # the variable by which a command tells the kernel that it has checked all runs of a notebook


def checksum(stem: str, parameters: dict) -> str:
    """A text that is another one for another notebook or other parameters."""
    return hashlib.sha256(json.dumps([stem, parameters], sort_keys=True).encode()).hexdigest()
