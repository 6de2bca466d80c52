"""`deepwas pleiotropy`: which variants act on several traits, from runs of these traits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from deepwas.cli._console import progress_of_stages, say, say_counts, show, warnings_said
from deepwas.cli._flags import naming_flags
from deepwas.cli._outputs import say_if_nothing_to_resume, say_what_is_kept
from deepwas.errors import InputError

if TYPE_CHECKING:
    from deepwas.pleiotropy.run import Pleiotropy
    from deepwas.posterior.options import MissingPrior


_PAIRS = 5  # that are said


def register(app: typer.Typer) -> None:
    """Add the command to the root application."""
    app.command("pleiotropy")(pleiotropy)


def pleiotropy(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]RUN...",
            help="Run folders of `deepwas fit`, 2 to 20, named by their folders or as given; or tables of priors.",
            show_default=False,
        ),
    ],
    ld: Annotated[Path, typer.Option(help="The LD store that the runs were made with.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    sumstats: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="With a table of priors: the trait's z-scores. Repeat for more.",
            show_default=False,
        ),
    ] = None,
    missing_prior: Annotated[
        str, typer.Option(help="Variants that a table of priors lacks: refuse, or zero (they have no effect).")
    ] = "refuse",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted one in --out.")] = False,
    noise_correlation: Annotated[
        Path | None,
        typer.Option(help="Table TRAIT_1 TRAIT_2 NOISE. By default estimated genome-wide.", show_default=False),
    ] = None,
    trait_effects: Annotated[
        Path | None,
        typer.Option(help="Table CAUSE EFFECT T SE. By default estimated genome-wide.", show_default=False),
    ] = None,
    no_vertical: Annotated[
        bool, typer.Option("--no-vertical", help="No effects of trait on trait: all effects count as direct.")
    ] = False,
    no_sharing: Annotated[
        bool, typer.Option("--no-sharing", help="Do not learn how many variants are shared: by chance alone.")
    ] = False,
    no_confounders: Annotated[
        bool, typer.Option("--no-confounders", help="Do not look for heritable factors behind several traits.")
    ] = False,
    fdr: Annotated[float, typer.Option(help="False discovery rate of effects of trait on trait.")] = 0.05,
    threshold: Annotated[float, typer.Option(help="p-value of their instruments.")] = 5e-8,
    learn_blocks: Annotated[int, typer.Option(help="LD blocks to learn from, at most.")] = 200,
    rounds: Annotated[
        int, typer.Option(help="Rounds of learning, at most; again where a factor is found or a prior is far off.")
    ] = 10,
    draws: Annotated[int, typer.Option(help="Draws of the effects of trait on trait, for their uncertainty.")] = 32,
    max_effects: Annotated[int, typer.Option(help="Effects of a block at most.")] = 10,
    coverage: Annotated[float, typer.Option(help="Of credible sets.")] = 0.95,
    purity: Annotated[float, typer.Option(help="Least |r| between variants of a set that is not marked impure.")] = 0.5,
    candidates: Annotated[int, typer.Option(help="Variants, each with traits, whose pairs are weighed exactly.")] = 96,
    more_candidates: Annotated[
        int, typer.Option(help="The same where one effect on several traits stands against two; 0: no more.")
    ] = 384,
    network: Annotated[
        bool, typer.Option("--network", help="Train the semi-supervised networks; takes about twice as long.")
    ] = False,
    network_objective: Annotated[
        str,
        typer.Option(
            help="With --network: use those trained supervised (labels alone), generative (no label) or with both."
        ),
    ] = "supervised",
    labels: Annotated[
        Path | None,
        typer.Option(help="With --network: table of variants and their CLASS, to learn from.", show_default=False),
    ] = None,
    annotations: Annotated[
        list[Path] | None,
        typer.Option(
            help="With --network: annotations, as of fit, that the networks read. Repeat for more.",
            show_default=False,
        ),
    ] = None,
    calibration_blocks: Annotated[
        int, typer.Option(help="LD blocks on which probabilities are checked by simulation; 0 for none.")
    ] = 30,
    bootstrap: Annotated[
        int, typer.Option(help="Draws of the test that variants are shared beyond chance, 99 for instance; 0: no test.")
    ] = 0,
    hops_permutations: Annotated[
        int, typer.Option(help="Of the HOPS scores' null, 25 for instance; 0: the theoretical null.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of draws and permutations.")] = 0,
) -> None:
    """Which variants act on several traits by themselves, and which only seem to.

    Told apart are effects of a variant's own on two traits or more
    (pleiotropic), on one trait that acts on others (vertical), on one trait
    beside another trait's variant in LD (ld_only), on one alone (single),
    and through a heritable factor behind several traits (confounder).

    Written are pleiotropy.tsv.gz (every variant), loci.tsv (credible sets
    and their traits), trait_pairs.tsv (noise and genetic correlation, what
    is shared), trait_effects.tsv, pleiotropy.png, sharing.png,
    reliability.png (probabilities against simulated truth) and
    pleiotropy.json.

    Example: deepwas pleiotropy runs/ldl runs/cad runs/bmi --ld ld.h5 --out pleiotropy
    """
    from deepwas.files import require_file
    from deepwas.pleiotropy.options import MOST_TRAITS, PleiotropyOptions

    given = _traits(runs)
    z = _named("--sumstats", sumstats or [])
    with naming_flags(PleiotropyOptions):
        options = PleiotropyOptions(
            vertical=not no_vertical,
            sharing=not no_sharing,
            confounders=not no_confounders,
            fdr=fdr,
            threshold=threshold,
            learn_blocks=learn_blocks,
            rounds=rounds,
            draws=draws,
            max_effects=max_effects,
            coverage=coverage,
            purity=purity,
            candidates=candidates,
            more_candidates=more_candidates,
            missing_prior=cast("MissingPrior", missing_prior),
            network=network,
            network_objective=network_objective,
            calibration_blocks=calibration_blocks,
            bootstrap=bootstrap,
            hops_permutations=hops_permutations,
            seed=seed,
        )
    if trait_effects is not None and no_vertical:
        raise InputError("--trait-effects and --no-vertical: effects of trait on trait are one or the other.")
    for flag, given_too in (("--labels", labels), ("--annotations", annotations)):
        if given_too and not network:
            raise InputError(f"{flag}: only the networks read them. Give --network, too.")
    if network_objective != PleiotropyOptions.network_objective and not network:
        raise InputError("--network-objective: it is for the networks. Give --network, too.")
    if network and len(given) > MOST_TRAITS:
        raise InputError(f"--network is for {MOST_TRAITS} traits at most; {len(given)} are given. Leave it out.")
    for name in z:
        if name not in given:
            raise InputError(f"--sumstats {name}=...: {name} is no trait here: {', '.join(given)}.")
    for name, path in given.items():
        if not path.is_dir():
            require_file(path, f"a run folder of {name}, or a table of its priors")
            if name not in z:
                raise InputError(f"{path}: a table of priors needs z-scores. Give --sumstats {name}=FILE.")
    for name, path in z.items():
        require_file(path, f"summary statistics of {name}")
    require_file(ld, "an LD store")
    for table, what in (
        (noise_correlation, "noise correlations"),
        (trait_effects, "effects of trait on trait"),
        (labels, "labels"),
    ):
        if table is not None:
            require_file(table, f"a table of {what}")
    for path in annotations or ():
        require_file(path, "annotations")

    from deepwas.posterior.progress import require_folder
    from deepwas.runs import load_fit

    opened: dict[str, Any] = {name: load_fit(path) if path.is_dir() else path for name, path in given.items()}
    require_folder(out, resume)
    say_if_nothing_to_resume(resume, out)

    from deepwas.ld import open_ld

    store = open_ld(ld)

    from deepwas.pleiotropy.run import PARTIAL, classify

    say_what_is_kept(resume, out / PARTIAL)

    with progress_of_stages() as progress, warnings_said():
        found = classify(
            opened,
            store,
            sumstats=z,
            noise_correlation=noise_correlation,
            trait_effects=trait_effects,
            labels=labels,
            annotations=annotations or None,
            options=options,
            out=out,
            resume=resume,
            progress=progress,
        )
    say_counts(found.record["counts"])
    for note in found.record["notes"]:
        say(f"note: {note}")
    _show_structure(found)
    _show_loci(found, out)


def _traits(texts: list[str]) -> dict[str, Path]:
    """`[NAME=]PATH` as name -> path; without a name that of the folder or file."""
    from deepwas.pleiotropy.options import MOST_AT_ONCE

    found: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if equals and "/" not in name:
            key, value, said = name.strip(), path.strip(), f"{name} is given twice. Give every trait once."
        else:
            key, value = Path(text).absolute().name.split(".")[0], text
            said = f"two traits are called {key!r}. Name them: NAME={text}."
        if not key or not value:
            raise InputError(f"{text!r}: give a run folder, or NAME=FOLDER.")
        if key in found:
            same = found[key].absolute() == Path(value).absolute()
            raise InputError(f"{value} is given twice. Give every trait once." if same else said)
        found[key] = Path(value)
    if len(found) < 2:
        raise InputError(f"pleiotropy needs two traits or more; given: {', '.join(found) or 'none'}.")
    if len(found) > MOST_AT_ONCE:
        raise InputError(f"{len(found)} traits are given; at most {MOST_AT_ONCE} are classified at once.")
    return found


def _named(flag: str, texts: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, value = (x.strip() for x in text.partition("="))
        if not (equals and name and value):
            raise InputError(f"{flag} {text!r}: give a trait's name and its file, such as {flag} bmi=bmi.parquet.")
        if name in found:
            raise InputError(f"{flag}: {name} is given twice.")
        found[name] = Path(value)
    return found


def _show_structure(found: Pleiotropy) -> None:
    from rich.table import Table

    names = [trait["name"] for trait in found.record["traits"]]
    pairs = {(row["TRAIT_1"], row["TRAIT_2"]): row for row in found.pairs.iter_rows(named=True)}
    table = Table(title="Noise correlation (above the diagonal genetic correlation; on it noise)", title_justify="left")
    for heading in ("", *names):
        table.add_column(heading, justify="left" if not heading else "right")
    for j, one in enumerate(names):
        cells = []
        for k, other in enumerate(names):
            row = pairs[(one, other) if k >= j else (other, one)]
            value, error = (row["RG"], row["RG_SE"]) if k > j else (row["NOISE"], row["NOISE_SE"])
            cells.append("" if value is None else f"{value:.2f}" + ("" if error is None else f" ± {error:.2f}"))
        table.add_row(one, *cells)
    show(table)
    say("Effects of trait on trait:")
    used = found.trait_effects.filter((found.trait_effects["T"] != 0) | found.trait_effects["UNRESOLVED"])
    table = Table(show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    for row in used.iter_rows(named=True):
        said = "unresolved" if row["UNRESOLVED"] else f"{row['T']:.2g} ± {row['SE']:.1g}"
        table.add_row(f"{row['CAUSE']} -> {row['EFFECT']}", said)
    if not used.height:
        table.add_row(found.record["trait_effects"], "none")
    show(table)


def _show_loci(found: Pleiotropy, out: Path) -> None:
    from rich.table import Table

    total, learned = found.record["totals"], found.record["learned"]
    say("Loci and variants by class:")
    table = Table()
    for heading in ("class", "loci", "variants"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name, count in total["loci_by_class"].items():
        table.add_row(name, f"{count:,}", f"{total['classes'][name]:,}")
    show(table)
    for factor in learned["factors"]:
        loadings = ", ".join(f"{name} {x:.2g}" for name, x in factor["loadings"].items() if x)
        say(
            f"a heritable factor may act on several traits, with probability {factor['probability']:.2g}: "
            f"loadings {loadings}"
        )
    powers = learned["prior_exponent"]
    if any(t != 1 for t in powers.values()):
        said = ", ".join(f"{name} {t:.2f}" for name, t in powers.items())
        say(f"effects follow the priors raised to the power (1 as they are, 0 not at all): {said}")
    excess = ", ".join(f"{n} traits {x:+.2f}" for n, x in learned["excess_log_odds"].items())
    say(f"sharing beyond independence, in log odds: {excess}")
    pairs = sorted(learned["pair_log_odds"], key=lambda x: -abs(x["log_odds"]))[:_PAIRS]
    if len(found.record["traits"]) > 2:
        said = "; ".join(f"{', '.join(x['traits'])} {x['log_odds']:+.2f}" for x in pairs)
        say(f"beside that, pairs that share more or less than others: {said} (PAIR_LOG_ODDS in trait_pairs.tsv)")
    _show_checks(found)
    if total["loci_unresolvable"]:
        say(
            f"{total['loci_unresolvable']:,} of {total['loci']:,} loci: one effect cannot be told from two in LD of "
            "r2 > 0.8 (UNRESOLVABLE, P_SPLIT in loci.tsv)"
        )
    if total["loci_impure"]:
        said = f"{total['loci_impure']:,} of {total['loci']:,} loci"
        least = found.record["options"]["purity"]
        say(f"{said} hold variants that are hardly in LD (|r| < {least:g}, IMPURE in loci.tsv)")
    if total["loci_flagged"]:
        said = f"{total['loci_flagged']:,} of {total['loci']:,} loci"
        beyond = total["loci_flagged_beyond_panel"]
        say(
            f"{said} are in LD blocks flagged for LD mismatch of a trait (FLAG in loci.tsv), {beyond:,} of them for "
            "more than a panel that is small for their effects"
        )
    if total["not_converged"]:
        say(f"warning: {total['not_converged']:,} LD block(s) did not come to rest")
    say(
        f"{out}: {total['variants']:,} variants in {total['blocks']:,} LD blocks, {total['pleiotropic']:.3g} of them "
        f"expected to act on two traits or more; called at FDR 5%: {total['called_at_fdr_5']:,} variants, "
        f"{total['loci_called_at_fdr_5']:,} loci, {total['loci_called_unresolvable']:,} of these UNRESOLVABLE."
    )


def _show_checks(found: Pleiotropy) -> None:
    test, network, curve = (found.record[name] for name in ("sharing_test", "network", "calibration"))
    if test is not None:
        say(
            f"test of sharing beyond chance: p = {test['p']:.3g}; with the prior of independent traits "
            f"{test['expected']:.3g} variants of two traits or more are found here, {test['null_median']:.3g} in the "
            f"median of {test['draws']} draws without sharing"
        )
    if network is not None:
        own, labels = network["ablations"]["prior"][network["options"]["objective"]], network["labels"]
        said = "used" if network["accepted"] else "not used: the held-out gain is too small"
        say(
            f"network: {labels['positive']:,} positive and {labels['negative']:,} negative labels; corrections of the "
            f"prior gain {own['gain']:.3g} ± {own['gain_standard_error']:.2g} nats held out, {said}"
        )
    if curve is not None:
        own = curve["P_PLEIOTROPY"]
        error, above, chance = (own[f"calibration_error{x}"] for x in ("", "_above", "_above_by_chance"))
        likely = (
            ""
            if above is None
            else f" {above:.2g} where the probability is 0.1 or more (true probabilities would show {chance:.2g}),"
        )
        say(
            f"calibration in data simulated under the fitted model, {curve['true']:,} variants on two traits or more "
            f"in {curve['blocks']} LD blocks: expected calibration error{likely} {error:.2g} over all (reliability.png)"
        )
