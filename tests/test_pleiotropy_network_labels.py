"""Labels of pleiotropy: the mixture against dense Bayes, what it labels, and tables of labels."""

from __future__ import annotations

import gzip
import re

import numpy as np
import polars as pl
import pytest
from scipy.stats import multivariate_normal

from deepwas.errors import InputError
from deepwas.pleiotropy.configurations import TraitModel
from deepwas.pleiotropy.network.features import BlockFeatures, Channels
from deepwas.pleiotropy.network.labels import CLASS_VALUES, fit_mixture, mixture_labels, read_labels
from deepwas.specs import load_spec

K = 3
NOISE = np.array([[1.0, 0.3, 0.0], [0.3, 1.2, -0.2], [0.0, -0.2, 1.0]])
VARIANCE = np.array([60.0, 30.0, 100.0])
SINGLE, SHARED = 0.12, 0.06


def drawn(n, rng):
    """z-scores of effects, and on which traits each acts."""
    acts = np.zeros((n, K), bool)
    kind = rng.random(n)
    single = np.flatnonzero(kind < SINGLE)
    acts[single, rng.integers(K, size=len(single))] = True
    acts[(kind >= SINGLE) & (kind < SINGLE + SHARED / 2)] = [True, True, False]
    acts[(kind >= SINGLE + SHARED / 2) & (kind < SINGLE + SHARED)] = True
    noise = rng.normal(size=(n, K)) @ np.linalg.cholesky(NOISE).T
    return acts * rng.normal(size=(n, K)) * np.sqrt(VARIANCE) + noise, acts


@pytest.fixture(scope="module")
def mixture():
    x, acts = drawn(4000, np.random.default_rng(0))
    return fit_mixture(x, NOISE), x, acts


def test_the_mixture_finds_what_was_drawn_and_states_honest_probabilities(mixture):
    found, x, acts = mixture
    assert found.converged
    size = found.masks.sum(axis=1)
    assert found.weight.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(found.variance, VARIANCE, rtol=0.2)
    assert found.weight[size == 1].sum() == pytest.approx(SINGLE, abs=0.025)
    assert found.weight[size >= 2].sum() == pytest.approx(SHARED, abs=0.015)
    assert np.ptp(found.weight[size == 2]) < 1e-12
    p = found.several(x)
    several = acts.sum(axis=1) >= 2
    assert p.sum() == pytest.approx(several.sum(), rel=0.15)
    assert several[p > 0.99].mean() > 0.97
    assert several[p < 0.01].mean() < 0.01


def test_posteriors_are_those_of_dense_normal_densities(mixture):
    found, x, _ = mixture
    some = x[:50]
    joint = np.stack(
        [
            w * multivariate_normal(np.zeros(K), NOISE + np.diag(found.variance * mask)).pdf(some)
            for w, mask in zip(found.weight, found.masks, strict=True)
        ],
        axis=1,
    )
    expected = joint[:, found.masks.sum(axis=1) >= 2].sum(axis=1) / joint.sum(axis=1)
    np.testing.assert_allclose(found.several(some), expected, rtol=1e-8, atol=1e-12)
    assert fit_mixture(x, NOISE, iterations=3).log_likelihood < fit_mixture(x, NOISE, iterations=9).log_likelihood


def test_a_mixture_needs_data_and_traits():
    with pytest.raises(InputError, match="20 variants are too few"):
        fit_mixture(np.zeros((20, K)), NOISE)
    with pytest.raises(InputError, match="over 2 to 8 traits; got 1"):
        fit_mixture(np.zeros((50, 1)), np.eye(1))


def blocks_of(x, several, *, m=100):
    """Blocks whose first variant is a located lead, the next two in LD with one that is not, the last a flank."""
    out = []
    for start in range(0, len(x), m):
        own = x[start : start + m]
        lead, unsettled = np.zeros((2, m), bool)
        lead[0], unsettled[1:3] = True, True
        out.append(
            BlockFeatures(
                rows=slice(start, start + m),
                scored=slice(0, m - 1),
                chromosome="1",
                prior=np.full(m, 1e-3),
                posterior=several[start : start + m].astype(float),
                group=np.arange(m, dtype=np.int32),
                free=Channels(np.zeros((m, K, 1), np.float32), np.zeros((m, 1), np.float32)),
                evidence=Channels(np.zeros((m, K, 1), np.float32), np.zeros((m, 1), np.float32)),
                own=own.astype(np.float32),
                explained=np.r_[np.ones(m - 2), 0.3, 1.0].astype(np.float32),
                lead=lead,
                open=unsettled,
            )
        )
    return out


