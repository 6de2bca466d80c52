"""The picture of a locus: genes of every kind of file, what the folder and the LD say, refusals, the command."""

from __future__ import annotations

import gzip
import json
import re
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import typer

from deepwas.cli import locus as command
from deepwas.errors import InputError
from deepwas.ld import LDBlock
from deepwas.ld.write import write_ld
from deepwas.pleiotropy.locus import locus_view, parse_region
from deepwas.pleiotropy.locus_genes import genes_of_region
from deepwas.pleiotropy.locus_picture import locus_figure, plot_locus
from deepwas.posterior.tables import names_of
from deepwas.specs import validate_table
from deepwas.sumstats import HarmonisedSumstats
from tests.dense import ld_matrix

SIZE, N = 24, 1e5
M = 2 * SIZE
NAMES = ("height", "bmi")
LEAD = 7

# One gene on each strand, the first with two transcripts that overlap, and one on another chromosome.
GTF = """#!genome-build GRCh37
1\thavana\tgene\t1001\t5000\t.\t+\t.\tgene_id "ENSG1"; gene_name "ALPHA"; gene_type "protein_coding";
1\thavana\ttranscript\t1001\t4000\t.\t+\t.\tgene_id "ENSG1"; gene_name "ALPHA";
1\thavana\tgene\t7001\t9000\t.\t-\t.\tgene_id "ENSG2"; gene_name "BETA"; gene_type "lncRNA";
2\thavana\tgene\t1\t900\t.\t-\t.\tgene_id "ENSG3"; gene_name "GAMMA"; gene_type "protein_coding";
"""
TRANSCRIPTS = """chr1\tx\ttranscript\t1001\t4000\t.\t+\t.\tgene_id "a"; gene_name "ALPHA";
chr1\tx\ttranscript\t2001\t5000\t.\t+\t.\tgene_id "a"; gene_name "ALPHA";
chr1\tx\texon\t2001\t2100\t.\t+\t.\tgene_id "a"; gene_name "ALPHA";
chr1\tx\ttranscript\t7001\t9000\t.\t-\t.\tgene_id "b"; gene_name "BETA";
"""
GFF = """##gff-version 3
1\tensembl\tgene\t1001\t5000\t.\t+\t.\tID=gene:ENSG1;Name=ALPHA;biotype=protein_coding
1\tensembl\tmRNA\t1001\t4000\t.\t+\t.\tID=transcript:T1;Parent=gene:ENSG1;Name=ALPHA-201
1\tensembl\tncRNA_gene\t7001\t9000\t.\t-\t.\tID=gene:ENSG2;Name=BETA;biotype=lncRNA
##FASTA
>1
ACGT
"""
BED = "chr1\t1000\t5000\tALPHA\t0\t+\nchr1\t7000\t9000\tBETA\t0\t-\n"
EXONS = "1\t1000,\t4000,"
REFGENE = (
    "#bin\tname\tchrom\tstrand\ttxStart\ttxEnd\tcdsStart\tcdsEnd\texonCount\texonStarts\texonEnds\tscore\tname2\n"
    f"585\tNM_1\tchr1\t+\t1000\t4000\t1000\t4000\t{EXONS}\t0\tALPHA\tcmpl\tcmpl\t0,\n"
    f"585\tNM_2\tchr1\t+\t2000\t5000\t2000\t5000\t{EXONS}\t0\tALPHA\tcmpl\tcmpl\t0,\n"
    f"585\tNR_3\tchr1\t-\t7000\t9000\t9000\t9000\t{EXONS}\t0\tBETA\tnone\tnone\t-1,\n"
)
REFFLAT = f"ALPHA\tNM_1\tchr1\t+\t1000\t5000\t1000\t5000\t{EXONS}\nBETA\tNM_2\tchr1\t-\t7000\t9000\t1\t1\t{EXONS}\n"
GENEPRED = f"ALPHA\tchr1\t+\t1000\t5000\t1000\t5000\t{EXONS}\nBETA\tchr1\t-\t7000\t9000\t1\t1\t{EXONS}\n"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("text", [GTF, TRANSCRIPTS, GFF, BED, REFGENE, REFFLAT, GENEPRED])
def test_every_kind_of_file_gives_the_same_genes(text, packed, tmp_path):
    path = tmp_path / ("genes.gz" if packed else "genes")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    found = genes_of_region(path, "1", 1, 20_000)
    assert found.drop("CODING").rows() == [("ALPHA", 1001, 5000, "+"), ("BETA", 7001, 9000, "-")]
    assert found["CODING"].to_list() == [True, text not in (GTF, GFF)]
    assert genes_of_region(path, "1", 5000, 7000)["NAME"].to_list() == ["ALPHA"]
    assert genes_of_region(path, "1", 5001, 7000).height == 0


