"""LD stores with flanks: sliding windows from a panel, blocks that a caller brings, and files of the first format."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from deepwas import DataWarning, InputError, LDBlock, log_likelihood
from deepwas.cli.ld import app
from deepwas.genotypes import open_plink
from deepwas.ld import LDOptions, build_ld, layout, open_ld, report, write_ld
from deepwas.ld.plan import plan_blocks, sliding_windows
from deepwas.tally import Tally
from tests import dense
from tests.test_ld_store import chain, dense_correlation, write_panel

M = 150


def panel_of(folder: Path, people: int) -> str:
    """Variants 1 kb apart: 90 on chromosome 1, 60 on chromosome 2, both from position 1,000 times their number."""
    return write_panel(folder, chain(people, M, 0), ["1"] * 90 + ["2"] * 60)


def windows(**changes: object) -> LDOptions:
    given = {"window": 60e3, "step": 20e3, "dtype": "float64", "eigenvalue_floor": 1e-6}
    return LDOptions("GRCh38", **given | changes)  # type: ignore[arg-type]


@given(
    positions=st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=12), min_size=1, max_size=3),
    step=st.integers(1, 20),
    extra=st.integers(0, 40),
)
def test_windows_are_what_their_definition_says(positions, step, extra):
    chromosome = [str(c + 1) for c, here in enumerate(positions) for _ in here]
    bp = [p for here in positions for p in sorted(here)]
    ranges = sliding_windows(pl.DataFrame({"CHR": chromosome, "BP": bp}), step + extra, step)
    reach = extra // 2
    owner = {(c, (p - 1) // step) for c, p in zip(chromosome, bp, strict=True)}
    assert len(ranges) == len(owner)
    assert np.concatenate([np.arange(low, high) for _, _, low, high in ranges]).tolist() == list(range(len(bp)))
    for start, stop, low, high in ranges.tolist():
        (division,) = {(chromosome[i], (bp[i] - 1) // step) for i in range(low, high)}
        first, last = division[1] * step + 1 - reach, (division[1] + 1) * step + reach
        inside = [i for i in range(len(bp)) if chromosome[i] == division[0] and first <= bp[i] <= last]
        assert inside == list(range(start, stop))


@pytest.mark.parametrize(
    ("people", "changes"),
    [
        (120, {}),
        (55, {"step": 80e3, "window": 120e3}),  # fewer people than variants scored: through the genotypes
        (55, {"step": 80e3, "window": 120e3, "shrinkage": 0.1, "eigenvalue_floor": None}),
        (120, {"variance_kept": 0.9, "eigenvalue_floor": None}),
        (55, {"variance_kept": 0.9, "eigenvalue_floor": None, "step": 80e3, "window": 80e3}),
        (120, {"eigenvalue_floor": None}),
    ],
)
def test_every_window_is_its_dense_correlation(tmp_path, people, changes):
    options = windows(**changes)
    with build_ld(panel_of(tmp_path, people), tmp_path / "ld.h5", options) as store:
        store.verify()
        assert store.flanked == (options.window != options.step)
        assert store.variants["BLOCK"].is_sorted()
        assert sum(store.block_table["SCORED"]) == M
        for index in range(store.n_blocks):
            rows, centre = store.block_slice(index), store.scored_slice(index)
            assert (store.variants["BLOCK"][centre] == index).all()
            R = dense_correlation(str(tmp_path / "panel"), store.variants["SNP"][rows].to_list())
            block = store.block(index)
            inside = slice(centre.start - rows.start, centre.stop - rows.start)
            assert np.flatnonzero(block.scored).tolist() == list(range(inside.start, inside.stop))
            adjusted = R**2 - (1 - R**2) / (people - 2)
            np.testing.assert_allclose(store.variants["LDSCORE"][centre], adjusted.sum(axis=1)[inside], atol=1e-4)
            R = (1 - options.shrinkage) * R + options.shrinkage * np.eye(len(R))
            np.testing.assert_allclose(block.whitener @ R[inside], block.factor, atol=1e-5)
            np.testing.assert_allclose(
                block.whitener @ R[inside, inside] @ block.whitener.T, np.eye(block.k), atol=1e-5
            )
            spectrum = np.linalg.eigvalsh(R[inside, inside])[::-1]
            if options.variance_kept:
                assert block.k == int((np.cumsum(spectrum) < 0.9 * block.s).sum()) + 1
            elif options.shrinkage:
                assert block.k == block.s
            else:
                floor = options.eigenvalue_floor or max(1e-4, 2 * block.s / people)
                assert block.k == (spectrum > floor).sum()
            assert store.sizes[index] == block.factor.shape
            assert store.block_table["VARIANCE_KEPT"][index] == pytest.approx(spectrum[: block.k].sum() / block.s)


@pytest.mark.parametrize(
    ("dtype", "relative", "nats"), [("float32", 1e-6, 1e-3), ("float16", 1e-3, 0.1), ("int8", 1e-3, 0.2)]
)
@pytest.mark.parametrize("flanks", [True, False])
@pytest.mark.parametrize("trait_has", ["all", "some", "unequal"])
def test_the_log_likelihood_moves_little_with_the_stored_type(tmp_path, dtype, relative, nats, flanks, trait_has):
    """Its value, and the difference between two priors, which is what a fit sees; without three variants too."""
    R, _ = dense.example_ld(2000, 300)
    scored = np.zeros(300, dtype=bool)
    scored[slice(100, 200) if flanks else slice(None)] = True
    exact = LDBlock.from_correlation(R, scored, eigenvalue_floor=0.02)
    table = variant_table(300)
    with write_ld(tmp_path / "a.h5", table, [(0, exact)], build="GRCh37", n_samples=378, dtype=dtype) as store:
        block = store.block(0)
    assert block.s == scored.sum()
    if trait_has != "all":
        n = np.random.default_rng(5).uniform(0.7, 1.3, 300) if trait_has == "unequal" else None
        scored = scored & ~np.isin(np.arange(300), [103, 150, 171])
        exact, block = exact.restrict(scored, n), block.restrict(scored, n)
    for seed, mean_c in enumerate([0.02, 0.2, 2.0]):
        trait = dense.simulated_trait(R, np.random.default_rng(seed), scored=scored, mean_c=mean_c)
        priors = (trait.f, np.full(300, trait.f.mean()))
        before, after = (
            [log_likelihood(b, trait.z, f, sample_size=trait.sample_size, solver="cholesky") for f in priors]
            for b in (exact, block)
        )
        assert abs(after[0] - before[0]) <= relative * abs(before[0]) * (1.5 if trait_has == "unequal" else 1)
        assert abs((after[0] - after[1]) - (before[0] - before[1])) <= nats


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_the_engine_takes_flanks_missing_variants_and_unequal_sample_sizes(tmp_path, solver):
    """From the store to the density, against N(0, D R_O: diag(f) R_:O D + noise R_OO), D = diag(sqrt N_O)."""
    rng = np.random.default_rng(4)
    R = dense.ld_matrix("ar1", 150, rng)
    scored, n = np.zeros(150, dtype=bool), rng.uniform(6e3, 1e4, 150)
    scored[50:100] = True
    observed = scored & (rng.random(150) < 0.8)
    made = [(0, LDBlock.from_correlation(R, scored))]
    with write_ld(
        tmp_path / "a.h5", variant_table(150), made, build="GRCh37", n_samples=9999, dtype="float64"
    ) as store:
        block = store.block(0).restrict(observed, n / 1e4)
    trait = dense.simulated_trait(R, rng, scored=observed, noise=0.5)
    to_all, inside = np.sqrt(n[observed])[:, None] * R[observed], R[np.ix_(observed, observed)]
    V = block.whitener @ (to_all @ np.diag(trait.f) @ to_all.T + 0.5 * inside) @ block.whitener.T
    y = block.whitener @ trait.z
    expected = -(block.k * np.log(2 * np.pi) + np.linalg.slogdet(V)[1] + y @ np.linalg.solve(V, y)) / 2
    value, info = log_likelihood(
        block, trait.z, trait.f, sample_size=1e4, noise=0.5, solver=solver, probes=64, info=True
    )
    assert float(value) == pytest.approx(expected, abs=1e-6 * abs(expected) + 4 * float(info.standard_error) / 2)


def variant_table(m: int, **columns: object) -> pl.DataFrame:
    table = pl.DataFrame(
        {
            "CHR": ["1"] * m,
            "SNP": [f"rs{i}" for i in range(m)],
            "BP": np.arange(1, m + 1) * 10,
            "A1": ["A"] * m,
            "A2": ["C"] * m,
            "FREQ": np.full(m, 0.3),
        }
    )
    return table.with_columns(**{name: pl.Series(value) for name, value in columns.items()})


def test_blocks_that_a_caller_brings_come_back(tmp_path):
    """Windows of 40 that score their middle; the first five and the last variants are scored by none."""
    R, people = dense.example_ld(500, 100)
    places = [(5, slice(0, 20)), (15, slice(10, 30)), (35, slice(10, 30)), (55, slice(10, 30))]

    def blocks():
        for start, inside in places:
            scored = np.zeros(40, dtype=bool)
            scored[inside] = True
            yield start, LDBlock.from_correlation(R[start : start + 40, start : start + 40], scored)

    made = list(blocks())
    with write_ld(
        tmp_path / "ld.h5", variant_table(100), blocks(), build="hg19", n_samples=people, dtype="float64", source="mine"
    ) as store:
        store.verify()
        owner = np.full(100, -1)
        for index, (start, inside) in enumerate(places):
            owner[start + inside.start : start + inside.stop] = index
            assert store.block_slice(index) == slice(start, start + 40)
            assert store.scored_slice(index) == slice(start + inside.start, start + inside.stop)
            for name in ("factor", "whitener", "eigenvalues", "scored"):
                np.testing.assert_array_equal(getattr(store.block(index), name), getattr(made[index][1], name))
        np.testing.assert_array_equal(store.variants["BLOCK"], owner)
        r2 = R[35:75, 35:75] ** 2
        expected = (r2 - (1 - r2) / (people - 2)).sum(axis=1)
        np.testing.assert_allclose(store.variants["LDSCORE"][45:65], expected[10:30], atol=0.05)
        assert (store.variants["LDSCORE"].to_numpy()[owner < 0] == 1).all()
        assert (store.genome_build, store.n_samples, store.n_blocks, store.flanked) == ("GRCh37", people, 4, True)
        text = "\n".join(report.summary(store))
        assert "panel           mine; 378 people" in text
        assert "blocks          4 of 20 variants, with flanks 40" in text
        assert "not scored      20 variants" in text
        assert "rule            blocks as given" in text
        report.plot(store, tmp_path / "ld.png")


def test_the_same_content_has_the_same_checksum_however_it_was_written(tmp_path):
    with build_ld(panel_of(tmp_path, 120), tmp_path / "a.h5", windows()) as built:
        blocks = [(built.block_slice(i).start, built.block(i)) for i in range(built.n_blocks)]
        again = write_ld(tmp_path / "b.h5", built.variants, blocks, build="hg38", n_samples=120, dtype="float64")
        assert again.checksum == built.checksum
        moved = write_ld(tmp_path / "d.h5", built.variants, blocks, build="hg19", n_samples=120, dtype="float64")
        assert moved.checksum != built.checksum
        shorter = write_ld(tmp_path / "c.h5", built.variants, blocks[:-1], build="hg38", n_samples=120, dtype="float64")
        assert shorter.checksum != built.checksum


def middle(m: int, low: int, high: int) -> LDBlock:
    scored = np.zeros(m, dtype=bool)
    scored[low:high] = True
    return LDBlock.from_correlation(np.eye(m), scored)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([], "no LD block was given"),
        ([(0, middle(5, 0, 3)), (2, middle(5, 0, 3))], "LD block 1 scores from row 2, which the block before it"),
        ([(5, middle(5, 0, 3)), (0, middle(5, 0, 3))], "LD block 1 scores from row 0, which"),
        ([(7, middle(5, 0, 3))], "LD block 0 has candidates 7 to 12, the table 10 variants"),
        ([(-1, middle(5, 0, 3))], "LD block 0 has candidates -1 to 4"),
        (
            [(0, LDBlock.from_correlation(np.eye(3), np.array([True, False, True])))],
            r"scores 2 variants that are not neighbours \(among 3\)",
        ),
        ([(0, middle(5, 0, 5).restrict(np.arange(5) > 1))], "is restricted to one trait's variants"),
    ],
)
def test_blocks_that_do_not_fit_the_table_are_refused(tmp_path, blocks, message):
    with pytest.raises(InputError, match=message):
        write_ld(tmp_path / "ld.h5", variant_table(10), blocks, build="hg19", n_samples=100)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("columns", "arguments", "message"),
    [
        ({"FREQ": [None] * 10}, {}, r"FREQ is None in row 1 \(10 such\)"),
        ({"FREQ": [0.1] * 9 + [1.2]}, {}, "FREQ is 1.2 in row 10"),
        ({"LDSCORE": [np.nan] * 10}, {}, "LDSCORE is nan in row 1"),
        ({"SNP": ["a", None] * 5}, {}, "SNP is missing in row 2"),
        ({"BP": [5, 4, *range(6, 14)]}, {}, "BP goes down after row 1"),
        ({"CHR": ["1", "2"] * 5}, {}, "a chromosome's variants must follow one another"),
        ({"CHR": ["1"] * 3 + ["2"] * 7}, {}, "LD block 0 reaches over two chromosomes, 1 and 2"),
        ({}, {"n_samples": 2}, "n_samples is 2"),
        ({}, {"build": "hg17"}, "genome build 'hg17' is not known"),
        ({}, {"dtype": "int4"}, "dtype is 'int4'"),
    ],
)
def test_tables_that_cannot_be_stored_are_refused(tmp_path, columns, arguments, message):
    given = {"build": "hg19", "n_samples": 100} | arguments
    with pytest.raises(InputError, match=message):
        write_ld(tmp_path / "ld.h5", variant_table(10, **columns), [(0, middle(5, 0, 3))], **given)
    with pytest.raises(InputError, match="column A2, FREQ is missing"):
        write_ld(tmp_path / "x.h5", variant_table(10).drop("A2", "FREQ"), [], build="hg19", n_samples=100)
    assert not list(tmp_path.iterdir())


def to_version_1(path: Path) -> None:
    """What the first format was: no ranges, no scored part, no scales; floating factors of blocks without flanks."""
    with h5py.File(path, "r+") as handle:
        del handle["ranges"]
        handle.attrs["format_version"] = 1
        digests = []
        for index in range(int(handle.attrs["n_blocks"])):
            group = handle[layout.block_name(index)]
            if "scale" in group:
                decoded = (group["factor"][:].astype(np.float32) * group["scale"][:][:, None]).astype(np.float16)
                del group["scale"], group["factor"]
                group["factor"] = decoded
            for name in ("scored_start", "scored_stop"):
                del group.attrs[name]
            group.attrs["sha256"] = layout.block_digest(handle, index)
            digests.append(group.attrs["sha256"])
        digest = layout.variants_digest(layout.read_variants(handle))
        handle.attrs["checksum"] = layout.content_checksum(digest, digests, None)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_stores_of_the_first_format_are_read(tmp_path, dtype):
    options = LDOptions("GRCh38", min_block=20, max_block=45, dtype=dtype)
    path = tmp_path / "ld.h5"
    with build_ld(panel_of(tmp_path, 120), path, options) as store:
        expected = [store.block(i) for i in range(store.n_blocks)]
        table, sizes, slices = store.block_table, store.sizes, [store.block_slice(i) for i in range(store.n_blocks)]
    to_version_1(path)
    with open_ld(path) as store:
        store.verify()
        assert store.sizes == sizes
        assert store.block_table.equals(table)
        assert not store.flanked
        for index, block in enumerate(expected):
            assert store.block_slice(index) == store.scored_slice(index) == slices[index]
            tolerance = 1e-3 if dtype == "float16" else 0
            np.testing.assert_allclose(store.block(index).factor, block.factor, rtol=tolerance, atol=tolerance / 1e3)
            assert store.factor(index).scale.dtype == block.factor.dtype == store.block(index).factor.dtype
    with h5py.File(path, "r+") as handle:
        handle["variants/BLOCK"][0] = 3
    with pytest.raises(InputError, match="does not number the"):
        open_ld(path)


def spoil_ranges(handle: h5py.File) -> None:
    handle["ranges/SCORED_STOP"][0] += 1


def spoil_stop(handle: h5py.File) -> None:
    handle["ranges/STOP"][1] -= 1


def spoil_kept(handle: h5py.File) -> None:
    handle["ranges/KEPT"][1] += 1


def spoil_whitener(handle: h5py.File) -> None:
    handle["blocks/00001/whitener"][0, 0] = np.nan


def drop_whitener(handle: h5py.File) -> None:
    del handle["blocks/00001/whitener"]


def spoil_scale(handle: h5py.File) -> None:
    handle["blocks/00001/scale"][0] = np.inf


def spoil_eigenvalues(handle: h5py.File) -> None:
    handle["blocks/00001/eigenvalues"][-1] = np.nan


def drop_ranges(handle: h5py.File) -> None:
    del handle["ranges/KEPT"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_ranges, "blocks' ranges do not fit together"),
        (spoil_stop, "block 1: the factor has shape"),
        (spoil_kept, "block 1: the factor has shape"),
        (spoil_whitener, "block 1: the whitener has shape .* or holds NaN"),
        (drop_whitener, "block 1: it has flanks and no whitener"),
        (spoil_scale, "block 1: it holds NaN or infinite LD"),
        (spoil_eigenvalues, "block 1: .* eigenvalues, positive ones, are not there"),
        (drop_ranges, "at ranges: 'KEPT' is a required property"),
    ],
)
def test_damage_is_named(tmp_path, spoil, message):
    path = tmp_path / "ld.h5"
    build_ld(panel_of(tmp_path, 120), path, windows(dtype="int8")).close()
    with h5py.File(path, "r+") as handle:
        spoil(handle)

    def read() -> None:
        with open_ld(path) as store:
            store.block(1)

    with pytest.raises(InputError, match=message):
        read()

    def verify() -> None:
        with open_ld(path) as store:
            store.verify()

    if spoil is not spoil_kept:  # /ranges repeats the blocks' attributes, but for this
        with pytest.raises(InputError):
            verify()


def test_command_line_builds_windows(tmp_path):
    prefix, out = panel_of(tmp_path, 120), tmp_path / "ld.h5"
    command = ["build", "--genotypes", prefix, "--out", str(out), "--build", "hg38", "--window", "6e4", "--step", "2e4"]
    made = CliRunner().invoke(app, [*command, "--dtype", "int8"])
    assert made.exit_code == 0, made.output
    with open_ld(out) as store:
        assert store.attributes["options"]["window"] == 60_000
        assert store.n_blocks == 9
        share = store.block_table["VARIANCE_KEPT"].to_numpy() @ store.block_table["SCORED"].to_numpy() / M
        assert f"{share:.1%} of the variance" in " ".join(made.output.split())
    told = CliRunner().invoke(app, ["info", str(out), "--verify", "--plot", str(tmp_path / "ld.png")])
    assert told.exit_code == 0, told.output
    assert "blocks          9 of 10 to 20 variants, with flanks" in told.output
    assert "windows         60,000 base pairs, a step of 20,000: flanks of 20,000 on both sides" in told.output


def unlinked(folder: Path, m: int) -> str:
    return write_panel(folder, np.random.default_rng(0).integers(0, 3, (50, m)).astype(float))


SMALL_WINDOWS = (
    r"windows of 3,000 base pairs every 1,000: 40 LD blocks score 1 variant\(s\) each \(median\), "
    r"among 3 candidates\. LD beyond 1,000 base pairs is lost, and all blocks together hold 3\.0 times the variants\. "
    r"Both are in base pairs"
)
SMALL_BLOCKS = r"blocks of 1 to 9 variants: .* LD between blocks is lost.*--max-block 800"
WHOLE_CHROMOSOME = (
    r"LD block 0 \(chromosome 1, from rs0 on\) scores 10,100 of the 10,100 variants\. .* only those above 404 are "
    r"kept\. Both are in base pairs: --window 3e6 --step 1e6"
)


@pytest.mark.parametrize(
    ("m", "options", "message"),
    [
        (40, {"window": 3e3, "step": 1e3}, SMALL_WINDOWS),
        (99, {"min_block": 1, "max_block": 9}, SMALL_BLOCKS),
        (10_100, {"window": 1e9, "step": 1e9}, WHOLE_CHROMOSOME),
    ],
)
def test_absurd_sizes_of_blocks_are_said_before_the_work(tmp_path, monkeypatch, m, options, message):
    panel = open_plink(unlinked(tmp_path, m))
    with pytest.warns(DataWarning, match=message):
        plan = plan_blocks(panel, LDOptions("GRCh38", min_maf=0, **options), Tally())
    assert plan.ranges[:, 3].max() == m
    if m == 40:
        command = ["build", "--genotypes", str(tmp_path / "panel"), "--out", str(tmp_path / "ld.h5"), "--build", "hg38"]
        flags = ["--window", "3e3", "--step", "1e3", "--min-maf", "0"]
        made = CliRunner().invoke(app, [*command, *flags, "--eigenvalue-floor", "0"])
        assert made.exit_code == 0, made.output
        said = " ".join(made.output.split())
        assert re.search(f"warning: .*{message}", said)
        assert said.index("warning:") < said.index("variants decomposed: ")


@pytest.mark.parametrize(
    ("options", "passes"), [({"min_block": 20, "max_block": 45}, 2), ({"window": 6e4, "step": 2e4}, 1)]
)
def test_progress_counts_the_variants_of_every_pass(tmp_path, options, passes):
    seen = []
    build_ld(
        panel_of(tmp_path, 120),
        tmp_path / "ld.h5",
        LDOptions("GRCh38", **options),
        progress=lambda done, total: seen.append((done, total)),
    ).close()
    assert {total for _, total in seen} == {passes * M}
    done = [x for x, _ in seen]
    assert done == sorted(done)
    assert done[-1] == passes * M
    assert passes == 1 or M in done
