"""Priors that compete on one problem whose truth is known: trained alike, chosen alike, scored alike.

Every contender starts from the same constant prior, sees the same training blocks in the same order, and is given the
same learning rates; its rate and stopping step are those with the best validation log-likelihood, whatever it maximises
itself. Test blocks are independent regions that neither training nor selection saw, and their log-likelihood is exact
(float64, by eigendecomposition).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulate import Region

if TYPE_CHECKING:
    from deepwas.inputs import VariantInputs
    from deepwas.ld import LDBlock
    from deepwas.training.baseline import Spectrum
    from deepwas.training.trait import TraitBlock

__all__ = [
    "INFINITE_PANEL",
    "Contender",
    "Splits",
    "Truth",
    "difference",
    "make_blocks",
    "mean_and_error",
    "polygenic_r2",
    "score",
    "summary",
    "train",
    "whiten_regions",
]

INFINITE_PANEL = 10**9  # people: the simulated LD is exact, so r^2 needs no correction
_MEMBER = 10_000  # between the seeds of an ensemble's networks
_REFITTED_ON = 100  # training blocks, for scale and noise: two parameters

Progress = Callable[[int, int], None]


class Splits(NamedTuple):
    """Indices of training, validation and test blocks."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]

    @classmethod
    def of(cls, train: int, validation: int, test: int) -> Splits:
        """Regions are independent and alike, so any fixed split is a random one. Test comes first, then validation:
        they stay the same when the number of training blocks changes."""
        first, second, third = np.split(np.arange(train + validation + test), [test, test + validation])
        return cls(third, second, first)


@dataclass(frozen=True)
class Contender:
    """A network, its objective and what it may see.

    options: fields of `FitOptions`.  inputs: key of `Truth.inputs`.
    members: networks, from different seeds, whose mean f is the prior.
    """

    label: str
    options: Mapping[str, Any]
    inputs: str
    members: int = 1


@dataclass(frozen=True, eq=False)
class Truth:
    """One seed's problem: blocks with z-scores, f (M,) and effects of its variants, and inputs of several kinds."""

    seed: int
    blocks: list[TraitBlock]
    f: NDArray[np.float64]
    effects: list[NDArray[np.float64]]
    inputs: Mapping[str, VariantInputs]

    def spectra(self, f: NDArray[np.float64] | float, which: Sequence[int]) -> list[Spectrum]:
        """Spectra of blocks under the prior f, by eigendecomposition in float64 unless f is a constant."""
        from deepwas.training.baseline import spectrum

        chosen = [self.blocks[i] for i in which]
        return [
            spectrum(b.factor, b.whitened, b.sample_size * (f if isinstance(f, float) else f[b.rows])) for b in chosen
        ]

    def constant(self, which: NDArray[np.int64]) -> tuple[float, float]:
        """log f and noise of the constant prior that fits the blocks best."""
        from deepwas.training.baseline import fit_scale

        n = self.blocks[0].sample_size
        found = fit_scale(
            self.spectra(1 / n, which.tolist()), noise=None, start=(float(np.log(n * self.f.mean())), 1.0)
        )
        return found.log_scale - float(np.log(n)), found.noise


def whiten_regions(
    regions: Sequence[Region], eigenvalue_floor: float, progress: Progress | None = None
) -> list[tuple[LDBlock, NDArray[np.float32]]]:
    """Every region's LD, and its factor as training holds it."""
    from deepwas.ld import LDBlock

    out = []
    for i, region in enumerate(regions):
        block = LDBlock.from_correlation(region.correlation, eigenvalue_floor=eigenvalue_floor)
        out.append((block, np.asarray(block.factor, np.float32)))
        if progress is not None:
            progress(i + 1, len(regions))
    return out


def make_blocks(
    ld: Sequence[tuple[LDBlock, NDArray[np.float32]]], z: Sequence[NDArray[np.float64]], sample_size: float
) -> list[TraitBlock]:
    """Whitened z-scores of every region; factors are shared between traits."""
    from deepwas.training.trait import TraitBlock

    ends = np.cumsum([block.m for block, _ in ld])
    return [
        TraitBlock(
            number=i,
            rows=slice(int(end - block.m), int(end)),
            factor=factor,
            whitened=np.asarray(block.whiten(own), np.float32),
            z=own,
            observed=np.ones(block.m, dtype=bool),
            sample_size=sample_size,
        )
        for i, ((block, factor), own, end) in enumerate(zip(ld, z, ends, strict=True))
    ]


