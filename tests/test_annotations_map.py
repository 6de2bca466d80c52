"""Recombination rates against arithmetic, and the layouts of genetic maps."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import polars as pl
import pytest

from deepwas.annotations.genetic_map import RATE_OFFSET, map_annotations, read_genetic_map, recombination_rate
from deepwas.errors import InputError
from deepwas.tally import Tally

EXAMPLE_MAP = str(files("deepwas") / "data" / "example" / "recombination_chr22_hg19.gmap.gz")
POINTS = [("7", 1000, 0.0), ("7", 2000, 0.5), ("7", 4000, 0.5), ("7", 5000, 2.0)]


def make_variants(chromosomes: list[str], positions: list[int]) -> pl.DataFrame:
    names = [f"rs{i}" for i in range(len(positions))]
    return pl.DataFrame({"CHR": chromosomes, "SNP": names, "BP": positions, "A1": "A", "A2": "G"})


def test_rate_is_the_slope_between_the_window_ends():
    positions, centimorgans = np.array([1000, 2000, 4000, 5000]), np.array([0.0, 0.5, 0.5, 2.0])
    rates = recombination_rate(np.array([999, 1000, 1500, 2000, 3000, 5000, 5001]), positions, centimorgans, 200)
    expected = [np.nan, 500, 500, 250, 0, 1500, np.nan]  # cM/Mb: 0.5 cM in 1 kb is 500
    np.testing.assert_allclose(rates, expected, rtol=1e-12, atol=1e-9)


def test_rates_over_a_tiled_map_add_up_to_its_length():
    points = read_genetic_map(EXAMPLE_MAP)
    positions, centimorgans = points["BP"].to_numpy(), points["CM"].to_numpy()
    width = 10_000
    centres = np.arange(positions[0] + width, positions[-1] - width, 2 * width)
    total = (recombination_rate(centres, positions, centimorgans, width) * 2 * width / 1e6).sum()
    covered = np.interp([centres[0] - width, centres[-1] + width], positions, centimorgans)
    assert total == pytest.approx(covered[1] - covered[0], rel=1e-9)


@pytest.mark.parametrize(
    "text",
    [
        "pos\tchr\tcM\n" + "".join(f"{b}\t{c}\t{m}\n" for c, b, m in POINTS),
        "Chromosome\tPosition(bp)\tRate(cM/Mb)\tMap(cM)\n" + "".join(f"chr{c}\t{b}\t1\t{m}\n" for c, b, m in POINTS),
        "chr position COMBINED_rate(cM/Mb) Genetic_Map(cM)\n" + "".join(f"{c} {b} 1 {m}\n" for c, b, m in POINTS),
        "".join(f"{c}\trs{b}\t{m}\t{b}\n" for c, b, m in reversed(POINTS)),
    ],
    ids=["shapeit", "hapmap", "eagle", "plink"],
)
def test_layouts_give_the_same_points(tmp_path, text):
    path = tmp_path / "map.txt"
    path.write_text(text)
    assert read_genetic_map(path).rows() == POINTS


def test_one_file_a_chromosome_takes_it_from_the_name(tmp_path):
    for chromosome in ("7", "8"):
        (tmp_path / f"chr{chromosome}.map").write_text(
            "position COMBINED_rate(cM/Mb) Genetic_Map(cM)\n1000 1 0\n9000 1 0.008\n"
        )
    variants = make_variants(["7", "8", "8"], [2000, 3000, 9500])
    tally = Tally()
    made = map_annotations(variants, tmp_path / "chr@.map", window=500, uncovered="error", tally=tally)
    values = made["log_recombination_rate"][0]
    np.testing.assert_allclose(values[:2], np.log(RATE_OFFSET + 1.0), rtol=1e-6)
    assert np.isnan(values[2])
    assert [(r.reason, r.count, r.first) for r in tally.rows] == [("missing: outside the genetic map", 1, "rs2")]
    with pytest.raises(InputError, match=r"no column for chromosome .*write @"):
        read_genetic_map(tmp_path / "chr7.map")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pos\tchr\tcM\n1000\t7\t0\n2000\t7\tabc\n", r"column cM, line 3: 'abc' is not a number"),
        ("pos\tchr\tcM\n1000\t7\t0\n2000\t7\tNA\n", r"column cM, line 3: missing value"),
        ("pos\tchr\tcM\n1000\t7\t1\n2000\t7\t0\n", r"genetic position falls: chromosome 7 has 1.0 cM at 1000"),
        ("pos\tchr\tcM\n1000\t7\t1\n1000\t7\t2\n", r"two genetic positions at one position"),
        ("pos\tchr\tcM\n1000\t7\t1\n1000\t8\t2\n", r"chromosome 7 has one map point only"),
        ("7\ta\t0\t1000\n7\tb\t0\t2000\n", r"every genetic position is 0.0"),
        ("pos\tchr\trate\n1000\t7\t1\n", r"no column for genetic position \(cM\) in pos chr rate"),
        ("1000\t7\t1\n2000\t7\t2\n", r"no column for chromosome, position, genetic position"),
        ("", r"the file is empty"),
    ],
)
def test_unusable_maps_are_named(tmp_path, text, message):
    path = tmp_path / "map.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_genetic_map(path)


def test_a_map_of_another_chromosome_is_an_error():
    with pytest.raises(InputError, match=r"none of 1 variants of chromosome 21 lies inside the map.* file: 22\."):
        map_annotations(make_variants(["21"], [20_000_000]), EXAMPLE_MAP, window=10, uncovered="error", tally=Tally())
