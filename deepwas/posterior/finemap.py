"""Fine-mapping beside a posterior: which variants have effects, in which credible sets, and does the LD bear that out
(`deepwas.posterior.ld_fit`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deepwas.finemapping import FineMapOptions
from deepwas.finemapping.sets import CredibleSet
from deepwas.finemapping.trait import MOST_LIKELY, finemap_each, learn_slab, own_sets, small_half
from deepwas.ld import LDStore
from deepwas.posterior.ld_fit import flags_of, mismatch_record, residual_p
from deepwas.posterior.progress import Computed
from deepwas.posterior.source import Source
from deepwas.posterior.tables import names_of
from deepwas.training.mismatch import diagnose
from deepwas.training.trait import TraitBlocks

__all__ = ["COLUMNS", "VALUES", "FineMap", "Locus", "finemap_source"]

VALUES = ("inclusion", "mean", "variance")
COLUMNS = ("effects", "effects_sd", "prior", "converged", "misfit", "directions", "noise", "panel_error", "background")
LEVELS = (0.5, 0.95)

_LOCI = 6

Say = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Locus:
    """The block of a credible set.  number: of the set.  rows: of the LD store.  r: (rows,), LD with its lead."""

    number: int
    rows: NDArray[np.int64]
    r: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FineMap:
    """Fine-mapping of a genome.

    record: options, slab, totals and mismatch, ready for JSON.  Tables as data_specs has them: variants (finemap), sets
    (credible_sets), members (credible_set_variants), blocks (finemap_blocks).  loci: of the sets with the largest
    z-scores, one a block.
    """

    record: dict[str, Any]
    variants: pl.DataFrame
    sets: pl.DataFrame
    members: pl.DataFrame
    blocks: pl.DataFrame
    loci: list[Locus]


def finemap_source(
    store: LDStore, source: Source, blocks: TraitBlocks, options: FineMapOptions, computed: Computed, say: Say
) -> FineMap:
    """Fine-map what `computed` does not hold yet, and make the tables."""
    fit = _fit_of_ld(store, source, blocks, say)
    if options.slab is not None:
        computed.know(slab=options.slab, rounds=0)
    elif "slab" not in computed.known:
        slab, rounds = learn_slab(
            blocks,
            source.f,
            noise=source.noise,
            panel=store.n_samples,
            options=options,
            progress=lambda done, total: say("learning the size of effects", done, total),
        )
        computed.know(slab=slab, rounds=rounds)
    slab = computed.known["slab"]
    for i, block, found in finemap_each(
        blocks,
        source.f,
        slab,
        noise=source.noise,
        panel=store.n_samples,
        options=options,
        skip=computed.done.copy(),
        progress=lambda done, total: say("fine-mapping LD blocks", done, total),
    ):
        prior = float(np.minimum(source.f[block.scored_rows] / slab, MOST_LIKELY).sum())
        small = small_half(block.shape[0])
        figures = [
            found.effects,
            found.effects_sd,
            prior,
            float(found.converged),
            found.misfit,
            float(small.stop - small.start),
        ]
        figures += [found.noise, found.panel_error, found.background]
        inside = [x[block.scored] for x in (found.inclusion, found.mean, found.variance)]
        computed.put(i, block.scored_rows, inside, figures, _as_text(own_sets(block, found)))
    return _tables(store, source, blocks, options, computed, fit)


def _as_text(sets: Sequence[CredibleSet]) -> str:
    return json.dumps([[s.variants.tolist(), s.probability.tolist(), s.effect, s.purity] for s in sets])


def _of_text(text: str) -> list[CredibleSet]:
    return [CredibleSet(np.array(v, np.int64), np.array(p), e, purity) for v, p, e, purity in json.loads(text)]


def _fit_of_ld(store: LDStore, source: Source, blocks: TraitBlocks, say: Say) -> pl.DataFrame:
    """BLOCK FLAG NOISE of the blocks: the run's, or found now."""
    numbers = pl.DataFrame({"BLOCK": [block.number for block in blocks]})
    found = source.mismatch
    if found is None or not numbers["BLOCK"].is_in(found["BLOCK"].implode()).all():
        variance, noise = source.constant
        found = diagnose(
            blocks,
            store,
            effect_variance=variance,
            noise=noise,
            progress=lambda done, total: say("testing the LD of blocks", done, total),
        ).table
    return numbers.join(found.select("BLOCK", "FLAG", "NOISE"), on="BLOCK", how="left", maintain_order="left")


