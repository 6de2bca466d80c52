"""Building an LD store: filter a PLINK panel, cut it into blocks, whiten and write each block."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from deepwas import __version__
from deepwas.errors import InputError
from deepwas.files import refuse_overwrite, reopen_hdf5, require_file, require_parent, sha256
from deepwas.genome import require_positions
from deepwas.genotypes import PlinkPanel, open_plink, standardise
from deepwas.ld import layout
from deepwas.ld.block import LDBlock
from deepwas.ld.options import LDOptions
from deepwas.ld.plan import Advance, BlockPlan, plan_blocks
from deepwas.ld.store import LDStore, open_ld
from deepwas.ld.write import write_end
from deepwas.partition import adjusted_r2
from deepwas.tally import Tally

if TYPE_CHECKING:
    from deepwas.likelihood.factor import FactorDtype


def build_ld(
    genotypes: str | os.PathLike[str] | PlinkPanel,
    out: str | os.PathLike[str],
    options: LDOptions,
    *,
    progress: Advance | None = None,
) -> LDStore:
    """Compute the LD of a PLINK panel, block by block, and write it as an HDF5 store; returns it, opened.

    genotypes: prefix of a PLINK 1 panel, or an opened one.
    progress(done, total): in variants. Where blocks are cut, all variants are gone through twice, to cut and to
        decompose, and total is twice their number.

    Model: R = X'X / n within a block, X (n, m) standardised genotypes, missing ones at the mean; 0 between what no
    block holds together. Per variant: the frequency of A1, and the LD score
    l_j = sum_k r2_jk - (1 - r2_jk) / (n - 2)  over the candidates of the block that scores it, its own term 1, R before
    shrinkage. Memory: the genotypes of one block of m candidates, s of them scored, and a few matrices (s, s) and
    (s, m), or (n, n) and (n, m) when the panel has n < s people and R is not shrunk.

    The file is written as `.NAME.partial` beside `out` and renamed at the end. After an interruption the
    same command takes up the finished blocks of that file, if inputs and options are the same. Wrong input
    raises InputError and leaves nothing behind; blocks of an absurd size warn with DataWarning. What was dropped,
    by reason, is in `store.attributes["provenance"]["tally"]`.
    """
    target = require_parent(out)
    if options.blocks is not None:
        require_file(options.blocks, "a BED file of LD blocks")
    panel = genotypes if isinstance(genotypes, PlinkPanel) else open_plink(genotypes)
    inputs = [*panel.paths, *([] if options.blocks is None else [options.blocks])]
    refuse_overwrite(target, inputs)
    last = panel.variants.group_by("CHR").agg(pl.col("BP").max())
    require_positions(str(panel.paths[1]), dict(last.iter_rows()), options.build)
    tally = Tally()
    tally.extend(panel.tally)
    plan = plan_blocks(panel, options, tally, progress)
    provenance = {
        "command": "build_ld",
        "inputs": [{"name": p.name, "bytes": p.stat().st_size, "sha256": sha256(p)} for p in inputs],
        "tally": tally.as_list(),
        "r2_total": plan.r2_total,
        "r2_cut": plan.r2_cut,
    }
    partial = target.with_name(f".{target.name}.partial")
    try:
        _write(partial, panel, plan, options, provenance, progress)
    except InputError as error:
        if not isinstance(error, _InUseError):
            partial.unlink(missing_ok=True)
        raise
    os.replace(partial, target)
    return open_ld(target)


class _InUseError(InputError):
    """Another process writes the same partial file."""


def _correlation(genotypes: npt.NDArray[np.floating], scored: slice = slice(None)) -> npt.NDArray[np.float64]:
    """Rows of X'X / n in float64, (s, m), each variant's correlation with itself 1; X (n, m) standardised."""
    m = genotypes.shape[1]
    columns = np.arange(m)[scored]
    product = np.zeros((len(columns), m))
    # People in pieces, so that the float64 copy stays small beside the genotypes.
    for start in range(0, genotypes.shape[0], 16_384):
        piece = genotypes[start : start + 16_384].astype(np.float64)
        product += piece[:, scored].T @ piece
    scale = 1.0 / np.sqrt(np.einsum("ij,ij->j", genotypes, genotypes, dtype=np.float64))
    product *= scale[scored, None] * scale[None, :]
    product[np.arange(len(columns)), columns] = 1.0
    return product


def _low_rank_ld_scores(genotypes: npt.NDArray[np.floating], scored: slice) -> npt.NDArray[np.float64]:
    """LD scores of the scored variants, from the (n, n) product of X (n, m): sum_k r2_jk = x_j' X X' x_j / n^2."""
    n, m = genotypes.shape
    people = np.zeros((n, n))
    for start in range(0, m, 1024):
        piece = _unit(genotypes[:, start : start + 1024])
        people += piece @ piece.T
    inside = _unit(genotypes[:, scored])
    r2 = np.einsum("ij,ij->j", inside, people @ inside)
    return r2 - (m - r2) / (n - 2)


def _unit(genotypes: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Columns in float64 with squares that add up to 1, so that X'X is the correlation matrix."""
    copy = genotypes.astype(np.float64)
    return copy / np.linalg.norm(copy, axis=0)


