"""The tables a fit ends with."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from deepwas.summary import fits_table


def record(network: str, cross_fitted: bool) -> dict[str, Any]:
    held = {"gain": 3.25, "standard_error": 1.5, "blocks": [0, 1]}
    plain = {"h2": 0.2, "standard_error": 0.02, "scale": 1.1, "noise": 1.2}
    crossed = {"h2": 0.1, "standard_error": 0.01, "scale": 0.9, "noise": 1.2} if cross_fitted else None
    return {
        "options": {"network": network},
        "size": {"variants_scored": 1000, "variants_modelled": 1200},
        "heritability": {
            "constant": {"h2": 0.3, "standard_error": 0.03, "noise": 1.3},
            "plain": plain,
            "cross_fitted": crossed,
        },
        "held_out": {"plain": held, "cross_fitted": held if cross_fitted else None},
        "seconds": 2.0,
    }


def text_of(table) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=180).print(table)
    return [" ".join(line.replace("│", " ").split()) for line in out.getvalue().splitlines()]


def test_small_heritabilities_have_digits_and_ensembles_are_named():
    content = record("mlp", False)
    content["heritability"]["plain"] |= {"h2": 3.21e-7, "standard_error": 0.00123}
    content["options"]["ensemble"] = 3
    text = " ".join(" ".join(text_of(fits_table({"a": content}))).split())
    assert "3.2e-07 (0.00123)" in text
    assert "mean of 3" in text
    content["heritability"]["plain"] |= {"h2": 7e-11, "standard_error": 2e-19}
    assert "0 (at its bound)" in " ".join(text_of(fits_table({"a": content})))


@pytest.mark.parametrize(
    ("network", "cross_fitted", "row"),
    [
        ("mlp", True, "a (cross-fitted) 1,000 / 1,200 0.10000 (0.01000) 0.20000 (0.02000) 0.90 1.20 3.2 (1.5) 2 2.0"),
        (
            "mlp",
            False,
            "a (not cross-fitted) 1,000 / 1,200 0.20000 (0.02000) 0.20000 (0.02000) 1.10 1.20 3.2 (1.5) 2 2.0",
        ),
        (
            "constant",
            True,
            "a (all blocks) 1,000 / 1,200 0.30000 (0.03000) 0.30000 (0.03000) 1 1.30 0 (reference) 2 2.0",
        ),
    ],
)
def test_each_row_of_the_heritabilities_says_whether_it_is_cross_fitted(network, cross_fitted, row):
    assert row in text_of(fits_table({"a": record(network, cross_fitted)}))
