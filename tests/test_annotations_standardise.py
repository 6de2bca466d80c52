"""The standardiser: training rows only, missing values, constants, clipping, storage."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepwas.annotations import Standardiser
from deepwas.errors import InputError
from deepwas.tally import Tally


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(3, 2, (200, 3)).astype(np.float32)


def test_training_rows_get_mean_0_and_variance_1_and_others_do_not_matter(values):
    rows = np.arange(200) < 120
    fitted = Standardiser.fit(values, rows, names=("a", "b", "c"))
    changed = values.copy()
    changed[~rows] = 1e6
    assert Standardiser.fit(changed, np.flatnonzero(rows), names=("a", "b", "c")) == fitted
    out = fitted.transform(values)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out[rows].mean(0, dtype=np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(out[rows].std(0, dtype=np.float64), 1, atol=1e-6)
    np.testing.assert_allclose(out, (values - fitted.means) / fitted.scales, rtol=1e-5, atol=1e-6)


def test_statistics_are_in_float64():
    column = (1e7 + np.arange(2000) % 2).astype(np.float32)[:, None]
    fitted = Standardiser.fit(column, names=("a",))
    assert fitted.means[0] == 1e7 + 0.5
    assert fitted.scales[0] == 0.5


def test_missing_values_become_the_mean_and_are_marked(values):
    values[3, 0] = values[7, 2] = values[150, 1] = np.nan
    rows = np.arange(100)
    fitted = Standardiser.fit(values, rows, names=("a", "b", "c"))
    assert fitted.output_names == ("a", "b", "c", "a:missing", "c:missing")
    tally = Tally()
    out = fitted.transform(values, tally=tally)
    assert np.isfinite(out).all()
    assert out[3, 0] == out[7, 2] == out[150, 1] == 0
    assert np.flatnonzero(out[:, 3]).tolist() == [3]
    assert np.flatnonzero(out[:, 4]).tolist() == [7]
    assert fitted.means[0] == pytest.approx(np.delete(values[:100, 0].astype(float), 3).mean(), rel=1e-12)
    assert [row.count for row in tally.rows] == [1, 1, 1]
    assert np.isnan(values[3, 0])


def test_columns_missing_on_the_same_training_rows_share_an_indicator(values):
    values[[3, 9], 0] = values[[3, 9], 2] = values[5, 1] = np.nan
    values[150, 2] = np.nan
    fitted = Standardiser.fit(values, slice(0, 100), names=("a", "b", "c"))
    assert fitted.output_names == ("a", "b", "c", "a:missing", "b:missing")
    out = fitted.transform(values)
    assert np.flatnonzero(out[:, 3]).tolist() == [3, 9, 150]
    assert fitted.lines()[0] == "standardise: a:missing marks missing values of a, c"


def test_the_other_policies(values):
    values[3, 0] = np.nan
    plain = Standardiser.fit(values, names=("a", "b", "c"), missing="mean")
    assert plain.transform(values).shape == (200, 3)
    assert plain.transform(values)[3, 0] == 0
    with pytest.raises(InputError, match=r"annotation a is missing for 1 of 200 training variants"):
        Standardiser.fit(values, names=("a", "b", "c"), missing="error")
    strict = Standardiser.fit(values[10:], names=("a", "b", "c"), missing="error")
    with pytest.raises(InputError, match="annotation a is missing for 1 variants"):
        strict.transform(values)


def test_a_constant_column_has_scale_1_and_is_said(values):
    values[:100, 1] = 0.1
    fitted = Standardiser.fit(values, slice(0, 100), names=("a", "b", "c"))
    assert fitted.constant == ("b",)
    assert fitted.scales[1] == 1
    assert (fitted.transform(values)[:100, 1] == 0).all()
    assert fitted.lines() == ["standardise: b is constant on the training variants; scale 1"]


def test_heavy_tails_are_cut_and_counted(values):
    values[150, 0] = 1e4
    fitted = Standardiser.fit(values, slice(0, 100), names=("a", "b", "c"), clip=3.0)
    tally = Tally()
    out = fitted.transform(values, tally=tally)
    assert out[150, 0] == 3
    assert np.abs(out).max() <= 3
    over = (np.abs((values - fitted.means) / fitted.scales) > 3).sum(0)
    assert [row.count for row in tally.rows] == [n for n in over if n]
    unclipped = Standardiser.fit(values, slice(0, 100), names=("a", "b", "c"), clip=None)
    assert unclipped.transform(values)[150, 0] > 1000


@given(st.integers(0, 2**32 - 1), st.sampled_from(["indicator", "mean"]), st.sampled_from([None, 2.5, 10.0]))
def test_json_gives_back_an_equal_standardiser(seed, missing, clip):
    rng = np.random.default_rng(seed)
    values = rng.lognormal(0, 3, (40, 4)).astype(np.float32)
    values[rng.random((40, 4)) < 0.2] = np.nan
    values[:2] = [[1] * 4, [2] * 4]
    fitted = Standardiser.fit(values, names=tuple("abcd"), missing=missing, clip=clip)
    again = Standardiser.from_dict(json.loads(json.dumps(fitted.as_dict())))
    assert again == fitted
    np.testing.assert_array_equal(again.transform(values), fitted.transform(values))


def test_unusable_values_are_named(values):
    names = ("a", "b", "c")
    with pytest.raises(InputError, match=r"shape \(200, 3\) where \(variants, 2\)"):
        Standardiser.fit(values, names=("a", "b"))
    with pytest.raises(InputError, match="no training rows"):
        Standardiser.fit(values, np.zeros(200, dtype=bool), names=names)
    with pytest.raises(InputError, match="clip=0: give a positive number"):
        Standardiser.fit(values, names=names, clip=0)
    with pytest.raises(InputError, match="missing='zero'"):
        Standardiser.fit(values, names=names, missing="zero")
    with pytest.raises(InputError, match="must differ"):
        Standardiser.fit(values, names=("a", "a", "c"))
    fitted = Standardiser.fit(values, names=names)
    infinite = values.copy()
    infinite[0, 1] = np.inf
    with pytest.raises(InputError, match="annotation b holds infinite values"):
        Standardiser.fit(infinite, names=names)
    with pytest.raises(InputError, match="annotation b holds infinite values"):
        fitted.transform(infinite)
    values[:50, 0] = np.nan
    with pytest.raises(InputError, match="annotation a is missing for all 50 training variants"):
        Standardiser.fit(values, slice(0, 50), names=names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"means": ["a", 1, 2]}, "another form"),
        ({"scales": [1.0]}, "one mean and one scale a column"),
        ({"scales": [1.0, 0.0, 1.0]}, "scales positive"),
        ({"indicators": [[7]]}, "outside 0 to 2"),
        ({"missing": "zero"}, "give one of indicator, mean, error"),
    ],
)
def test_damaged_content_is_refused(values, change, message):
    content = Standardiser.fit(values, names=("a", "b", "c")).as_dict()
    with pytest.raises(InputError, match=message):
        Standardiser.from_dict(content | change)
    with pytest.raises(InputError, match="means is missing"):
        Standardiser.from_dict({k: v for k, v in content.items() if k != "means"})