def _write(
    partial: Path,
    panel: PlinkPanel,
    plan: BlockPlan,
    options: LDOptions,
    provenance: dict[str, Any],
    progress: Advance | None,
) -> None:
    digest = layout.variants_digest(plan.variants)
    identity = json.dumps([__version__, layout.FORMAT_VERSION, options.as_dict(), provenance["inputs"], digest])
    n_blocks, m = len(plan.ranges), len(plan.rows)
    with _open_partial(partial, hashlib.sha256(identity.encode()).hexdigest(), plan.variants) as handle:
        digests = []
        for index in range(n_blocks):
            if not _is_finished(handle, index):
                _write_block(handle, index, panel, plan, options)
                handle.flush()
            digests.append(handle[layout.block_name(index)].attrs["sha256"])
            if progress is not None:
                done = int(plan.ranges[index, 3])
                progress(*((done, m) if plan.r2_total is None else (m + done, 2 * m)))
        write_end(
            handle,
            plan.ranges,
            digests,
            variants_digest=digest,
            genome_build=options.build,
            n_samples=panel.n_samples,
            options=options.as_dict(),
            provenance=provenance,
        )
        del handle.attrs["identity"]
    with open(partial, "rb") as written:
        os.fsync(written.fileno())


def _open_partial(path: Path, identity: str, variants: pl.DataFrame) -> Any:
    """The partial file of an interrupted build if it is sound and has the same identity, else a new one."""
    import h5py

    busy = _InUseError(f"{path}: another process is building this store. Wait for it, or choose another output.")
    if (found := reopen_hdf5(path, identity, busy)) is not None:
        return found
    handle = h5py.File(path, "w")
    layout.write_variants(handle, variants)
    handle.attrs["identity"] = identity
    handle.flush()
    return handle


def _is_finished(handle: Any, index: int) -> bool:
    """Whether a block is there with the checksum it was written with; what is there otherwise is removed."""
    name = layout.block_name(index)
    if name not in handle:
        return False
    try:
        if handle[name].attrs["sha256"] == layout.block_digest(handle, index):
            return True
    except (KeyError, OSError, RuntimeError):
        pass  # unfinished when the build was interrupted
    del handle[name]
    return False


def _write_block(handle: Any, index: int, panel: PlinkPanel, plan: BlockPlan, options: LDOptions) -> None:
    began = time.perf_counter()
    start, stop, low, high = plan.ranges[index].tolist()
    m, s, n = stop - start, high - low, panel.n_samples
    centre = slice(low - start, high - start)
    scored = np.zeros(m, dtype=bool)
    scored[centre] = True
    X = standardise(panel.read(plan.rows[start:stop])).genotypes
    floor = options.floor(s, n)
    try:
        if n < s and options.shrinkage == 0:
            ld_scores = _low_rank_ld_scores(X, centre)
            block = LDBlock.from_genotypes(X, scored, floor, options.variance_kept, np.float64)
        else:
            R = _correlation(X, centre)
            finite = np.isfinite(R).all(axis=1)
            if not finite.all():
                name = plan.variants["SNP"][low + int(np.flatnonzero(~finite)[0])]
                raise InputError(
                    f"the correlations of variant {name} are not finite. Remove it from the panel: plink2 --exclude"
                )
            adjusted = adjusted_r2(R, n)
            own = adjusted[np.arange(s), centre.start + np.arange(s)]
            ld_scores = adjusted.sum(axis=1) - own + 1.0
            if options.shrinkage > 0:
                R *= 1 - options.shrinkage
                R[np.arange(s), centre.start + np.arange(s)] = 1.0
            block = LDBlock.from_rows(R, scored, floor, options.variance_kept, np.float64)
    except InputError as error:
        raise InputError(f"{panel.prefix}: block {index} ({plan.variants['SNP'][low]} and on): {error}") from error
    attributes = {
        "start": start,
        "stop": stop,
        "scored_start": low,
        "scored_stop": high,
        "eigenvalue_floor": floor,
        "eigenvalue_total": float(s),
        "variance_kept": float(block.eigenvalues.sum() / s),
        "seconds": time.perf_counter() - began,
    }
    layout.write_block(handle, index, block, ld_scores, attributes, cast("FactorDtype", options.dtype))
