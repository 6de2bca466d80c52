"""Errors of options as the command line says them: by the flags that were typed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from deepwas.errors import InputError

__all__ = ["naming_flags"]


@contextmanager
def naming_flags(options: type[Any], *, at_start: bool = False, **other: str) -> Iterator[None]:
    """Within, an InputError that names a field of `options` names its flag instead: batch_blocks is --batch-blocks.

    options: a dataclass.  at_start: only in messages that begin with a field's name, where others are of data, whose
    columns may be called like a field.  other: fields whose flags have another name, such as attributions='--shap'.
    A name that is also a plain word, as `width`, is taken for the field only where a message speaks of it: at its
    start, before `is`, `has`, `names`, `needs` or `=`.
    """
    names = {field.name: "--" + field.name.replace("_", "-") for field in fields(options)} | other
    try:
        yield
    except InputError as error:
        text = str(error)
        if at_start and re.split(r"[ :=]", text, maxsplit=1)[0] not in names:
            raise
        for name, flag in sorted(names.items(), key=lambda pair: -len(pair[0])):
            text = re.sub(rf"(^|[:,] ){name}=(?=\S)", rf"\g<1>{flag} ", text)
            if "_" in name:
                text = re.sub(rf"(?<![\w/.'\"-]){name}(?!\w|[./'\"=-]\w)", flag, text)
            else:
                text = re.sub(rf"(^|: ){name}(?= (?:is|has|names|needs) )", rf"\g<1>{flag}", text)
        if text == str(error):
            raise
        raise InputError(text) from error
