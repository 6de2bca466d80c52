"""What the commands that fit say: how they train, before; and what they found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepwas.cli._console import say, say_counts, show
from deepwas.options import FitOptions

__all__ = ["say_found", "say_training"]


def say_training(options: FitOptions) -> None:
    """What of the options changes which network is kept, as nothing else shows it."""
    if options.network == "constant":
        return
    if options.ensemble > 1:
        say(f"{options.network}: {options.ensemble} networks are trained where one would be; their mean f is the prior")
    if options.ema is not None:
        say(f"{options.network}: parameters are averaged over steps, decay {options.ema:g} (--ema)")


def say_found(
    records: Mapping[str, Mapping[str, Any]], folders: Mapping[str, Path], counted: Mapping[str, int]
) -> None:
    """Tables and sentences of one fit, or of several traits' fits.

    records: `run.json` by the name to show.  folders: of the runs.  counted: how many counts of each were said before.
    """
    from deepwas.summary import fits_table, mismatch_lines, sensitivity_table, verdicts

    several = len(records) > 1
    for name, record in records.items():
        if several:
            say(f"{name}:")
        say_counts(record["counts"][counted.get(name, 0) :])
        _say_training_found(record)
    show(fits_table(records))
    for name, record in records.items():
        of = "the store's variance" + (f", {name}" if several else "")
        show(sensitivity_table(record["sensitivity"], of=of))
    for name, record in records.items():
        for line in mismatch_lines(record["mismatch"]):
            say(f"{name}: {line}" if several else line)
    for line in verdicts(records):
        say(line)
    for name, folder in folders.items():
        named, out = (f"{name}: ", f"{name}.tsv.gz") if several else ("", "priors.tsv.gz")
        say(f"{named}the run is in {folder}; write its priors with: deepwas priors {folder} --out {out}")


def _say_training_found(record: Mapping[str, Any]) -> None:
    rotations: Sequence[Mapping[str, Any]] = record["rotations"]
    trained = [x["network"] for x in rotations if x["network"]]
    for rotation in rotations:
        for event in (rotation["network"] or {}).get("events", ()):
            say(f"rotation {rotation['rotation']}: {event}")
    if record["inputs"]["annotations"] is not None:
        say(f"annotations: {', '.join(record['inputs']['annotations']['names'])}")
    if record["options"].get("learning_rate") == "auto":
        say(f"learning rates found: {', '.join(format(x['learning_rate'], '.3g') for x in trained)}")
    if shares := [x["waiting"] for x in trained if x.get("waiting") is not None]:
        say(f"training waited for its input in {sum(shares) / len(shares):.1%} of its time")
