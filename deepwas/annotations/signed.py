"""`SignedScores`: scores whose sign belongs to an allele, in the row order and on the alleles of an LD store."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from deepwas import __version__
from deepwas.annotations.features import KEY_COLUMNS, METADATA_KEY, check_variants
from deepwas.errors import InputError
from deepwas.files import atomic_path, require_file, require_parent
from deepwas.tally import Count, Tally

__all__ = ["FORMAT", "SignedScores", "read_signed_scores"]

FORMAT = "deepwas-signed-scores"


@dataclass(frozen=True)
class SignedScores:
    """Signed scores of the variants of an LD store.

    names: (p,).  values: (M, p) float32, positive where the store's A1 raises the score; NaN where missing, or where
    the strand of a palindromic variant is not known.  variants: frame (M) with SNP CHR BP A1 A2.
    sources: for each name, what it is.  files: SHA-256 of each file read, by path.  tally: what was matched, flipped,
    missing or dropped.

    They are no annotations: the variance of an effect cannot depend on which allele is counted.
    """

    names: tuple[str, ...]
    values: np.ndarray
    variants: pl.DataFrame
    sources: dict[str, str]
    files: dict[str, str] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        if self.values.dtype != np.float32 or self.values.shape != (self.variants.height, len(self.names)):
            raise InputError(
                f"signed scores: values are {self.values.dtype} of shape {self.values.shape}; float32 of shape "
                f"({self.variants.height}, {len(self.names)}) is needed: variants by names."
            )
        if len(set(self.names)) != len(self.names) or set(self.sources) != set(self.names):
            raise InputError("signed scores: names must differ, and each needs a source.")
        if not self.names:
            raise InputError("signed scores: no column. Give at least one score with a sign.")
        for j, name in enumerate(self.names):
            if not name.strip() or name in KEY_COLUMNS:
                raise InputError(f"signed scores: {name!r} cannot name a score: it has another meaning.")
            if np.isinf(self.values[:, j]).any():
                row = int(np.isinf(self.values[:, j]).argmax())
                raise InputError(f"signed scores: {name} of variant {self.variants['SNP'][row]} is infinite.")

    def write_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write Parquet, `SNP CHR BP A1 A2 <score...>`, atomically; scores are float32 of A1, missing ones null.

        Its metadata say under `deepwas` that these are signed scores, so that nothing takes them for annotations.
        """
        target = require_parent(path)
        columns = [pl.Series(name, self.values[:, j], nan_to_null=True) for j, name in enumerate(self.names)]
        content = {
            "format": FORMAT,
            "format_version": 1,
            "deepwas_version": __version__,
            "names": list(self.names),
            "sources": self.sources,
            "files": self.files,
            "tally": self.tally.as_list(),
        }
        with atomic_path(target) as temporary:
            self.variants.select(KEY_COLUMNS).hstack(columns).write_parquet(
                temporary, metadata={METADATA_KEY: json.dumps(content)}
            )


def read_signed_scores(path: str | os.PathLike[str], variants: pl.DataFrame) -> SignedScores:
    """Signed scores that `SignedScores.write_parquet` wrote, for the variants of the same LD store.

    Raises InputError for any other file, and for one of other variants, another order or other alleles.
    """
    found = require_file(path, "signed scores")
    remake = f"Make it with: deepwas scores --ld STORE --scores FILE --signed --out {found.stem.split('.')[0]}.parquet"
    with open(found, "rb") as handle:
        parquet = handle.read(4) == b"PAR1"
    content: dict[str, Any] | None = None
    try:
        if parquet:
            content = json.loads(pl.read_parquet_metadata(found).get(METADATA_KEY, "null"))
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            kind = content.get("format") if isinstance(content, dict) else "a file of another origin"
            raise InputError(f"{found}: signed scores expected, this is {kind}. {remake}")
        if content["format_version"] != 1:
            raise InputError(f"{found}: signed scores of format {content['format_version']} are newer: update deepwas.")
        frame = pl.read_parquet(found)
    except (pl.exceptions.PolarsError, json.JSONDecodeError) as error:
        raise InputError(f"{found}: damaged Parquet file ({error}). Write or copy it again.") from error
    keys = check_variants(variants)
    own = frame.select(KEY_COLUMNS)
    if own.height != keys.height or not own.select("SNP", "BP", "A1", "A2").equals(
        keys.select("SNP", "BP", "A1", "A2")
    ):
        raise InputError(
            f"{found}: made for another LD store ({own.height:,} variants, here {keys.height:,}, or other alleles or "
            f"another order). {remake}"
        )
    names = tuple(content["names"])
    values = np.empty((frame.height, len(names)), dtype=np.float32)
    for j, name in enumerate(names):
        values[:, j] = frame[name].cast(pl.Float32).fill_null(np.nan).to_numpy()
    tally = Tally([Count(**row) for row in content["tally"]])
    return SignedScores(names, values, keys, content["sources"], content["files"], tally)
