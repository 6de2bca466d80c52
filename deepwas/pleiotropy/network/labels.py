"""Labels of variants, two direct traits or more against fewer: by a mixture where it is sure, or from a file.

Mixture, of z-scores x of a variant's direct effects given the block's other effects, noise C of the K traits:

    x ~ sum over delta of w_delta N(0, C + diag(delta v)),   delta in {0, 1}^K,

with one weight for none, one for each trait alone, and one for all sets of n traits together, n >= 2. Fitted by
expectation-maximisation on leads of credible sets and a few other variants of each block, so that one effect counts
once however many variants are in LD with it. Sources: Darrous, Mounier & Kutalik 2021 and Morrison et al. 2020, for
mixtures over z-scores of traits; the noise and the sample, which know of LD, are ours.

What is labelled, at the grain of effects: leads of credible sets that the data have located, and variants that are
clear of any effect; of them those whose posterior probability of two traits or more is above `sure` or below 1 -
`sure`, unless the first pass says the contrary. Variants in LD with an effect that is not located stay without a label,
for the mixture would call them all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepwas.errors import InputError
from deepwas.pleiotropy.configurations import MOST_TRAITS, TraitModel, configurations
from deepwas.pleiotropy.network.features import BlockFeatures, direct_of
from deepwas.tally import Tally

if TYPE_CHECKING:
    import polars as pl

__all__ = ["CLASS_VALUES", "Labels", "Mixture", "fit_mixture", "mixture_labels", "read_labels"]

Floats = NDArray[np.float64]

CLASS_VALUES = {"pleiotropic": 1.0, "single": 0.0, "vertical": 0.0, "ld_only": 0.0, "confounder": 0.0, "none": 0.0}

_STEP = "labels"
_AGREE = 0.5  # of the mixture with the first pass
_OBSERVED = 0.8  # g^T g of variants that the mixture is asked about
_OTHERS = 8  # variants of a block beside its leads that the mixture is fitted on
_MOST = 20_000  # rows that the mixture is fitted on
_CHUNK = 8192
_KEYS = ("CHR", "BP", "A1", "A2")


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of the LD store's variants.

    value: (M,), probability of two direct traits or more, NaN without a label.  source: 'mixture' or the file's name.
    tally: rows counted.  record: JSON-ready.
    """

    value: NDArray[np.float32]
    source: str
    tally: Tally = field(default_factory=Tally)

    @property
    def positive(self) -> int:
        """Variants labelled above one half."""
        return int(np.nansum(self.value > 0.5))

    @property
    def negative(self) -> int:
        """Variants labelled at most one half."""
        return int(np.isfinite(self.value).sum()) - self.positive

    @property
    def record(self) -> dict[str, object]:
        """JSON-ready."""
        return {"source": self.source, "positive": self.positive, "negative": self.negative}

    def of(self, block: BlockFeatures) -> NDArray[np.float32]:
        """(m,) labels of a block's candidates, NaN for those that the block does not report."""
        return np.where(block.inside, self.value[block.rows], np.float32(np.nan))

    def filled(self, other: Labels) -> Labels:
        """These labels, and the other's where these have none."""
        tally = Tally()
        tally.extend(self.tally)
        tally.extend(other.tally)
        value = np.where(np.isnan(self.value), other.value, self.value)
        return Labels(value, f"{self.source}, then {other.source}", tally)


@dataclass(frozen=True, eq=False)
class Mixture:
    """A fitted mixture.  masks: (D, K), delta.  weight: (D,).  variance: (K,), v.  noise: (K, K), C.

    iterations: taken.  converged: whether the mean log likelihood came to rest.
    """

    masks: NDArray[np.bool_]
    weight: Floats
    variance: Floats
    noise: Floats
    log_likelihood: float
    iterations: int
    converged: bool

    def several(self, x: Floats) -> Floats:
        """(n,), posterior probability of two traits or more.  x: (n, K)."""
        chosen = self.masks.sum(axis=1) >= 2
        out = np.empty(len(x))
        for start in range(0, len(x), _CHUNK):
            part = slice(start, start + _CHUNK)
            density, _ = _log_density(_products(x[part]), self.masks, self.variance, self.noise)
            joint = density + np.log(self.weight)[None, :]
            joint -= joint.max(axis=1, keepdims=True)
            p = np.exp(joint)
            out[part] = p[:, chosen].sum(axis=1) / p.sum(axis=1)
        return out


