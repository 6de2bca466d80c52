"""`estimate_posterior`: posterior effects of a genome, from a run, or from a table of priors and a GWAS."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from deepwas import __version__
from deepwas.files import write_json, write_text
from deepwas.finemapping.options import FineMapOptions
from deepwas.ld import LDStore, open_ld
from deepwas.posterior.effects import Way, posterior_of_factor
from deepwas.posterior.options import PosteriorOptions
from deepwas.posterior.progress import FINEMAP_PARTIAL, PARTIAL, Computed, claim_folder
from deepwas.posterior.score_file import check_name, write_score_file
from deepwas.posterior.source import Source, source_of
from deepwas.posterior.tables import block_table, rounded, totals_of, variant_table, write_large
from deepwas.specs import validate_table
from deepwas.training.trait import TraitBlock, TraitBlocks, open_trait

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deepwas.posterior.finemap import FineMap
    from deepwas.runs import Fit
    from deepwas.sumstats import HarmonisedSumstats, SumStats

__all__ = ["Posterior", "estimate_posterior"]

Progress = Callable[[str, int, int], None]
PathLike = str | os.PathLike[str]

RECORD, TABLE, BLOCKS, SCORE = "posterior.json", "posterior.tsv.gz", "local_heritability.tsv", "score.txt.gz"
PICTURE = "local_heritability.png"
FINEMAP, SETS, MEMBERS = "finemap.tsv.gz", "credible_sets.tsv", "credible_set_variants.tsv"
FINEMAP_BLOCKS, FINEMAP_PICTURE = "finemap_blocks.tsv", "finemap.png"


@dataclass(frozen=True, repr=False)
class Posterior:
    """Posterior effects of a genome.

    record: prior, inputs, options, totals and counts, ready for JSON.
    table: one row per variant, see data_specs/posterior.schema.json.  blocks: one row per LD block with z-scores, see
    data_specs/local_heritability.schema.json.
    finemap: which variants have effects, if asked for; see `FineMap`.
    """

    record: dict[str, Any]
    table: pl.DataFrame
    blocks: pl.DataFrame
    finemap: FineMap | None = None

    def __repr__(self) -> str:
        total = self.record["totals"]
        return f"Posterior({self.table.height:,} variants, h2 {total['h2']:.4g}, expected R2 {total['r2']:.4g})"

    def write_score(self, path: PathLike, *, name: str = "deepwas") -> int:
        """Write the polygenic score as a PGS Catalog scoring file; returns its number of variants."""
        build, trait = self.record["genome_build"], self.record["sumstats"]["file"]
        return write_score_file(path, self.table, build=build, name=name, trait=trait)

    def write(self, folder: PathLike, *, name: str = "deepwas") -> None:
        """Write posterior.tsv.gz, local_heritability.tsv and .png, score.txt.gz and, last, posterior.json.

        With fine-mapping also finemap.tsv.gz, credible_sets.tsv, credible_set_variants.tsv, finemap_blocks.tsv and
        finemap.png.
        """
        from deepwas.posterior.picture import plot_local_heritability

        target = Path(folder)
        target.mkdir(exist_ok=True)
        validate_table(self.table, "posterior", str(target / TABLE))
        validate_table(self.blocks, "local_heritability", str(target / BLOCKS))
        write_large(target / TABLE, self.table)
        write_text(target / BLOCKS, rounded(self.blocks).write_csv(separator="\t", null_value="NA"))
        if self.table["POST_BETA"].fill_null(0).ne(0).any():
            self.write_score(target / SCORE, name=name)
        plot_local_heritability(self, target / PICTURE)
        if self.finemap is not None:
            _write_finemap(self.finemap, target)
        write_json(target / RECORD, self.record)


def _write_finemap(found: FineMap, target: Path) -> None:
    from deepwas.posterior.finemap_picture import plot_finemap

    validate_table(found.variants, "finemap", str(target / FINEMAP))
    write_large(target / FINEMAP, found.variants)
    for frame, name, spec in (
        (found.sets, SETS, "credible_sets"),
        (found.members, MEMBERS, "credible_set_variants"),
        (found.blocks, FINEMAP_BLOCKS, "finemap_blocks"),
    ):
        validate_table(frame, spec, str(target / name))
        write_text(target / name, rounded(frame).write_csv(separator="\t", null_value="NA"))
    plot_finemap(found, target / FINEMAP_PICTURE)


def estimate_posterior(
    prior: Fit | PathLike | pl.DataFrame,
    ld: LDStore | PathLike,
    sumstats: HarmonisedSumstats | SumStats | PathLike | None = None,
    *,
    options: PosteriorOptions | None = None,
    finemap: FineMapOptions | None = None,
    out: PathLike | None = None,
    name: str = "deepwas",
    resume: bool = False,
    progress: Progress | None = None,
) -> Posterior:
    """Posterior mean and variance of every variant's effect, under a learned prior, given the z-scores.

    Model: beta_j ~ N(0, f_j), z | beta ~ N(sqrt(N) R beta, sigma2 R) in each LD block; see `posterior_effects` for the
    formulas and `PosteriorOptions` for choices. A variant's posterior is that of the block which scores it; it has one
    without a z-score too. With flanks, causal variants outside the centre are averaged over.

    prior: a finished run or its folder, with its own z-scores and noise, and its cross-fitted prior if it has one; or a
        table of priors (file or DataFrame), CHR BP A1 A2 SNPVAR.
    ld: the LD store the run was made with; of a table, any.
    sumstats: with a table the z-scores, as `fit` takes them; with a run nothing, or the same z-scores again, for the
        GWAS's allele frequencies.
    finemap: find out as well which variants have effects of their own, under a spike and a slab whose variance is the
        same f (see `deepwas.finemapping`).
    out: folder to write (see `Posterior.write`); what is computed is kept there every 20 seconds.
    name: of the polygenic score in `out`.
    resume: go on with an interrupted posterior in `out`, of the same inputs and options.
    progress: called as progress(what, done, total).

    Blocks are read one at a time; memory is that of one block and of the table. Raises InputError for inputs that do
    not belong together. Sums over blocks take them as independent, and leave LD between blocks out.
    """
    options = options or PosteriorOptions()
    check_name(name)
    say = progress or (lambda *_: None)
    store = ld if isinstance(ld, LDStore) else open_ld(ld)
    source = source_of(prior, store, sumstats, options)
    record = _first_record(store, source, options, finemap)
    folder = None if out is None else claim_folder(Path(out), RECORD, "posterior", record["identity"], resume, record)
    with ExitStack() as stack:
        cache = Path(stack.enter_context(TemporaryDirectory(prefix="deepwas-"))) / "whitened.h5"
        blocks = stack.enter_context(
            open_trait(
                store, source.frame, cache=cache, progress=lambda done, total: say("whitening LD blocks", done, total)
            )
        )
        if folder is not None:
            folder.mkdir(exist_ok=True)
            write_json(folder / RECORD, record)
        partial = None if folder is None else folder / PARTIAL
        with closing(Computed(store.n_variants, len(blocks), partial, record["identity"])) as computed:
            _compute(store, source, blocks, options, computed, say)
        table, tally = variant_table(store, source, blocks, computed, options)
        by_block = block_table(store, source, blocks, computed, table)
        done = record | {"status": "complete", "totals": totals_of(table, by_block), "counts": tally.as_list()}
        mapped = None
        if finemap is not None:
            mapped = _finemap(store, source, blocks, finemap, folder, record["identity"], say)
            done["finemap"] = mapped.record
    found = Posterior(done, table, by_block, mapped)
    if folder is not None:
        found.write(folder, name=name)
        for name_of_partial in (PARTIAL, FINEMAP_PARTIAL):
            (folder / name_of_partial).unlink(missing_ok=True)
    return found


def _finemap(
    store: LDStore,
    source: Source,
    blocks: TraitBlocks,
    options: FineMapOptions,
    folder: Path | None,
    identity: str,
    say: Progress,
) -> FineMap:
    from deepwas.posterior.finemap import COLUMNS, VALUES, finemap_source

    partial = None if folder is None else folder / FINEMAP_PARTIAL
    computed = Computed(store.n_variants, len(blocks), partial, identity, names=VALUES, columns=COLUMNS)
    with closing(computed):
        return finemap_source(store, source, blocks, options, computed, say)


def _first_record(
    store: LDStore, source: Source, options: PosteriorOptions, finemap: FineMapOptions | None
) -> dict[str, Any]:
    given = {
        "format": "deepwas-posterior",
        "format_version": 1,
        "deepwas_version": __version__,
        **source.record,
        "ld": {"file": store.path.name, "checksum": store.checksum},
        "genome_build": store.genome_build,
        "options": options.as_dict(),
    }
    if finemap is not None:
        given["finemap"] = {"options": finemap.as_dict()}
    digest = hashlib.sha256(json.dumps(given).encode())
    arrays = [source.frame[c].to_numpy() for c in ("VARIANT", "Z", "N")]
    for array in (*arrays, source.f, np.array(sorted(source.noise.items()))):
        digest.update(np.ascontiguousarray(array).tobytes())
    return given | {"status": "running", "identity": digest.hexdigest()}


def _compute(
    store: LDStore,
    source: Source,
    blocks: TraitBlocks,
    options: PosteriorOptions,
    computed: Computed,
    say: Progress,
) -> None:
    n = np.full(store.n_variants, np.nan)
    n[source.frame["VARIANT"].to_numpy()] = source.frame["N"].to_numpy()
    for i in range(len(blocks)):
        if not computed.done[i]:
            block = blocks.load(i)
            way = Way(options.solver, options.probes, options.rtol, seed=[options.seed, block.number])
            scored = np.zeros(block.shape[1], dtype=bool)
            scored[block.scored] = True
            G = block.factor
            f, noise = source.f[block.rows], source.noise[block.number]
            root = _ld_root(store, block, G, n[block.scored_rows])
            found = posterior_of_factor(
                G,
                block.whitened,
                f,
                sample_size=block.sample_size,
                noise=noise,
                way=way,
                scored=scored,
                ld_root=root,
                where=f"LD block {block.number}",
            )
            g = found.genetic_variance
            assert g is not None
            exact, residual = found.info.solver == "cholesky", float(found.info.residual)
            figures = (g.prior, g.mean, g.sd, g.standard_error, g.score, g.expected_score, exact, residual)
            inside = (x[block.scored] for x in (found.mean, found.variance, found.standard_error))
            computed.put(i, block.scored_rows, tuple(inside), figures)
        say("posterior of LD blocks", i + 1, len(blocks))


def _ld_root(store: LDStore, block: TraitBlock, G: NDArray[Any], n: NDArray[np.float64]) -> NDArray[Any]:
    """A square root of the scored variants' LD as the store keeps it, (k0, s).

    That is the factor itself, unless the trait lacks variants or its sample sizes differ, so that it has its own.
    """
    if np.isfinite(n).all() and n.min() == n.max():
        return G[:, block.scored]
    return store.factor(block.number).decoded()[:, block.scored]
