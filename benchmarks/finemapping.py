"""Fine-mapping: are inclusion probabilities and credible sets calibrated, what do priors add, what if LD is off?

LD is coalescent. Of the people simulated most are the GWAS's own, whose LD is the reference; the others are a small
panel. Effects are sparse, of normal size, likelier where annotations say so, or anywhere alike; z-scores are drawn from
the model. The slab is learned each time, as by default. Compared are

- priors: the true one, one learned from the same z-scores (cross-fitted), and a flat one;
- methods, with the flat prior and the same slab: deepwas; its slots alone, without exact pairs (SuSiE's family of
  posteriors); one effect a block at most (Wakefield's approximate Bayes factors);
- LD: of the GWAS's own people, or of the small panel, cut as `deepwas ld` does by default, or nearly in full. There the
  constant prior and the noise are learned with the very LD, and the whole command runs.

A variant counts as found at an inclusion probability above 0.9. Intervals are exact binomial ones (Clopper and Pearson)
over all traits; effects of variants that are copies of one another cannot be told apart, and count all the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.finemapping_report import FOUND, SCENARIOS, draw, tables
from benchmarks.rates import exact
from benchmarks.simulate import Region, simulate_annotations, simulate_panel
from benchmarks.stores import simulated_gwas, store_of_regions

if TYPE_CHECKING:
    from deepwas.ld import LDBlock, LDStore
    from deepwas.training.trait import TraitBlock

__all__ = ["draw", "measure", "tables"]

Progress = Callable[[str, int, int], None]
Array = NDArray[np.float64]

BINS = (0.0, 0.01, 0.1, 0.5, 0.9, 1.0)
_SMOOTH = 4


@dataclass(frozen=True)
class Problem:
    """What is simulated.

    regions, m: of the LD, m variants each, one block a region.  people, panel: whose LD it is; and in the small panel.
    sample_sizes: N, one after the other.  inclusion: mean probability of an effect.  slab: its variance.
    strength: standard deviation of log probability by annotations.  traits: of each scenario and N.
    learned: of those, for which a prior is learned, with so many steps and folds (0: not cross-fitted).
    panel_traits: traits for the comparison of LD, with the middle N.
    """

    regions: int = 60
    m: int = 400
    people: int = 3000
    panel: int = 400
    eigenvalue_floor: float = 1e-3
    panel_floor: float = 0.05
    sample_sizes: tuple[float, ...] = (1e5, 3e5, 1e6)
    inclusion: float = 0.006
    slab: float = 1e-4
    strength: float = 2.0
    most_likely: float = 0.3
    traits: int = 4
    learned: int = 2
    panel_traits: int = 3
    steps: int = 200
    folds: int = 5
    seed: int = 11


QUICK = Problem(
    regions=6, m=60, people=400, panel=60, sample_sizes=(3e5,), inclusion=0.02, traits=1, learned=1, panel_traits=1,
    steps=10, folds=0, eigenvalue_floor=1e-2,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class _World:
    """Regions as the GWAS's people and the panel see them, blocks of the former, stores, annotations (M, p)."""

    regions: list[Region]
    genotypes: list[Array]
    blocks: list[LDBlock]
    stores: dict[str, LDStore]
    values: Array

    @property
    def size(self) -> int:
        return sum(r.m for r in self.regions)

    def cut(self, x: Array) -> list[Array]:
        """By region."""
        return np.split(x, np.cumsum([r.m for r in self.regions])[:-1])


@dataclass(frozen=True, eq=False)
class _Called:
    """What one method says of one trait.  pip, causal, flagged: (M,).  sets: (covered, size, purity, flagged)."""

    pip: Array
    causal: NDArray[np.bool_]
    sets: list[tuple[bool, int, float, bool]]
    flagged: NDArray[np.bool_] | None = None


def measure(quick: bool, progress: Progress) -> dict[str, Any]:
    """Simulate, fine-map, compare. Figures for JSON."""
    problem = QUICK if quick else Problem()
    with tempfile.TemporaryDirectory(prefix="deepwas-finemapping-") as name:
        world = _world(problem, Path(name), progress)
        called: dict[str, dict[str, list[_Called]]] = {scenario: {} for scenario in SCENARIOS}
        slabs: dict[str, dict[str, list[float]]] = {scenario: {} for scenario in SCENARIOS}
        total = len(SCENARIOS) * len(problem.sample_sizes) * problem.traits
        done = 0
        for n, scenario in enumerate(SCENARIOS):
            for size in problem.sample_sizes:
                for number in range(problem.traits):
                    found, own = _trait(problem, world, scenario, size, number, [problem.seed, n, int(size), number])
                    for key, one in found.items():
                        called[scenario].setdefault(key, []).append(one)
                    for key, slab in own.items():
                        slabs[scenario].setdefault(key, []).append(slab)
                    done += 1
                    progress("traits", done, total)
        panels = _panels(problem, world, progress)
    return {
        "settings": asdict(problem),
        "size": {"variants": world.size, "h2": world.size * problem.inclusion * problem.slab},
        "scenarios": {s: {key: _summary(rows) for key, rows in own.items()} for s, own in called.items()},
        "slabs": slabs,
        "gains": _gains(problem, called["informative"]),
        "panels": panels,
    }


