"""Expression of neighbouring genes as traits: do variants called shared in one half of the people hold in the other?

For sets of three neighbouring genes and the variants around them, everything is learned in one half: how effects lie
around transcription starts (`deepwas.fit` over all genes' windows, cross-fitted), then sizes of effects and sharing
over all sets (`deepwas.pleiotropy`), then each set's effects. Genes share all their people, so the noise of z-scores is
the covariance of expression that is left once the strongest variants are taken out. A call is a credible set with its
likeliest variant and the pair of genes that it likeliest acts on.

In the other half a call is *replicated* if the variant is associated with both genes, p < 0.05 each, with the signs of
the first half. That says nothing of LD: of two variants in LD, one for each gene, both replicate. So, too: a call is
*refuted* if, given the called variant, a gene's own lead of the first half (the strongest variant in LD with the called
one, r^2 > 0.05) is still associated with it, p < 0.05. One in ten of the true ones is refuted by chance. It *holds* if
it is replicated and not refuted.

The same is asked of as many calls of the intersection (variants by the second largest |z| of the genes) and of HOPS
with LD correction, one call a locus (r^2 < 0.1 to better ones); their pair is that of the two largest |z|. Each half
discovers once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.geuvadis_data import FILES, VARIABLE, Data, Half, find_folder, half_of, ld_scores, read
from benchmarks.geuvadis_priors import learn_priors
from benchmarks.geuvadis_replication import LEVEL, Call, equal, rates, tested, within
from benchmarks.geuvadis_report import BINS, MODELS, OTHERS, draw, tables

if TYPE_CHECKING:
    from deepwas.finemapping.block import BlockEffects
    from deepwas.pleiotropy.configurations import TraitModel
    from deepwas.pleiotropy.learning import JointBlock

__all__ = ["draw", "measure", "tables"]

Progress = Callable[[str, int, int], None]
Array = NDArray[np.float64]
Numbers = NDArray[np.int64]

_CLUMP = 0.1
_SAME = 0.5  # r^2 to a variant within which the model's probabilities count as of its locus
_STRONG = 1e-5
_WEAKEST = 2.0
_LEAST = 0.05
_BOTH = 4.0  # |z| of both genes, of calls of the intersection that the model is asked about
SHARES = ((0.0, 0.2), (0.2, 0.8), (0.8, 1.0))


@dataclass(frozen=True)
class Problem:
    """What is done.

    genes: of a set.  window: bases either side of a transcription start where effects on the gene may lie.
    span: largest distance between starts of a set.  covariates: 3 of genotypes, then of expression.
    network, steps, folds: of the prior; folds 0 for one network.  learn: sets to learn sizes and sharing from.
    rounds, slots, candidates: of that and of location.  sets: the first ones alone, 0 for all.  halves: that discover.
    """

    genes: int = 3
    window: int = 200_000
    span: int = 200_000
    covariates: int = 23
    network: str = "mlp"
    steps: int = 300
    folds: int = 5
    learn: int = 60
    rounds: int = 6
    slots: int = 6
    candidates: int = 64
    sets: int = 0
    halves: int = 2
    pad: int = 512
    seed: int = 3


QUICK = Problem(window=60_000, network="linear", steps=10, folds=0, learn=6, rounds=2, sets=12, halves=1)


@dataclass(frozen=True, eq=False)
class GeneSet:
    """Genes (columns of the expression), the variants around them (columns of the genotypes), the half's z (m, K),
    noise (K, K), and block without priors."""

    genes: Numbers
    variants: Numbers
    z: Array
    noise: Array
    factor: NDArray[np.float32]
    whitened: Array


def measure(quick: bool, progress: Progress) -> dict[str, Any]:
    """Discover in each half, test in the other. Figures for JSON; of data that are not there, what is missing."""
    problem = QUICK if quick else Problem()
    folder = find_folder()
    if folder is None:
        return {"settings": asdict(problem), "missing": _missing()}
    data = _part(read(folder), problem)
    order = np.random.default_rng(problem.seed).permutation(len(data.genotypes))
    parts = [np.sort(x) for x in np.array_split(order, 2)]
    halves = [half_of(data, part, problem.covariates) for part in parts]
    tests: dict[str, list[dict[str, Any]]] = {name: [] for name in (*MODELS, *OTHERS)}
    learned: list[dict[str, Any]] = []
    for number in range(problem.halves):
        found, calls = _discover(problem, data, halves[number], f"half {number + 1}", progress)
        learned.append(found)
        for name, own in calls.items():
            tests[name] += [{"half": number, **tested(call, halves[number], halves[1 - number])} for call in own]
    strong = [x for x in tests["intersection"] if x["score"] > _BOTH]
    compared = equal(tests)
    most = max((level["calls"] for level in compared), default=0)
    return {
        "settings": asdict(problem),
        "size": {
            "people": [half.people for half in halves],
            "directions": [half.directions for half in halves],
            "genes": data.genes.height,
            "variants": data.variants.height,
        },
        "halves": learned,
        "bins": {name: [rates(within(tests[name], low, high)) for low, high in BINS] for name in MODELS},
        "equal": compared,
        "by_model": [
            {"low": low, "high": high, **rates(within(strong, low, high, key="model"))} for low, high in SHARES
        ],
        "calls": {name: sorted(own, key=lambda x: -x["score"])[:most] for name, own in tests.items()},
    }


def _part(data: Data, problem: Problem) -> Data:
    """The genes of the first sets, if only some are asked for, and the variants around them."""
    if not problem.sets:
        return data
    genes = data.genes[: problem.sets * (problem.genes - 1) + 1]
    last = int(genes["TSS"].to_numpy()[-1]) + problem.window
    count = int((data.variants["BP"].to_numpy() <= last).sum())
    return replace(
        data,
        variants=data.variants[:count],
        genotypes=data.genotypes[:, :count],
        genes=genes,
        expression=data.expression[:, : genes.height],
    )


def _missing() -> str:
    return (
        f"the data are not there: a folder with {', '.join(FILES.values())} is needed. Name it in the environment "
        f"variable {VARIABLE}."
    )


def _discover(
    problem: Problem, data: Data, half: Half, said: str, progress: Progress
) -> tuple[dict[str, Any], dict[str, list[Call]]]:
    """What is learned in a half, and each method's calls."""
    priors = learn_priors(problem, data, half, lambda what, done, total: progress(f"{said}: {what}", done, total))
    sets = list(_gene_sets(problem, data, half))
    some = np.unique(np.linspace(0, len(sets) - 1, min(problem.learn, len(sets))).astype(int))
    figures: dict[str, Any] = {"sets": len(sets), "held_out": priors.held_out, "h2": priors.heritability, "models": {}}
    calls: dict[str, list[Call]] = {}
    where: list[BlockEffects] = []
    for name in MODELS:
        variance = priors.learned if name == "learned" else priors.flat

        def say(what: str, done: int, total: int, who: str = f"{said}, {name} priors") -> None:
            progress(f"{who}: {what}", done, total)

        blocks = [_block(problem, one, variance) for one in sets]
        model = _learn(problem, [sets[i] for i in some], [blocks[i] for i in some], half.directions, say)
        calls[name], effects = [], []
        for place, (one, block) in enumerate(zip(sets, blocks, strict=True)):
            effects.append(_locate(problem, one, block, model))
            calls[name] += _calls_of(place, one, effects[-1], model)
            say("locating effects", place + 1, len(sets))
        if name == "learned":
            where = effects
        figures["models"][name] = {
            "slab": float(model.slab[0]),
            "excess_log_odds": {str(n): float(x) for n, x in enumerate(model.excess) if n >= 2},
            "effects": float(sum(x.expected for x in effects)),
            "shared": float(sum(x.probability[:, model.masks.sum(axis=1) >= 2].sum() for x in effects)),
        }
    calls |= _others(problem, half, sets, where, model.masks)
    return figures, calls


