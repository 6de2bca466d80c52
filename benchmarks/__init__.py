"""Benchmarks: what the methods are worth on problems whose truth is known, and what they cost.

Run `python -m benchmarks`. A benchmark is a module with three functions: `measure(quick, progress)` returns its
figures, ready for JSON; `tables(figures)` says them as tables; `draw(figures, path)` draws them. Speeds are ratios
within one run: they hold for the machine named in the results. Tests never assert them.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BENCHMARKS", "Benchmark"]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: its name on the command line, what it asks, and the module that answers.

    presets: sizes it comes in, "quick" and "full" among them; it then measures as `measure(preset, progress, parts)`,
    keeps in the folder `parts` what is done, and goes on from there.
    """

    name: str
    question: str
    module: str
    presets: tuple[str, ...] = ()


BENCHMARKS = (
    Benchmark(
        "training",
        "Does training through CG equal training through Cholesky, and do both beat the LD score objective?",
        "benchmarks.training",
    ),
    Benchmark(
        "likelihood",
        "What do a value and gradient cost by CG, Cholesky, dense algebra, autodiff, CoLA; how far are they off?",
        "benchmarks.likelihood",
    ),
    Benchmark(
        "genome",
        "How long does an epoch of a genome take, in how much memory, by blocks and by traits?",
        "benchmarks.genome",
    ),
    Benchmark(
        "objectives",
        "Do larger networks predict held-out data better, and does that take the full likelihood?",
        "benchmarks.objectives",
    ),
    Benchmark(
        "scaling",
        "How do networks fare as training data and features grow, under both objectives?",
        "benchmarks.scaling",
    ),
    Benchmark(
        "calibration",
        "Is predicted effect variance right, decile by decile, at a genome's training size?",
        "benchmarks.calibration",
    ),
    Benchmark(
        "motif",
        "Does a convolutional network find a motif in the sequence near variants?",
        "benchmarks.motif",
    ),
    Benchmark(
        "enrichment",
        "Is enrichment by full likelihood unbiased, and do its jackknife intervals hold the truth as often as stated?",
        "benchmarks.enrichment",
    ),
    Benchmark(
        "direction",
        "Does the test of signed scores reject at its level without direction, and find direction where there is some?",
        "benchmarks.direction",
    ),
    Benchmark(
        "posterior",
        "Do posterior intervals cover, and do scores from learned priors predict better in people not seen?",
        "benchmarks.posterior",
    ),
    Benchmark(
        "finemapping",
        "Are inclusion probabilities and credible sets calibrated, what do priors add, is LD that is off noticed?",
        "benchmarks.finemapping",
    ),
    Benchmark(
        "pleiotropy",
        "Are variants with own effects on several traits found and told from paths, confounders and LD, by whom?",
        "benchmarks.pleiotropy",
        ("quick", "medium", "full"),
    ),
    Benchmark(
        "pleiotropy-speed",
        "How long does a classification of a genome take, in how much memory, by blocks and by traits?",
        "benchmarks.pleiotropy_speed",
        ("quick", "medium", "full"),
    ),
    Benchmark(
        "structure",
        "Are noise and effects of trait on trait found, how often are effects made up, and do their errors hold?",
        "benchmarks.structure",
    ),
    Benchmark(
        "sharing",
        "Does the test of sharing reject at its level where traits are independent, and how often where they are not?",
        "benchmarks.sharing",
    ),
    Benchmark(
        "networks",
        "What do semi-supervised networks add to a classification, with labels, without, and with annotations?",
        "benchmarks.networks",
        ("quick", "full"),
    ),
    Benchmark(
        "height",
        "What do learned priors change in fine-mapping height on the example?",
        "benchmarks.height",
    ),
    Benchmark(
        "geuvadis",
        "Do variants called shared in half of the people hold in the other half?",
        "benchmarks.geuvadis",
    ),
    Benchmark(
        "tracks",
        "How many variants a second are tracks and sequence extracted for, in how much memory, and read again?",
        "benchmarks.tracks",
    ),
    Benchmark(
        "trunk",
        "Does training wait for windows read from a file, and does a trunk of 50 million parameters fit in memory?",
        "benchmarks.trunk",
    ),
    Benchmark(
        "loco",
        "What does leaving one chromosome out cost on a whole genome, and does an interrupted fit end the same?",
        "benchmarks.loco",
    ),
)