def test_labels_are_of_located_effects_and_clear_variants_alone():
    x, acts = drawn(6000, np.random.default_rng(1))
    several = acts.sum(axis=1) >= 2
    blocks = blocks_of(x, several)
    plain = several & (np.sort(np.abs(x), axis=1)[:, 1] > 7)
    x[0::100] = x[plain][: len(blocks)]  # leads act on several traits
    several[0::100] = True
    x[1::100], x[2::100] = x[0::100], x[0::100]  # their neighbours look as if they did
    blocks = blocks_of(x, several)
    model = TraitModel(np.full(K, 1e5), NOISE, np.full(K, 1e-4), np.zeros((K, K)))
    labels, mixture = mixture_labels(blocks, model, 6100)
    place = np.arange(6000) % 100
    value = labels.value[:6000]
    assert (value[place == 0] == 1).mean() > 0.9
    assert not (value[place != 0] == 1).any()
    assert np.isnan(value[(place == 1) | (place == 2) | (place >= 98)]).all()
    assert np.isnan(labels.value[6000:]).all()
    clear = place > 2
    assert (value[clear] == 0).mean() > 0.6
    assert labels.positive == int((value == 1).sum())
    assert labels.negative == int((value == 0).sum())
    assert labels.tally.total("kept") + labels.tally.total("noted") == sum(b.inside.sum() for b in blocks)
    assert mixture.weight[mixture.masks.sum(axis=1) >= 2].sum() > 0.05
    # Where the first pass says the contrary there is no label: a heritable factor looks like sharing.
    contrary, _ = mixture_labels(blocks_of(x, ~several), model, 6100)
    assert contrary.positive == 0
    assert np.isnan(labels.of(blocks[0])[99:]).all()
    with pytest.raises(InputError, match=r"sure is 0\.5"):
        mixture_labels(blocks, model, 6100, sure=0.5)


@pytest.fixture
def variants():
    return pl.DataFrame(
        {
            "CHR": ["1", "1", "2", "X"],
            "SNP": ["rs1", "rs2", "rs3", "rs3"],
            "BP": [10, 20, 30, 40],
            "A1": ["A", "C", "G", "T"],
            "A2": ["G", "T", "A", "C"],
        }
    )


def test_tables_of_labels_by_name_and_by_place(tmp_path, variants):
    path = tmp_path / "labels.tsv"
    path.write_text("SNP\tCLASS\nrs1\tpleiotropic\nrs2\tnone\nrs9\tsingle\nrs1\tPleiotropic\nrs2\tNA\n")
    found = read_labels(path, variants)
    np.testing.assert_array_equal(found.value, [1, 0, np.nan, np.nan])
    counts = {row.reason: (row.action, row.count, row.first) for row in found.tally.rows}
    assert counts["labels read"][:2] == ("kept", 2)
    assert counts["rows of variants that the LD store lacks"] == ("dropped", 1, "line 4")
    assert counts["rows that repeat a variant with the same class"] == ("dropped", 1, "line 5")
    assert counts["rows without a class or a variant"] == ("dropped", 1, "line 6")
    assert found.record == {"source": "labels.tsv", "positive": 1, "negative": 1}
    place = tmp_path / "labels.csv.gz"
    rows = "CHR,BP,A1,A2,CLASS\nchr1,10,g,a,0.75\n2,30,T,C,ld_only\nchrX,40,T,C,1\n1,20,C,G,0\n"
    place.write_bytes(gzip.compress(rows.encode()))
    of_place = read_labels(place, variants)
    np.testing.assert_array_equal(of_place.value, [0.75, np.nan, 0, 1])
    np.testing.assert_array_equal(of_place.filled(found).value, [0.75, 0, 0, 1])
    assert of_place.filled(found).tally.total("kept") == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("SNP\tKIND\nrs1\tnone\n", "columns SNP (or CHR BP A1 A2) and CLASS are needed; found SNP KIND"),
        ("SNP\tCLASS\nrs1\tnone\nrs2\tsome\n", "column CLASS, line 3: 'some' is no class (1 such rows)"),
        ("SNP\tCLASS\nrs1\t1.5\n", "column CLASS, line 2: '1.5' is no class"),
        ("SNP\tCLASS\nrs1\t1\nrs2\t0\nrs1\t0\n", "lines 2 and 4 give rs1 two classes"),
        ("SNP\tCLASS\nrs3\t1\n", "line 2: rs3 is the name of several variants"),
        ("SNP\tCLASS\nrs7\t1\n", "none of 1 rows is a variant of the LD store (first: rs7)"),
        ("CHR\tBP\tA1\tA2\tCLASS\n1\tten\tA\tG\t1\n", "column BP, line 2: 'ten' is not a whole number"),
    ],
)
def test_faults_of_a_table_are_named(tmp_path, variants, text, said):
    path = tmp_path / "labels.tsv"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(said)):
        read_labels(path, variants)


def test_the_specification_names_the_classes_that_are_understood():
    pattern = load_spec("pleiotropy_labels")["fields"][-1]["constraints"]["pattern"]
    assert set(pattern.split("|")[:-1]) == set(CLASS_VALUES)
