"""Height on the example's chromosome: what do learned priors change in fine-mapping real z-scores?

Standing height in the UK Biobank on chromosome 22, LD from 378 Europeans of the 1000 Genomes, the data of `deepwas
demo`. Priors are fitted as there, cross-fitted, from genes and the recombination map: a flat (constant) one, a linear
one and a small network. Each run is then fine-mapped, its slab learned. There is no truth here: counts say how sharp
each prior makes the answer, and the gain in log-likelihood on held-out blocks whether it deserves that.

The panel is small and not the GWAS's sample, so everything is done twice: with the default cut of the LD's eigenvalues,
and with more of them kept. Counts that differ between the two hang on the panel.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepwas.demo import example_files
from deepwas.files import require_file, write_text

if TYPE_CHECKING:
    import polars as pl
    from rich.table import Table

    from deepwas.posterior.finemap import FineMap
    from deepwas.runs import Fit

__all__ = ["draw", "measure", "tables"]

Progress = Callable[[str, int, int], None]

FLAT = "constant"
CUTS = {"default": "default cut", "more": "more eigenvalues"}
LEVELS = (0.1, 0.5, 0.95)
SAID = {"constant": "flat", "linear": "learned, linear", "mlp": "learned, network"}
_COLOURS = {"constant": "0.45", "linear": "#2b6cb0", "mlp": "#c8442b"}


@dataclass(frozen=True)
class Problem:
    """What is fitted.

    networks: priors, the flat one first.  floors: eigenvalues of the LD above which are kept, by cut; None for the
    default.  steps: of training, None for the default.  cross_fit: whether priors are.  purity: of sets that count.
    intervals: the LD blocks (start, end), to look at a part of the chromosome; none for all of it.
    """

    networks: tuple[str, ...] = (FLAT, "linear", "mlp")
    floors: tuple[tuple[str, float | None], ...] = (("default", None), ("more", 0.5))
    steps: int | None = None
    cross_fit: bool = True
    purity: float = 0.5
    seed: int = 0
    intervals: tuple[tuple[int, int], ...] = ()


QUICK = Problem(
    networks=(FLAT, "linear"),
    floors=(("default", None),),
    steps=10,
    cross_fit=False,
    intervals=tuple((x * 10**5, (x + 7) * 10**5) for x in range(435, 470, 7)),
)


def measure(quick: bool, progress: Progress) -> dict[str, Any]:
    """Fit, fine-map, count. Figures for JSON."""
    problem = QUICK if quick else Problem()
    files = {name: require_file(path, "a file of the example") for name, path in example_files().items()}
    cuts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="deepwas-height-") as name:
        for cut, floor in problem.floors:
            cuts[cut] = _cut(problem, files, Path(name), cut, floor, progress)
    return {"settings": asdict(problem), "cuts": cuts}


def _cut(
    problem: Problem, files: dict[str, Path], folder: Path, cut: str, floor: float | None, progress: Progress
) -> dict[str, Any]:
    from deepwas import FineMapOptions, FitOptions, annotate, build_ld, estimate_posterior, fit, read_sumstats
    from deepwas.ld import LDOptions

    options = LDOptions(build="GRCh37", eigenvalue_floor=floor)
    if problem.intervals:
        rows = "".join(f"22\t{start}\t{end}\n" for start, end in problem.intervals)
        write_text(folder / "blocks.bed", rows)
        options = replace(options, blocks=folder / "blocks.bed")
    store = build_ld(
        files["genotypes"],
        folder / f"{cut}.h5",
        options,
        progress=lambda done, total: progress(f"{cut}: building LD", done, total),
    )
    with store:
        gwas = read_sumstats(files["sumstats"], build="GRCh37")
        annotations = annotate(store.variants, genes=files["genes"], genetic_map=files["genetic_map"])
        found: dict[str, Any] = {}
        maps: dict[str, FineMap] = {}
        for network in problem.networks:
            how = FitOptions(network=network, seed=problem.seed, cross_fit=problem.cross_fit)  # type: ignore[arg-type]
            if problem.steps is not None:
                how = replace(how, steps=problem.steps)

            def say(what: str, done: int, total: int, who: str = f"{cut}, {SAID[network]}") -> None:
                progress(f"{who}: {what}", done, total)

            run = fit(store, gwas, None if network == FLAT else annotations, options=how, progress=say)
            mapped = estimate_posterior(run, store, finemap=FineMapOptions(purity=problem.purity), progress=say).finemap
            assert mapped is not None
            maps[network] = mapped
            found[network] = _summary(run, mapped)
        return {
            "directions": sum(k for k, _ in store.sizes),
            "variants": maps[FLAT].variants.height,
            "panel": store.n_samples,
            "priors": found,
            "pip": _pips(maps),
            "leads": {network: _leads(maps[network], maps[FLAT]) for network in problem.networks[1:]},
        }


def _summary(run: Fit, found: FineMap) -> dict[str, Any]:
    """Counts of one fine-mapping."""
    import polars as pl

    record, pip = found.record, found.variants["PIP"].to_numpy()
    pure = found.sets.filter(~pl.col("IMPURE"))
    held = run.record["held_out"]["cross_fitted" if run.cross_fitted else "plain"]
    sizes = found.sets["SIZE"].to_numpy()
    return {
        "variants": {f"{level:g}": int((pip > level).sum()) for level in LEVELS},
        "sets": found.sets.height,
        "pure": pure.height,
        "sizes": sizes.tolist(),
        "median_size": float(np.median(sizes)) if len(sizes) else None,
        "median_pure": float(np.median(pure["SIZE"].to_numpy())) if pure.height else None,
        "of_one": int((sizes == 1).sum()),
        "effects": record["effects"],
        "effects_sd": record["effects_sd"],
        "slab": record["slab"],
        "noise": record["mismatch"]["noise"]["used"],
        "blocks": record["mismatch"]["blocks"],
        "flagged": record["mismatch"]["flagged"],
        "warnings": record["mismatch"]["warnings"],
        "held_out": {"gain": held["gain"], "standard_error": held["standard_error"]},
        "heaviest_tenth": _heaviest(found.variants),
    }


def _heaviest(variants: pl.DataFrame) -> float:
    """Share of the prior that the tenth of the variants with the largest f has; 0.1 for a flat prior."""
    f = np.sort(variants["SNPVAR"].to_numpy())[::-1]
    return float(f[: max(1, len(f) // 10)].sum() / f.sum())


def _pips(maps: dict[str, FineMap], least: float = 0.01) -> dict[str, list[float]]:
    """PIP under each prior of the variants that have `least` under one of them."""
    values = {name: found.variants["PIP"].to_numpy() for name, found in maps.items()}
    seen = np.max(list(values.values()), axis=0) >= least
    return {name: np.round(x[seen], 5).tolist() for name, x in values.items()}


def _leads(learned: FineMap, flat: FineMap) -> dict[str, int]:
    """Credible sets of the learned prior that share a variant with one of the flat prior; and its lead."""
    members = {
        name: [set(x["SNP"]) for _, x in sorted(found.members.group_by("SET"), key=lambda x: x[0])]
        for name, found in (("learned", learned), ("flat", flat))
    }
    leads, best = learned.sets["LEAD"].to_list(), set(flat.sets["LEAD"])
    shared = [j for j, own in enumerate(members["learned"]) if any(own & other for other in members["flat"])]
    return {
        "sets": learned.sets.height,
        "in_both": len(shared),
        "same_lead": sum(leads[j] in best for j in shared),
    }


def tables(figures: dict[str, Any]) -> list[Table]:
    """Counts by cut and prior."""
    from rich.table import Table

    out = []
    for cut, own in figures["cuts"].items():
        flat = next(iter(own["priors"].values()))
        title = (
            f"Height, chromosome 22, {CUTS[cut]}: {own['variants']:,} variants in {flat['blocks']} LD blocks, "
            f"{own['directions']:,} directions kept, panel of {own['panel']} people"
        )
        table = Table(title=title, title_justify="left")
        table.add_column("")
        for network in own["priors"]:
            table.add_column(SAID[network], justify="right")
        found = list(own["priors"].values())
        for level in figures["cuts"][cut]["priors"][FLAT]["variants"]:
            table.add_row(f"variants of PIP > {level}", *(f"{x['variants'][level]:,}" for x in found))
        table.add_row("95% credible sets", *(f"{x['sets']:,}" for x in found))
        table.add_row(f"  pure (|r| >= {figures['settings']['purity']:g})", *(f"{x['pure']:,}" for x in found))
        table.add_row("  median size", *(_number(x["median_size"]) for x in found))
        table.add_row("  median size of pure ones", *(_number(x["median_pure"]) for x in found))
        table.add_row("  of one variant", *(_share(x["of_one"], x["sets"]) for x in found))
        table.add_row("expected number of effects", *(f"{x['effects']:.1f} ± {x['effects_sd']:.1f}" for x in found))
        table.add_row("variance of an effect", *(f"{x['slab']:.2g}" for x in found))
        table.add_row("prior in its heaviest tenth", *(f"{x['heaviest_tenth']:.0%}" for x in found))
        table.add_row("held-out gain, nats", *(_gain(x["held_out"]) for x in found))
        table.add_row("noise, LD blocks flagged", *(f"{x['noise']:.2f}, {x['flagged']}" for x in found))
        leads = [own["leads"].get(network) for network in own["priors"]]
        said = ["" if x is None else f"{x['in_both']} of {x['sets']}, {x['same_lead']}" for x in leads]
        table.add_row("sets that meet a flat one, same lead", *said)
        out.append(table)
    return out


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:g}"


def _gain(x: dict[str, float | None]) -> str:
    return "-" if x["gain"] is None else f"{x['gain']:+.1f} ± {x['standard_error'] or 0:.1f}"


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.0%})" if whole else "0"


def draw(figures: dict[str, Any], path: Path) -> None:
    """For each cut: inclusion probabilities under learned priors against the flat one, and sizes of credible sets."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    cuts = figures["cuts"]
    figure = Figure(figsize=(10, 4.4 * len(cuts)), layout="constrained")
    axes = figure.subplots(len(cuts), 2, squeeze=False)
    for (left, right), (cut, own) in zip(axes, cuts.items(), strict=True):
        flat = own["pip"][FLAT]
        left.plot([0, 1], [0, 1], color="0.7", lw=0.8)
        for network, pip in own["pip"].items():
            if network != FLAT:
                left.scatter(flat, pip, s=12, color=_COLOURS[network], alpha=0.6, linewidths=0, label=SAID[network])
        left.set_xlabel("inclusion probability, flat prior")
        left.set_ylabel("inclusion probability, learned prior")
        left.set_title(CUTS[cut], loc="left", fontsize=10)
        left.legend(frameon=False, fontsize=8)
        for network, found in own["priors"].items():
            _sizes(right, found["sizes"], SAID[network], _COLOURS[network])
        right.set_xscale("log")
        right.set_xlabel("variants in a credible set")
        right.set_ylabel("credible sets of that size or less")
        right.yaxis.set_major_locator(MaxNLocator(integer=True))
        right.legend(frameon=False, fontsize=8)
    figure.savefig(path, format="png", dpi=110)


def _sizes(axis: Any, sizes: Sequence[int], label: str, colour: str) -> None:
    ordered = np.sort(sizes)
    axis.step(ordered, np.arange(1, len(ordered) + 1), where="post", color=colour, label=f"{label} ({len(ordered)})")