def _gene_sets(problem: Problem, data: Data, half: Half) -> Iterator[GeneSet]:
    """Neighbouring genes, each set beginning with the last of the one before, so that no pair is in two."""
    from deepwas.ld import LDBlock

    start, position = data.genes["TSS"].to_numpy(), data.variants["BP"].to_numpy()
    usable = half.X.any(axis=0)
    for first in range(0, len(start) - problem.genes + 1, problem.genes - 1):
        genes = np.arange(first, first + problem.genes)
        if start[genes[-1]] - start[genes[0]] > problem.span:
            continue
        low, high = start[genes[0]] - problem.window, start[genes[-1]] + problem.window
        variants = np.flatnonzero((position >= low) & (position <= high) & usable)
        if len(variants) < 2:
            continue
        z = np.sqrt(half.directions) * half.correlation(variants, genes)
        block = LDBlock.from_genotypes(half.X[:, variants])
        yield GeneSet(genes, variants, z, _noise(half, genes, variants), block.factor, block.whiten(z))


def _noise(half: Half, genes: Numbers, variants: Numbers) -> Array:
    """Covariance of expression without the strongest variants, up to three a gene, p < 1e-5, one after another."""
    from scipy.stats import norm

    least = norm.isf(_STRONG / 2)
    X, Y = half.X[:, variants].astype(np.float64), half.Y[:, genes]
    taken: list[int] = []
    for k in range(len(genes)):
        residual, basis = Y[:, k], np.zeros((half.people, 0))
        for _ in range(3):
            strength = np.abs(X.T @ residual) / np.sqrt(half.people * np.mean(residual**2))
            best = int(strength.argmax())
            if strength[best] < least or best in taken:
                break
            taken.append(best)
            basis, _ = np.linalg.qr(np.column_stack([basis, X[:, best]]))
            residual = residual - basis @ (basis.T @ residual)
    if not taken:
        return np.asarray(Y.T @ Y / half.people)
    basis, _ = np.linalg.qr(X[:, sorted(set(taken))])
    left = Y - basis @ (basis.T @ Y)
    return np.asarray(left.T @ left / (half.people * (1 - basis.shape[1] / half.directions)))


