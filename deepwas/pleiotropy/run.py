"""`classify`: which variants act on several traits, genome-wide, from runs of these traits."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deepwas import __version__
from deepwas.annotations import Annotations, Standardiser
from deepwas.errors import InputError
from deepwas.files import write_json, write_text
from deepwas.fit_inputs import annotated, described
from deepwas.ld import LDStore, open_ld
from deepwas.pleiotropy.beside import Beside, beside_of, kept_or
from deepwas.pleiotropy.calls import (
    KEPT,
    block_columns,
    block_figures,
    ld_kept,
    loci_of,
    names_of_values,
    values_of,
)
from deepwas.pleiotropy.configurations import MOST_TRAITS, TraitModel
from deepwas.pleiotropy.genome import Structure, read_noise, read_trait_effects, structure_of
from deepwas.pleiotropy.hops import HOPSScores, hops_scores
from deepwas.pleiotropy.joint import JointBlocks, Traits, named, open_joint, read_traits
from deepwas.pleiotropy.ld_fit import fit_columns, fit_figures, fit_of_ld
from deepwas.pleiotropy.learning import locate
from deepwas.pleiotropy.model_of import BlocksToLocate, learn_model, model_from_numbers, numbers_of, priors_of
from deepwas.pleiotropy.options import PleiotropyOptions
from deepwas.pleiotropy.splitting import splits
from deepwas.pleiotropy.structure import TraitEffects
from deepwas.pleiotropy.tables import effect_table, loci_in_order, locus_table, pair_table, totals_of, variant_table
from deepwas.posterior.progress import Computed, claim_folder
from deepwas.posterior.tables import rounded, write_large
from deepwas.specs import validate_table

if TYPE_CHECKING:
    from deepwas.pleiotropy.network import CalibrationReport, Labels

__all__ = ["Pleiotropy", "classify"]

Floats = NDArray[np.float64]
Progress = Callable[[str, int, int], None]
PathLike = str | os.PathLike[str]

RECORD, PARTIAL = "pleiotropy.json", "pleiotropy.partial.h5"
TABLE, LOCI, PAIRS, EFFECTS = "pleiotropy.tsv.gz", "loci.tsv", "trait_pairs.tsv", "trait_effects.tsv"
_SIGNIFICANT, _LITTLE = 5.45, 0.3  # |z| at p = 5e-8; of a variant's variance
_MANY = 0.25  # of the leads
_FLATTENED = 0.5
MAP, SHARING, RELIABILITY = "pleiotropy.png", "sharing.png", "reliability.png"


@dataclass(frozen=True, repr=False)
class Pleiotropy:
    """Variants of a genome by the traits they act on.

    record: inputs, options, what was learned, totals and counts, ready for JSON.  Tables as data_specs has them:
    variants (pleiotropy), loci (pleiotropy_loci), pairs (pleiotropy_pairs), trait_effects (pleiotropy_trait_effects).
    calibration: probabilities against the truth in data simulated under the fitted model; None without.
    """

    record: dict[str, Any]
    variants: pl.DataFrame
    loci: pl.DataFrame
    pairs: pl.DataFrame
    trait_effects: pl.DataFrame
    calibration: CalibrationReport | None = None

    def __repr__(self) -> str:
        total = self.record["totals"]
        return (
            f"Pleiotropy({total['variants']:,} variants, {len(self.record['traits'])} traits, "
            f"{total['pleiotropic']:.3g} pleiotropic expected, {self.loci.height:,} loci)"
        )

    def write(self, folder: PathLike) -> None:
        """Write pleiotropy.tsv.gz, loci.tsv, trait_pairs.tsv, trait_effects.tsv, pictures and, last, the record."""
        from deepwas.pleiotropy.network import plot_reliability
        from deepwas.pleiotropy.picture import plot_map, plot_sharing

        target = Path(folder)
        target.mkdir(exist_ok=True)
        validate_table(self.variants, "pleiotropy", str(target / TABLE))
        write_large(target / TABLE, self.variants)
        for frame, name, spec in (
            (self.loci, LOCI, "pleiotropy_loci"),
            (self.pairs, PAIRS, "pleiotropy_pairs"),
            (self.trait_effects, EFFECTS, "pleiotropy_trait_effects"),
        ):
            validate_table(frame, spec, str(target / name))
            write_text(target / name, rounded(frame).write_csv(separator="\t", null_value="NA"))
        plot_map(self, target / MAP)
        plot_sharing(self, target / SHARING)
        if self.calibration is not None:
            plot_reliability(self.calibration, target / RELIABILITY)
        write_json(target / RECORD, self.record)


def classify(
    runs: Mapping[str, Any] | Sequence[Any],
    ld: LDStore | PathLike,
    *,
    sumstats: Mapping[str, Any] | None = None,
    noise_correlation: Floats | PathLike | None = None,
    trait_effects: TraitEffects | PathLike | None = None,
    labels: Labels | PathLike | None = None,
    annotations: Annotations | PathLike | Sequence[PathLike] | None = None,
    options: PleiotropyOptions | None = None,
    out: PathLike | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Pleiotropy:
    """Probabilities, for every variant, of effects of its own on two traits or more, under the traits' learned priors.

    Model: `deepwas.pleiotropy.configurations`. First the traits' structure is estimated genome-wide, noise correlation
    and effects of trait on trait (`deepwas.pleiotropy.structure`); then sizes of effects and sharing are learned from
    some LD blocks, with heritable factors if there are signs of one; then all blocks are gone through, one at a time.

    runs: finished runs of `fit` or their folders, of 2 to 20 traits on one LD store, as a mapping from the traits'
        names or a list, whose folders then name the traits. Cross-fitted priors are taken where a run has them. Instead
        of a run, a table of priors (CHR BP A1 A2 SNPVAR), with its z-scores in `sumstats` under the trait's name.
    ld: the LD store of the runs.
    noise_correlation: (K, K), or a table TRAIT_1 TRAIT_2 NOISE, instead of an estimate.
    trait_effects: instead of an estimate; or a table CAUSE EFFECT T SE, with PROBABILITY if an effect is not certain.
    labels: what is known of variants, or a table as data_specs/pleiotropy_labels.schema.json has it; with
        options.network only. A mixture labels the others that it is sure of.
    annotations: of the store's variants, as for `fit`; with options.network only. The network that corrects prior log
        odds of two traits or more reads them beside the priors and LD, and so does the one that gives P_NETWORK: what
        raises one trait's prior may say more, or less, of several.
    out: folder to write (see `Pleiotropy.write`); what is computed is kept there every 20 seconds.
    resume: go on with an interrupted classification in `out`, of the same inputs and options.
    progress: called as progress(what, done, total).

    A variant that lacks a z-score in any trait enters as a candidate, through LD. Memory is that of one block, of the
    whitened z-scores, and of the tables; with networks that of their channels, too. Raises InputError for traits that
    do not belong together.
    """
    options = options or PleiotropyOptions()
    say = progress or (lambda *_: None)
    given = named(runs, "runs")
    store = ld if isinstance(ld, LDStore) else open_ld(ld)
    names = tuple(given)
    for name, value in (("labels", labels), ("annotations", annotations)):
        if value is not None and not options.network:
            raise InputError(f"{name} are given and network is False: nothing reads them. Set one or leave the other.")
    if trait_effects is not None and not options.vertical:
        raise InputError("trait_effects are given and vertical is False: T is one or the other. Leave one out.")
    if options.network and len(names) > MOST_TRAITS:
        raise InputError(
            f"network is True with {len(names)} traits; networks are for {MOST_TRAITS} at most. Leave it out."
        )
    known = labels
    if isinstance(known, str | os.PathLike):
        from deepwas.pleiotropy.network import read_labels

        known = read_labels(known, store.variants)
    features = annotated(annotations, store)
    noise = noise_correlation
    if isinstance(noise, str | os.PathLike):
        noise = read_noise(noise, names)
    effects = trait_effects
    if isinstance(effects, str | os.PathLike):
        effects = read_trait_effects(effects, names)
    traits = read_traits(given, store, sumstats, options.missing_prior)
    if known is not None:
        traits.tally.extend(known.tally)
    record = _first_record(store, traits, options, noise, effects, known, features)
    columns = None
    if features is not None:
        traits.tally.extend(features.tally)
        columns = Standardiser.fit(features).transform(features, tally=traits.tally)
        features = None
    folder = (
        None if out is None else claim_folder(Path(out), RECORD, "classification", record["identity"], resume, record)
    )
    with ExitStack() as stack:
        cache = Path(stack.enter_context(TemporaryDirectory(prefix="deepwas-"))) / "whitened.h5"
        joint = stack.enter_context(
            open_joint(store, traits, cache, lambda done, total: say("whitening LD blocks", done, total))
        )
        structure = structure_of(traits, joint, options, noise=noise, effects=effects, progress=say)
        traits.tally.extend(structure.effects.tally)
        if structure.noise is not None:
            traits.tally.extend(structure.noise.tally)
        if folder is not None:
            folder.mkdir(exist_ok=True)
            write_json(folder / RECORD, record)
        computed = Computed(
            store.n_variants,
            len(joint),
            None if folder is None else folder / PARTIAL,
            record["identity"],
            names=(*names_of_values(len(traits.names)), KEPT),
            columns=(*block_columns(len(traits.names)), *fit_columns(len(traits.names))),
        )
        with closing(computed):
            model, extra = _compute(store, traits, joint, structure, options, known, columns, computed, say)
        found = _result(record, store, traits, joint, structure, model, extra, options, computed)
    if folder is not None:
        found.write(folder)
        (folder / PARTIAL).unlink(missing_ok=True)
    return found


def _first_record(
    store: LDStore,
    traits: Traits,
    options: PleiotropyOptions,
    noise: Floats | None,
    effects: TraitEffects | None,
    labels: Labels | None,
    features: Annotations | None,
) -> dict[str, Any]:
    given = {
        "format": "deepwas-pleiotropy",
        "format_version": 7,
        "deepwas_version": __version__,
        "traits": [
            {"name": name, "sample_size": float(n), **record}
            for name, n, record in zip(traits.names, traits.sample_size, traits.records, strict=True)
        ],
        "ld": {"file": store.path.name, "checksum": store.checksum},
        "genome_build": store.genome_build,
        "options": options.as_dict(),
        "noise_correlation": "estimated" if noise is None else "given",
        "labels": None if labels is None else labels.record,
        "annotations": None if features is None else described(features),
        "trait_effects": "given" if effects is not None else "estimated" if options.vertical else "held at 0",
    }
    digest = hashlib.sha256(json.dumps(given).encode())
    arrays = [traits.z, traits.f, traits.sample_size]
    arrays += [] if noise is None else [np.asarray(noise, np.float64)]
    if effects is not None:
        arrays += [effects.T, effects.standard_error, effects.probability, effects.estimate, effects.estimate_error]
    arrays += [] if labels is None else [labels.value.astype(np.float64)]
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return given | {"status": "running", "identity": digest.hexdigest()}


def _compute(
    store: LDStore,
    traits: Traits,
    joint: JointBlocks,
    structure: Structure,
    options: PleiotropyOptions,
    labels: Labels | None,
    annotations: NDArray[np.float32] | None,
    computed: Computed,
    say: Progress,
) -> tuple[TraitModel, Beside]:
    """Learn, unless known, and locate what `computed` does not hold yet."""
    from deepwas.training.packing import shape_of_each

    shapes, by_shape = shape_of_each(joint.sizes)
    panel = float(store.n_samples)
    if "rounds" not in computed.known:
        learned = learn_model(traits, joint, structure, shapes, options, panel, say)
        model, direct = learned.model, learned.direct
        computed.know(**numbers_of(model), rounds=learned.rounds, leads=learned.leads, blurred=learned.blurred)
    else:
        model = model_from_numbers(computed.known, traits, structure)
        direct = priors_of(traits, joint, structure).direct(model.exponents)
    how: dict[str, Any] = {
        "slots": options.max_effects,
        "candidates": options.candidates,
        "more": options.more_candidates,
        "panel": panel,
    }
    everything = BlocksToLocate(joint, direct, range(len(joint)), shapes)
    extra, shared = kept_or(
        computed,
        lambda: beside_of(
            store, traits.names, joint, everything, model, options, labels, annotations, how, computed, say
        ),
    )
    order = [i for i in by_shape if not computed.done[i]]
    blocks = BlocksToLocate(joint, direct, order, [shapes[i] for i in order], shared)
    each = locate(blocks, model, coverage=options.coverage, **how)
    for done, (i, (block, _, found)) in enumerate(zip(order, each, strict=True), start=len(joint) - len(order) + 1):
        scored = joint.scored(i)
        computed.put(
            i,
            joint.scored_rows(i),
            [*values_of(found, model, scored, structure.passing), ld_kept(block.factor[:, scored])],
            block_figures(block, found, model, scored) + fit_figures(block, found, model, panel),
            loci_of(found, block.factor, block.rows.start, scored, splits(block, found, model, scored, panel)),
        )
        say("classifying LD blocks", done, len(joint))
    return model, extra


def _result(
    record: dict[str, Any],
    store: LDStore,
    traits: Traits,
    joint: JointBlocks,
    structure: Structure,
    model: TraitModel,
    extra: Beside,
    options: PleiotropyOptions,
    computed: Computed,
) -> Pleiotropy:
    loci = loci_in_order(joint, computed)
    notes = list(structure.effects.notes)
    if structure.noise is not None:
        notes += structure.noise.notes
    notes += extra.notes
    figures = dict(zip(fit_columns(len(traits.names)), computed.blocks.T[-2 * len(traits.names) :], strict=True))
    ld_fit = fit_of_ld(traits, joint, np.diag(structure.matrix), figures, store.n_samples)
    notes += ld_fit.notes + _of_priors(traits, model.exponents)
    hops, rows = _hops(store, traits, joint, options, notes)
    flags = dict(zip(joint.numbers, ld_fit.flags, strict=True))
    table = variant_table(store, traits, joint, computed, loci, hops, rows, extra.score, flags)
    by_locus = locus_table(store, traits, loci, model, structure.passing, flags, options.purity)
    notes += _unseen(table, traits) + _blurred(int(computed.known["leads"]), int(computed.known["blurred"]))
    done = record | {
        "status": "complete",
        "learned": {
            "rounds": int(computed.known["rounds"]),
            "slab": dict(zip(traits.names, model.slab.tolist(), strict=True)),
            "prior_exponent": dict(zip(traits.names, model.exponents.tolist(), strict=True)),
            "excess_log_odds": {str(n): float(x) for n, x in enumerate(model.excess) if n >= 2},
            "pair_log_odds": [
                {"traits": [traits.names[j], traits.names[k]], "log_odds": float(model.pairs[j, k])}
                for j, k in combinations(range(model.traits), 2)
            ],
            "log_odds_of_effects_in_ld": dict(zip(("common_trait", "no_common_trait"), model.together, strict=True)),
            "marginal_log_odds": dict(zip(traits.names, model.offsets.tolist(), strict=True)),
            "background": dict(zip(traits.names, model.background.tolist(), strict=True)),
            "factors": [
                {
                    "loadings": dict(zip(traits.names, a.tolist(), strict=True)),
                    "prior_odds": float(np.exp(odds)),
                    "probability": float(p),
                }
                for a, odds, p in zip(model.loadings, model.factor_odds, model.factor_probability, strict=True)
            ],
        },
        **extra.record,
        "mismatch": ld_fit.record,
        "totals": totals_of(table, by_locus, computed),
        "notes": notes,
        "counts": traits.tally.as_list(),
    }
    pairs = pair_table(traits, structure, computed, model, extra.record["sharing_test"])
    return Pleiotropy(done, table, by_locus, pairs, effect_table(structure), extra.calibration)


def _of_priors(traits: Traits, exponents: Floats) -> list[str]:
    """Of priors that lose on held-out blocks, and of those that effects do not follow."""
    gains = {
        name: one.get("prior", {}).get("held_out_gain") for name, one in zip(traits.names, traits.records, strict=True)
    }
    lost = [
        f"{name}: on held-out blocks its prior loses {-gain:.1f} nats against the constant prior. Fit the trait with "
        "--network constant, or say why this prior is better."
        for name, gain in gains.items()
        if gain is not None and gain < 0
    ]
    return lost + [
        f"{name}: effects hardly follow its prior, which was flattened: raised to {t:.2f} (prior_exponent). Its "
        "annotations tell little, or it was not fitted to these z-scores."
        for name, t in zip(traits.names, exponents.tolist(), strict=True)
        if t < _FLATTENED
    ]


def _unseen(table: pl.DataFrame, traits: Traits) -> list[str]:
    """Of strong z-scores that the LD store's directions hold little of."""
    strong = pl.max_horizontal(*(pl.col(f"Z_{name}").abs() for name in traits.names)) > _SIGNIFICANT
    lost = table.filter(strong & (pl.col("LD_KEPT") < _LITTLE) & (pl.col("LOCUS") == 0))
    if not lost.height:
        return []
    text = (
        f"{lost.height:,} variant(s) of p < 5e-8 in no locus, {lost['SNP'][0]} first: of their variance the directions "
        f"that the LD store keeps hold less than {_LITTLE:.0%} (LD_KEPT), so effects can hardly be located there. LD "
        "of more people keeps more."
    )
    return [text]


