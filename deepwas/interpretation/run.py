"""`interpret`: from a finished run to tables of what its prior has learned, and pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from deepwas import __version__
from deepwas.enrichment import Enrichment, enrichment_of_prior
from deepwas.errors import InputError
from deepwas.files import atomic_path, read_json, write_json, write_text
from deepwas.interpretation.importance import Feature, block_drops, features_of, importance_table
from deepwas.interpretation.options import InterpretOptions
from deepwas.runs import sizes_of
from deepwas.specs import validate_table

if TYPE_CHECKING:
    from deepwas.annotations import Annotations
    from deepwas.inputs import Windows
    from deepwas.ld import LDStore
    from deepwas.runs import Fit

__all__ = ["Interpretation", "interpret"]

Progress = Callable[[str, int, int], None]
PathLike = str | os.PathLike[str]

RECORD, DROPS = "interpretation.json", "importance_blocks.parquet"
_DROPS = {"ROTATION": pl.Int64, "FEATURE": pl.String, "BLOCK": pl.Int64, "DROP": pl.Float64}


@dataclass(repr=False)
class Interpretation:
    """What a prior has learned.

    record: run, options and totals, ready for JSON.
    importance: FEATURE KIND IMPORTANCE STANDARD_ERROR Z SHARE BLOCKS REPEATS MEMBERS; see `importance_table`.
    drops: ROTATION FEATURE BLOCK DROP, the importance by LD block, in nats.
    responses: ANNOTATION VALUE ROTATION FOLD_CHANGE, partial dependence of the effect variance on each annotation, over
        its mean; None for networks that read more than annotations.
    enrichment: of the prior's heritability, the prior held fixed; None without annotations.
    attributions: by annotation and by variant (see deepwas.interpretation.attributions), None if not asked for.
    """

    record: dict[str, Any]
    importance: pl.DataFrame
    drops: pl.DataFrame
    responses: pl.DataFrame | None = None
    enrichment: Enrichment | None = None
    attributions: tuple[pl.DataFrame, pl.DataFrame] | None = None
    files: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        best = self.importance.row(0, named=True)
        return (
            f"Interpretation({self.importance.height} features, first {best['FEATURE']}: {best['IMPORTANCE']:.4g} nats)"
        )

    def write(self, folder: Path) -> None:
        """Write every table, as tab-separated text with NA for missing values; the record last."""
        tables = {"importance": (self.importance, "importance.tsv")}
        if self.responses is not None:
            tables["responses"] = (self.responses, "responses.tsv")
        if self.attributions is not None:
            tables["attributions"] = (self.attributions[0], "attributions.tsv")
            tables["attributions_variants"] = (self.attributions[1], "attributions_variants.tsv.gz")
        for spec, (frame, name) in tables.items():
            floats = [c for c, kind in frame.schema.items() if kind == pl.Float64]
            rounded = frame.with_columns(pl.col(floats).round_sig_figs(7))
            validate_table(rounded, spec, str(folder / name))
            write_text(folder / name, rounded.write_csv(separator="\t", null_value="NA"))
        if self.enrichment is not None:
            self.enrichment.write(folder / "enrichment.tsv")
        write_json(folder / RECORD, self.record)


def interpret(
    fit: Fit,
    ld: LDStore | PathLike,
    annotations: Annotations | PathLike | Sequence[PathLike] | None = None,
    *,
    options: InterpretOptions | None = None,
    tracks: Windows | None = None,
    sequence: Windows | None = None,
    out: PathLike | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Interpretation:
    """What a prior has learned, and what of it holds on variants it has not seen.

    Importance: one annotation is permuted, and each rotation's network scores its own test blocks, which it has not
    seen; what their log-likelihood loses, in nats, is the annotation's importance. See `InterpretOptions`,
    `deepwas.interpretation.importance`. Beside it: response curves, enrichment of the prior's heritability, and, if
    asked for, attributions by SHAP. A pass over the LD is made for every feature, repeat and rotation's test section.

    fit: of `fit` or `load_fit`.  ld, annotations, tracks, sequence: what it was made with.
    out: folder for tables, pictures and `interpretation.json`; None keeps all in memory.
    resume: go on with an interrupted interpretation in `out`, of the same run and options.
    progress: called as progress(what, done, total).
    """
    from deepwas.fit_inputs import annotated
    from deepwas.interpretation.held_out import open_held_out
    from deepwas.ld import LDStore, open_ld

    options = options or InterpretOptions()
    if all(network is None for network in fit.networks):
        raise InputError("the constant prior has learned nothing from annotations: nothing is to be interpreted.")
    if options.attributions:
        from deepwas.interpretation.attributions import require_shap

        require_shap()
    store = ld if isinstance(ld, LDStore) else open_ld(ld)
    features = annotated(annotations, store)
    say = progress or (lambda *_: None)
    record = _first_record(fit, options)
    alone = _reads_annotations_alone(fit)
    if options.attributions and not alone:
        raise InputError("attributions are made for networks that read annotations alone. Leave --shap out.")
    wanted = features_of(fit, features, options.groups, tracks=tracks is not None, sequence=sequence is not None)
    folder = None if out is None else Path(out)
    before = _empty() if folder is None else _claimed(folder, record, resume)
    with open_held_out(
        fit,
        store,
        features,
        tracks=tracks,
        sequence=sequence,
        progress=lambda done, total: say("whitening LD blocks", done, total),
    ) as held:
        if folder is not None:
            folder.mkdir(exist_ok=True)
            write_json(folder / RECORD, record)
        drops = _measured(held, wanted, options, before, folder, say)
    kind = "cross_fitted" if fit.cross_fitted else "plain"
    gain = fit.record["held_out"][kind]
    found = Interpretation(
        record | {"status": "complete", "held_out": {k: gain[k] for k in ("gain", "standard_error")}},
        importance_table(drops, wanted, options.repeats, gain["gain"]),
        drops,
    )
    if features is not None:
        _of_annotations(found, fit, store, features, options, alone, say)
    if folder is not None:
        _draw(found, fit, features, folder)
        found.write(folder)
    return found


def _first_record(fit: Fit, options: InterpretOptions) -> dict[str, Any]:
    return {
        "format": "deepwas-interpretation",
        "format_version": 1,
        "deepwas_version": __version__,
        "status": "running",
        "run": {key: fit.record[key] for key in ("created", "deepwas_version", "inputs")},
        "options": options.as_dict(),
        "importance_of": f"{len(fit.networks)} network(s), each on the LD blocks it held out",
    }


def _empty() -> pl.DataFrame:
    return pl.DataFrame(schema=_DROPS)


def _claimed(folder: Path, record: dict[str, Any], resume: bool) -> pl.DataFrame:
    """What an interrupted interpretation has measured; InputError if the folder is another's."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; a folder is needed. Give another name.")
    if not folder.parent.is_dir():
        raise InputError(f"{folder}: the folder {folder.parent} does not exist. Make it first.")
    if not folder.exists() or not any(folder.iterdir()):
        return _empty()
    if not resume:
        raise InputError(f"{folder}: not empty. To go on with an interrupted one, give --resume; else another folder.")
    found = read_json(folder / RECORD, "the record of an interpretation")
    if any(found.get(key) != record[key] for key in ("format", "run", "options", "deepwas_version")):
        raise InputError(f"{folder}: cannot resume: of another run, version, or other options. Give another folder.")
    path = folder / DROPS
    return pl.read_parquet(path) if path.is_file() else _empty()