def _world(problem: Problem, folder: Path, progress: Progress) -> _World:
    from deepwas.ld import LDBlock
    from deepwas.ld.options import eigenvalue_floor

    genotypes: list[Array] = []
    own: list[Region] = []
    small: list[Region] = []
    for number in range(problem.regions):
        everyone = simulate_panel(problem.m, people=problem.people + problem.panel, seed=1000 * problem.seed + number)
        parts = everyone.genotypes[:, : problem.people], everyone.genotypes[:, problem.people :]
        varies = np.all([x.std(axis=1) > 0.05 for x in parts], axis=0)
        X, Y = ((x[varies] - x[varies].mean(axis=1, keepdims=True)) for x in parts)
        X, Y = (x / x.std(axis=1, keepdims=True) for x in (X, Y))
        for regions, x in ((own, X), (small, Y)):
            R = x @ x.T / x.shape[1]
            np.fill_diagonal(R, 1.0)
            regions.append(Region(everyone.position[varies], everyone.maf[varies], np.clip(R, -1, 1)))
        genotypes.append(X)
        progress("simulating people", number + 1, problem.regions)
    blocks = [LDBlock.from_correlation(r.correlation, eigenvalue_floor=problem.eigenvalue_floor) for r in own]
    cuts = {
        "own": blocks,
        "panel": [
            LDBlock.from_correlation(r.correlation, eigenvalue_floor=eigenvalue_floor(r.m, problem.panel))
            for r in small
        ],
        "panel in full": [LDBlock.from_correlation(r.correlation, eigenvalue_floor=problem.panel_floor) for r in small],
    }
    stores = {}
    for key, made in cuts.items():
        # The LD of the first is that of the GWAS without any error, whatever the number of people it was simulated for.
        people = int(max(problem.sample_sizes)) if key == "own" else problem.panel
        stores[key] = store_of_regions(own, made, folder / f"{key.replace(' ', '-')}.h5", people)
    values = simulate_annotations(own, smooth=_SMOOTH, seed=problem.seed)
    return _World(own, genotypes, blocks, stores, values)


def _inclusion(problem: Problem, world: _World, scenario: str) -> Array:
    """(M,), the true probability of an effect: log-linear in a smooth and an independent annotation, or constant."""
    if scenario == "uninformative":
        return np.full(world.size, problem.inclusion)
    score = (world.values[:, 0] + world.values[:, _SMOOTH]) * problem.strength / np.sqrt(2)
    pi = np.exp(score)
    for _ in range(20):  # the mean held although the largest are cut
        pi = np.minimum(pi * problem.inclusion / pi.mean(), problem.most_likely)
    return pi


def _z_scores(problem: Problem, world: _World, pi: Array, size: float, seed: list[int]) -> tuple[Array, Array]:
    """Effects and z-scores (M,)."""
    rng = np.random.default_rng(seed)
    beta = np.where(rng.random(world.size) < pi, rng.normal(size=world.size) * np.sqrt(problem.slab), 0.0)
    z = [
        X @ (X.T @ b * np.sqrt(size) / X.shape[1] + rng.normal(size=X.shape[1]) / np.sqrt(X.shape[1]))
        for X, b in zip(world.genotypes, world.cut(beta), strict=True)
    ]
    return beta, np.concatenate(z)


