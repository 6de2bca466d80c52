"""Cutting chromosomes: the dynamic programme against brute force, and blocks from a BED file."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwas.errors import InputError
from deepwas.genotypes import standardise
from deepwas.partition import adjusted_r2, partition_by_intervals, partition_by_ld
from deepwas.tally import Tally


def genotypes(n: int, m: int, seed: int, copying: float = 0.7) -> np.ndarray:
    """Standardised genotypes of a Markov chain of alleles: r2 decays along the chromosome."""
    rng = np.random.default_rng(seed)
    alleles = rng.integers(0, 2, (2 * n, m))
    for j in range(1, m):
        same = rng.random(2 * n) < copying
        alleles[same, j] = alleles[same, j - 1]
    return standardise((alleles[:n] + alleles[n:]).astype(np.float64)).genotypes


def all_partitions(m: int, low: int, high: int) -> list[list[int]]:
    """Boundaries of every partition of m variants into blocks of low to high."""
    if m == 0:
        return [[0]]
    return [[*head, m] for size in range(low, min(high, m) + 1) for head in all_partitions(m - size, low, high)]


def cut_cost(r2: np.ndarray, boundaries: list[int], reach: int) -> float:
    """The obvious sum: pairs fewer than `reach` apart, in different blocks."""
    block = np.searchsorted(boundaries, np.arange(len(r2)), side="right")
    pairs = ((i, j) for i in range(len(r2)) for j in range(i + 1, min(i + reach, len(r2))))
    return sum(r2[i, j] for i, j in pairs if block[i] != block[j])


def cut(x: np.ndarray, low: int, high: int):
    return partition_by_ld(lambda a, b: x[:, a:b], x.shape[1], len(x), min_size=low, max_size=high)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 14), st.integers(1, 5), st.integers(0, 6), st.integers(0, 10_000))
def test_the_cut_is_the_best_of_all_partitions(m, low, extra, seed):
    high = 2 * low - 1 + extra
    x = genotypes(40, m, seed)
    part = cut(x, low, high)
    r2 = adjusted_r2(x.T @ x / 40, 40)
    choices = all_partitions(m, low, high) or [[0, m]]  # fewer variants than `low`: one block
    best = min(cut_cost(r2, choice, high) for choice in choices)
    assert part.boundaries.tolist() in choices
    np.testing.assert_allclose(part.r2_cut, best, atol=1e-9)
    np.testing.assert_allclose(part.r2_cut, cut_cost(r2, part.boundaries.tolist(), high), atol=1e-9)
    np.testing.assert_allclose(part.r2_total, cut_cost(r2, list(range(m + 1)), high), atol=1e-9)


def test_independent_segments_are_found():
    sizes = [23, 31, 18, 40]
    x = np.concatenate([genotypes(500, s, seed=i, copying=0.97) for i, s in enumerate(sizes)], axis=1)
    part = cut(x, 15, 45)
    assert part.sizes.tolist() == sizes
    assert abs(part.r2_cut) < 0.02 * part.r2_total


def test_without_any_ld_ties_are_broken_towards_even_blocks():
    n = 65
    x = np.full((n, 11), (n - 1) ** -0.25)  # X'X / n = r with r2 = 1 / (n - 1), where adjusted r2 is 0
    part = cut(x, 3, 5)
    np.testing.assert_allclose([part.r2_total, part.r2_cut], 0, atol=1e-12)
    assert sorted(part.sizes.tolist()) == [3, 4, 4]


def test_sizes_that_cannot_be_met_are_an_error_and_few_variants_one_block():
    x = genotypes(50, 11, 0)
    with pytest.raises(InputError, match="11 variants cannot be cut into blocks of 7 to 8"):
        cut(x, 7, 8)
    with pytest.raises(InputError, match="1 <= min_block <= max_block"):
        cut(x, 5, 4)
    assert cut(x[:, :4], 7, 8).boundaries.tolist() == [0, 4]
    with pytest.raises(InputError, match="no variant"):
        cut(x[:, :0], 1, 2)


def test_reading_goes_forward_once_and_progress_ends_at_the_total():
    x = genotypes(60, 500, 1)
    asked, said = [], []

    def read(a, b):
        asked.append((a, b))
        return x[:, a:b]

    part = partition_by_ld(read, 500, 60, min_size=30, max_size=90, advance=lambda d, t: said.append((d, t)))
    spans = [span for span in asked if span != (0, 0)]
    assert [a for a, _ in spans] == [0, *[b for _, b in spans[:-1]]]
    assert spans[-1][1] == 500
    assert said[-1] == (500, 500)
    assert part.sizes.min() >= 30
    assert part.sizes.max() <= 90
    # Too long for brute force: the cost is the obvious sum, and no boundary can be moved to lower it.
    r2 = adjusted_r2(x.T @ x / 60, 60)
    np.testing.assert_allclose(part.r2_cut, cut_cost(r2, part.boundaries.tolist(), 90), rtol=1e-9)
    moved = [cut_cost(r2, _shift(part.boundaries, b, d), 90) for b in range(1, len(part.sizes)) for d in (-1, 1)]
    assert min(moved) >= part.r2_cut - 1e-9


def _shift(boundaries: np.ndarray, index: int, by: int) -> list[int]:
    """Boundaries with one moved, or unmoved where a block would leave the sizes allowed."""
    moved = boundaries.copy()
    moved[index] += by
    sizes = np.diff(moved)
    return moved.tolist() if sizes.min() >= 30 and sizes.max() <= 90 else boundaries.tolist()


def test_adjusted_r2_is_unbiased_for_unlinked_variants():
    rng = np.random.default_rng(4)
    n, reps = 100, 4000
    r = np.array([np.corrcoef(rng.standard_normal((2, n)))[0, 1] for _ in range(reps)])
    values = adjusted_r2(r, n)
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(reps)
    clipped = np.maximum(values, 0)
    assert clipped.mean() > 10 * clipped.std() / np.sqrt(reps)


VARIANTS = pl.DataFrame(
    {
        "CHR": ["1"] * 6 + ["2"] * 3,
        "SNP": [f"rs{i}" for i in range(9)],
        "BP": [10, 11, 20, 21, 30, 99, 10, 15, 20],
    }
)


def write_bed(path, rows):
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    return path


def test_intervals_are_half_open_and_what_lies_outside_is_counted(tmp_path):
    rows = [("chr2", 9, 20), ("chr1", 20, 30), ("chr1", 10, 20), ("chr1", 50, 60), ("chr3", 0, 9)]
    tally = Tally()
    mask, boundaries = partition_by_intervals(VARIANTS, write_bed(tmp_path / "b.bed", rows), tally)
    # 1:10 is before (10, 20]; 1:11 and 1:20 in it; 1:21 and 1:30 in (20, 30]; 1:99 outside; all of chromosome 2 inside.
    assert mask.tolist() == [False, True, True, True, True, False, True, True, True]
    assert list(pairwise(boundaries.tolist())) == [(0, 2), (2, 4), (4, 7)]
    assert [(r.action, r.reason, r.count, r.first) for r in tally.rows] == [
        ("dropped", "outside all intervals given", 2, "rs0"),
        ("noted", "intervals without a variant", 2, "1:50-60"),
    ]


def test_overlapping_or_empty_intervals_are_refused(tmp_path):
    overlap = write_bed(tmp_path / "o.bed", [("1", 0, 20), ("1", 15, 30)])
    with pytest.raises(InputError, match=r"o\.bed: the interval 1:15-30 starts before the previous one ends at 20"):
        partition_by_intervals(VARIANTS, overlap, Tally())
    elsewhere = write_bed(tmp_path / "e.bed", [("7", 0, 20)])
    with pytest.raises(InputError, match="none of the 9 variants lies in any of the 1 intervals"):
        partition_by_intervals(VARIANTS, elsewhere, Tally())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=12, unique=True), st.lists(st.integers(1, 70), min_size=1))
def test_assignment_agrees_with_the_definition(tmp_path_factory, edges, positions):
    edges = sorted(edges)
    spans = list(pairwise(edges))[::2]
    positions = sorted(positions)
    frame = pl.DataFrame({"CHR": ["5"] * len(positions), "SNP": ["rs"] * len(positions), "BP": positions})
    expected = [next((b for b, (s, e) in enumerate(spans) if s < p <= e), None) for p in positions]
    path = write_bed(tmp_path_factory.getbasetemp() / "given.bed", [("5", s, e) for s, e in spans])
    if all(b is None for b in expected):
        with pytest.raises(InputError, match="none of"):
            partition_by_intervals(frame, path, Tally())
        return
    mask, boundaries = partition_by_intervals(frame, path, Tally())
    assert mask.tolist() == [b is not None for b in expected]
    block = np.repeat(np.arange(len(boundaries) - 1), np.diff(boundaries))
    inside = [b for b in expected if b is not None]
    assert block.tolist() == [sorted(set(inside)).index(b) for b in inside]