def _measured(
    held: Any,
    features: Sequence[Feature],
    options: InterpretOptions,
    before: pl.DataFrame,
    folder: Path | None,
    say: Progress,
) -> pl.DataFrame:
    """Drops of all features on all test blocks; every feature is kept as soon as it is measured."""
    drops = before
    count = len(held.fit.networks)
    for n, section in enumerate(held.sections()):
        known = set(drops.filter(pl.col("ROTATION") == section.number)["FEATURE"])
        rest = [feature for feature in features if feature.name not in known]
        passed = len(features) - len(rest)

        def advance(done: int, _: int, n: int = n, passed: int = passed) -> None:
            say("permuting", n * len(features) + passed + done, count * len(features))

        numbers = [held.blocks[int(i)].number for i in section.blocks]
        for feature, drop in block_drops(held, section, rest, options, progress=advance):
            new = {"ROTATION": section.number, "FEATURE": feature.name, "BLOCK": numbers, "DROP": drop}
            drops = pl.concat([drops, pl.DataFrame(new, schema=_DROPS)])
            if folder is not None:
                with atomic_path(folder / DROPS) as temporary:
                    drops.write_parquet(temporary)
    return drops.sort("ROTATION", "BLOCK", maintain_order=True)


def _reads_annotations_alone(fit: Fit) -> bool:
    sizes = sizes_of(fit.record["rotations"][0]["network"])
    return sizes.tracks is None and sizes.sequence is None and not sizes.log_heterozygosity


def _of_annotations(
    found: Interpretation,
    fit: Fit,
    store: LDStore,
    annotations: Annotations,
    options: InterpretOptions,
    alone: bool,
    say: Progress,
) -> None:
    """Enrichment of the prior; and responses and attributions where the networks read annotations alone."""
    keys = ["CHR", "SNP", "BP", "A1", "A2"]
    rows = store.variants.select(keys).with_row_index("VARIANT")
    where = fit.variants.select(keys).join(rows, on=keys, how="left", maintain_order="left")["VARIANT"].to_numpy()
    f = fit.variants["SNPVAR_CROSS" if fit.cross_fitted else "SNPVAR_PLAIN"].to_numpy()
    values = annotations.values[where]
    found.enrichment = enrichment_of_prior(f, fit.variants["BLOCK"].to_numpy(), values, annotations.names)
    found.record["enrichment"] = found.enrichment.summary()
    if not alone:
        return
    from dataclasses import replace

    from deepwas.interpretation.responses import response_table

    own = replace(annotations, values=values, variants=fit.variants.select(annotations.variants.columns))
    found.responses = response_table(
        fit, own, progress=lambda done, total: say("response curves", done, total), seed=options.seed
    )
    if options.attributions:
        from deepwas.interpretation.attributions import attribute, summarised

        by_variant = attribute(
            fit, own, np.arange(len(f)), options, lambda done, total: say("attributions", done, total)
        )
        at = by_variant.select(keys).join(
            fit.variants.select(keys).with_row_index("ROW"), on=keys, how="left", maintain_order="left"
        )["ROW"]
        found.attributions = summarised(by_variant, own, values[at.to_numpy()]), by_variant


def _draw(found: Interpretation, fit: Fit, annotations: Annotations | None, folder: Path) -> None:
    from deepwas.enrichment_plot import plot_enrichment
    from deepwas.interpretation.responses import plot_importance
    from deepwas.plots import plot_responses

    plot_importance(found.importance, folder / "importance.png", found.record["held_out"])
    if found.enrichment is not None:
        plot_enrichment(found.enrichment, folder / "enrichment.png")
    if found.responses is not None and annotations is not None:
        plot_responses({fit.options.network: fit}, annotations, folder / "responses.png")
