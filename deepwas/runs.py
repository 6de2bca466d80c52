"""A finished fit, in memory and as a run folder: its record, its priors, its networks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from deepwas.annotations import Annotations, Standardiser
from deepwas.errors import InputError
from deepwas.files import atomic_path, read_json, require_parent, sha256, write_json, write_text
from deepwas.inputs import InputSizes, VariantInputs, Windows
from deepwas.options import FitOptions
from deepwas.specs import validate_json, validate_table

if TYPE_CHECKING:
    from flax import nnx
    from numpy.typing import NDArray

    from deepwas.ld import LDStore
    from deepwas.posterior import Posterior

__all__ = ["Fit", "check_record", "load_fit", "sizes_of"]

FORMAT = "deepwas-run"
FORMAT_VERSION = 1
RECORD = "run.json"
VARIANTS = "variants.parquet"
BLOCKS = "blocks.csv"

Which = Literal["scored", "all"]


@dataclass(repr=False)
class Fit:
    """A learned prior.

    record: the content of `run.json`: options, inputs with checksums, counts, heritability, held-out gains.
    variants: one row per variant of the LD blocks used: CHR SNP BP A1 A2, BLOCK, SECTION (of the genome), SNPVAR_PLAIN
        (effect variance by the first network), SNPVAR_CROSS (by the network that did not see the variant's section;
        absent without cross-fitting), Z and N (null where the trait has none).
    networks, standardisers: one per rotation; None for the constant prior.
    folder: where it is saved, or None.
    """

    record: dict[str, Any]
    variants: pl.DataFrame
    networks: Sequence[nnx.Module | None]
    standardisers: Sequence[Standardiser | None]
    folder: Path | None = field(default=None)

    def __repr__(self) -> str:
        name, where = self.record["options"]["network"], f", folder {str(self.folder)!r}" if self.folder else ""
        return f"Fit({name}, {self.variants.height:,} variants, {len(self.networks)} rotation(s){where})"

    @property
    def options(self) -> FitOptions:
        """The options of the fit."""
        return FitOptions.of_record(self.record["options"])

    @property
    def cross_fitted(self) -> bool:
        """Whether cross-fitted priors exist."""
        return "SNPVAR_CROSS" in self.variants.columns

    def priors(self, *, cross_fitted: bool | None = None, which: Which = "scored") -> pl.DataFrame:
        """The priors as a table: CHR SNP BP A1 A2 SNPVAR Z N BLOCK SECTION.

        SNPVAR: effect variance f_j per standardised genotype, in units of the trait's variance. Z and N are those of
        A1.
        cross_fitted: priors by networks that did not see the variant's section of the genome; None means if there are
        any.
        which: 'scored' for variants with a z-score (what a fine-mapper reads), 'all' for every variant modelled, with
        Z and N missing where there is none.
        """
        cross = self.cross_fitted if cross_fitted is None else cross_fitted
        if cross and not self.cross_fitted:
            raise InputError("this fit was not cross-fitted. Ask for the plain priors, or fit with cross_fit=True.")
        if which not in ("scored", "all"):
            raise InputError(f"which is {which!r}; give 'scored' or 'all'.")
        rows = self.variants if which == "all" else self.variants.filter(pl.col("Z").is_not_null())
        return rows.select(
            "CHR",
            "SNP",
            "BP",
            "A1",
            "A2",
            pl.col("SNPVAR_CROSS" if cross else "SNPVAR_PLAIN").round_sig_figs(9).alias("SNPVAR"),
            "Z",
            "N",
            "BLOCK",
            "SECTION",
        )

    def write_priors(
        self, path: str | os.PathLike[str], *, cross_fitted: bool | None = None, which: Which = "scored"
    ) -> dict[str, Any]:
        """Write `priors` as tab-separated text (gzip if the name ends in .gz), and note the file in the run's record.

        Returns the note: file, rows, whether cross-fitted, h2 = sum of SNPVAR in the file, SHA-256.
        """
        target = require_parent(path)
        frame = self.priors(cross_fitted=cross_fitted, which=which)
        validate_table(frame, "priors", str(target))
        write_text(target, frame.write_csv(separator="\t", null_value="NA"))
        cross = self.cross_fitted if cross_fitted is None else cross_fitted
        note = {
            "file": target.name,
            "cross_fitted": cross,
            "which": which,
            "rows": frame.height,
            "h2": float(frame["SNPVAR"].sum()),
            "sha256": sha256(target),
        }
        kept = [x for x in self.record["priors"] if (x["file"], x["sha256"]) != (note["file"], note["sha256"])]
        self.record["priors"] = [*kept, note]
        if self.folder is not None:
            write_json(self.folder / RECORD, self.record)
        return note

    def inputs(
        self,
        annotations: Annotations | None = None,
        *,
        tracks: Windows | None = None,
        sequence: Windows | None = None,
        frequencies: NDArray[np.floating] | None = None,
        rotation: int = 0,
    ) -> VariantInputs:
        """What a rotation's network reads of any M variants: the kinds of input that the fit was given, no others.

        annotations: what `read_annotations` or `annotate` returns, with the columns the fit was given, in their order.
        tracks, sequence: windows as `deepwas.tracks.open_windows` gives them, or arrays; see `VariantInputs`.
        frequencies: (M,) of either allele, for a prior with `maf_alpha`.
        """
        if annotations is not None and not isinstance(annotations, Annotations):
            raise InputError(
                f"annotations is a {type(annotations).__name__}: give deepwas.read_annotations(file, store.variants)."
            )
        content, standardiser = self.record["rotations"][rotation]["network"], self.standardisers[rotation]
        given = {"annotations": annotations, "tracks": tracks, "sequence": sequence}
        given |= {"frequencies": None if frequencies is None else np.asarray(frequencies)}
        lengths = {name: x.variants.height if name == "annotations" else x.shape[0] for name, x in _given(given)}
        if not lengths or len(set(lengths.values())) > 1:
            said = ", ".join(f"{name} {count:,}" for name, count in lengths.items()) or "none"
            raise InputError(f"the inputs must be of the same variants; numbers of variants: {said}.")
        (count,) = set(lengths.values())
        values = np.zeros((count, 0), np.float32)
        if standardiser is not None and annotations is not None:
            values = standardiser.transform(annotations)
        het = None
        if frequencies is not None:
            q = np.asarray(frequencies, np.float64)
            if not ((q > 0) & (q < 1)).all():
                raise InputError("frequencies must be between 0 and 1, for every variant.")
            het = np.log(2 * q * (1 - q)).astype(np.float32)
        found = VariantInputs(values, het, tracks, sequence)
        if content is not None and found.sizes != sizes_of(content):
            raise InputError(
                f"the network was fitted to {sizes_of(content)}; given are {found.sizes}. Give the inputs that the fit "
                "had: annotations, tracks=, sequence=, and frequencies= with maf_alpha."
            )
        return found

    def predict(
        self,
        annotations: Annotations | None = None,
        *,
        tracks: Windows | None = None,
        sequence: Windows | None = None,
        frequencies: NDArray[np.floating] | None = None,
    ) -> NDArray[np.float64]:
        """Effect variance of any variants, (M,), from their inputs (see `inputs`), by the first (plain) network."""
        from deepwas.networks import predict_log_variance

        found = self.inputs(annotations, tracks=tracks, sequence=sequence, frequencies=frequencies)
        network: Any = self.networks[0]
        if network is None:
            constant = self.record["rotations"][0]["constant"]["log_effect_variance"]
            return np.full(len(found), np.exp(constant))
        return np.exp(predict_log_variance(network, found)[:, 0])

    def posterior(self, ld: LDStore | str | os.PathLike[str], **how: Any) -> Posterior:
        """Posterior effects under this prior, given the run's z-scores; arguments as of `estimate_posterior`."""
        from deepwas.posterior import estimate_posterior

        return estimate_posterior(self, ld, **how)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the run folder; `run.json` last, so that a folder with a complete record is complete."""
        target = Path(folder)
        target.mkdir(exist_ok=True)
        check_record(self.record, target)
        with atomic_path(target / VARIANTS) as temporary:
            self.variants.write_parquet(temporary)
        write_text(target / BLOCKS, self.block_table().write_csv())
        if any(network is not None for network in self.networks):
            from deepwas.training.ensemble import save_network

            for r, network in enumerate(self.networks):
                folder = target / f"rotation_{r}"
                # A run's own folder has the networks since their rotations were finished.
                if network is not None and not (target == self.folder and (folder / "network").is_dir()):
                    save_network(folder, network)
        write_json(target / RECORD, self.record)
        self.folder = target

    def block_table(self) -> pl.DataFrame:
        """Held-out results by LD block: BLOCK CHR START STOP SECTION LOG_LIKELIHOOD LOG_LIKELIHOOD_CONSTANT GAIN.

        In nats. One row per block that a rotation tested, under the numbering of the LD store.
        """
        places = self.variants.group_by("BLOCK", maintain_order=True).agg(
            pl.col("CHR").first(),
            pl.col("BP").min().alias("START"),
            pl.col("BP").max().alias("STOP"),
            pl.col("SECTION").first(),
        )
        rows: list[tuple[int, float, float]] = []
        for rotation in self.record["rotations"]:
            rows += zip(
                rotation["test_blocks"],
                rotation["test_log_likelihood"],
                rotation["test_log_likelihood_constant"],
                strict=True,
            )
        schema = {"BLOCK": pl.Int64, "LOG_LIKELIHOOD": pl.Float64, "LOG_LIKELIHOOD_CONSTANT": pl.Float64}
        found = pl.DataFrame(rows, schema=schema, orient="row").with_columns(
            GAIN=pl.col("LOG_LIKELIHOOD") - pl.col("LOG_LIKELIHOOD_CONSTANT")
        )
        return places.join(found, on="BLOCK", how="inner", maintain_order="left")


def check_record(record: Any, folder: Path) -> None:
    """Check a run's record against its specification, and that this version can read it."""
    where = str(folder / RECORD)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(f"{where}: not the record of a deepwas run.")
    if record.get("format_version", 0) > FORMAT_VERSION:
        raise InputError(f"{where}: written by a newer deepwas ({record.get('deepwas_version')}). Upgrade deepwas.")
    validate_json(record, "run", where)