def fit_mixture(
    x: Floats,
    noise: Floats,
    *,
    iterations: int = 300,
    tolerance: float = 1e-6,
    progress: Callable[[int, int], None] | None = None,
) -> Mixture:
    """Fit the mixture to x (n, K) with noise C (K, K), K <= 8. Cost: 2^K n K^2 an iteration.

    progress: called as progress(iterations done, iterations at most).
    """
    n, K = x.shape
    if not 2 <= K <= MOST_TRAITS:
        raise InputError(f"the mixture is over 2 to {MOST_TRAITS} traits; got {K}.")
    if n < 10 * K:
        raise InputError(f"{n} variants are too few to fit a mixture over {K} traits; {10 * K} are needed.")
    masks = np.concatenate([np.zeros((1, K), bool), configurations(K)])
    size = masks.sum(axis=1)
    # One number for none, for each trait alone, and for each size of a set.
    kind = np.where(size == 0, 0, np.where(size == 1, masks.argmax(axis=1) + 1, K + size - 1))
    members = np.bincount(kind)
    share = np.r_[0.9, np.full(K, 0.07 / K), np.full(K - 1, 0.03 / (K - 1))]
    strong = np.abs(x) > 3
    variance = np.maximum(np.where(strong, x**2, 0).sum(axis=0) / np.maximum(strong.sum(axis=0), 1), 9.0)
    before, value, taken, converged = -np.inf, -np.inf, 0, False
    on = masks.astype(np.float64)
    products = _products(x)
    while taken < iterations and not converged:
        taken += 1
        density, precision = _log_density(products, masks, variance, noise)
        joint = density + np.log(np.maximum(share / members, 1e-300))[kind][None, :]
        top = joint.max(axis=1, keepdims=True)
        p = np.exp(joint - top)
        total = p.sum(axis=1, keepdims=True)
        value = float(np.mean(top + np.log(total)))
        p /= total
        share = np.maximum(np.bincount(kind, weights=p.mean(axis=0)), 1e-12)
        share /= share.sum()
        count = (p @ on).sum(axis=0)
        # One effect of the starting size keeps a trait without any in range.
        variance = (_second_moments(products, p, masks, variance, precision) + 9.0) / (count + 1.0)
        converged = value - before < tolerance
        before = value
        if progress is not None:
            progress(iterations if converged else taken, iterations)
    return Mixture(masks, (share / members)[kind], variance, noise, value, taken, converged)


def _products(x: Floats) -> Floats:
    """(n, K^2), x x^T of each row: all that densities and moments need of x, as one matrix product each."""
    return np.asarray((x[:, :, None] * x[:, None, :]).reshape(len(x), -1))


def _log_density(products: Floats, masks: NDArray[np.bool_], variance: Floats, noise: Floats) -> tuple[Floats, Floats]:
    """log N(x; 0, C + diag(delta v)), (n, D), without its constant; and these covariances' inverses, (D, K, K)."""
    covariance = noise[None] + (masks * variance[None, :])[:, :, None] * np.eye(len(noise))[None]
    precision = np.asarray(np.linalg.inv(covariance), np.float64)
    log_det = np.linalg.slogdet(covariance)[1]
    density = -0.5 * (products @ precision.reshape(len(masks), -1).T + log_det[None, :])
    return density, precision