def _tables(
    store: LDStore,
    source: Source,
    blocks: TraitBlocks,
    options: FineMapOptions,
    computed: Computed,
    fit: pl.DataFrame,
) -> FineMap:
    slab = computed.known["slab"]
    by_block = _block_table(store, blocks, computed, fit)
    flag = dict(by_block.select("BLOCK", "FLAG").iter_rows())
    rows = np.concatenate([np.arange(b.scored_rows.start, b.scored_rows.stop) for b in blocks])
    inclusion = computed.values["inclusion"]
    names = store.variants.select("CHR", "SNP", "BP", "A1", "A2")
    scores = source.scores(rows)
    z = np.full(store.n_variants, np.nan)
    z[source.frame["VARIANT"].to_numpy()] = source.frame["Z"].to_numpy()

    found = [(block.number, one) for block, text in zip(blocks, computed.notes, strict=True) for one in _of_text(text)]
    found.sort(key=lambda x: (x[0], int(x[1].variants.min())))
    sets = _set_table(names, found, inclusion, z, flag, options.purity)
    members = _member_table(names, found, inclusion)
    number, best = np.zeros(store.n_variants, np.int64), np.zeros(store.n_variants)
    for j, (_, one) in enumerate(found, start=1):
        better = one.variants[one.probability > best[one.variants]]
        number[better] = j
        best[one.variants] = np.maximum(best[one.variants], one.probability)
    variants = names[rows].with_columns(
        pl.Series("SNPVAR", source.f[rows]),
        scores["Z"],
        scores["N"],
        pl.Series("PRIOR_PIP", np.minimum(source.f[rows] / slab, MOST_LIKELY)),
        pl.Series("PIP", np.clip(inclusion[rows], 0, 1)),
        pl.Series("BETA_MEAN", computed.values["mean"][rows]),
        pl.Series("BETA_SD", np.sqrt(computed.values["variance"][rows])),
        pl.Series("CREDIBLE_SET", number[rows]),
        pl.Series("BLOCK", np.repeat([b.number for b in blocks], [_length(b.scored_rows) for b in blocks])),
    )
    variants = variants.with_columns(
        pl.col("BLOCK").replace_strict(flag, return_dtype=pl.String).alias("FLAG"),
    ).select(names_of("finemap"))
    record = _record(store, source, options, computed, variants, sets, by_block, fit)
    return FineMap(record, variants, sets, members, by_block, _loci(blocks, sets, found))


def _length(rows: slice) -> int:
    return int(rows.stop - rows.start)


def _block_table(store: LDStore, blocks: TraitBlocks, computed: Computed, fit: pl.DataFrame) -> pl.DataFrame:
    figures = {name: computed.blocks[:, j] for j, name in enumerate(COLUMNS)}
    misfit, directions = figures["misfit"], figures["directions"]
    flags = flags_of(fit["FLAG"], misfit, directions, figures["panel_error"])
    first, last = ([getattr(b.scored_rows, x) for b in blocks] for x in ("start", "stop"))
    places = store.variants.select("CHR", "BP")
    return pl.DataFrame(
        {
            "BLOCK": [b.number for b in blocks],
            "CHR": places["CHR"][first],
            "START": places["BP"][first],
            "STOP": places["BP"][[x - 1 for x in last]],
            "VARIANTS": [_length(b.scored_rows) for b in blocks],
            "N": [b.sample_size for b in blocks],
            "NOISE": figures["noise"],
            "PANEL_ERROR": figures["panel_error"],
            "BACKGROUND": figures["background"],
            "EFFECTS_PRIOR": figures["prior"],
            "EFFECTS": figures["effects"],
            "EFFECTS_SD": figures["effects_sd"],
            "SETS": [len(json.loads(text)) for text in computed.notes],
            "CONVERGED": figures["converged"] == 1,
            "RESIDUAL": misfit,
            "RESIDUAL_P": residual_p(misfit, directions),
            "FLAG": pl.Series(flags, dtype=pl.String),
        }
    ).select(names_of("finemap_blocks"))


def _set_table(
    names: pl.DataFrame,
    found: Sequence[tuple[int, CredibleSet]],
    inclusion: NDArray[np.float64],
    z: NDArray[np.float64],
    flag: dict[int, str | None],
    purity: float,
) -> pl.DataFrame:
    lead = [one.lead for _, one in found]
    position = names["BP"].to_numpy()
    return pl.DataFrame(
        {
            "SET": np.arange(1, len(found) + 1),
            "BLOCK": pl.Series([number for number, _ in found], dtype=pl.Int64),
            "CHR": names["CHR"][lead],
            "START": pl.Series([int(position[one.variants].min()) for _, one in found], dtype=pl.Int64),
            "STOP": pl.Series([int(position[one.variants].max()) for _, one in found], dtype=pl.Int64),
            "SIZE": pl.Series([len(one.variants) for _, one in found], dtype=pl.Int64),
            "LEAD": names["SNP"][lead],
            "LEAD_BP": names["BP"][lead],
            "LEAD_Z": pl.Series(z[lead], dtype=pl.Float64).fill_nan(None),
            "LEAD_PIP": pl.Series(np.clip(inclusion[lead], 0, 1), dtype=pl.Float64),
            "COVERAGE": pl.Series([min(one.coverage, 1.0) for _, one in found], dtype=pl.Float64),
            "EFFECT": pl.Series([min(one.effect, 1.0) for _, one in found], dtype=pl.Float64),
            "PURITY": pl.Series([min(one.purity, 1.0) for _, one in found], dtype=pl.Float64),
            "IMPURE": pl.Series([one.purity < purity for _, one in found], dtype=pl.Boolean),
            "FLAG": pl.Series([flag[number] for number, _ in found], dtype=pl.String),
        }
    ).select(names_of("credible_sets"))