def _blurred(leads: int, blurred: int) -> list[str]:
    """Of leads in which no heritable factor can be seen, if they are many."""
    if blurred < _MANY * leads or not blurred:
        return []
    text = (
        f"{blurred:,} of {leads:,} leads of effects on two traits or more were not searched for heritable factors: of "
        "their variance the directions that the LD store keeps hold less than 80% (LD_KEPT), and what they make of a "
        "factor could not be told. LD of more people keeps more."
    )
    return [text]


def _hops(
    store: LDStore, traits: Traits, joint: JointBlocks, options: PleiotropyOptions, notes: list[str]
) -> tuple[HOPSScores | None, NDArray[np.int64]]:
    """HOPS with LD correction of the variants that all traits have; None, with a note, where it is not defined."""
    inside = np.concatenate([np.arange(s.start, s.stop) for s in map(joint.scored_rows, range(len(joint)))])
    rows = inside[traits.observed[inside]]
    z = traits.z[rows]
    scores = store.variants["LDSCORE"].cast(pl.Float64).fill_null(np.nan).to_numpy()[rows]
    usable = np.isfinite(scores).sum() >= 3 and np.nanmax(scores) > np.nanmin(scores)
    if not usable:
        notes.append("HOPS: the LD store has no LD scores, so there is no LD correction.")
    try:
        found = hops_scores(
            z,
            ld_scores=scores if usable else None,
            permutations=options.hops_permutations,
            seed=options.seed,
            names=traits.names,
        )
    except InputError as error:  # all else is classified by now
        notes.append(f"HOPS: columns NA. {error}")
        return None, rows
    return found, rows
