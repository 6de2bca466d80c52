"""A small problem with a known truth, as real files: PLINK panel, fastGWA summary statistics, a table of annotations.

Genotypes follow a stationary process along each chromosome, the GWAS is drawn from the model with the panel's own LD,
and the effect variance depends on one of the two annotations.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

N = 20_000.0


@dataclass(frozen=True)
class Problem:
    """Paths of the files, and the truth, in the order of the panel: effect variance f and effects beta, (M,)."""

    genotypes: Path
    sumstats: Path
    annotations: Path
    f: np.ndarray
    beta: np.ndarray


def write_problem(
    folder: Path, *, chromosomes: int = 4, variants: int = 480, people: int = 400, strength: float = 1.5, seed: int = 1
) -> Problem:
    """Write the files of a problem into `folder`; `strength` is the log fold change of f per SD of `active`."""
    from bed_reader import to_bed
    from scipy.stats import norm

    rng = np.random.default_rng(seed)
    dosages, rows, zs, fs, betas, active = [], [], [], [], [], []
    for chromosome in range(1, chromosomes + 1):
        haplotypes = _haplotypes(rng, 2 * people, variants)
        dosage = haplotypes[:people] + haplotypes[people:]
        X = (dosage - dosage.mean(axis=0)) / dosage.std(axis=0)
        R = X.T @ X / people
        signal = rng.normal(size=variants)
        f = np.exp(strength * signal - strength**2 / 2) * 0.3 / N
        beta = rng.normal(size=variants) * np.sqrt(f)
        noise = X.T @ rng.normal(size=people) / np.sqrt(people)
        dosages.append(dosage)
        zs.append(np.sqrt(N) * R @ beta + noise)
        fs.append(f)
        betas.append(beta)
        active.append(signal)
        rows += [(str(chromosome), f"rs{chromosome}_{j}", 1_000_000 + 1000 * j) for j in range(variants)]
    G = np.concatenate(dosages, axis=1).astype(np.int8)
    chrom, names, positions = (list(x) for x in zip(*rows, strict=True))
    prefix = folder / "panel.bed"
    to_bed(
        prefix,
        G,
        properties={
            "iid": [f"person{i}" for i in range(people)],
            "chromosome": chrom,
            "sid": names,
            "bp_position": positions,
            "allele_1": ["A"] * len(rows),
            "allele_2": ["G"] * len(rows),
        },
    )
    z = np.concatenate(zs)
    frequency = G.mean(axis=0) / 2
    se = 1 / np.sqrt(N)
    gwas = pl.DataFrame(
        {
            "CHR": chrom,
            "SNP": names,
            "POS": positions,
            "A1": "A",
            "A2": "G",
            "N": int(N),
            "AF1": frequency,
            "BETA": z * se,
            "SE": se,
            "P": 2 * norm.sf(np.abs(z)),
        }
    )
    gwas.write_csv(folder / "gwas.fastGWA", separator="\t")
    table = pl.DataFrame(
        {
            "SNP": names,
            "CHR": chrom,
            "BP": positions,
            "A1": "A",
            "A2": "G",
            "active": np.concatenate(active),
            "idle": rng.normal(size=len(rows)),
        }
    )
    table.write_csv(folder / "annotations.tsv", separator="\t")
    return Problem(
        prefix, folder / "gwas.fastGWA", folder / "annotations.tsv", np.concatenate(fs), np.concatenate(betas)
    )


def _haplotypes(rng: np.random.Generator, count: int, variants: int, stay: float = 0.9) -> np.ndarray:
    """0/1 haplotypes: thresholded autoregressive processes, with frequencies between 0.15 and 0.85."""
    latent = np.empty((count, variants))
    latent[:, 0] = rng.normal(size=count)
    for j in range(1, variants):
        latent[:, j] = stay * latent[:, j - 1] + np.sqrt(1 - stay**2) * rng.normal(size=count)
    return (latent < rng.uniform(-1, 1, variants)).astype(float)
