"""Options from texts and files: flags of the command line, TOML, and the `run.json` of an earlier run.

A TOML file has the names of the flags, with underscores, flat or in sections of any name:

    ld = "ld.h5"              # paths are relative to the file
    sumstats = "height.parquet"
    [network]
    network = "residual"
    width = 256
    [training]
    steps = 2000
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
import types
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from deepwas.errors import InputError
from deepwas.files import require_file, require_parent, write_text
from deepwas.options import FitOptions

__all__ = ["OPTIONS", "PATHS", "choices", "convert", "parse", "read_config", "write_config"]

OPTIONS = tuple(field.name for field in fields(FitOptions))
PATHS = ("ld", "sumstats", "annotations", "tracks", "sequence", "out")
_SWITCHES = ("tensorboard",)


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(FitOptions)


def choices(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the one type."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def parse(name: str, text: str) -> Any:
    """The value of an option from the text of its flag: words, numbers, or several with commas between; or 'none'."""
    known = choices(_hints()[name])
    words = [word for x in known for word in (get_args(x) if get_origin(x) is Literal else ())]
    if text in words:
        return text
    if type(None) in known and text in ("none", "learned" if name == "noise" else "none"):
        return None
    for choice in known:
        try:
            if choice in (int, float):
                return choice(text)
            if get_origin(choice) is tuple:
                kind = get_args(choice)[0]
                return tuple(kind(x.strip()) for x in text.split(",") if x.strip())
        except ValueError:
            continue
    raise InputError(f"--{name.replace('_', '-')} {text!r}: give {_wanted(name)}.")


def convert(name: str, value: Any, where: str) -> Any:
    """The value of an option from one of TOML or JSON, its type checked; `where` it stands is for the error."""
    for choice in choices(_hints()[name]):
        kind = get_origin(choice)
        if kind is Literal:
            if value in get_args(choice):
                return value
        elif kind is tuple:
            of = get_args(choice)[0]
            if isinstance(value, list | tuple) and all(_is(x, of) for x in value):
                return tuple(value)
        elif choice is float and _is(value, int):
            return float(value)
        elif _is(value, choice):
            return value
    if isinstance(value, str):  # as for the flag
        with suppress(InputError):
            return parse(name, value)
    raise InputError(f"{where} is {value!r}; give {_wanted(name)}.")


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)


def _wanted(name: str) -> str:
    """What values an option takes, in words."""
    if name == "hidden":
        return "one width per layer, such as 32,32"
    if name == "noise":
        return "'learned', or a number such as 1"
    said = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", type(None): "none"}
    out: list[str] = []
    for choice in choices(_hints()[name]):
        words = get_args(choice)
        if get_origin(choice) is Literal:
            out.append(f"one of {', '.join(words)}" if len(words) > 1 else f"'{words[0]}'")
        elif get_origin(choice) is tuple:
            out.append("several, such as " + ("32,32" if get_args(choice)[0] is int else "21,22"))
        else:
            out.append(said[choice])
    return " or ".join(out)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a TOML file, or the options in a run's `run.json`, by name, checked one by one.

    Paths (ld, sumstats, annotations, tracks, sequence, out) are relative to the TOML file; a run's record has none.
    InputError names the file and the key at fault.
    """
    found = require_file(path, "a configuration, .toml or run.json")
    if found.suffix == ".json":
        return _of_record(found)
    try:
        content = tomllib.loads(found.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{found}: not valid TOML ({error}).") from error
    out: dict[str, Any] = {}
    for name, value in content.items():
        section = value.items() if isinstance(value, dict) else [(name, value)]
        prefix = f"[{name}] " if isinstance(value, dict) else ""
        for key, given in section:
            where = f"{found}: {prefix}{key}"
            if key in out:
                raise InputError(f"{where} is given twice. Leave one out.")
            out[key] = _setting(key, given, where, found.parent)
    return out


def _setting(key: str, value: Any, where: str, folder: Path) -> Any:
    if key in OPTIONS:
        return convert(key, value, where)
    if key in _SWITCHES:
        if not isinstance(value, bool):
            raise InputError(f"{where} is {value!r}; give true or false.")
        return value
    if key not in PATHS:
        known = [*OPTIONS, *PATHS, *_SWITCHES]
        close = difflib.get_close_matches(key, known, n=3)
        hint = f"Did you mean {', '.join(close)}?" if close else "Names are those of the flags of `deepwas fit`."
        raise InputError(f"{where} is not an option. {hint}")
    several = value if isinstance(value, list) else [value]
    if not several or not all(isinstance(x, str) for x in several):
        raise InputError(f"{where} is {value!r}; give a path.")
    if key != "annotations" and isinstance(value, list):
        raise InputError(f"{where} is a list; give one path.")
    paths = [folder / x for x in several]
    return paths if key == "annotations" else paths[0]


def _of_record(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(content, dict) or content.get("format") != "deepwas-run" or "options" not in content:
        raise InputError(f"{path}: not the record of a deepwas run. Give its run.json, or a TOML file.")
    options = FitOptions.of_record(content["options"])
    return {name: getattr(options, name) for name in OPTIONS}


def write_config(
    path: str | os.PathLike[str],
    paths: Mapping[str, Any],
    options: FitOptions,
    sections: Mapping[str, Iterable[str]],
    *,
    tensorboard: bool = False,
) -> None:
    """Write a TOML file that `read_config` reads back: the paths given, absolute, and every option in its section.

    What is not set stands in a comment: paths and switches not given, and options that are None, for which TOML has no
    value, and which stand for a default that hangs on other options.
    """
    import tomli_w

    def absolute(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [absolute(x) for x in value]
        return str(Path(value).resolve())

    lines = [tomli_w.dumps({n: absolute(paths[n])}) if paths.get(n) else f"# {n} =\n" for n in PATHS]
    lines.append("tensorboard = true\n" if tensorboard else "# tensorboard = false\n")
    values = options.as_dict()
    for section, names in sections.items():
        lines.append(f"\n[{section.lower() if section.isalpha() else json.dumps(section.lower())}]\n")
        for name in names:
            unset = f"# {name} =  # {_unset(name, options)}\n"
            lines.append(unset if values[name] is None else tomli_w.dumps({name: values[name]}))
    write_text(require_parent(path), "".join(lines))


def _unset(name: str, options: FitOptions) -> str:
    """What holds where an option is None."""
    held: Any = {
        "width": options.channels if options.network in ("residual", "cnn", "enformer") else None,
        "bound": options.output_bound or 0,
        "variants_at_once": options.chunk or 0,
        "learning_rate": options.peak_learning_rate,
    }.get(name)
    said = {"noise": "learned", "memory": "half of what is free"}
    return said.get(name) or ("not used" if held is None else f"default: {held:g}")
