"""One small problem, and one fit to it, that all tests of `fit` in a process share."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import polars as pl

import deepwas
from deepwas import FitOptions
from tests.synthetic import write_problem

QUICK = FitOptions(network="linear", folds=4, steps=90, evaluate_every=15, batch_blocks=4, learning_rate=0.05)


def once(make):
    """make(factory), made once in this process for all modules. factory: pytest's tmp_path_factory."""
    made = {}

    @functools.wraps(make)
    def kept(factory):
        where = str(factory.getbasetemp())
        if where not in made:
            made[where] = make(factory)
        return made[where]

    return kept


def prepared(folder, options, **problem):
    """Folder, store, harmonised z-scores, annotations and truth of a problem, also as files."""
    found = write_problem(folder, **problem)
    store = deepwas.build_ld(found.genotypes, folder / "ld.h5", options)
    z = deepwas.harmonise(
        deepwas.read_sumstats(found.sumstats),
        store.variants,
        n_panel=store.n_samples,
        genome_build=store.genome_build,
        options=deepwas.QCOptions(exclude="none"),
        store_checksum=store.checksum,
    )
    z.write_parquet(folder / "z.parquet")
    return folder, store, z, deepwas.read_annotations(found.annotations, store.variants), found


@once
def small_problem(factory):
    """1,920 variants on 4 chromosomes."""
    options = deepwas.LDOptions(build="GRCh37", min_block=20, max_block=80, eigenvalue_floor=0.05)
    return prepared(factory.mktemp("problem"), options)


@once
def tiny_problem(factory):
    """320 variants on 4 chromosomes, in blocks of 40."""
    options = deepwas.LDOptions(build="GRCh37", min_block=20, max_block=40, eigenvalue_floor=0.05)
    return prepared(factory.mktemp("tiny"), options, chromosomes=4, variants=80, people=200, strength=2.5)


@once
def quick_fit(factory):
    """The small problem fitted with QUICK, in its folder `run`."""
    folder, store, z, annotations, _ = small_problem(factory)
    return deepwas.fit(store, z, annotations, options=QUICK, out=folder / "run")


def with_gaps(z):
    """z-scores of most variants, so that the trait has factors of its own."""
    return replace(z, frame=z.frame.filter(pl.col("VARIANT") % 7 != 3))


def whitening_is_a_mistake(monkeypatch):
    """Make a fit fail where it begins to compute."""
    from deepwas.training import job

    def whiten(*_, **__):
        raise AssertionError("whitening has begun")

    monkeypatch.setattr(job, "open_trait", whiten)


def evaluations(run):
    """How many evaluations a run has recorded so far, over its rotations and networks."""
    # Not by "**": folders of checkpoints vanish under it.
    tables = [*run.glob("rotation_*/metrics.csv"), *run.glob("rotation_*/member_*/metrics.csv")]
    return sum(max(len(path.read_text().splitlines()) - 1, 0) for path in tables)


def figures(run):
    """Every figure of a finished run that does not hang on the clock: its record, its tables of metrics, its priors."""
    record = json.loads((run / "run.json").read_text())
    for name in ("created", "seconds"):
        del record[name]
    for rotation in record["rotations"]:
        rotation["network"].pop("waiting", None)
    tables = {
        str(path.relative_to(run)): pl.read_csv(path).drop("waiting") for path in sorted(run.glob("**/metrics.csv"))
    }
    return record, tables, pl.read_parquet(run / "variants.parquet")
