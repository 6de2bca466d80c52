"""The specifications in `data_specs/`, and checking data against them.

Tables are specified as Frictionless Table Schemas, everything else as JSON Schemas (draft 2020-12).
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

from deepwas.errors import InputError

_TYPES = {"string": pl.String, "integer": pl.Int64, "number": pl.Float64, "boolean": pl.Boolean}


@cache
def load_spec(name: str) -> dict[str, Any]:
    """The specification called `name`, for example 'priors' for `data_specs/priors.schema.json`."""
    here = Path(__file__).resolve().parent
    for folder in (here / "data_specs", here.parent / "data_specs"):
        path = folder / f"{name}.schema.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    raise InputError(f"the specification {name!r} is not installed: reinstall deepwas.")


def validate_json(content: Any, name: str, where: str) -> None:
    """Check `content` against the JSON Schema `name`; `where` names the file in the error."""
    import jsonschema

    validator = jsonschema.Draft202012Validator(load_spec(name))
    errors = sorted(validator.iter_errors(content), key=lambda e: list(map(str, e.path)))
    if errors:
        first = errors[0]
        place = "/".join(map(str, first.path)) or "the top level"
        raise InputError(
            f"{where}: at {place}: {first.message} ({len(errors)} fault(s) against the {name} specification)."
        )


def validate_table(frame: pl.DataFrame, name: str, where: str) -> None:
    """Check `frame` against the Table Schema `name`: columns, order, types, and the constraints of each field.

    Fields whose constraint `required` is false may be left out altogether; further columns may follow the ones named.
    Constraints understood: required, unique, minimum, maximum, exclusiveMinimum, pattern, enum; any other is an error,
    so that no constraint can be written down and not checked.
    """
    fields = load_spec(name)["fields"]
    present = [f for f in fields if f["name"] in frame.columns]
    missing = [f["name"] for f in fields if f not in present and f.get("constraints", {}).get("required", False)]
    if missing:
        raise InputError(f"{where}: column {', '.join(missing)} is missing; found {' '.join(frame.columns)}.")
    expected = [f["name"] for f in present]
    if frame.columns[: len(expected)] != expected:
        raise InputError(
            f"{where}: columns must start {' '.join(expected)}, found {' '.join(frame.columns[: len(expected)])}."
        )
    for field in present:
        _check_field(frame, field, where)
    key = load_spec(name).get("primaryKey")
    if key and (twice := frame.select(pl.struct(key).is_duplicated()).to_series()).any():
        row = int(twice.arg_true()[0])
        raise InputError(f"{where}: row {row + 1}: {' '.join(key)} = {frame.select(key).row(row)} stands twice.")


def _check_field(frame: pl.DataFrame, field: dict[str, Any], where: str) -> None:
    name, column = field["name"], pl.col(field["name"])
    kind = _TYPES[field["type"]]
    found = frame.schema[name]
    fits = found == kind or (kind == pl.Float64 and found.is_numeric()) or (kind == pl.Int64 and found.is_integer())
    if not fits:
        raise InputError(f"{where}: column {name} holds {found}, the specification asks for {field['type']}.")
    present = column.is_not_null()
    checks: dict[str, pl.Expr] = {}
    for constraint, value in field.get("constraints", {}).items():
        match constraint:
            case "required":
                if value:
                    checks["a missing value"] = ~present
            case "unique":
                if value:
                    checks["a value that stands twice"] = present & column.is_duplicated()
            case "minimum":
                checks[f"a value below {value}"] = column < value
            case "exclusiveMinimum":
                checks[f"a value not above {value}"] = column <= value
            case "maximum":
                checks[f"a value above {value}"] = column > value
            case "pattern":
                checks[f"a value that is not of the form {value}"] = ~column.str.contains(f"^(?:{value})$")
            case "enum":
                checks[f"a value other than {', '.join(map(str, value))}"] = ~column.is_in(value)
            case _:
                raise InputError(f"the specification asks for {constraint!r} of {name}, which is not understood.")
    if kind == pl.Float64:
        checks["a value that is not finite"] = ~column.cast(pl.Float64).is_finite()
    for fault, expression in checks.items():
        bad = frame.select(expression.fill_null(False)).to_series()
        if bad.any():
            row = int(bad.arg_true()[0])
            raise InputError(
                f"{where}: column {name}, row {row + 1}: {fault}: {frame[name][row]!r} ({int(bad.sum()):,} such rows)."
            )