def _member_table(
    names: pl.DataFrame, found: Sequence[tuple[int, CredibleSet]], inclusion: NDArray[np.float64]
) -> pl.DataFrame:
    empty: list[Any] = [np.zeros(0, np.int64)]
    rows = np.concatenate([one.variants for _, one in found] or empty)
    number = np.repeat(np.arange(1, len(found) + 1), [len(one.variants) for _, one in found])
    share = np.concatenate([one.probability for _, one in found] or [np.zeros(0)])
    return (
        names[rows]
        .with_columns(
            pl.Series("SET", number, dtype=pl.Int64),
            pl.Series("PROBABILITY", np.clip(share, 0, 1)),
            pl.Series("PIP", np.clip(inclusion[rows], 0, 1)),
        )
        .select(names_of("credible_set_variants"))
    )


def _record(
    store: LDStore,
    source: Source,
    options: FineMapOptions,
    computed: Computed,
    variants: pl.DataFrame,
    sets: pl.DataFrame,
    blocks: pl.DataFrame,
    fit: pl.DataFrame,
) -> dict[str, Any]:
    slab, panel = computed.known["slab"], store.n_samples
    median = fit["NOISE"].median()
    noise = {
        "used": float(np.mean(list(source.noise.values()))),
        "of_single_blocks": None if median is None else float(median),  # type: ignore[arg-type]
    }
    return {
        "options": options.as_dict(),
        "slab": slab,
        "slab_rounds": int(computed.known["rounds"]),
        "prior_inclusion": float(np.mean(variants["PRIOR_PIP"].to_numpy())),
        "capped": int((source.f[np.isfinite(computed.values["inclusion"])] > MOST_LIKELY * slab).sum()),
        "variants": {f"{level:g}": int((variants["PIP"] > level).sum()) for level in LEVELS},
        "effects_prior": float(blocks["EFFECTS_PRIOR"].sum()),
        "effects": float(blocks["EFFECTS"].sum()),
        "effects_sd": float(np.sqrt(np.sum(blocks["EFFECTS_SD"].to_numpy() ** 2))),
        "sets": sets.height,
        "sets_impure": int(sets["IMPURE"].sum()),
        "sets_of_one": int((sets["SIZE"] == 1).sum()),
        "sets_flagged": int(sets["FLAG"].is_not_null().sum()),
        "median_size": None if not sets.height else float(np.median(sets["SIZE"].to_numpy())),
        "blocks_with_background": int((blocks["BACKGROUND"] > 0).sum()),
        "not_converged": int((~blocks["CONVERGED"]).sum()),
        "mismatch": mismatch_record(blocks["FLAG"].to_list(), noise, panel),
    }


def _loci(blocks: TraitBlocks, sets: pl.DataFrame, found: Sequence[tuple[int, CredibleSet]]) -> list[Locus]:
    """The sets with the largest z-scores, pure ones first, one a block, and LD with their leads."""
    order = (
        sets.with_columns(pl.col("LEAD_Z").abs().fill_null(0.0).alias("SIZE_Z"))
        .sort(["IMPURE", "SIZE_Z", "SET"], descending=[False, True, False])
        .unique("BLOCK", keep="first", maintain_order=True)
        .head(_LOCI)
    )
    place = {block.number: i for i, block in enumerate(blocks)}
    out = []
    for number, block_number in order.select("SET", "BLOCK").iter_rows():
        block = blocks.load(place[block_number])
        G = np.asarray(block.factor, np.float64)
        length = np.sqrt(np.einsum("ij,ij->j", G, G))
        lead = found[number - 1][1].lead - block.rows.start
        r = (G.T @ G[:, lead]) / np.maximum(length * length[lead], 1e-12)
        rows = np.arange(block.scored_rows.start, block.scored_rows.stop)
        out.append(Locus(int(number), rows, r[block.scored]))
    return out