def _second_moments(
    products: Floats, p: Floats, masks: NDArray[np.bool_], variance: Floats, precision: Floats
) -> Floats:
    """(K,), sum over rows of E[a_k^2 | x], from the posterior p (n, D) of delta."""
    extra = masks * variance[None, :]
    moment = (p.T @ products).reshape(precision.shape)
    squares = np.einsum("dki,dij,djk->dk", precision, moment, precision, optimize=True) * extra**2
    spread = extra - extra**2 * np.diagonal(precision, axis1=1, axis2=2)
    return np.asarray(squares.sum(axis=0) + p.sum(axis=0) @ spread)


def mixture_labels(
    blocks: Sequence[BlockFeatures],
    model: TraitModel,
    variants: int,
    *,
    sure: float = 0.99,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Labels, Mixture]:
    """Labels of the LD store's `variants` by a mixture over the blocks' effects, and the mixture.

    sure: posterior probability that a label needs.  progress: as of `fit_mixture`.  Raises InputError where blocks hold
    too few variants.
    """
    if not 0.5 < sure < 1:
        raise InputError(f"sure is {sure}; a label's posterior probability lies above 0.5 and below 1.")
    rng = np.random.default_rng([seed, 71])
    turned = direct_of(model)
    noise = turned.T @ model.noise @ turned
    sample = []
    for block in blocks:
        usable = block.inside & (block.explained >= _OBSERVED)
        others = np.flatnonzero(usable & ~block.open & ~block.lead)
        chosen = rng.choice(others, size=min(_OTHERS, len(others)), replace=False)
        sample.append(block.own[np.concatenate([np.flatnonzero(usable & block.lead), chosen])])
    x = np.concatenate(sample).astype(np.float64)
    if len(x) > _MOST:
        x = x[rng.choice(len(x), _MOST, replace=False)]
    mixture = fit_mixture(x, noise, progress=progress)
    value = np.full(variants, np.nan, np.float32)
    tally = Tally()
    for block in blocks:
        usable = block.inside & (block.explained >= _OBSERVED)
        asked = np.flatnonzero(usable & ~block.open)
        p = mixture.several(block.own[asked].astype(np.float64))
        # A variant that is no located lead can only be labelled as clear of effects.
        clear = (p < 1 - sure) | ((p > sure) & block.lead[asked])
        # Heritable factors and uncertain paths between traits, which the mixture does not know, look like sharing.
        clear &= np.abs(p - block.posterior[asked]) < _AGREE
        rows = np.arange(block.rows.start, block.rows.stop)[asked]
        value[rows[clear]] = p[clear] > 0.5
        left = int(block.inside.sum()) - len(asked)
        tally.add(
            _STEP, "noted", "variants without a label: in LD with an effect not located, or without z-scores", left
        )
        tally.add(
            _STEP,
            "noted",
            "variants without a label: the mixture is not sure, or the first pass disagrees",
            int((~clear).sum()),
        )
    labels = Labels(value, "mixture", tally)
    tally.add(_STEP, "kept", "labels of two traits or more, by the mixture", labels.positive)
    tally.add(_STEP, "kept", "labels of fewer, by the mixture", labels.negative)
    return labels, mixture


