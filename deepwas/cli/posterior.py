"""`deepwas posterior`: posterior effects, a polygenic score, local heritability, and fine-mapping."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from deepwas.cli._console import progress_of_stages, say, say_counts, show, warnings_said
from deepwas.cli._flags import naming_flags
from deepwas.cli._outputs import say_if_nothing_to_resume, say_what_is_kept
from deepwas.errors import InputError

if TYPE_CHECKING:
    from deepwas.finemapping.options import FineMapOptions
    from deepwas.posterior import Posterior
    from deepwas.posterior.finemap import FineMap


def register(app: typer.Typer) -> None:
    """Add the command to the root application."""
    app.command("posterior")(posterior)


def posterior(
    ld: Annotated[Path, typer.Option(help="LD store; of a run, the one it was made with.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Run folder of `deepwas fit`.", show_default=False)
    ] = None,
    priors: Annotated[
        Path | None,
        typer.Option(
            help="Instead of RUN: a table CHR BP A1 A2 SNPVAR, as `deepwas priors` writes.", show_default=False
        ),
    ] = None,
    sumstats: Annotated[
        Path | None,
        typer.Option(
            help="With --priors the z-scores; with RUN its own again, for the GWAS's allele frequencies.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted one in --out.")] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="The prior of one network for all variants, not the cross-fitted one.")
    ] = False,
    noise: Annotated[
        float | None,
        typer.Option(help="Noise inflation sigma2. By default the run's, or 1 with --priors.", show_default=False),
    ] = None,
    solver: Annotated[
        str, typer.Option(help="cholesky (exact), cg, or auto: exact for blocks of up to 2,048 directions.")
    ] = "auto",
    probes: Annotated[int, typer.Option(help="Random signs of cg, from which it estimates variances.")] = 32,
    rtol: Annotated[
        float | None, typer.Option(help="Relative residual of cg. By default 1e-5.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random signs.")] = 0,
    missing_prior: Annotated[
        str, typer.Option(help="Variants that --priors lacks: refuse, or zero (they have no effect).")
    ] = "refuse",
    frequencies: Annotated[
        str, typer.Option(help="For effects per allele: gwas (where it gives them, else the panel's), or panel.")
    ] = "gwas",
    name: Annotated[str, typer.Option(help="Name of the polygenic score.")] = "deepwas",
    finemap: Annotated[
        bool, typer.Option("--finemap", help="Find out which variants have effects: inclusion probabilities and sets.")
    ] = False,
    slab: Annotated[
        float | None,
        typer.Option(
            help="With --finemap: variance of an effect that is there. By default learned.", show_default=False
        ),
    ] = None,
    max_effects: Annotated[
        int | None, typer.Option(help="With --finemap: effects of a block at most. [default: 10]", show_default=False)
    ] = None,
    coverage: Annotated[
        float | None, typer.Option(help="With --finemap: of credible sets. [default: 0.95]", show_default=False)
    ] = None,
    purity: Annotated[
        float | None,
        typer.Option(help="With --finemap: least |r| in sets not marked impure. [default: 0.5]", show_default=False),
    ] = None,
) -> None:
    """Posterior effects of variants under a learned prior, given the z-scores.

    Written are posterior.tsv.gz (posterior mean and standard deviation of
    every variant's effect, per standard deviation of genotype and per
    allele), score.txt.gz (the polygenic score of these means, as a PGS
    Catalog scoring file), local_heritability.tsv and .png (genetic variance
    of each LD block, and the expected R2 of the score), posterior.json.

    With --finemap also finemap.tsv.gz (inclusion probability and effect of
    every variant), credible_sets.tsv, credible_set_variants.tsv,
    finemap_blocks.tsv (number of effects, fit of the LD) and finemap.png.

    Example: deepwas posterior run --ld ld.h5 --out posterior --finemap
    """
    from deepwas.files import require_file
    from deepwas.posterior.options import Frequencies, MissingPrior, PosteriorOptions, Solver

    if (run is None) == (priors is None):
        raise InputError("give a run folder, or --priors FILE with --sumstats FILE: one of the two.")
    if priors is not None and sumstats is None:
        raise InputError("--priors needs z-scores. Give --sumstats FILE.")
    if priors is not None and plain:
        raise InputError("--plain is for a run: a table of priors is what it is. Leave it out.")
    with naming_flags(PosteriorOptions):
        options = PosteriorOptions(
            cross_fitted=False if plain else None,
            noise=noise,
            solver=cast(Solver, solver),
            probes=probes,
            rtol=rtol,
            seed=seed,
            missing_prior=cast(MissingPrior, missing_prior),
            frequencies=cast(Frequencies, frequencies),
        )
    mapping = _finemap_options(
        finemap, {"slab": slab, "max_effects": max_effects, "coverage": coverage, "purity": purity}
    )
    require_file(ld, "an LD store")
    given: Any = run
    if priors is not None:
        given = require_file(priors, "a table of priors")
    else:
        from deepwas.runs import load_fit

        assert run is not None
        given = load_fit(run)
    if sumstats is not None:
        require_file(sumstats, "summary statistics")

    from deepwas.ld import open_ld
    from deepwas.posterior.progress import FINEMAP_PARTIAL, PARTIAL, require_folder
    from deepwas.posterior.score_file import check_name

    check_name(name)
    require_folder(out, resume)
    say_if_nothing_to_resume(resume, out)
    say_what_is_kept(resume, out / PARTIAL, out / FINEMAP_PARTIAL)
    store = open_ld(ld)

    from deepwas.posterior import estimate_posterior

    with progress_of_stages() as progress, warnings_said():
        found = estimate_posterior(
            given,
            store,
            sumstats,
            options=options,
            finemap=mapping,
            out=out,
            name=name,
            resume=resume,
            progress=progress,
        )
    say_counts(found.record["counts"])
    _show(found, out)
    if found.finemap is not None:
        _show_finemap(found.record["finemap"])
        _show_likeliest(found.finemap)


def _finemap_options(wanted: bool, given: dict[str, Any]) -> FineMapOptions | None:
    """The options of fine-mapping; InputError for one without --finemap."""
    from deepwas.finemapping.options import FineMapOptions

    chosen = {name: value for name, value in given.items() if value is not None}
    if not wanted:
        if chosen:
            flag = "--" + next(iter(chosen)).replace("_", "-")
            raise InputError(f"{flag} is for fine-mapping. Give --finemap too, or leave it out.")
        return None
    with naming_flags(FineMapOptions):
        return FineMapOptions(**chosen)


def _show_finemap(found: dict[str, Any]) -> None:
    from rich.table import Table

    count, sets = found["variants"], found["sets"]
    table = Table(title="Fine-mapping", title_justify="left", show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("variants of inclusion probability > 0.5", f"{count['0.5']:,}")
    table.add_row("  > 0.95", f"{count['0.95']:,}")
    table.add_row(f"{found['options']['coverage']:.0%} credible sets", f"{sets:,}")
    if sets:
        table.add_row("  median size", f"{found['median_size']:g}")
        table.add_row("  of one variant", f"{found['sets_of_one']:,}")
        table.add_row(f"  impure (|r| < {found['options']['purity']:g})", f"{found['sets_impure']:,}")
        table.add_row("  in LD blocks flagged for mismatch", f"{found['sets_flagged']:,}")
    table.add_row("effects", f"{found['effects']:.4g} ± {found['effects_sd']:.2g}")
    table.add_row("  expected by the prior", f"{found['effects_prior']:.4g}")
    how = f"learned in {found['slab_rounds']} rounds" if found["slab_rounds"] else "given"
    table.add_row(f"variance of an effect that is there ({how})", f"{found['slab']:.3g}")
    table.add_row("mean prior probability of an effect", f"{found['prior_inclusion']:.3g}")
    show(table)
    if found["capped"]:
        say(f"prior probability of an effect cut to 1/2 for {found['capped']:,} variant(s)")
    if found["not_converged"]:
        say(
            f"warning: {found['not_converged']:,} LD block(s) did not come to rest, take them as approximate "
            "(CONVERGED in finemap_blocks.tsv)"
        )
    fit = found["mismatch"]
    for warning in fit["warnings"]:
        say(f"warning: {warning}")
    if fit["flagged"]:
        reasons = ", ".join(f"{name} {n:,}" for name, n in sorted(fit["by_reason"].items(), key=lambda x: -x[1]))
        say(f"{fit['flagged']:,} of {fit['blocks']:,} LD blocks are flagged for LD mismatch (column FLAG): {reasons}.")


def _show_likeliest(found: FineMap) -> None:
    best = found.variants.filter(found.variants["PIP"] == found.variants["PIP"].max()).row(0, named=True)
    say(
        f"likeliest to have an effect of its own: {best['SNP']}, inclusion probability {best['PIP']:.3g}, effect "
        f"{best['BETA_MEAN']:.3g} ± {best['BETA_SD']:.2g} standard deviations of the trait for one of genotype"
    )


def _show(found: Posterior, out: Path) -> None:
    from rich.table import Table

    from deepwas.posterior.run import SCORE

    total = found.record["totals"]
    table = Table(title="Posterior, in units of the trait's variance", title_justify="left")
    for heading in ("", "expected by the prior", "given the z-scores"):
        table.add_column(heading, justify="left" if not heading else "right")
    error = "" if total["h2_sd"] is None else f" ± {total['h2_sd']:.2g}"
    if total["h2_standard_error"]:
        error += f" (standard error of probes {total['h2_standard_error']:.1g})"
    table.add_row("heritability", f"{total['h2_prior']:.5g}", "")
    table.add_row("  in the directions of LD kept", f"{total['h2_prior_kept']:.5g}", f"{total['h2']:.5g}{error}")
    table.add_row("  explained by the score (R2)", f"{total['r2_prior']:.5g}", f"{total['r2']:.5g}")
    show(table)
    if found.finemap is None:
        best = found.table.filter(found.table["POST_Z"].abs() == found.table["POST_Z"].abs().max()).row(0, named=True)
        say(
            f"surest effect, were every variant to have one: {best['SNP']}, {best['POST_MEAN']:.3g} ± "
            f"{best['POST_SD']:.2g} standard deviations of the trait for one of genotype; --finemap tells which do"
        )
    gain = found.record["prior"].get("held_out_gain")
    if gain is not None and gain < 0:
        say(f"warning: on held-out blocks this prior loses {-gain:.1f} nats against the constant prior.")
    gwas, panel = (total["frequencies"][x] for x in ("gwas", "panel"))
    say(f"effects per allele with frequencies of the GWAS for {gwas:,} variants, of the LD panel for {panel:,}")
    if not (out / SCORE).exists():
        say(f"warning: no variant has a weight per allele other than 0, so there is no {SCORE}.")
    cg = f", {total['blocks_by_cg']:,} of them by conjugate gradients" if total["blocks_by_cg"] else ", all exact"
    say(
        f"{out}: {total['variants']:,} variants, {total['observed']:,} with a z-score, in {total['blocks']:,} LD blocks"
        f"{cg}."
    )
