"""Networks of pleiotropy: channels, what they maximise, cross-fitting, ablations, calibration."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deepwas.errors import InputError
from deepwas.pleiotropy.configurations import TraitModel
from deepwas.pleiotropy.drawing import draw_block
from deepwas.pleiotropy.learning import JointBlock, locate
from deepwas.pleiotropy.network.calibration import CalibrationReport, calibration_report, plot_reliability
from deepwas.pleiotropy.network.features import BlockFeatures, Channels, block_features, standardised
from deepwas.pleiotropy.network.fit import _folds_of_drawn, corrected, fit_network, gains
from deepwas.pleiotropy.network.folds import folds_of
from deepwas.pleiotropy.network.labels import Labels
from deepwas.pleiotropy.network.metrics import average_precision, error_by_chance, figures, log_loss, reliability
from deepwas.pleiotropy.network.model import Padded, SharingNetwork, depth_for, pad, padded_length
from deepwas.pleiotropy.network.objective import Batch, gain, prior_loss
from deepwas.pleiotropy.network.options import NetworkOptions
from deepwas.pleiotropy.network.training import train_head
from tests.dense import ld_matrix

M, K = 24, 3
N = np.array([1e5, 2e5, 5e4])
NOISE = np.array([[1.0, 0.2, 0.0], [0.2, 1.1, 0.1], [0.0, 0.1, 1.0]])
T = np.array([[0.0, 0.4, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
SMALL = NetworkOptions(width=4, depth=1, folds=2, epochs=12, learning_rate=0.01, batch=256, objective="both")


@pytest.fixture(scope="module")
def located():
    """A block of three traits with one shared effect, the model, and the first pass."""
    rng = np.random.default_rng(0)
    values, vectors = np.linalg.eigh(ld_matrix("ar1", M, rng))
    G = np.sqrt(values)[:, None] * vectors.T
    model = TraitModel(N, NOISE, np.full(K, 4e-4), T, excess=np.array([0.0, 0.0, 1.0, 1.0]))
    D = np.zeros((M, K))
    D[7] = [0.04, -0.04, 0.0]
    y = G @ D @ model.forward + rng.normal(size=(M, K)) @ np.linalg.cholesky(NOISE).T
    direct = rng.gamma(1.0, 4e-6, (M, K))
    block = JointBlock(G, y, direct, slice(100, 100 + M))
    ((_, odds, found),) = locate([block], model, slots=2, candidates=8)
    return block, model, odds, found


def test_channels_are_what_dense_algebra_says(located):
    block, model, odds, found = located
    note = np.random.default_rng(1).normal(size=(M, 2))
    features = block_features(block, odds, found, model, scored=slice(2, 20), chromosome="7", annotations=note)
    several = model.masks.sum(axis=1) >= 2
    joint = np.exp(odds) / (1 + np.exp(odds).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(features.prior, joint[:, several].sum(axis=1), rtol=1e-9)
    np.testing.assert_allclose(features.posterior, found.probability[:, several].sum(axis=1), atol=1e-12)
    assert features.posterior[7] > 0.9
    assert features.lead[7]
    R = block.factor.T @ block.factor
    np.testing.assert_allclose(features.explained, np.diag(R), rtol=1e-6)
    np.testing.assert_allclose(features.free.shared[:, 1], np.log((R**2).sum(axis=1)), rtol=1e-4)
    near = [np.mean(R[7, [6, 8]] ** 2), np.mean(R[7, [3, 4, 5, 6, 8, 9, 10, 11]] ** 2)]
    np.testing.assert_allclose(features.free.shared[7, 2:4], near, rtol=1e-4)
    np.testing.assert_allclose(features.free.shared[:, -2:], note, rtol=1e-6)
    # The variant's own z-score, given all other effects, by regression on its column alone; then of direct effects.
    for j in (0, 7, 15):
        others = np.arange(M) != j
        rest = block.whitened - block.factor[:, others] @ (found.mean @ model.forward)[others]
        z = block.factor[:, j] @ rest / np.sqrt(R[j, j])
        own = z / np.sqrt(N) @ (np.eye(K) - T) * np.sqrt(N)
        np.testing.assert_allclose(features.own[j], own, rtol=1e-4, atol=1e-5)
    values, vectors = np.linalg.eigh(NOISE)
    z = (block.factor.T @ block.whitened) @ (vectors @ np.diag(values**-0.5) @ vectors.T)
    np.testing.assert_allclose(features.evidence.by_trait[:, :, 1], np.arcsinh(np.abs(z)), rtol=1e-3)
    assert features.inside.sum() == 18
    for one in found.sets:
        assert len(set(features.group[one.variants])) == 1
    assert len(set(features.group)) == M - sum(len(one.variants) - 1 for one in found.sets)


def test_channels_without_evidence_do_not_change_with_the_z_scores(located):
    block, model, odds, found = located
    other = replace(block, whitened=np.random.default_rng(5).normal(size=(M, K)))
    ((_, _, again),) = locate([other], model, slots=2, candidates=8)
    one, two = block_features(block, odds, found, model), block_features(other, odds, again, model)
    np.testing.assert_array_equal(one.free.by_trait, two.free.by_trait)
    np.testing.assert_array_equal(one.free.shared, two.free.shared)
    assert np.abs(one.evidence.by_trait - two.evidence.by_trait).max() > 0.1


apply = nnx.jit(lambda network, x: network(x))


def network(seed=0):
    made = SharingNetwork(4, 3, width=6, depth=2, bound=4.0, rngs=nnx.Rngs(seed))
    made.read.kernel[...] = jax.random.normal(jax.random.key(seed), (6, 1), jnp.float32)
    return made


def test_a_network_starts_at_nothing_and_knows_no_order_of_traits():
    rng = np.random.default_rng(0)
    x = Padded(jnp.asarray(rng.normal(size=(2, 20, K, 4))), jnp.asarray(rng.normal(size=(2, 20, 3))), jnp.ones((2, 20)))
    fresh = SharingNetwork(4, 3, width=6, depth=2, bound=4.0, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(apply(fresh, x), np.zeros((2, 20)))
    made = network()
    found = np.asarray(apply(made, x))
    assert np.ptp(found) > 0.1
    assert np.abs(found).max() < 4.0
    turned = x._replace(by_trait=x.by_trait[:, :, jnp.array([2, 0, 1])])
    np.testing.assert_allclose(apply(made, turned), found, rtol=1e-5, atol=1e-6)
    # Which variants a position sees: 2^(depth + 1) - 1.
    moved = np.asarray(apply(made, x._replace(shared=x.shared.at[0, 10].add(1.0))))
    assert np.flatnonzero(np.abs(moved[0] - found[0]) > 1e-7).tolist() == list(range(7, 14))


def test_padding_changes_nothing():
    rng = np.random.default_rng(0)
    by_trait, shared = rng.normal(size=(13, K, 4)), rng.normal(size=(13, 3))
    made = network()
    found = []
    for length in (13, 64):
        x = Padded(*(jnp.asarray(pad([a], length)) for a in (by_trait, shared, np.ones(13))))
        found.append(np.asarray(apply(made, x))[0])
    np.testing.assert_allclose(found[1][:13], found[0], rtol=1e-5, atol=1e-6)
    assert not found[1][13:].any()
    assert [padded_length(m) for m in (1, 64, 65, 700)] == [64, 64, 128, 1024]
    assert depth_for([500, 600, 700]) == 9
    assert 2 ** (depth_for([60]) + 1) - 1 >= 60


def test_the_gain_is_that_of_the_exact_marginal_likelihood():
    """One effect at most in the block: the likelihood is a sum over variants and kinds, none, one trait, several."""
    rng = np.random.default_rng(0)
    one, several, c = rng.gamma(1.0, 0.01, 8), rng.gamma(1.0, 0.005, 8), rng.normal(size=8) * 2
    bf_one, bf_several = rng.gamma(1.0, 20.0, (2, 8))

    def log_marginal(c):
        data = np.log(1 + (one * bf_one).sum() + (several * np.exp(c) * bf_several).sum())
        return data - np.log(1 + one + several * np.exp(c)).sum()

    p = several / (1 + one + several)
    w = several * bf_several / (1 + (one * bf_one).sum() + (several * bf_several).sum())
    args = (jnp.asarray(x)[None, :] for x in (c, w, p, np.zeros(8, np.int32), np.ones(8)))
    expected = log_marginal(c) - log_marginal(np.zeros(8))
    assert float(gain(*args)[0]) == pytest.approx(expected, rel=1e-9)
    # Variants alone: a product of single ones; a label takes the place of the posterior.
    args = tuple(jnp.asarray(x)[None, :] for x in (c, w, p, np.arange(8), np.ones(8)))
    alone = np.log(1 + w * np.expm1(c)).sum() - np.log(1 + p * np.expm1(c)).sum()
    assert float(gain(*args)[0]) == pytest.approx(alone, rel=1e-9)
    label = np.array([1.0, 0.0, *[np.nan] * 6])
    none = Padded(jnp.zeros(0), jnp.zeros(0), jnp.zeros(0))
    batch = Batch(
        none, *(jnp.asarray(x)[None, :] for x in (np.log(p / (1 - p)), p, w, label, np.arange(8), np.ones(8)))
    )
    raised = corrected(p, c)
    known = np.log(raised[0] / p[0]) + np.log((1 - raised[1]) / (1 - p[1]))
    rest = np.log(1 + w[2:] * np.expm1(c[2:])).sum() - np.log(1 + p[2:] * np.expm1(c[2:])).sum()
    yes, no, zero = jnp.ones(()), jnp.zeros(()), jnp.zeros(())
    assert float(-prior_loss(args[0], batch, yes, yes, zero)[0]) == pytest.approx(known + rest, rel=1e-9)
    assert float(-prior_loss(args[0], batch, no, yes, zero)[0]) == pytest.approx(alone, rel=1e-9)
    of_labels = np.log(raised[0]) + np.log(1 - raised[1])
    assert float(-prior_loss(args[0], batch, yes, no, zero)[0]) == pytest.approx(of_labels, rel=1e-9)


def test_parts_are_whole_chromosomes_or_runs_of_blocks():
    names = [c for c, n in zip("abcdefg", (5, 4, 3, 3, 2, 2, 1), strict=True) for _ in range(n)]
    fold, what = folds_of(names, [10] * 20, 3)
    assert what == "chromosomes"
    assert {c: {int(f) for f, name in zip(fold, names, strict=True) if name == c} for c in "abcdefg"}.keys() == set(
        "abcdefg"
    )
    assert all(len({int(f) for f, name in zip(fold, names, strict=True) if name == c}) == 1 for c in "abcdefg")
    assert sorted(np.bincount(fold)) == [6, 7, 7]
    fold, what = folds_of(["1"] * 12, [10] * 12, 3)
    assert what == "LD blocks"
    assert fold.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    with pytest.raises(InputError, match="3 LD blocks are too few for 2 parts"):
        folds_of(["1"] * 3, [10] * 3, 2)


def made_up(driven, blocks=48, m=48, seed=0):
    """Features of blocks in which annotation 0 raises or does not raise the odds of sharing, and who shares."""
    rng = np.random.default_rng(seed)
    out, label = [], np.full(blocks * m, np.nan, np.float32)
    for i in range(blocks):
        note = rng.normal(size=(m, 2)).astype(np.float32)
        p = np.full(m, 0.05)
        true = rng.random(m) < corrected(p, 2.0 * driven * note[:, 0] - 1.5 * driven)
        bf = np.where(true, 200.0, 0.2) * rng.gamma(4.0, 0.25, m)
        w = p * bf / (1 - p + p * bf)
        free = Channels(rng.normal(size=(m, K, 2)).astype(np.float32), note)
        seen = np.concatenate([note, np.log(w / (1 - w))[:, None]], axis=1).astype(np.float32)
        known = rng.random(m) < 0.4
        label[i * m : i * m + m] = np.where(known, true, np.nan)
        out.append(
            BlockFeatures(
                rows=slice(i * m, i * m + m),
                scored=slice(0, m),
                chromosome=str(i // 4),
                prior=p,
                posterior=w,
                group=np.arange(m, dtype=np.int32),
                free=free,
                evidence=Channels(free.by_trait, seen),
                own=np.zeros((m, K), np.float32),
                explained=np.ones(m, np.float32),
                lead=np.zeros(m, bool),
                open=np.zeros(m, bool),
                truth=true,
            )
        )
    return out, Labels(label, "given")


@pytest.fixture(scope="module")
def fitted():
    blocks, labels = made_up(1.0)
    seen = []
    found = fit_network(blocks, labels, SMALL, progress=lambda *said: seen.append(said))
    return blocks, labels, found, seen


def test_corrections_that_the_likelihood_supports_are_learned(fitted):
    blocks, _, found, seen = fitted
    assert found.accepted
    table = found.ablations["prior"]
    assert table["none"]["gain"] == 0.0
    for name in ("generative", "both"):
        assert table[name]["gain"] > 2 * table[name]["gain_standard_error"] > 0
        assert table[name]["labels"]["log_loss"] < table["none"]["labels"]["log_loss"]
        assert table[name]["labels"]["auprc"] > table["none"]["labels"]["auprc"] + 0.05
    note = np.concatenate([b.free.shared[:, 0] for b in blocks])
    for name in ("supervised", "generative", "both"):
        c = np.concatenate(found.corrections[name])
        assert np.abs(c).max() <= SMALL.bound
        assert np.corrcoef(c, note)[0, 1] > 0.7
    # Labels alone leave the level open: the expected number stays that of the prior.
    p = np.concatenate([b.prior for b in blocks])
    assert corrected(p, np.concatenate(found.corrections["supervised"])).sum() == pytest.approx(p.sum(), rel=0.02)
    assert table["both"]["gain"] == pytest.approx(gains(blocks, found.correction).sum(), rel=1e-9)
    assert json.loads(json.dumps(found.record))["ablations"]["labels"]["positive"] > 10
    assert {what for what, _, _ in seen} == {"training the prior network", "training the evidence network"}
    assert all(done <= total for _, done, total in seen)
    assert seen[-1][1] == seen[-1][2]


def test_the_score_of_evidence_is_a_probability_that_is_no_worse_than_the_first_pass(fitted):
    _, _, found, _ = fitted
    p = np.concatenate(found.probability)
    assert ((p >= 0) & (p <= 1)).all()
    table = found.ablations["evidence"]
    assert table["both"]["log_loss"] < 1.02 * table["none"]["log_loss"]
    assert set(table) == {"none", "supervised", "generative", "both"}


def test_nothing_of_a_part_reaches_the_networks_that_score_it(fitted):
    blocks, labels, found, _ = fitted
    fold, _ = folds_of([b.chromosome for b in blocks], [b.m for b in blocks], 2)
    rng = np.random.default_rng(9)
    value = labels.value.copy()
    changed = list(blocks)
    for i in np.flatnonzero(fold == 0):
        value[blocks[i].rows] = rng.random(blocks[i].m) < 0.5
        changed[i] = replace(blocks[i], posterior=rng.random(blocks[i].m))
    own = [Labels(value, "given").of(b) for b in blocks]
    head = train_head(changed, own, fold, np.ones((len(blocks), 3)), SMALL, evidence=False)
    for name in ("generative", "both"):
        for i, f in enumerate(fold):
            same = np.allclose(head.values[name][i], found.corrections[name][i], rtol=1e-3, atol=1e-4)
            assert same == (f == 0)


def test_simulated_blocks_are_of_the_part_of_the_blocks_that_they_stand_for():
    blocks, _ = made_up(1.0, blocks=8)
    fold, _ = folds_of([b.chromosome for b in blocks], [b.m for b in blocks], 2)
    drawn = [replace(blocks[i], posterior=np.zeros(blocks[i].m)) for i in (7, 0, 3, 3)]
    assert _folds_of_drawn(blocks, fold, drawn).tolist() == fold[[7, 0, 3, 3]].tolist()
    assert set(fold[[7, 0]].tolist()) == {0, 1}
    for wrong in (replace(drawn[0], truth=None), replace(drawn[0], rows=slice(9999, 9999 + blocks[0].m))):
        with pytest.raises(InputError, match="simulated blocks need truth, and LD blocks"):
            _folds_of_drawn(blocks, fold, [wrong])


def test_where_annotations_do_not_matter_little_is_made_of_them():
    blocks, labels = made_up(0.0, seed=3)
    fold, _ = folds_of([b.chromosome for b in blocks], [b.m for b in blocks], 2)
    own = [labels.of(b) for b in blocks]
    head = train_head(blocks, own, fold, np.ones((len(blocks), 3)), SMALL, evidence=False)
    found = gains(blocks, head.values["both"])
    assert not all(c.any() for c in head.values["both"])  # a network that validation does not support says nothing
    assert -6 < found.sum() < 2 * found.std() * np.sqrt(len(found)) + 1e-9
    assert np.concatenate(head.values["both"]).std() < 0.4
    assert all(len(each) == SMALL.epochs + 1 for each in head.history["both"])


def test_labels_of_one_kind_and_options_out_of_range_are_refused():
    blocks, labels = made_up(0.0, blocks=4)
    with pytest.raises(InputError, match=r"0 of two traits or more and .* of fewer. Both kinds are needed"):
        fit_network(blocks, Labels(np.where(np.isnan(labels.value), np.nan, 0.0), "hops.tsv"), SMALL)
    with pytest.raises(InputError, match="simulated blocks need truth"):
        fit_network(blocks, labels, SMALL, simulated=[replace(blocks[0], truth=None)])
    for changes, said in (
        ({"objective": "best"}, "objective is 'best'"),
        ({"folds": 1}, "folds is 1; at least 2"),
        ({"bound": 0.0}, "bound is 0.0"),
        ({"noise": 1.0}, "noise is 1.0"),
        ({"validation": 0.0}, "validation is 0"),
    ):
        with pytest.raises(InputError, match=said):
            replace(SMALL, **changes)


def test_channels_are_standardised_over_all_blocks():
    rng = np.random.default_rng(0)
    given = [Channels(rng.normal(3, 2, (n, K, 2)), np.c_[rng.gamma(1.0, 4.0, n), np.ones(n)]) for n in (30, 50)]
    found = standardised(given)
    whole = np.concatenate([x.by_trait.reshape(-1, 2) for x in found])
    np.testing.assert_allclose([whole.mean(axis=0), whole.std(axis=0)], [[0, 0], [1, 1]], atol=1e-5)
    assert not np.concatenate([x.shared[:, 1] for x in found]).any()


def test_drawn_blocks_follow_the_model(located):
    """Two variants, all configurations as likely: signal in the plane of their columns, noise alone outside of it."""
    block, model, odds, _ = located
    rng = np.random.default_rng(0)
    few = replace(block, factor=block.factor[:, :2], direct=block.direct[:2], rows=slice(0, 2))
    each = np.exp(-1.0) / (1 + 7 * np.exp(-1.0))
    drawn = [draw_block(few, np.full((2, odds.shape[1]), -1.0), model, rng, panel=20.0) for _ in range(4000)]
    assert np.mean([several for _, several in drawn]) == pytest.approx(4 * each, abs=0.02)
    y = np.stack([one.whitened for one, _ in drawn])
    u = each * np.einsum("cki,cji->kj", model.classes.root, model.classes.root)  # covariance of one variant's effect
    q, r = np.linalg.qr(few.factor, mode="complete")
    outside = np.einsum("ak,nai->nki", q[:, 2:], y)
    raised = NOISE + 2 * u / 20
    found = (outside**2).mean(axis=(0, 1))
    np.testing.assert_allclose(found[[0, 2]], np.diag(raised)[[0, 2]], rtol=0.1)
    assert 1.1 < found[1] < raised[1, 1]  # its inflation holds some of the panel's error
    inside = np.einsum("ak,nai->nki", q[:, :2], y)
    signal = np.einsum("kj,kj,il->kil", r[:2], r[:2], u)
    np.testing.assert_allclose((inside**2).mean(axis=0) - found[None, :], signal[:, [0, 1, 2], [0, 1, 2]], rtol=0.12)
    exact = [draw_block(few, np.full((2, odds.shape[1]), -1.0), model, rng)[0].whitened for _ in range(500)]
    noise = np.einsum("ak,nai->nki", q[:, 2:], np.stack(exact)).reshape(-1, K)
    np.testing.assert_allclose(noise.T @ noise / len(noise), NOISE, atol=0.05)


def test_calibration_of_the_first_pass_is_reported(located, tmp_path):
    block, model, _, _ = located
    blocks = [replace(block, rows=slice(M * i, M * i + M)) for i in range(4)]
    high = replace(model, excess=np.array([0.0, 0.0, 4.0, 4.0]))
    seen = []
    report = calibration_report(
        blocks,
        high,
        scored=[slice(2, M)] * 4,
        n_blocks=3,
        draws=4,
        slots=2,
        candidates=8,
        progress=lambda *said: seen.append(said),
    )
    again = calibration_report(blocks, high, n_blocks=1, draws=1, slots=2, candidates=8)
    np.testing.assert_array_equal(report.blocks[0].posterior, again.blocks[0].posterior)
    assert len(report.truth) == 12 * (M - 2)
    assert seen[-1] == (12, 12)
    found = json.loads(json.dumps(report.as_dict()))
    assert found["true"] == report.truth.sum() > 5
    one = found["P_PLEIOTROPY"]
    assert one["calibration_error"] < 0.05
    assert one["auprc"] > 0.3
    assert sum(row["variants"] for row in one["curve"]) == len(report.truth)
    both = report.with_network([b.posterior for b in report.blocks])
    assert both.as_dict()["P_NETWORK"] == one
    plot_reliability(both, tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match="n_blocks is 0"):
        calibration_report(blocks, high, n_blocks=0)


def test_metrics_are_their_definitions():
    p, truth = np.array([0.9, 0.8, 0.8, 0.3, 0.05]), np.array([True, False, True, False, False])
    assert average_precision(truth, p) == pytest.approx((1 + 2 / 3) / 2)
    assert log_loss(p, truth.astype(float)) == pytest.approx(-np.log([0.9, 0.2, 0.8, 0.7, 0.95]).mean())
    curve = reliability(p, truth)
    np.testing.assert_allclose(curve.stated, [0.05, 0.3, 0.8, 0.9])
    np.testing.assert_allclose(curve.observed, [0.0, 0.0, 0.5, 1.0])
    assert curve.error == pytest.approx((0.05 + 0.3 + 2 * 0.3 + 0.1) / 5)
    assert reliability(p, truth, above=0.5).error == pytest.approx((2 * 0.3 + 0.1) / 3)
    assert figures(np.zeros(0), np.zeros(0))["auprc"] is None
    drawn = np.random.default_rng(0).random(20_000)
    calibrated = CalibrationReport({"P_PLEIOTROPY": drawn}, np.random.default_rng(1).random(20_000) < drawn, 3, [])
    assert calibrated.as_dict()["P_PLEIOTROPY"]["calibration_error"] < 0.015


def test_calibration_error_by_chance_is_that_of_true_probabilities():
    stated, number = np.array([0.02, 0.3, 0.5, 0.97, 1.0]), np.array([400, 7, 30, 90, 12])
    rng = np.random.default_rng(1)
    observed = rng.binomial(number, stated, size=(40_000, 5))
    simulated = np.abs(observed - number * stated).sum(axis=1).mean() / number.sum()
    assert error_by_chance(stated, number) == pytest.approx(simulated, rel=0.02)
    assert np.isnan(error_by_chance(stated[:0], number[:0]))
