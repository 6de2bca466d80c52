"""Whether LD bears out what was located for several traits: figures against dense algebra, flags, notes, the tables."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from deepwas.ld import LDBlock
from deepwas.ld.write import write_ld
from deepwas.pleiotropy import PleiotropyOptions, classify
from deepwas.pleiotropy.configurations import TraitModel
from deepwas.pleiotropy.joint import Traits
from deepwas.pleiotropy.ld_fit import fit_columns, fit_figures, fit_of_ld
from deepwas.pleiotropy.learning import JointBlock, locate
from deepwas.pleiotropy.tables import called_loci, flagged_beyond_panel
from deepwas.specs import validate_table
from deepwas.sumstats import HarmonisedSumstats
from deepwas.tally import Tally
from tests.dense import ld_matrix

SIZE, N, SLAB = 40, 1e5, 9e-4
CN = np.array([[1.2, 0.3], [0.3, 1.0]])


def block_with_effects(background=(0.0, 0.0)):
    rng = np.random.default_rng(4)
    R = ld_matrix("ar1", SIZE, rng)
    block = LDBlock.from_correlation(R, dtype=np.float64)
    effect = np.zeros((SIZE, 2))
    effect[8], effect[30] = [0.04, -0.03], [0.0, 0.05]
    z = np.sqrt(N) * R @ effect + np.linalg.cholesky(R) @ rng.normal(size=(SIZE, 2)) @ np.linalg.cholesky(CN).T
    model = TraitModel(np.full(2, N), CN, np.full(2, SLAB), np.zeros((2, 2)), background=np.array(background))
    joint = JointBlock(
        np.asarray(block.factor), block.whiten(z), np.full((SIZE, 2), 0.02 * SLAB), slice(0, SIZE), (SIZE, SIZE)
    )
    return joint, model


@pytest.mark.parametrize("background", [(0.0, 0.0), (0.4, 0.1)])
def test_figures_are_those_of_dense_algebra(background):
    joint, model = block_with_effects(background)
    panel = 2000.0
    ((_, _, found),) = locate([joint], model, slots=3, candidates=16, panel=panel)
    figures = dict(zip(fit_columns(2), fit_figures(joint, found, model, panel), strict=True))
    u = found.mean * np.sqrt(N)
    variance = N * (found.square.sum(axis=0) - (found.mean**2).sum(axis=0))
    error = (np.diag(u.T @ u) + variance) / panel
    np.testing.assert_allclose([figures["panel_error_0"], figures["panel_error_1"]], error, rtol=1e-6)
    assert error.max() > 0.05
    half = slice(SIZE // 2, SIZE)
    # No trait acts on another, so effects are direct ones; noise above 1 takes up the panel's error first.
    rest = (joint.whitened - found.fitted)[half]
    level = np.maximum(np.diag(CN), np.minimum(np.diag(CN), 1) + error)
    beside = (joint.factor[half] ** 2 @ (N * joint.direct)) * np.asarray(background)[None, :]
    wanted = (rest**2 / (level[None, :] + beside)).mean(axis=0)
    np.testing.assert_allclose([figures["misfit_0"], figures["misfit_1"]], wanted, rtol=1e-6)
    assert 0.3 < wanted.min() < wanted.max() < 1.7


def test_flags_join_what_runs_know_and_what_is_left():
    n = 4
    table = pl.DataFrame({"BLOCK": [3, 5, 8], "FLAG": ["outliers", None, None], "NOISE": [2.0, 1.1, 1.2]})
    z = np.zeros((8, 2))
    traits = Traits(("bmi", "ldl"), z, z, np.full(2, N), np.ones(8, bool), [{}, {}], Tally(), (table, None))
    joint = SimpleNamespace(numbers=[3, 5, 8, 9], sizes=[(41, 150)] * n)
    figures = {
        "misfit_0": np.array([1.0, 2.5, 1.0, 1.0]),
        "misfit_1": np.array([1.6, 1.0, 1.0, 2.0]),  # 1.6 over 20 directions is not rare enough
        "panel_error_0": np.array([0.0, 0.0, 0.1, 0.13]),  # over a noise of 1.2
        "panel_error_1": np.array([0.11, 0.05, 0.2, 0.0]),
    }

    class Blocks(SimpleNamespace):
        def __len__(self):
            return n

    found = fit_of_ld(traits, Blocks(**vars(joint)), np.array([1.2, 1.0]), figures, 400)
    assert found.flags == ["bmi=outliers;ldl=panel", "bmi=residual", "ldl=panel", "bmi=panel;ldl=residual"]
    assert found.record["bmi"]["by_reason"] == {"outliers": 1, "panel": 1, "residual": 1}
    assert found.record["bmi"]["noise"] == {"used": 1.2, "of_single_blocks": 1.2}
    assert found.record["bmi"]["tested"]
    assert not found.record["ldl"]["tested"]
    assert found.record["ldl"]["flagged"] == 3
    assert found.notes[0].startswith("bmi: the LD may not be that of these z-scores: noise 1.20")
    assert "2 of 4 LD blocks flagged" in found.notes[0]
    assert found.notes[1].startswith("ldl: the LD panel of 400 people is small")
    assert found.notes[2].startswith("ldl: no run says")
    assert len(found.notes) == 3


def test_loci_flagged_for_a_small_panel_alone_are_told_from_others():
    flags = [None, "bmi=panel", "bmi=panel;ldl=panel", "bmi=panel;ldl=outliers+panel", "bmi=residual", "my panel=small"]
    loci = pl.DataFrame({"FLAG": flags, "LFDR": [0.5, 0.01, 0.02, 0.12, 0.011, 0.9]})
    assert flagged_beyond_panel(loci).to_list() == [False, False, False, True, True, True]
    # Means from the smallest on: 0.01, 0.0105, 0.014, 0.04, then more than 0.05.
    assert called_loci(loci).to_list() == [False, True, True, True, True, False]
    assert not called_loci(loci.clear()).any()


def test_wrong_ld_of_one_trait_is_flagged_in_the_tables(tmp_path):
    """Of three blocks of two traits, the second has z-scores of the second trait that the LD cannot have made."""
    rng = np.random.default_rng(1)
    R = ld_matrix("ar1", SIZE, rng)
    M = 3 * SIZE
    variants = pl.DataFrame(
        {
            "CHR": ["1"] * M,
            "SNP": [f"rs{j}" for j in range(M)],
            "BP": [1000 * (j + 1) for j in range(M)],
            "A1": ["A"] * M,
            "A2": ["G"] * M,
            "FREQ": [0.3] * M,
        }
    )
    blocks = ((SIZE * i, LDBlock.from_correlation(R, dtype=np.float64)) for i in range(3))
    store = write_ld(tmp_path / "ld.h5", variants, blocks, build="GRCh37", n_samples=100_000, dtype="float64")
    effect = np.zeros((M, 2))
    effect[[10, SIZE + 20, 2 * SIZE + 15]] = [[0.05, 0.05], [0.05, 0.05], [0.05, 0.0]]
    z = np.concatenate([np.sqrt(N) * R @ effect[SIZE * i : SIZE * (i + 1)] for i in range(3)])
    z += np.concatenate([np.linalg.cholesky(R) @ rng.normal(size=(SIZE, 2)) for _ in range(3)])
    z[SIZE : 2 * SIZE, 1] *= np.where(np.arange(SIZE) % 2, -1, 1)  # every second allele the other way round
    priors, scores = {}, {}
    for k, name in enumerate(("a", "b")):
        priors[name] = variants.select("CHR", "SNP", "BP", "A1", "A2").with_columns(SNPVAR=pl.lit(0.02 * SLAB))
        frame = variants.with_row_index("VARIANT").drop("FREQ")
        frame = frame.with_columns(pl.Series("Z", z[:, k]), pl.lit(N).alias("N"), pl.lit(0.3).alias("FRQ"))
        scores[name] = HarmonisedSumstats(
            frame, M, name, "0" * 64, "LDSC", "position", genome_build="GRCh37", store_checksum=store.checksum
        )
    options = PleiotropyOptions(rounds=2, max_effects=3, candidates=16, vertical=False, calibration_blocks=0)
    found = classify(priors, store, sumstats=scores, noise_correlation=np.eye(2), options=options)
    by_block = dict(found.variants.select("BLOCK", "FLAG").unique().iter_rows())
    assert by_block[0] is by_block[2] is None
    assert by_block[1].startswith("b=residual")  # and perhaps panel: effects that have to cancel are large
    assert found.loci["FLAG"].to_list() == [by_block[b] for b in found.loci["BLOCK"]]
    assert 0 in found.loci["BLOCK"]
    assert found.record["totals"]["loci_flagged"] == (found.loci["BLOCK"] == 1).sum() > 0
    assert found.record["mismatch"]["b"]["by_reason"]["residual"] == 1
    assert found.record["mismatch"]["a"]["flagged"] == 0
    validate_table(found.loci, "pleiotropy_loci", "loci")
    validate_table(found.variants, "pleiotropy", "variants")