def test_files_that_are_not_of_genes_are_refused(tmp_path):
    path = tmp_path / "genes.txt"
    path.write_text("chrom\tstart\tend\n1\t10\t20\n")
    assert genes_of_region(path, "1", 1, 100)["NAME"].to_list() == ["10-20"]
    for text, said in (
        ("rs1 A G 0.3\n", "line 1 is not of a file of genes: 'rs1 A G 0.3'"),
        (BED, "no gene of chromosome 7; sequences in the file: chr1"),
        ("", "no gene of chromosome 7; sequences in the file: none"),
        ("chr7\t10\t20\tA\nchr7\tx\t20\tB\n", "line 2: .* is unlike the lines before it"),
        ("\x00\x01\x02", "a text file of genes expected"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            genes_of_region(path, "7", 1, 100)
    path.write_bytes(gzip.compress(BED.encode() * 50)[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        genes_of_region(path, "1", 1, 100)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A store of two blocks on chromosomes 1 and 2, z-scores and priors, and folders as both commands write them."""
    folder = tmp_path_factory.mktemp("locus")
    R = ld_matrix("ar1", SIZE, np.random.default_rng(0))
    variants = pl.DataFrame(
        {
            "CHR": ["1"] * SIZE + ["2"] * SIZE,
            "SNP": [f"rs{100 + j}" for j in range(M)],
            "BP": [1000 * (j % SIZE + 1) for j in range(M)],
            "A1": ["A"] * M,
            "A2": ["G"] * M,
            "FREQ": [0.3] * M,
        }
    )
    blocks = ((SIZE * i, LDBlock.from_correlation(R, dtype=np.float64)) for i in range(2))
    store = write_ld(folder / "ld.h5", variants, blocks, build="GRCh37", n_samples=10_000, dtype="float64")
    rng = np.random.default_rng(1)
    z = np.linalg.cholesky(np.kron(np.eye(2), R)) @ rng.normal(size=(M, 2))
    z[:SIZE] += 9 * R[:, [LEAD]] * np.array([1.0, -0.7])
    f = rng.exponential(size=(M, 2)) * 1e-5
    keys = variants.drop("FREQ")
    records = []
    for k, name in enumerate(NAMES):
        frame = keys.with_row_index("VARIANT").with_columns(
            pl.Series("Z", z[:, k]), pl.lit(N).alias("N"), pl.lit(0.3).alias("FRQ")
        )
        gwas = HarmonisedSumstats(
            frame, M, f"{name}.tsv", "0" * 64, "LDSC", "position", genome_build="GRCh37", store_checksum=store.checksum
        )
        gwas.write_parquet(folder / f"{name}.parquet")
        table = keys.with_columns(pl.Series("SNPVAR", f[:, k]))
        table.write_csv(folder / f"{name}.priors.tsv", separator="\t")
    priors = {name: folder / f"{name}.priors.tsv" for name in NAMES}
    sumstats = {name: folder / f"{name}.parquet" for name in NAMES}
    from deepwas.pleiotropy.joint import read_traits

    found = read_traits(priors, store, sumstats)
    records = [{"name": name, "sample_size": N, **one} for name, one in zip(NAMES, found.records, strict=True)]
    ld = {"file": "ld.h5", "checksum": store.checksum}
    record = {"status": "complete", "traits": records, "ld": ld}
    world = SimpleNamespace(folder=folder, store=store, z=z, f=f, R=R, priors=priors, sumstats=sumstats)
    write_classification(folder / "bare", keys, record)
    own = [
        pl.Series(f"{what}_{name}", x[:, k]) for what, x in (("Z", z), ("SNPVAR", f)) for k, name in enumerate(NAMES)
    ]
    write_classification(folder / "whole", keys, record, own)
    write_finemap(folder / "finemap", keys, z[:, 0], f[:, 0], ld)
    pl.DataFrame({"a": [1]}).write_csv(folder / "other.tsv")
    R_other = ld_matrix("ar1", SIZE, np.random.default_rng(5)) * 0.5 + np.eye(SIZE) * 0.5
    write_ld(
        folder / "other.h5",
        variants[:SIZE],
        [(0, LDBlock.from_correlation(R_other))],
        build="GRCh37",
        n_samples=100,
    ).close()
    return world


def write_classification(folder, keys, record, more=()):
    """Tables as data_specs has them; the variants of the last three rows are not classified."""
    folder.mkdir()
    at = np.arange(M) == LEAD
    numbers = {"P_PLEIOTROPY": 0.9 * at, "LFDR": 1 - 0.9 * at, "N_TRAITS": 1.8 * at, "P_SINGLE": 0.1 * at}
    table = keys.with_columns(
        *(pl.Series(name, x) for name, x in numbers.items()),
        *(pl.lit(0.0).alias(x) for x in ("P_VERTICAL", "P_LD_ONLY", "P_CONFOUNDER")),
        pl.Series("CLASS", np.where(at, "pleiotropic", "none").tolist()),
        pl.Series("LOCUS", at.astype(np.int64)),
        *(
            pl.lit(None, dtype=pl.Float64).alias(x)
            for x in ("P_NETWORK", "HOPS_PM", "HOPS_PM_P", "HOPS_PN", "HOPS_PN_P")
        ),
        pl.lit(True).alias("OBSERVED"),
        pl.lit(1.0).alias("LD_KEPT"),
        pl.Series("BLOCK", np.repeat([0, 1], SIZE)),
        pl.lit("bmi=panel").alias("FLAG"),
    ).select(names_of("pleiotropy"))
    table = table.with_columns(*(pl.Series(f"PIP_{name}", 0.9 * at) for name in NAMES))
    table = table.with_columns(*(pl.Series(f"EFFECT_{name}", 0.02 * at) for name in NAMES), *more)[: M - 3]
    validate_table(table, "pleiotropy", "here")
    with gzip.open(folder / "pleiotropy.tsv.gz", "wb") as handle:
        handle.write(table.write_csv(separator="\t", null_value="NA").encode())
    row = keys.row(LEAD, named=True)
    locus = {"LOCUS": 1, "BLOCK": 0, "CHR": "1", "START": row["BP"], "STOP": row["BP"], "SIZE": 1}
    locus |= {"LEAD": row["SNP"], "LEAD_BP": row["BP"], "COVERAGE": 0.97, "EFFECT": 1.0, "PURITY": 1.0}
    locus |= {"TRAITS": "height,bmi", "P_TRAITS": 0.9, "P_SHARED": 0.9, "LFDR": 0.127, "P_SINGLE": 0.1}
    locus |= {
        "P_VERTICAL": 0.0,
        "P_LD_ONLY": 0.0,
        "P_CONFOUNDER": 0.0,
        "CLASS": "pleiotropic",
        "R2_NEAREST": 0.9,
        "P_SPLIT": 0.1,
        "SPLIT_TRAIT": "bmi",
        "SPLIT_SNPS": f"{row['SNP']},{keys['SNP'][LEAD + 1]}",
        "UNRESOLVABLE": True,
        "IMPURE": False,
        "FLAG": "bmi=outliers+panel",
    }
    loci = pl.DataFrame([locus]).select(names_of("pleiotropy_loci"))
    validate_table(loci, "pleiotropy_loci", "here")
    loci.write_csv(folder / "loci.tsv", separator="\t")
    (folder / "pleiotropy.json").write_text(json.dumps(record))


def write_finemap(folder, keys, z, f, ld):
    folder.mkdir()
    at = np.arange(M) == LEAD
    table = keys.with_columns(
        pl.Series("SNPVAR", f),
        pl.Series("Z", np.where(np.arange(M) == 3, np.nan, z)).fill_nan(None),
        pl.lit(N).alias("N"),
        pl.lit(0.01).alias("PRIOR_PIP"),
        pl.Series("PIP", 0.8 * at),
        pl.lit(0.0).alias("BETA_MEAN"),
        pl.lit(0.0).alias("BETA_SD"),
        pl.Series("CREDIBLE_SET", at.astype(np.int64)),
        pl.Series("BLOCK", np.repeat([0, 1], SIZE)),
        pl.lit("panel").alias("FLAG"),
    ).select(names_of("finemap"))
    validate_table(table, "finemap", "here")
    with gzip.open(folder / "finemap.tsv.gz", "wb") as handle:
        handle.write(table.write_csv(separator="\t", null_value="NA").encode())
    row = {"SET": 1, "BLOCK": 0, "CHR": "1", "START": 8000, "STOP": 9000, "SIZE": 2, "LEAD": "rs107", "LEAD_BP": 8000}
    row |= {"LEAD_Z": 9.0, "LEAD_PIP": 0.8, "COVERAGE": 0.96, "EFFECT": 1.0, "PURITY": 0.9, "IMPURE": False}
    sets = pl.DataFrame([row | {"FLAG": "panel"}]).select(names_of("credible_sets"))
    validate_table(sets, "credible_sets", "here")
    sets.write_csv(folder / "credible_sets.tsv", separator="\t")
    record = {"status": "complete", "finemap": {}, "sumstats": {"file": "height.tsv"}, "ld": ld}
    (folder / "posterior.json").write_text(json.dumps(record))


def test_a_view_holds_what_the_folder_the_runs_and_the_ld_say(world):
    view = locus_view(
        world.folder / "bare",
        world.store,
        variant="rs107",
        window=5000,
        runs=world.priors,
        sumstats=world.sumstats,
    )
    assert (view.chromosome, view.start, view.stop) == ("1", 3000, 13_000)
    rows = slice(2, 13)
    assert view.variants["SNP"].to_list() == [f"rs{100 + j}" for j in range(2, 13)]
    assert view.variants["SNP"][view.lead] == "rs107"
    for k, name in enumerate(NAMES):
        np.testing.assert_allclose(view.values("Z", name), world.z[rows, k], rtol=1e-6)
        np.testing.assert_allclose(view.values("F", name), world.f[rows, k], rtol=1e-6)
    np.testing.assert_allclose(view.variants["R2"].to_numpy(), world.R[rows, LEAD] ** 2, atol=1e-9)
    assert view.values("PIP", "bmi").tolist() == pytest.approx((0.9 * (np.arange(2, 13) == LEAD)).tolist())
    assert "pleiotropic" in view.title
    assert "in locus 1: pleiotropic" in view.title
    assert "P(two traits or more) 0.90" in view.title
    likely = [float(x) for x in re.findall(r"(?:or more|one trait|factor|no effect) (\d+\.\d+)", view.subtitle)]
    assert len(likely) == 4
    assert sum(likely) == pytest.approx(1, abs=0.02)
    assert "unresolvable, LD block flagged: bmi=outliers+panel" in view.subtitle
    assert view.sets["SAID"].to_list() == ["1: height,bmi, shared 0.9, unresolvable, flagged"]
    own = locus_view(world.folder / "whole", world.store, variant="1:8,000", window=5000)
    for name in NAMES:
        np.testing.assert_allclose(own.values("Z", name), view.values("Z", name), rtol=1e-6)
        np.testing.assert_allclose(own.values("F", name), view.values("F", name), rtol=1e-6)


def test_a_region_is_led_by_its_likeliest_variant(world):
    view = locus_view(world.folder / "whole", world.folder / "ld.h5", region="chr1:5,000-9,000")
    assert view.variants.height == 5
    assert view.variants["SNP"][view.lead] == "rs107"
    view = locus_view(world.folder / "whole", world.store, region="1:5000-9000", variant="1:6000:g:A")
    assert view.variants["SNP"][view.lead] == "rs105"
    assert locus_view(world.folder / "whole", world.store, region="2:1-9000").sets.height == 0


def test_a_fine_mapping_has_one_trait(world, tmp_path):
    view = locus_view(world.folder / "finemap", world.store, variant="rs107")
    assert view.traits == ("height",)
    assert np.isnan(view.values("Z", "height")[3])
    np.testing.assert_allclose(view.values("F", "height"), world.f[:SIZE, 0], rtol=1e-6)
    assert "probability of an effect on height 0.80" in view.title
    assert "flagged: panel" in view.subtitle
    assert len(locus_figure(view).axes) == 1 + 3 + 1  # and the colour bar
    plot_locus(view, tmp_path / "locus.pdf")
    assert (tmp_path / "locus.pdf").read_bytes()[:5] == b"%PDF-"


def test_words_of_genes_do_not_meet(world, tmp_path):
    lines = [f"1\t{400 * j}\t{400 * j + 900}\tLONGNAME{j}\t0\t{'+-'[j % 2]}" for j in range(60)]
    (tmp_path / "genes.bed").write_text("\n".join(lines) + "\n")
    view = locus_view(world.folder / "whole", world.store, variant="rs107", genes=tmp_path / "genes.bed")
    figure = locus_figure(view)
    figure.canvas.draw()
    panel = figure.axes[-2]  # the last is the colour bar
    assert panel.get_ylabel().startswith("genes")
    boxes = [text.get_window_extent() for text in panel.texts]
    assert len(boxes) > 30
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert f"{view.genes.height - len(boxes)} more" in panel.get_ylabel() or view.genes.height == len(boxes)


@pytest.mark.parametrize(
    ("folder", "asked", "said"),
    [
        ("whole", {}, "give a variant, or a region"),
        ("whole", {"variant": "rs1070"}, "no variant of .* is called so. The nearest name is rs107"),
        ("whole", {"variant": "1:8400"}, "the nearest is rs107, 1:8000"),
        ("whole", {"variant": "X:8400"}, "no variant of .* is on chromosome X; it has 1, 2"),
        (
            "whole",
            {"variant": f"rs{100 + M - 1}"},
            "in the LD store, in an LD block without z-scores.*nearest is rs144",
        ),
        ("whole", {"region": "1:90000-95000"}, "no variant of .* lies there; the nearest is rs123, 1:24000"),
        ("whole", {"region": "1:5000-4000"}, "it starts at 5000 and ends at 4000"),
        ("whole", {"region": "1-5000"}, "give CHR:START-STOP"),
        ("whole", {"region": "Q:1-5000"}, "'Q' is no chromosome"),
        ("whole", {"region": "1:1-5000", "variant": "rs107"}, "rs107 is at 1:8000, outside the region"),
        ("whole", {"variant": "rs107", "window": 0}, "window is 0"),
        ("bare", {"variant": "rs107"}, "no z-scores and priors of height.*height=RUN bmi=RUN"),
        ("gone", {"variant": "rs107"}, "no such folder"),
        (".", {"variant": "rs107"}, "neither pleiotropy.json nor posterior.json"),
    ],
)
def test_what_cannot_be_drawn_is_said(world, folder, asked, said):
    with pytest.raises(InputError, match=said):
        locus_view(world.folder / folder, world.store, **asked)


def test_another_store_and_other_runs_are_refused(world, tmp_path):
    with pytest.raises(InputError, match=r"not the LD store that .*whole was made with"):
        locus_view(world.folder / "whole", world.folder / "other.h5", variant="rs107")
    runs = {"height": world.priors["height"], "waist": world.priors["bmi"]}
    with pytest.raises(InputError, match="is of height, bmi; given are height, waist"):
        locus_view(world.folder / "bare", world.store, variant="rs107", runs=runs, sumstats={})
    turned = {"height": world.priors["bmi"], "bmi": world.priors["height"]}
    with pytest.raises(InputError, match=r"height: not the prior that .*bare was made of"):
        locus_view(world.folder / "bare", world.store, variant="rs107", runs=turned, sumstats=world.sumstats)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "pleiotropy.json").write_text(json.dumps({"status": "running"}))
    with pytest.raises(InputError, match="not finished"):
        locus_view(unfinished, world.store, variant="rs107")
    (unfinished / "pleiotropy.json").unlink()
    (unfinished / "posterior.json").write_text(json.dumps({"status": "complete"}))
    with pytest.raises(InputError, match="made without fine-mapping"):
        locus_view(unfinished, world.store, variant="rs107")


def test_regions_are_read():
    assert parse_region("chr02:1,000-2,000") == ("2", 1000, 2000)
    assert parse_region("X:5-5") == ("X", 5, 5)


def test_the_command_writes_the_picture(world, tmp_path, capsys):
    app = typer.Typer()
    command.register(app)
    (tmp_path / "genes.bed").write_text(BED)
    out = tmp_path / "locus.png"

    def run(*arguments):
        app([str(x) for x in arguments], standalone_mode=False)

    runs = [f"{name}={path}" for name, path in world.priors.items()]
    z = [x for name, path in world.sumstats.items() for x in ("--sumstats", f"{name}={path}")]
    given = [world.folder / "bare", *runs, "--ld", world.folder / "ld.h5", "--out", out, *z]
    run(*given, "--variant", "rs107", "--genes", tmp_path / "genes.bed")
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "2 gene(s)" in capsys.readouterr().err
    with pytest.raises(InputError, match="is there already"):
        run(*given, "--variant", "rs107")
    with pytest.raises(InputError, match="give --variant NAME, or --region"):
        run(*given)
    with pytest.raises(InputError, match="a picture ends in"):
        run(world.folder / "whole", "--ld", world.folder / "ld.h5", "--variant", "rs107", "--out", tmp_path / "a.txt")
    with pytest.raises(InputError, match="--window is 0"):
        run(*given[:-4], "--variant", "rs107", "--window", "0", "--overwrite")
    run(world.folder / "whole", "--ld", world.folder / "ld.h5", "--region", "1:1-9000", "--out", out, "--overwrite")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
