"""The demonstration: real files to priors, on the example that comes with the package."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from deepwas.errors import InputError
from deepwas.files import write_json
from deepwas.summary import verdicts

__all__ = ["DemoResult", "example_files", "prepare_folder", "run_demo"]

NETWORKS = ("constant", "linear", "mlp")
MARKER = "demo.json"
_OWN = (
    "ld.h5",
    ".ld.h5.partial",  # of an interrupted demo
    "height.parquet",
    "annotations.parquet",
    "priors.tsv.gz",
    "priors.png",
    "responses.png",
    "ld.png",
    *NETWORKS,
    MARKER,
)
_SHARES = (0.8, 0.9, 0.95, 0.99)
_CAVEAT = (
    "Heritability's standard error is a block jackknife; noise above 1 is mostly LD mismatch: the panel has 378 people "
    "and is not the GWAS sample. See how the figure moves with the eigenvalues before quoting it."
)


@dataclass(frozen=True)
class DemoResult:
    """What a demo found.

    records: `run.json` by network.  sensitivity: heritability by eigenvalues used.  counts: of variants.  notes: lines.
    """

    records: dict[str, dict[str, Any]]
    sensitivity: list[dict[str, Any]]
    counts: list[dict[str, Any]]
    notes: list[str]


def example_files() -> dict[str, Path]:
    """The embedded example: PLINK prefix's .bed, GWAS, genes, genetic map, by name."""
    folder = Path(str(files("deepwas"))) / "data" / "example"
    return {
        "genotypes": folder / "1000G_eur_chr22.bed",
        "sumstats": folder / "ukb_height_chr22.fastGWA.gz",
        "genes": folder / "genes_hg19.bed.gz",
        "genetic_map": folder / "recombination_chr22_hg19.gmap.gz",
        "long_range_ld": folder / "long_range_ld_hg19.txt",
    }


def prepare_folder(out: Path) -> None:
    """Make the folder, or empty it of an earlier demo; a folder with anything else in it is an error.

    An earlier demo is known by its `demo.json`, which is there from the start: files of the same names without it may
    be somebody's work.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, a folder was expected. Give another --out.")
    if out.exists():
        foreign = sorted(x.name for x in out.iterdir() if x.name not in _OWN)
        if foreign:
            raise InputError(f"{out}: holds {foreign[0]}, which is not of a demo. Give another --out.")
        if any(out.iterdir()) and not (out / MARKER).is_file():
            raise InputError(f"{out}: not empty, and without the {MARKER} of an earlier demo. Give another --out.")
        for name in _OWN:
            path = out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    elif not out.parent.is_dir():
        raise InputError(f"{out}: the folder {out.parent} does not exist. Make it first.")
    out.mkdir(exist_ok=True)
    write_json(out / MARKER, {"status": "running"})


def run_demo(out: Path, *, seed: int = 0, progress: Callable[[str, int, int], None] | None = None) -> DemoResult:
    """Build LD, harmonise, annotate, fit three priors with cross-fitting, and write everything into `out`.

    out: an existing folder.  seed: of the networks and their training.  Same seed, same figures.
    """
    from deepwas.annotations import annotate
    from deepwas.fitting import fit
    from deepwas.ld import LDOptions, build_ld
    from deepwas.ld.report import plot as plot_store
    from deepwas.options import FitOptions
    from deepwas.plots import plot_priors, plot_responses
    from deepwas.sumstats import harmonise, read_sumstats
    from deepwas.training.heritability import truncation_sensitivity

    say = progress or (lambda *_: None)
    example = example_files()
    store = build_ld(
        example["genotypes"], out / "ld.h5", LDOptions(build="GRCh37"), progress=lambda a, b: say("building LD", a, b)
    )
    plot_store(store, out / "ld.png")
    gwas = read_sumstats(example["sumstats"], build="GRCh37")
    trait = harmonise(
        gwas,
        store.variants,
        n_panel=store.n_samples,
        genome_build=store.genome_build,
        store_checksum=store.checksum,
    )
    trait.write_parquet(out / "height.parquet")
    annotations = annotate(store.variants, genes=example["genes"], genetic_map=example["genetic_map"])
    annotations.write_parquet(out / "annotations.parquet")
    fits = {}
    for network in NETWORKS:
        fits[network] = fit(
            store,
            trait,
            None if network == "constant" else annotations,
            options=FitOptions(network=network, seed=seed),  # type: ignore[arg-type]
            out=out / network,
            progress=lambda what, a, b, network=network: say(f"{network}: {what}", a, b),  # type: ignore[misc]
        )
    records = {network: result.record for network, result in fits.items()}
    note = fits["mlp"].write_priors(out / "priors.tsv.gz")

    # The default keeps few eigenvalues of a small panel: a second store with nearly all of them shows what hangs on it.
    constant = records["constant"]
    sensitivity = [constant["sensitivity"][0] | {"label": "default"}]
    with tempfile.TemporaryDirectory() as folder:
        options = LDOptions(build="GRCh37", eigenvalue_floor=1e-4)
        whole = build_ld(
            example["genotypes"], Path(folder) / "ld.h5", options, progress=lambda a, b: say("all eigenvalues", a, b)
        )
        start = constant["heritability"]["constant"]["effect_variance"]
        sensitivity += truncation_sensitivity(whole, trait.frame, start=start, shares=_SHARES)
        whole.close()
    plot_priors(fits["mlp"], out / "priors.png", genes=example["genes"], reference=fits["constant"])
    plot_responses({n: fits[n] for n in NETWORKS[1:]}, annotations, out / "responses.png")
    store.close()
    write_json(
        out / MARKER, {"status": "complete", "networks": list(NETWORKS), "seed": seed, "sensitivity": sensitivity}
    )
    return DemoResult(records, sensitivity, constant["counts"], _notes(records, note, out))


def _notes(records: dict[str, dict[str, Any]], note: dict[str, Any], out: Path) -> list[str]:
    """What a reader should know before quoting a figure."""
    lines = [_CAVEAT, *verdicts(records)]
    lines.append(f"{out / 'priors.tsv.gz'}: {note['rows']:,} variants, cross-fitted MLP priors, sum {note['h2']:.5f}")
    lines.append(f"pictures: {out / 'priors.png'}, {out / 'responses.png'}, {out / 'ld.png'}")
    return lines
