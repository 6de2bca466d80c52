"""The tables of a classification: by variant, by locus, by pair of traits, and effects of trait on trait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deepwas.ld import LDStore
from deepwas.pleiotropy.calls import CLASSES, KEPT, Locus, block_columns, classify_probabilities, read_loci
from deepwas.pleiotropy.configurations import TraitModel
from deepwas.pleiotropy.genome import Structure
from deepwas.pleiotropy.hops import HOPSScores
from deepwas.pleiotropy.joint import JointBlocks, Traits
from deepwas.posterior.progress import Computed
from deepwas.posterior.tables import names_of

__all__ = [
    "called_loci",
    "effect_table",
    "flagged_beyond_panel",
    "loci_in_order",
    "locus_table",
    "pair_table",
    "totals_of",
    "variant_table",
]

Floats = NDArray[np.float64]


def loci_in_order(joint: JointBlocks, computed: Computed) -> list[Locus]:
    """All credible sets, by block and by position in it."""
    found = [one for number, text in zip(joint.numbers, computed.notes, strict=True) for one in read_loci(number, text)]
    return sorted(found, key=lambda x: (x.block, int(x.variants.min())))


def variant_table(
    store: LDStore,
    traits: Traits,
    joint: JointBlocks,
    computed: Computed,
    loci: Sequence[Locus],
    hops: HOPSScores | None,
    hops_rows: NDArray[np.int64],
    network: Floats,
    flags: dict[int, str | None],
) -> pl.DataFrame:
    """One row a variant that a block scores, as data_specs/pleiotropy.schema.json has them; then PIP_ and EFFECT_ of
    each trait.

    flags: of LD mismatch, by block.
    """
    rows = np.concatenate([np.arange(s.start, s.stop) for s in map(joint.scored_rows, range(len(joint)))])
    value = {name: x[rows] for name, x in computed.values.items()}
    K = len(traits.names)
    number, best = np.zeros(store.n_variants, np.int64), np.zeros(store.n_variants)
    for j, one in enumerate(loci, start=1):
        better = one.probability > best[one.variants]
        number[one.variants[better]] = j
        best[one.variants] = np.maximum(best[one.variants], one.probability)
    classes = classify_probabilities(
        value["pleiotropy"], value["single"], value["vertical"], value["confounder"], value["apart"]
    )
    scores = {}
    for column, name in (("HOPS_PM", "Pm"), ("HOPS_PM_P", "Pm_p"), ("HOPS_PN", "Pn"), ("HOPS_PN_P", "Pn_p")):
        whole = np.full(store.n_variants, np.nan)
        if hops is not None:
            whole[hops_rows] = getattr(hops, name)
        scores[column] = whole[rows]
    table = store.variants.select("CHR", "SNP", "BP", "A1", "A2")[rows].with_columns(
        pl.Series("P_PLEIOTROPY", value["pleiotropy"]),
        pl.Series("LFDR", 1 - value["pleiotropy"]),
        pl.Series("N_TRAITS", sum(value[f"pip_{k}"] for k in range(K))),
        pl.Series("P_SINGLE", value["single"]),
        pl.Series("P_VERTICAL", value["vertical"]),
        pl.Series("P_LD_ONLY", value["apart"]),
        pl.Series("P_CONFOUNDER", value["confounder"]),
        pl.Series("CLASS", classes.tolist(), dtype=pl.String),
        pl.Series("LOCUS", number[rows]),
        pl.Series("P_NETWORK", network[rows]),
        *(pl.Series(name, x) for name, x in scores.items()),
        pl.Series("OBSERVED", traits.observed[rows]),
        pl.Series("LD_KEPT", value[KEPT]),
        pl.Series("BLOCK", np.repeat(joint.numbers, [_length(joint.scored_rows(i)) for i in range(len(joint))])),
    )
    table = table.with_columns(pl.col("BLOCK").replace_strict(flags, return_dtype=pl.String).alias("FLAG"))
    own = [pl.Series(f"PIP_{name}", value[f"pip_{k}"]) for k, name in enumerate(traits.names)]
    own += [pl.Series(f"EFFECT_{name}", value[f"effect_{k}"]) for k, name in enumerate(traits.names)]
    own += [pl.Series(f"Z_{name}", traits.z[rows, k]) for k, name in enumerate(traits.names)]
    own += [pl.Series(f"SNPVAR_{name}", traits.f[rows, k]) for k, name in enumerate(traits.names)]
    return table.select(names_of("pleiotropy")).with_columns(*own).with_columns(pl.col(pl.Float64).fill_nan(None))


def _length(rows: slice) -> int:
    return int(rows.stop - rows.start)


def locus_table(
    store: LDStore,
    traits: Traits,
    loci: Sequence[Locus],
    model: TraitModel,
    passing: Floats,
    flags: dict[int, str | None],
    purity: float,
) -> pl.DataFrame:
    """One row a credible set, as data_specs/pleiotropy_loci.schema.json has them, and P_ of each trait.

    flags: of LD mismatch, by block.  purity: below which a set is impure.
    """
    names, masks = store.variants.select("CHR", "SNP", "BP"), model.masks
    size, position = masks.sum(axis=1), names["BP"].to_numpy()
    of_class = np.reshape([one.of_class / max(one.effect, 1e-12) for one in loci], (len(loci), len(masks)))
    of_class = np.clip(of_class, 0.0, 1.0)
    shared, alone = of_class[:, size >= 2].sum(axis=1), of_class[:, size == 1]
    through = of_class[:, len(masks) - model.factors :].sum(axis=1)
    apart = np.array([one.apart for one in loci])
    single, vertical = alone.sum(axis=1), alone @ passing
    best = of_class.argmax(axis=1) if len(loci) else np.zeros(0, int)
    acts = [",".join(np.asarray(traits.names)[masks[c]]) or "a heritable factor" for c in best]
    lead = [int(one.variants[0]) for one in loci]
    split = [one.split for one in loci]
    nearest = np.array([one.nearest for one in loci])
    share = [np.clip(of_class @ masks[:, k], 0, 1) for k in range(model.traits)]
    classes = classify_probabilities(shared, single, vertical, through, apart) if len(loci) else np.zeros(0, object)

    def numbers(values: Any) -> pl.Series:
        return pl.Series(np.asarray(values, np.float64))

    table = pl.DataFrame(
        {
            "LOCUS": np.arange(1, len(loci) + 1),
            "BLOCK": pl.Series([one.block for one in loci], dtype=pl.Int64),
            "CHR": names["CHR"][lead],
            "START": pl.Series([int(position[one.variants].min()) for one in loci], dtype=pl.Int64),
            "STOP": pl.Series([int(position[one.variants].max()) for one in loci], dtype=pl.Int64),
            "SIZE": pl.Series([len(one.variants) for one in loci], dtype=pl.Int64),
            "LEAD": names["SNP"][lead],
            "LEAD_BP": names["BP"][lead],
            "COVERAGE": numbers([min(one.probability.sum(), 1.0) for one in loci]),
            "EFFECT": numbers([min(one.effect, 1.0) for one in loci]),
            "PURITY": numbers([min(one.purity, 1.0) for one in loci]),
            "IMPURE": pl.Series([one.purity < purity for one in loci], dtype=pl.Boolean),
            "TRAITS": pl.Series(acts, dtype=pl.String),
            "P_TRAITS": numbers(of_class.max(axis=1) if len(loci) else []),
            "P_SHARED": numbers(np.clip(shared, 0, 1)),
            "LFDR": numbers([1 - one.shared(model) for one in loci]),
            "P_SINGLE": numbers(np.clip(single, 0, 1)),
            "P_VERTICAL": numbers(np.clip(vertical, 0, 1)),
            "P_LD_ONLY": numbers(apart),
            "P_CONFOUNDER": numbers(np.clip(through, 0, 1)),
            "CLASS": pl.Series(classes.tolist(), dtype=pl.String),
            "R2_NEAREST": numbers(np.clip(nearest, 0, 1)),
            "P_SPLIT": pl.Series([None if x is None else x.probability for x in split], dtype=pl.Float64),
            "SPLIT_TRAIT": pl.Series(
                [None if x is None or x.trait is None else traits.names[x.trait] for x in split], dtype=pl.String
            ),
            "SPLIT_SNPS": pl.Series(
                [None if x is None or x.variants is None else ",".join(names["SNP"][[*x.variants]]) for x in split],
                dtype=pl.String,
            ),
            "UNRESOLVABLE": pl.Series([one.unresolvable for one in loci], dtype=pl.Boolean),
            "FLAG": pl.Series([flags[one.block] for one in loci], dtype=pl.String),
        }
    ).select(names_of("pleiotropy_loci"))
    return table.with_columns(*(pl.Series(f"P_{name}", x) for name, x in zip(traits.names, share, strict=True)))


def pair_table(
    traits: Traits,
    structure: Structure,
    computed: Computed,
    model: TraitModel,
    sharing: dict[str, Any] | None = None,
) -> pl.DataFrame:
    """One row a pair of traits, the diagonal too, as data_specs/pleiotropy_pairs.schema.json has them.

    sharing: record of the test that variants are shared beyond chance.

    Standard errors of BOTH and SHARE are the jackknife's over LD blocks: the spread of loci over the genome, not the
    uncertainty of the model's parameters.
    """
    K = len(traits.names)
    column = {name: computed.blocks[:, j] for j, name in enumerate(block_columns(K))}
    by_pair = {} if sharing is None else {tuple(one["traits"]): one["p"] for one in sharing["pairs"]}
    rows = []
    noise = structure.noise
    for j in range(K):
        for k in range(j, K):
            both, one, other = (column[f"both_{a}_{b}"] for a, b in ((j, k), (j, j), (k, k)))
            share, error = _jackknife(both, one + other - both)
            rows.append(
                {
                    "TRAIT_1": traits.names[j],
                    "TRAIT_2": traits.names[k],
                    "NOISE": structure.matrix[j, k],
                    "NOISE_SE": None if noise is None else noise.standard_error[j, k],
                    "RG": None if noise is None else noise.genetic_correlation.value[j, k],
                    "RG_SE": None if noise is None else noise.genetic_correlation.standard_error[j, k],
                    "RHO": None if noise is None else noise.genetic_covariance.value[j, k],
                    "RHO_SE": None if noise is None else noise.genetic_covariance.standard_error[j, k],
                    "PAIR_LOG_ODDS": model.pairs[j, k] if j != k else None,
                    "SHARING_P": by_pair.get((traits.names[j], traits.names[k])),
                    "BOTH": both.sum(),
                    "BOTH_SE": np.sqrt(len(both) * both.var(ddof=1)) if len(both) > 1 else None,
                    "CHANCE": column[f"chance_{j}_{k}"].sum(),
                    "SHARE": share,
                    "SHARE_SE": error,
                }
            )
    names = names_of("pleiotropy_pairs")
    schema = {name: pl.String if name.startswith("TRAIT") else pl.Float64 for name in names}
    return pl.DataFrame(rows, schema=schema).with_columns(pl.col(pl.Float64).fill_nan(None))


def _jackknife(top: Floats, bottom: Floats) -> tuple[float, float | None]:
    """sum of top over sum of bottom, and its standard error over blocks."""
    n = len(top)
    value = float(top.sum() / max(bottom.sum(), 1e-12))
    if n < 2:
        return value, None
    left = (top.sum() - top) / np.maximum(bottom.sum() - bottom, 1e-12)
    return value, float(np.sqrt((n - 1) / n * np.sum((left - left.mean()) ** 2)))


def effect_table(structure: Structure) -> pl.DataFrame:
    """One row an ordered pair of traits, as data_specs/pleiotropy_trait_effects.schema.json has them."""
    found, rows = structure.effects, []
    for j, cause in enumerate(found.names):
        for k, effect in enumerate(found.names):
            if j != k:
                rows.append(
                    (
                        cause,
                        effect,
                        found.T[j, k],
                        found.standard_error[j, k],
                        found.estimate[j, k],
                        found.estimate_error[j, k],
                        found.p[j, k],
                        found.probability[j, k],
                        bool(found.selected[j, k]),
                        bool(found.unresolved[j, k]),
                        found.off_share[j, k],
                        int(found.instruments[j]),
                    )
                )
    names = names_of("pleiotropy_trait_effects")
    kinds = [pl.String] * 2 + [pl.Float64] * 6 + [pl.Boolean] * 2 + [pl.Float64, pl.Int64]
    frame = pl.DataFrame(rows, schema=dict(zip(names, kinds, strict=True)), orient="row")
    return frame.with_columns(pl.col(pl.Float64).fill_nan(None))


def totals_of(table: pl.DataFrame, loci: pl.DataFrame, computed: Computed) -> dict[str, Any]:
    """Sums, ready for JSON."""
    counts = dict(table["CLASS"].value_counts().iter_rows())
    called = table.filter(pl.col("LFDR") <= 0.05)
    return {
        "variants": table.height,
        "observed": int(table["OBSERVED"].sum()),
        "blocks": len(computed.done),
        "classes": {name: int(counts.get(name, 0)) for name in CLASSES},
        "pleiotropic": float(table["P_PLEIOTROPY"].sum()),
        "called_at_lfdr_5": called.height,
        "called_at_fdr_5": _called(table["LFDR"], 0.05),
        "loci": loci.height,
        "loci_called_at_fdr_5": _called(loci["LFDR"], 0.05),
        "loci_by_class": {name: int((loci["CLASS"] == name).sum()) for name in CLASSES[1:]},
        "loci_called_unresolvable": int(loci.filter(called_loci(loci))["UNRESOLVABLE"].sum()),
        "loci_unresolvable": int(loci["UNRESOLVABLE"].sum()),
        "loci_impure": int(loci["IMPURE"].sum()),
        "loci_flagged": int(loci["FLAG"].is_not_null().sum()),
        "loci_flagged_beyond_panel": int(flagged_beyond_panel(loci).sum()),
        "effects": float(computed.blocks[:, 0].sum()),
        "effects_sd": float(np.sqrt(computed.blocks[:, 1].sum())),
        "not_converged": int((computed.blocks[:, 2] == 0).sum()),
    }


def called_loci(loci: pl.DataFrame, level: float = 0.05) -> pl.Series:
    """Which loci are called: those of the smallest local false discovery rates, as many as have a mean of at most
    `level`."""
    rank = loci["LFDR"].rank("ordinal")
    return rank <= _called(loci["LFDR"], level)


def flagged_beyond_panel(loci: pl.DataFrame) -> pl.Series:
    """Whose FLAG has another reason than `panel`: the error of a small panel is allowed for."""
    return loci["FLAG"].str.replace_all(r"[^=;]+=panel(;|$)", "").fill_null("") != ""


def _called(local_fdr: pl.Series, level: float) -> int:
    """How many, the likeliest first, can be called with at most the share `level` of them expected to be false."""
    p = np.sort(local_fdr.to_numpy())
    return int((np.cumsum(p) <= level * np.arange(1, len(p) + 1)).sum())