def _trait(
    problem: Problem, world: _World, scenario: str, size: float, number: int, seed: list[int]
) -> tuple[dict[str, _Called], dict[str, float]]:
    """What every prior and method says of one trait, and the slabs learned."""
    from deepwas.finemapping import finemap_blocks

    pi = _inclusion(problem, world, scenario)
    beta, z = _z_scores(problem, world, pi, size, seed)
    blocks = _trait_blocks(world, z, size)
    priors = {"flat": np.full(world.size, float(pi.mean()) * problem.slab)}
    if scenario == "informative":
        priors["true"] = pi * problem.slab
        if number < problem.learned:
            priors["learned"] = _learned(problem, world, z, size)
    found, slabs = {}, {}
    for key, f in priors.items():
        mapped = finemap_blocks(blocks, f)
        slabs[key] = mapped.slab
        sets = [(bool((beta[s.variants] != 0).any()), len(s.variants), s.purity, False) for _, s in mapped.sets]
        found[key] = _Called(mapped.inclusion, beta != 0, sets)
    for key in ("slots", "single"):
        found[key] = _baseline(key, blocks, priors["flat"], slabs["flat"], beta)
    return found, slabs


def _trait_blocks(world: _World, z: Array, size: float) -> list[TraitBlock]:
    from deepwas.training.trait import TraitBlock

    out, start = [], 0
    for number, (block, own) in enumerate(zip(world.blocks, world.cut(z), strict=True)):
        rows, every = slice(start, start + block.m), np.ones(block.m, bool)
        y = np.asarray(block.whiten(own), np.float32)
        out.append(TraitBlock(number, rows, np.asarray(block.factor), y, own, every, size))
        start += block.m
    return out


def _baseline(which: str, blocks: Sequence[TraitBlock], f: Array, slab: float, beta: Array) -> _Called:
    """Slots without pairs, or one effect at most, with the same prior as deepwas."""
    import jax.numpy as jnp

    from deepwas.finemapping.effects import as_arrays, normal_slab, single_effect
    from deepwas.finemapping.mean_field import mean_field
    from deepwas.finemapping.sets import credible_set

    pip, sets = np.zeros(len(f)), []
    k, m = (max(b.shape[axis] for b in blocks) for axis in (0, 1))
    kind = jnp.result_type(float)
    classes = as_arrays(normal_slab(blocks[0].sample_size * slab, 1.0), kind)
    for block in blocks:
        own, (kb, mb) = block.rows, block.shape
        G, y, odds = np.zeros((k, m), kind), np.zeros((k, 1), kind), np.full((m, 1), -np.inf, kind)
        G[:kb, :mb], y[:kb, 0] = block.factor, block.whitened
        pi = f[own] / slab
        odds[:mb, 0] = np.log(pi / (1 - pi))
        d, given = jnp.asarray((G * G).sum(axis=0)), jnp.asarray(odds)
        means = np.zeros((1, m, 1), kind)
        if which == "slots":
            means = np.asarray(mean_field(jnp.asarray(G), jnp.asarray(y), classes, given, slots=10).mean)
            means = means[: max(1, int(means.any(axis=(1, 2)).sum()))]  # those that were opened
        total, none = means.sum(axis=0), np.ones(mb)
        for mean in means:
            b = jnp.asarray(G.T @ (y - G @ (total - mean)))
            where = np.asarray(single_effect(classes, given, b, d).probability)[:mb, 0].astype(np.float64)
            none *= 1 - np.minimum(where, 1)
            made = credible_set(G[:, :mb], where, 0.95)
            if made is not None:
                covered = bool((beta[own][made.variants] != 0).any())
                sets.append((covered, len(made.variants), made.purity, False))
        pip[own] = 1 - none
    return _Called(pip, beta != 0, sets)


def _learned(problem: Problem, world: _World, z: Array, size: float) -> Array:
    """f by a log-linear network, cross-fitted, from the trait's own z-scores."""
    from deepwas import FitOptions, fit
    from deepwas.annotations import Annotations

    store = world.stores["own"]
    names = tuple(f"annotation_{j + 1}" for j in range(world.values.shape[1]))
    variants = store.variants.select("SNP", "CHR", "BP", "A1", "A2")
    given = Annotations(names, world.values.astype(np.float32), variants, dict.fromkeys(names, "simulated"))
    options = FitOptions(network="linear", steps=problem.steps, cross_fit=problem.folds > 0, folds=problem.folds or 5)
    run = fit(store, simulated_gwas(store, z, size), given, options=options)
    return run.variants["SNPVAR_CROSS" if run.cross_fitted else "SNPVAR_PLAIN"].to_numpy().astype(np.float64)


