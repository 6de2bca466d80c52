"""Several traits on one trunk: each is scored as alone, the trunk is shared, and it can be taken over."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import polars as pl
import pytest
from flax import nnx

import deepwas
from deepwas import FitOptions, InputError
from deepwas.cli._fit_result import say_found, say_training
from deepwas.inputs import VariantInputs
from deepwas.networks import make_network, of_trait, predict_log_variance, trunk_labels, with_trunk
from deepwas.training.loop import Point, Trainer
from deepwas.training.plan import plan_traits
from deepwas.training.sections import make_rotations, without_overlap
from deepwas.training.source import BlockSource
from deepwas.training.trait import open_trait
from deepwas.training.trait_sources import TraitSources
from tests.fit_problem import tiny_problem, with_gaps

OPTIONS = FitOptions(
    network="mlp", hidden=(6,), folds=3, steps=12, evaluate_every=4, batch_blocks=4, learning_rate=0.05
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_problem(tmp_path_factory)


@pytest.fixture(scope="module")
def traits(tiny):
    """Two traits: the one simulated, and half of it, with gaps and fewer people."""
    _, _, z, _, _ = tiny
    other = with_gaps(z)
    frame = other.frame.with_columns(Z=pl.col("Z") * 0.5, N=pl.col("N") * 0.5)
    return {"whole": z, "half": replace(other, frame=frame)}


@pytest.fixture(scope="module")
def both(tiny, traits):
    """Fits of both traits, in the folder `both`."""
    folder, store, _, annotations, _ = tiny
    # Resumed where another worker gave tests of this module back: the problem is made once, a module set up again.
    return deepwas.fit_traits(store, traits, annotations, options=OPTIONS, out=folder / "both", resume=True)


def parts(network):
    """Arrays of the trunk and of the head."""
    state = nnx.state(network, nnx.Param)
    labels, arrays = jax.tree.leaves(trunk_labels(state)), jax.tree.leaves(state)
    return [[np.asarray(x) for x, own in zip(arrays, labels, strict=True) if own == part] for part in ("trunk", "head")]


def test_one_trait_is_fitted_as_alone(tiny):
    _, store, z, annotations, _ = tiny
    alone = deepwas.fit(store, z, annotations, options=OPTIONS)
    found = deepwas.fit_traits(store, {"only": z}, annotations, options=OPTIONS)["only"]
    assert found.variants.equals(alone.variants)
    assert found.record["held_out"] == alone.record["held_out"]
    assert [r["noise"] for r in found.record["rotations"]] == [r["noise"] for r in alone.record["rotations"]]


def test_each_trait_has_a_run_of_its_own_and_the_trunk_is_shared(tiny, traits, both):
    folder, store, _, annotations, _ = tiny
    assert list(both) == ["whole", "half"]
    for name, fit in both.items():
        again = deepwas.load_fit(folder / "both" / name)
        assert again.variants.equals(fit.variants)
        assert again.record["inputs"]["traits"]["own"] == name
        assert again.record["size"]["variants_scored"] == traits[name].frame.height
        for r, (network, standardiser) in enumerate(zip(again.networks, again.standardisers, strict=True)):
            rows = (again.variants["SECTION"] == r).to_numpy()
            log_f = predict_log_variance(network, VariantInputs(standardiser.transform(annotations)))
            assert log_f.shape == (store.n_variants, 1)
            np.testing.assert_allclose(
                np.log(again.variants["SNPVAR_CROSS"].to_numpy()[rows]), log_f[rows, 0], rtol=1e-5
            )
    assert sorted(p.name for p in (folder / "both").iterdir()) == [
        "half",
        *(f"rotation_{r}" for r in range(3)),
        "whole",
    ]
    differ = []
    for one, other in zip(both["whole"].networks, both["half"].networks, strict=True):
        (trunk, head), (their_trunk, their_head) = parts(one), parts(other)
        for a, b in zip(trunk, their_trunk, strict=True):
            np.testing.assert_array_equal(a, b)
        differ.append(any(not np.array_equal(a, b) for a, b in zip(head, their_head, strict=True)))
    # A rotation whose best step is its start has no heads yet.
    assert differ == [x["network"]["best_step"] > 0 for x in both["whole"].record["rotations"]]
    assert any(differ)
    noises = [fit.record["rotations"][0]["noise"] for fit in both.values()]
    assert noises[0] != noises[1]
    sections = [set(map(tuple, fit.variants.select("BLOCK", "SECTION").unique().rows())) for fit in both.values()]
    assert sections[0] == sections[1]


def test_the_command_says_of_each_trait_what_it_says_of_one(both, capsys, tmp_path):
    records = {name: fit.record for name, fit in both.items()}
    say_found(
        records, {name: tmp_path / name for name in both}, {name: len(x["counts"]) for name, x in records.items()}
    )
    said = capsys.readouterr()
    for name in both:
        assert f"share of the store's variance, {name}" in said.out
        assert f"{name}: LD mismatch:" in said.err
        assert f"deepwas priors {tmp_path / name} --out {name}.tsv.gz" in said.err
        assert f"{name}: held-out log-likelihood" in said.err
    assert "usable rows" not in said.err  # said before
    say_training(replace(OPTIONS, ensemble=3, ema=0.98))
    assert "3 networks" in (said := capsys.readouterr().err)
    assert "decay 0.98" in said


def test_log_likelihoods_of_all_traits_are_those_of_each(tiny, traits, float32):
    _, store, _, annotations, _ = tiny
    inputs = VariantInputs(deepwas.annotations.Standardiser.fit(annotations).transform(annotations))
    network = make_network(OPTIONS, inputs.sizes, [-9.0, -7.5], seed=1)
    network.output.kernel[...] = jax.random.normal(jax.random.key(0), network.output.kernel[...].shape)
    blocks = [open_trait(store, z.frame) for z in traits.values()]
    sources = TraitSources([BlockSource(b, trait=t) for t, b in enumerate(blocks)])
    point = Point.of(network, np.log([1.0, 1.7]))
    total = sum(map(len, blocks))
    found = Trainer(sources, OPTIONS, n_panel=100).log_likelihood(point, inputs, np.arange(total)[::-1])[::-1]
    for t, (own, noise) in enumerate(zip(blocks, (1.0, 1.7), strict=True)):
        trainer = Trainer(BlockSource(own), OPTIONS, n_panel=100)
        alone = trainer.log_likelihood(Point.of(of_trait(network, t), np.log(noise)), inputs, np.arange(len(own)))
        np.testing.assert_allclose(found[sources.first[t] : sources.first[t + 1]], alone, rtol=1e-6)
    assert sorted(np.concatenate(sources.members)) == list(range(total))


def test_a_trait_is_added_to_a_trunk_that_stays_as_it_is(tiny, traits, both):
    _, store, _, annotations, _ = tiny
    given = {"start_from": tiny[0] / "both" / "whole", "options": OPTIONS}
    frozen = deepwas.fit_traits(store, {"new": traits["half"]}, annotations, freeze_trunk=True, **given)["new"]
    moving = deepwas.fit_traits(store, {"new": traits["half"]}, annotations, **given)["new"]
    moved = []
    for r, start in enumerate(both["whole"].networks):
        trunk = parts(start)[0]
        for a, b in zip(trunk, parts(frozen.networks[r])[0], strict=True):
            np.testing.assert_array_equal(a, b)
        moved += [not np.array_equal(a, b) for a, b in zip(trunk, parts(moving.networks[r])[0], strict=True)]
        assert frozen.standardisers[r] == both["whole"].standardisers[r]
    assert any(moved)
    assert any(x["network"]["best_step"] for x in frozen.record["rotations"])
    assert any(x.any() for network in frozen.networks for x in parts(network)[1])
    other = replace(OPTIONS, folds=4)
    for options, message in (
        (other, "has 3 network"),
        (replace(OPTIONS, hidden=(7,)), r"hidden \(6,\), now \(7,\)\. Give --hidden 6\."),
    ):
        with pytest.raises(InputError, match=message):
            deepwas.fit_traits(
                store,
                {"new": traits["half"]},
                annotations,
                start_from=both["whole"],
                options=options,
                out=tiny[0] / "refused",
            )
    assert not (tiny[0] / "refused").exists()


def test_trunks_of_other_sizes_are_refused():
    sizes = VariantInputs(np.zeros((3, 4), np.float32)).sizes
    network = make_network(OPTIONS, sizes, [0.0, 1.0])
    other = make_network(OPTIONS, sizes, 0.0, seed=5)
    taken = with_trunk(network, other)
    for a, b in zip(parts(taken)[0], parts(other)[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert predict_log_variance(taken, VariantInputs(np.ones((3, 4), np.float32))).tolist() == [[0.0, 1.0]] * 3
    with pytest.raises(InputError, match=r"the trunk to start from .* shape \(5,\), not \(6,\)"):
        with_trunk(network, make_network(replace(OPTIONS, hidden=(5,)), sizes, 0.0))


def test_an_interrupted_fit_goes_on_to_the_same_figures(tiny, traits, both):
    folder, store, _, annotations, _ = tiny
    out = folder / "broken"

    def stop(what, done, total):
        if what == "training" and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deepwas.fit_traits(store, traits, annotations, options=OPTIONS, out=out, progress=stop)
    with pytest.raises(InputError, match="resume"):
        deepwas.fit_traits(store, traits, annotations, options=OPTIONS, out=out)
    with pytest.raises(InputError, match="cannot resume"):
        deepwas.fit_traits(store, traits, annotations, options=OPTIONS, out=out, resume=True, weights={"half": 2})
    found = deepwas.fit_traits(store, traits, annotations, options=OPTIONS, out=out, resume=True)
    read = deepwas.fit_traits(store, traits, annotations, options=OPTIONS, out=out, resume=True)
    for name, fit in both.items():
        assert found[name].variants.equals(fit.variants)
        assert found[name].record["held_out"] == fit.record["held_out"]
        assert read[name].record == found[name].record


def test_weights_move_the_trunk_and_are_those_of_the_blocks(tiny, traits, both):
    _, store, _, annotations, _ = tiny
    same = deepwas.fit_traits(store, traits, annotations, options=OPTIONS, weights={"whole": 3.0, "half": 3.0})
    other = deepwas.fit_traits(store, traits, annotations, options=OPTIONS, weights={"half": 5.0})
    assert same["whole"].variants.equals(both["whole"].variants)
    assert not other["whole"].variants.equals(both["whole"].variants)


def test_what_cannot_be_fitted_together_is_refused(tiny, traits, tmp_path):
    folder, store, z, annotations, _ = tiny
    fit, constant = deepwas.fit_traits, FitOptions(network="constant")
    for arguments, message in (
        ({"sumstats": {}}, "must name the traits"),
        ({"sumstats": {"a/b": z}}, "cannot name a trait"),
        ({"sumstats": {"rotation_1": z}}, "cannot name a trait"),
        ({"sumstats": traits, "weights": {"third": 1.0}}, "no trait here: whole, half"),
        ({"sumstats": traits, "weights": {"half": 0.0}}, "weight of half is 0.0"),
        ({"sumstats": traits, "options": constant}, "share nothing"),
        ({"sumstats": traits, "options": replace(OPTIONS, monotone=("activ:+",))}, "Did you mean active"),
        ({"sumstats": traits, "freeze_trunk": True}, "must come from a run"),
        ({"sumstats": {"a": folder / "gone.txt"}}, "^a: .*gone.txt"),
    ):
        with pytest.raises(InputError, match=message):
            fit(store, annotations=annotations, out=tmp_path / "out", **({"options": OPTIONS} | arguments))
    assert not (tmp_path / "out").exists()
    first = z.frame["VARIANT"] < 80
    frames = {"all": z.frame, "some": z.frame.filter(~first)}
    with pytest.raises(InputError, match=r"some: no z-score in section 0 of the genome \(from 1:"):
        plan_traits(store, frames, replace(OPTIONS, folds=4))


def test_a_trunk_is_not_taken_from_a_run_on_other_tracks(tiny, traits):
    _, store, z, _, _ = tiny
    rng = np.random.default_rng(0)
    one, other = (rng.normal(size=(store.n_variants, 5, 2)).astype(np.float32) for _ in range(2))
    options = replace(OPTIONS, network="cnn", width=4, depth=1, hidden=(4,), steps=2, cross_fit=False)
    start = deepwas.fit(store, z, tracks=one, options=options)
    with pytest.raises(InputError, match="was fitted with other tracks"):
        deepwas.fit_traits(store, {"new": z}, tracks=other, options=options, start_from=start)


def test_a_fault_that_shows_in_training_leaves_no_folder(tiny, traits, tmp_path):
    _, store, _, annotations, _ = tiny
    values = annotations.values.copy()
    values[:, 0] = np.nan
    broken = replace(annotations, values=values)
    with pytest.raises(InputError, match="missing for all"):
        deepwas.fit_traits(store, traits, broken, options=OPTIONS, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_trait_trains_on_windows_that_reach_into_what_another_is_tested_on():
    # Windows of 30 variants that score their middle 10; trait A lacks z-scores in block 2, B has all.
    scored = [slice(10 * i, 10 * i + 10) for i in range(9)]
    windows = [slice(max(x.start - 10, 0), min(x.stop + 10, 90)) for x in scored]
    section = np.repeat([0, 1, 2], 3)
    tested = [[scored[i] for i in np.flatnonzero(section == r)] for r in range(3)]
    kept = [i for i in range(9) if i != 2]
    rotations = make_rotations(section[kept])
    arguments = rotations, [windows[i] for i in kept], [scored[i] for i in kept]
    alone, _ = without_overlap(*arguments)
    together, dropped = without_overlap(*arguments, tested)
    assert kept.index(3) in alone[0].validation
    assert kept.index(3) not in together[0].validation
    assert kept.index(3) in dropped
