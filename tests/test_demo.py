"""The demonstration: it clears only what is its own, and runs from real files to priors and pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from deepwas.specs import validate_json, validate_table

TYPES = {"CHR": pl.String, "SNP": pl.String, "A1": pl.String, "A2": pl.String}


def test_an_earlier_demo_is_cleared(tmp_path):
    from deepwas.demo import prepare_folder

    prepare_folder(tmp_path / "demo")
    for name in ("ld.h5", ".ld.h5.partial", "priors.png"):
        (tmp_path / "demo" / name).write_text("")
    (tmp_path / "demo" / "mlp" / "rotation_0").mkdir(parents=True)
    prepare_folder(tmp_path / "demo")
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["demo.json"]


@pytest.mark.slow
def test_the_demo_runs_from_files_to_priors(tmp_path):
    out = tmp_path / "demo"
    command = Path(sys.executable).with_name("deepwas")
    done = subprocess.run([command, "demo", "--out", out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for phrase in ("SNP heritability", "linear", "mlp", "constant prior's heritability hangs on the LD"):
        assert phrase in done.stdout
    assert "held-out log-likelihood" in done.stderr
    marker = json.loads((out / "demo.json").read_text())
    assert (marker["status"], marker["seed"], marker["networks"]) == ("complete", 0, ["constant", "linear", "mlp"])
    assert marker["sensitivity"][0]["label"] == "default"
    shares = [row["share"] for row in marker["sensitivity"][1:]]
    assert shares == sorted(shares)
    for network in marker["networks"]:
        record = json.loads((out / network / "run.json").read_text())
        validate_json(record, "run", network)
        assert record["status"] == "complete"
        for kind in ("constant", "plain", "cross_fitted"):
            assert 0.003 < record["heritability"][kind]["h2"] < 0.02
        gain, error = (record["held_out"]["cross_fitted"][x] for x in ("gain", "standard_error"))
        if network == "constant":
            assert gain == 0
        else:
            assert gain > -2 * error
            assert f"{network}: held-out log-likelihood {gain:+.1f} nats" in done.stderr
    frame = pl.read_csv(out / "priors.tsv.gz", separator="\t", null_values="NA", schema_overrides=TYPES)
    validate_table(frame, "priors", "priors.tsv.gz")
    (note,) = json.loads((out / "mlp" / "run.json").read_text())["priors"]
    assert frame["SNPVAR"].sum() == pytest.approx(note["h2"], rel=1e-6)
    assert frame.height == note["rows"] == pl.read_parquet(out / "height.parquet").height
    for picture in ("priors.png", "responses.png", "ld.png"):
        data = (out / picture).read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
        assert 400 <= height <= 4000
        assert 400 <= width <= 4000
        assert len(data) > 10_000