def load_fit(folder: str | os.PathLike[str]) -> Fit:
    """Read a finished run folder. Raises InputError if it is none, is unfinished, or its files do not fit together."""
    target = Path(folder)
    if not (target / RECORD).is_file():
        raise InputError(
            f"{target}: not a run folder ({RECORD} is not in it). Give the folder that `deepwas fit` wrote."
        )
    record = read_json(target / RECORD, "the record of a run")
    check_record(record, target)
    if record["status"] != "complete":
        raise InputError(f"{target}: the run is not finished. Go on with `deepwas fit ... --out {target} --resume`.")
    try:
        variants = pl.read_parquet(target / VARIANTS)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{target / VARIANTS}: missing or damaged ({error}). Run the fit again.") from error
    if variants.height != record["size"]["variants_modelled"]:
        raise InputError(
            f"{target / VARIANTS}: {variants.height:,} rows, the record says "
            f"{record['size']['variants_modelled']:,}. Run the fit again."
        )
    options = FitOptions.of_record(record["options"])
    networks: list[nnx.Module | None] = []
    standardisers: list[Standardiser | None] = []
    for r, rotation in enumerate(record["rotations"]):
        content = rotation["network"]
        if content is None:
            networks.append(None)
            standardisers.append(None)
            continue
        from deepwas.training.ensemble import load_network

        networks.append(load_network(target / f"rotation_{r}", options, content))
        given = content["standardiser"]
        standardisers.append(None if given is None else Standardiser.from_dict(given))
    return Fit(record, variants, networks, standardisers, target)


def sizes_of(content: dict[str, Any]) -> InputSizes:
    """What the network of a rotation's record was built for; older records tell its annotations alone."""
    if "sizes" not in content:
        return InputSizes(len(content["inputs"]))
    sizes = content["sizes"]
    return InputSizes(**(sizes | {"tracks": None if sizes["tracks"] is None else tuple(sizes["tracks"])}))


def _given(values: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(name, x) for name, x in values.items() if x is not None]