def train(
    truths: Sequence[Truth],
    contenders: Mapping[str, Contender],
    splits: Splits,
    settings: Mapping[str, Any],
    learning_rates: Sequence[float],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Every contender at every learning rate on every seed.

    settings: fields of `FitOptions` common to all.
    The blocks of all seeds share one Trainer per contender and learning rate, so that each is compiled once.
    """
    from deepwas.networks import make_network, predict_log_variance
    from deepwas.options import FitOptions
    from deepwas.training.loop import Trainer
    from deepwas.training.source import BlockSource

    source = BlockSource([b for truth in truths for b in truth.blocks], max_shapes=1)
    first = np.cumsum([0, *(len(t.blocks) for t in truths)])
    starts = [truth.constant(splits.train) for truth in truths]
    runs: list[dict[str, Any]] = []
    total = len(contenders) * len(learning_rates) * len(truths)
    for name, contender in contenders.items():
        for rate in learning_rates:
            options = FitOptions.from_dict(dict(settings) | dict(contender.options) | {"learning_rate": rate})
            trainer = Trainer(source, options, n_panel=INFINITE_PANEL)
            for n, (truth, (log_f, noise)) in enumerate(zip(truths, starts, strict=True)):
                inputs = truth.inputs[contender.inputs]
                begun = time.monotonic()
                members = []
                for member in range(contender.members):
                    seed = truth.seed + _MEMBER * member
                    trained = trainer.train(
                        make_network(options, inputs.sizes, log_f, seed=seed),
                        noise,
                        inputs,
                        splits.train + first[n],
                        splits.validation + first[n],
                        rotation=seed,
                        constant_variance=float(np.exp(log_f)),
                        folder=None,
                    )
                    members.append((trained, np.exp(predict_log_variance(trained.best.network(), inputs)[:, 0])))
                runs.append(
                    {
                        "contender": name,
                        "learning_rate": rate,
                        "seed": truth.seed,
                        "validation_gain": float(np.mean([x.validation_gain for x, _ in members])),
                        "best_step": members[0][0].best_step,
                        "last_step": members[0][0].last_step,
                        "seconds": round(time.monotonic() - begun, 2),
                        "events": [event for x, _ in members for event in x.events],
                        "noise": float(np.mean([x.noise for x, _ in members])),
                        "f": np.mean([f for _, f in members], axis=0),
                    }
                )
                progress(len(runs), total)
    return runs


def score(
    truth: Truth, runs: Sequence[dict[str, Any]], splits: Splits, regions: Sequence[Region] | None = None
) -> dict[str, Any]:
    """One seed: every contender's best run on the test blocks, and the oracle, which knows f.

    In nats over the constant prior's log-likelihood, by block. `refitted` gives a prior the maximum-likelihood scale
    and noise on training blocks, so that only its shape is compared.  calibration: mean true over mean predicted f in
    the deciles of predicted f.  polygenic_r2: with the regions' LD given, see `polygenic_r2`.
    """
    from deepwas.training.baseline import fit_scale, log_density

    test, some = splits.test.tolist(), splits.train[:_REFITTED_ON].tolist()
    log_f, noise = truth.constant(splits.train)
    null = log_density(truth.spectra(float(np.exp(log_f)), test), 0.0, noise)
    oracle = log_density(truth.spectra(truth.f, test), 0.0, 1.0) - null
    rows = np.concatenate([np.arange(truth.blocks[i].rows.start, truth.blocks[i].rows.stop) for i in test])
    out: dict[str, Any] = {"seed": truth.seed, "oracle_gain_by_block": oracle.tolist(), "contenders": {}}
    if regions is not None:
        flat = np.full(len(truth.f), np.exp(log_f))
        out["polygenic_r2"] = {
            "oracle": polygenic_r2(truth, truth.f, 1.0, regions, test),
            "constant": polygenic_r2(truth, flat, noise, regions, test),
        }
    for name in dict.fromkeys(r["contender"] for r in runs):
        own = [r for r in runs if r["contender"] == name and r["seed"] == truth.seed]
        best = max(own, key=lambda r: r["validation_gain"])
        found = truth.spectra(best["f"], test)
        refit = fit_scale(truth.spectra(best["f"], some), noise=None, start=(0.0, best["noise"]))
        log_truth, log_found = np.log(truth.f[rows]), np.log(best["f"][rows])
        known = float(np.std(log_found)) > 0
        out["contenders"][name] = {
            "learning_rate": best["learning_rate"],
            "step": best["best_step"],
            "noise": best["noise"],
            "gain_by_block": (log_density(found, 0.0, best["noise"]) - null).tolist(),
            "refitted_gain_by_block": (log_density(found, refit.log_scale, refit.noise) - null).tolist(),
            "correlation_with_truth": float(np.corrcoef(log_truth, log_found)[0, 1]) if known else 0.0,
            "calibration": _calibration(best["f"][rows], truth.f[rows]),
        }
        if regions is not None:
            out["polygenic_r2"][name] = polygenic_r2(truth, best["f"], best["noise"], regions, test)
    return out


def _calibration(predicted: NDArray[np.float64], true: NDArray[np.float64]) -> list[float]:
    """Mean true over mean predicted f within deciles of predicted f, lowest first."""
    parts = np.array_split(np.argsort(predicted, kind="stable"), 10)
    return [float(true[part].mean() / predicted[part].mean()) for part in parts]


def polygenic_r2(
    truth: Truth, f: NDArray[np.float64], noise: float, regions: Sequence[Region], which: Sequence[int]
) -> float:
    """Share of the genetic variance that the polygenic score of a prior explains in the people whose LD it is.

    Weights are posterior means, E[beta | y] = sqrt(N) F G^T B^-1 y. With b the weights and beta the effects, both per
    standardised genotype, r^2 = (b' R beta)^2 / (b' R b  beta' R beta), sums over the blocks `which`: the squared
    correlation of score and genetic value over the people whose genotypes gave R.
    """
    from scipy.linalg import cho_factor, cho_solve

    products = np.zeros(3)
    for i in which:
        block = truth.blocks[i]
        G, n = np.asarray(block.factor, np.float64), block.sample_size
        own = f[block.rows]
        B = noise * np.eye(len(G)) + (G * (n * own)) @ G.T
        weights = np.sqrt(n) * own * (G.T @ cho_solve(cho_factor(B, lower=True), block.whitened.astype(np.float64)))
        R, beta = regions[i].correlation, truth.effects[i]
        products += np.array([weights @ R @ beta, weights @ R @ weights, beta @ R @ beta])
    return float(products[0] ** 2 / (products[1] * products[2]))


def mean_and_error(values: Any) -> dict[str, float]:
    """Mean and its standard error; the entries are independent."""
    array = np.asarray(values, dtype=np.float64)
    return {"mean": float(array.mean()), "standard_error": float(array.std(ddof=1) / np.sqrt(len(array)))}


def summary(name: str, seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A contender's gain in nats a test block, over blocks and over seeds, and as a share of the oracle's."""
    out: dict[str, Any] = {}
    for kind in ("gain", "refitted_gain"):
        by_block = [s["contenders"][name][f"{kind}_by_block"] for s in seeds]
        oracle = [s["oracle_gain_by_block"] for s in seeds]
        shares = [sum(a) / sum(b) for a, b in zip(by_block, oracle, strict=True)]
        out[kind] = {
            "over_blocks": mean_and_error(np.concatenate(by_block)),
            "over_seeds": mean_and_error([np.mean(x) for x in by_block]),
            "share_of_oracle": mean_and_error(shares),
            "share_of_oracle_by_seed": shares,
        }
    out["oracle_gain"] = mean_and_error(np.concatenate([s["oracle_gain_by_block"] for s in seeds]))
    for key in ("correlation_with_truth", "noise"):
        out[key] = mean_and_error([s["contenders"][name][key] for s in seeds])
    out["calibration"] = [mean_and_error([s["contenders"][name]["calibration"][d] for s in seeds]) for d in range(10)]
    out["learning_rates"] = [s["contenders"][name]["learning_rate"] for s in seeds]
    out["steps"] = [s["contenders"][name]["step"] for s in seeds]
    return out


def difference(a: str, b: str, kind: str, seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Paired difference of two contenders in nats a test block: over blocks, over seeds, as a share of the oracle's.

    standard_errors_from_zero takes the greater of the two standard errors.
    """
    pairs = [np.subtract(s["contenders"][a][f"{kind}_by_block"], s["contenders"][b][f"{kind}_by_block"]) for s in seeds]
    over_blocks, over_seeds = mean_and_error(np.concatenate(pairs)), mean_and_error([x.mean() for x in pairs])
    error = max(over_blocks["standard_error"], over_seeds["standard_error"])
    return {
        "over_blocks": over_blocks,
        "over_seeds": over_seeds,
        "share_of_oracle": over_blocks["mean"] / float(np.mean([s["oracle_gain_by_block"] for s in seeds])),
        "standard_errors_from_zero": over_blocks["mean"] / error if error > 0 else 0.0,
    }
