"""LD of independent regions, in a GWAS and in a panel of other people; simulated once, shared by all replicates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.simulate import Region, simulate_panel
from deepwas.errors import InputError
from deepwas.files import atomic_path

__all__ = ["Genome", "kept_genome", "load_genome", "save_genome", "simulate_genome"]

Array = NDArray[np.float64]

_DENSE = 3  # variants simulated for each one kept


@dataclass(frozen=True, eq=False)
class Genome:
    """LD of independent regions, and of a panel of other people from the same population.

    panel: (m, m) by region, or None.  panel_people: their number.
    """

    regions: tuple[Region, ...]
    panel: tuple[Array, ...] | None = None
    panel_people: int = 0

    @property
    def M(self) -> int:
        """Number of variants."""
        return sum(region.m for region in self.regions)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(regions + 1,) first variant of every region, and M."""
        return np.concatenate([[0], np.cumsum([region.m for region in self.regions])]).astype(np.int64)

    @cached_property
    def block(self) -> NDArray[np.int64]:
        """(M,) region of every variant."""
        return np.repeat(np.arange(len(self.regions)), np.diff(self.starts))

    def rows(self, number: int) -> slice:
        """Variants of one region."""
        return slice(int(self.starts[number]), int(self.starts[number + 1]))


def simulate_genome(
    regions: int,
    *,
    m: int = 400,
    people: int = 2000,
    panel_people: int = 400,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Genome:
    """European-like LD of `regions` regions of m variants each, in the GWAS and in a panel of other people.

    Of 3 m neighbouring variants of MAF >= 1% (`benchmarks.simulate.simulate_panel`; about 1 Mb where m is 400), m that
    vary in both samples are drawn at random. R is plain correlation. Without panel_people there is no panel.
    """
    if regions < 1 or m < 2 or people < 2 or panel_people < 0 or panel_people == 1:
        raise InputError(
            f"regions {regions} must be at least 1, m {m} and people {people} at least 2, and panel_people "
            f"{panel_people} 0 or at least 2."
        )
    found, panels = [], []
    for number in range(regions):
        drawn = np.random.SeedSequence([seed, number]).generate_state(2)
        everyone = simulate_panel(_DENSE * m, people=people + panel_people, seed=int(drawn[0]))
        own, other = everyone.genotypes[:, :people], everyone.genotypes[:, people:]
        varies = np.ptp(own, axis=1) > 0
        if panel_people:
            varies &= np.ptp(other, axis=1) > 0
        kept = np.sort(np.random.default_rng(drawn[1]).choice(np.flatnonzero(varies), size=m, replace=False))
        found.append(Region(everyone.position[kept], everyone.maf[kept], np.corrcoef(own[kept])))
        if panel_people:
            panels.append(np.corrcoef(other[kept]))
        if progress is not None:
            progress(number + 1, regions)
    return Genome(tuple(found), tuple(panels) if panel_people else None, panel_people)


def save_genome(genome: Genome, path: Path) -> None:
    """Keep a genome as an .npz file, correlations in float32."""
    arrays: dict[str, ArrayLike] = {"panel_people": genome.panel_people, "starts": genome.starts}
    for name in ("position", "maf"):
        arrays[name] = np.concatenate([getattr(region, name) for region in genome.regions])
    for number, region in enumerate(genome.regions):
        arrays[f"R{number}"] = region.correlation.astype(np.float32)
        if genome.panel is not None:
            arrays[f"panel{number}"] = genome.panel[number].astype(np.float32)
    with atomic_path(path) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]


def load_genome(path: Path) -> Genome:
    """A genome that `save_genome` kept."""
    with np.load(path, allow_pickle=False) as kept:
        starts, position, maf = kept["starts"], kept["position"], kept["maf"]
        regions, panel = [], []
        for number, (begin, end) in enumerate(pairwise(starts)):
            R = kept[f"R{number}"].astype(np.float64)
            regions.append(Region(position[begin:end], maf[begin:end], R))
            if f"panel{number}" in kept:
                panel.append(kept[f"panel{number}"].astype(np.float64))
        return Genome(tuple(regions), tuple(panel) if panel else None, int(kept["panel_people"]))


def kept_genome(
    folder: Path,
    regions: int,
    *,
    m: int,
    people: int,
    panel_people: int,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> Path:
    """The file of a genome of `simulate_genome` in a folder, named by its settings; simulated if it is not there."""
    path = folder / f"genome-{regions}x{m}-{people}-{panel_people}-{seed}.npz"
    if not path.exists():
        told = partial(progress, "simulating LD")
        made = simulate_genome(regions, m=m, people=people, panel_people=panel_people, seed=seed, progress=told)
        save_genome(made, path)
    return path