def _block(problem: Problem, one: GeneSet, variance: dict[int, tuple[Numbers, Array]]) -> JointBlock:
    """With the priors; a gene's is 0 outside its own window."""
    from deepwas.pleiotropy.learning import JointBlock

    direct = np.zeros((len(one.variants), len(one.genes)))
    for k, gene in enumerate(one.genes.tolist()):
        variants, f = variance[gene]
        inside = np.isin(one.variants, variants)
        direct[inside, k] = f[np.searchsorted(variants, one.variants[inside])]
    k, m = one.factor.shape
    shape = (-(-k // 32) * 32, -(-m // problem.pad) * problem.pad)
    return JointBlock(one.factor, one.whitened, direct, slice(0, m), shape)


def _learn(
    problem: Problem, sets: Sequence[GeneSet], blocks: Sequence[JointBlock], directions: int, say: Progress
) -> TraitModel:
    """Slab and psi over sets whose genes are other ones each: what is counted of the genes is pooled, so that the first
    of a set is like the second."""
    from deepwas.pleiotropy.configurations import TraitModel
    from deepwas.pleiotropy.learning import Counts, all_direct
    from deepwas.pleiotropy.sharing import Sample

    K = problem.genes
    start = np.full(K, 0.1)
    model = TraitModel(np.full(K, float(directions)), np.eye(K), start, np.zeros((K, K)))
    sample = Sample.of(all_direct(blocks), model)
    model = sample.shared(model)
    for number in range(problem.rounds):
        counts = Counts.zero(model)
        for done, (one, block) in enumerate(zip(sets, blocks, strict=True), start=1):
            counts.add(block, _locate(problem, one, block, model), model)
            say("learning sizes and sharing", number * len(sets) + done, problem.rounds * len(sets))
        for what in ("present", "kept", "squares"):
            setattr(counts, what, np.full(K, getattr(counts, what).mean()))
        off = ~np.eye(K, dtype=bool)
        counts.pairs[off] = counts.pairs[off].mean()
        model, change = counts.update(model, start, sample)
        # Noise is each set's own, so what is left of z-scores says nothing of background.
        model = replace(model, offsets=np.full(K, model.offsets.mean()), background=np.zeros(K))
        if change < LEVEL:
            break
    return model


def _locate(problem: Problem, one: GeneSet, block: JointBlock, model: TraitModel) -> BlockEffects:
    from deepwas.pleiotropy.learning import locate

    own = replace(model, noise=one.noise)
    ((_, _, found),) = locate([block], own, slots=problem.slots, candidates=problem.candidates, coverage=0.5)
    return found


def _calls_of(place: int, one: GeneSet, found: BlockEffects, model: TraitModel) -> list[Call]:
    """One call a credible set, of the two genes that it likeliest acts on, from a probability of 0.05."""
    out = []
    for own, of_class in zip(found.sets, found.of_sets, strict=True):
        both = {
            (j, k): float(of_class[model.masks[:, j] & model.masks[:, k]].sum())
            for j, k in combinations(range(len(one.genes)), 2)
        }
        (j, k), p = max(both.items(), key=lambda x: x[1])
        if p >= _LEAST:
            p = min(p, 1.0)
            out.append(Call(place, int(one.variants[own.lead]), (int(one.genes[j]), int(one.genes[k])), p, p))
    return out


def _others(
    problem: Problem, half: Half, sets: Sequence[GeneSet], where: Sequence[BlockEffects], masks: NDArray[np.bool_]
) -> dict[str, list[Call]]:
    """Calls of the other methods, best first in each locus. HOPS learns its whitening from every tenth variant of the
    chromosome; sets in which it refuses (|C| > 0.8) have none."""
    from deepwas.errors import InputError
    from deepwas.pleiotropy import hops_scores

    calls: dict[str, list[Call]] = {name: [] for name in OTHERS}
    scores, few = ld_scores(half), np.flatnonzero(half.X.any(axis=0))[::10]
    for place, (one, found) in enumerate(zip(sets, where, strict=True)):
        r2 = half.ld(one.variants, one.variants) ** 2
        strength = np.abs(one.z)
        value = {"intersection": np.sort(strength, axis=1)[:, -2]}
        rows = np.concatenate([few, one.variants])
        z = np.sqrt(half.directions) * half.correlation(rows, one.genes)
        try:
            hops = hops_scores(z, ld_scores=scores[rows], pruned=np.arange(len(rows)) < len(few))
            value |= {"pm": hops.Pm[len(few) :], "pn": hops.Pn[len(few) :]}
        except InputError:
            pass
        for name, score in value.items():
            for j in _clumped(score, r2, strength):
                a, b = sorted(np.argsort(-strength[j])[:2].tolist())
                near = r2[j] >= _SAME
                own = float(found.probability[near][:, masks[:, a] & masks[:, b]].sum())
                genes = (int(one.genes[a]), int(one.genes[b]))
                calls[name].append(Call(place, int(one.variants[j]), genes, float(score[j]), min(own, 1.0)))
    return calls


def _clumped(score: Array, r2: Array, strength: Array) -> Iterator[int]:
    """Variants by falling score, each with r^2 < 0.1 to the better ones; ties by the largest |z|."""
    left = np.sort(strength, axis=1)[:, -2] >= _WEAKEST
    order = np.lexsort((-strength.max(axis=1), -score))
    for j in order.tolist():
        if left[j] and score[j] > 0:
            yield j
            left &= r2[j] < _CLUMP