def read_labels(path: str | os.PathLike[str], variants: pl.DataFrame) -> Labels:
    """Labels of the LD store's variants from a table, as data_specs/pleiotropy_labels.schema.json has it.

    path: text with CLASS, a class of `CLASS_VALUES` or the probability of two direct traits or more, and the variant:
    CHR BP A1 A2 (alleles in any order), or else SNP.  variants: of the store.

    Rows of other variants, and rows without a class, are counted. Raises InputError for anything else.
    """
    import polars as pl

    from deepwas.genome import normalise_chromosomes
    from deepwas.sumstats.alleles import allele_class
    from deepwas.tables import numeric_column, read_delimited

    where = str(path)
    frame = read_delimited(path, what="a table of labels", comment=("##",))
    by_place = set(_KEYS) <= set(frame.columns)
    if "CLASS" not in frame.columns or not (by_place or "SNP" in frame.columns):
        raise InputError(
            f"{where}: columns SNP (or CHR BP A1 A2) and CLASS are needed; found {' '.join(frame.columns[:12])}."
        )
    value = _class_values(frame["CLASS"], where)
    if by_place:
        on = ["CHR", "BP", "ALLELES"]
        alleles = pl.col("A1", "A2").str.to_uppercase()
        table = frame.select(
            normalise_chromosomes(frame["CHR"]).alias("CHR"), numeric_column(frame, "BP", where, integer=True), alleles
        ).select("CHR", "BP", allele_class().alias("ALLELES"))
        ours = variants.select(pl.col("CHR").cast(pl.String), pl.col("BP").cast(pl.Int64), "A1", "A2")
        ours = ours.select("CHR", "BP", allele_class().alias("ALLELES"))
    else:
        on, table, ours = ["SNP"], frame.select("SNP"), variants.select(pl.col("SNP").cast(pl.String))
    rows = table.with_columns(value.alias("VALUE")).with_row_index("LINE", offset=2)
    tally = Tally()

    def count(what: str, kept: pl.DataFrame) -> pl.DataFrame:
        lost = rows.filter(~pl.col("LINE").is_in(kept["LINE"].implode()))
        first = f"line {lost['LINE'][0]}" if lost.height else ""
        tally.add(_STEP, "dropped", what, lost.height, first)
        return kept

    rows = count("rows without a class or a variant", rows.drop_nulls())
    rows = count(
        "rows that repeat a variant with the same class", rows.unique([*on, "VALUE"], keep="first", maintain_order=True)
    )
    if (twice := rows.select(pl.struct(on).is_duplicated()).to_series()).any():
        again = rows.filter(twice).head(1)
        lines = rows.join(again.select(on), on=on, how="semi")["LINE"]
        name = " ".join(map(str, again.select(on).row(0)))
        raise InputError(f"{where}: lines {lines[0]} and {lines[1]} give {name} two classes. Keep one.")
    keyed = ours.with_row_index("ROW")
    matched = keyed.join(rows, on=on, how="inner", maintain_order="left")
    if (several := matched["LINE"].is_duplicated()).any():
        line = matched.filter(several)["LINE"][0]
        name = " ".join(map(str, rows.filter(pl.col("LINE") == line).select(on).row(0)))
        raise InputError(
            f"{where}: line {line}: {name} is the name of several variants of the LD store. Give CHR BP A1 A2."
        )
    if not matched.height:
        raise InputError(
            f"{where}: none of {rows.height:,} rows is a variant of the LD store (first: "
            f"{' '.join(map(str, rows.select(on).row(0))) if rows.height else 'no row has a class'}). Is it the same "
            "genome build, and are identifiers of the same kind?"
        )
    count("rows of variants that the LD store lacks", rows.join(matched.select("LINE"), on="LINE", how="semi"))
    labels = np.full(variants.height, np.nan, np.float32)
    labels[matched["ROW"].to_numpy()] = matched["VALUE"].to_numpy()
    tally.add(_STEP, "kept", "labels read", matched.height)
    return Labels(labels, os.path.basename(where), tally)


def _class_values(column: pl.Series, where: str) -> pl.Series:
    """Probability of two direct traits or more that each text means; null where there is none."""
    import polars as pl

    text = column.str.strip_chars().str.to_lowercase()
    named = text.replace_strict(CLASS_VALUES, default=None, return_dtype=pl.Float64)
    number = text.cast(pl.Float64, strict=False)
    value = named.fill_null(number)
    bad = text.is_not_null() & (value.is_null() | ~value.is_between(0, 1))
    if bad.any():
        row = int(bad.arg_true()[0])
        raise InputError(
            f"{where}: column CLASS, line {row + 2}: {column[row]!r} is no class ({int(bad.sum()):,} such rows). Give "
            f"one of {', '.join(CLASS_VALUES)}, or the probability of two traits or more, 0 to 1."
        )
    return value