def _panels(problem: Problem, world: _World, progress: Progress) -> dict[str, Any]:
    """The whole command with LD of each kind, under its own constant prior and noise: what is flagged and said."""
    from deepwas import FitOptions, fit
    from deepwas.finemapping import FineMapOptions
    from deepwas.posterior import estimate_posterior

    size = problem.sample_sizes[len(problem.sample_sizes) // 2]
    pi = _inclusion(problem, world, "uninformative")
    out: dict[str, Any] = {}
    for j, (key, store) in enumerate(world.stores.items()):
        rows, records = [], []
        for number in range(problem.panel_traits):
            beta, z = _z_scores(problem, world, pi, size, [problem.seed, 9, number])
            run = fit(
                store, simulated_gwas(store, z, size), None, options=FitOptions(network="constant", cross_fit=False)
            )
            found = estimate_posterior(run, store, finemap=FineMapOptions())
            mapped = found.finemap
            assert mapped is not None
            members = mapped.members.group_by("SET", maintain_order=True).agg("SNP")["SNP"].to_list()
            index = [[int(name[1:]) for name in names] for names in members]
            sets = [
                (bool((beta[at] != 0).any()), len(at), row["PURITY"], row["FLAG"] is not None)
                for at, row in zip(index, mapped.sets.iter_rows(named=True), strict=True)
            ]
            flagged = mapped.variants["FLAG"].is_not_null().to_numpy()
            rows.append(_Called(mapped.variants["PIP"].to_numpy(), beta != 0, sets, flagged))
            records.append(mapped.record)
            progress("LD of other people", j * problem.panel_traits + number + 1, 3 * problem.panel_traits)
        fits = [x["mismatch"] for x in records]
        out[key] = _summary(rows) | {
            "noise": [x["noise"]["used"] for x in fits],
            "noise_of_single_blocks": [x["noise"]["of_single_blocks"] for x in fits],
            "flagged": [x["flagged"] for x in fits],
            "by_reason": [x["by_reason"] for x in fits],
            "blocks": fits[0]["blocks"],
            "warned": sum(bool(x["warnings"]) for x in fits),
            "warnings": fits[0]["warnings"],
            "slab": [x["slab"] for x in records],
            "unflagged": _summary([_part(x, False) for x in rows]),
        }
    return out


def _part(called: _Called, flagged: bool) -> _Called:
    """The variants and sets of blocks that are flagged, or are not."""
    assert called.flagged is not None
    rows = called.flagged == flagged
    return _Called(called.pip[rows], called.causal[rows], [s for s in called.sets if s[3] == flagged])


def _summary(rows: Sequence[_Called]) -> dict[str, Any]:
    pip, causal = (np.concatenate([getattr(x, name) for x in rows]) for name in ("pip", "causal"))
    bins = []
    for low, high in pairwise(BINS):
        inside = (pip >= low) & ((pip < high) | (high == 1.0))
        share = _share(int(causal[inside].sum()), int(inside.sum()))
        bins.append({"low": low, "high": high, "mean": float(pip[inside].mean()) if inside.any() else None} | share)
    sets = [s for x in rows for s in x.sets]
    found = pip > FOUND
    return {
        "bins": bins,
        "sets": _share(sum(s[0] for s in sets), len(sets))
        | {"median_size": float(np.median([s[1] for s in sets])) if sets else None},
        "found": {"calls": int(found.sum()), "causal": int(causal.sum())}
        | _share(int(causal[found].sum()), int(found.sum())),
        "expected_effects": float(pip.sum()),
    }


def _share(part: int, whole: int) -> dict[str, Any]:
    """A share with its exact 95% interval."""
    if not whole:
        return {"count": 0, "hits": 0, "share": None, "interval": None}
    return {"count": whole, "hits": part, "share": part / whole, "interval": list(exact(part, whole))}


def _gains(problem: Problem, called: dict[str, list[_Called]]) -> dict[str, Any]:
    """Causal variants found by a prior over those found by the flat one, same traits, with bootstrap intervals."""
    rng = np.random.default_rng(0)
    first = [number < problem.learned for _ in problem.sample_sizes for number in range(problem.traits)]
    flat = np.array([_true_calls(x) for x in called["flat"]])
    out: dict[str, Any] = {}
    for key in ("true", "learned"):
        if key not in called:
            continue
        base = flat if key == "true" else flat[first]
        own = np.array([_true_calls(x) for x in called[key]])
        ratios = []
        for _ in range(2000):
            again = rng.integers(len(own), size=len(own))
            if base[again].sum():
                ratios.append(own[again].sum() / base[again].sum() - 1)
        out[key] = {
            "traits": len(own),
            "found": int(own.sum()),
            "found_flat": int(base.sum()),
            "gain": float(own.sum() / base.sum() - 1) if base.sum() else None,
            "interval": np.quantile(ratios, [0.025, 0.975]).tolist() if ratios else None,
        }
    return out


def _true_calls(x: _Called) -> int:
    return int(x.causal[x.pip > FOUND].sum())
