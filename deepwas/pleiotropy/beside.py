"""What stands beside the posterior of a classification: the test of sharing, networks, calibration by simulation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepwas.errors import InputError
from deepwas.ld import LDStore
from deepwas.pleiotropy.configurations import TraitModel
from deepwas.pleiotropy.joint import JointBlocks
from deepwas.pleiotropy.model_of import BlocksToLocate
from deepwas.pleiotropy.options import PleiotropyOptions
from deepwas.posterior.progress import Computed

if TYPE_CHECKING:
    from deepwas.pleiotropy.network import CalibrationReport, Labels

__all__ = ["Beside", "beside_of", "kept_or"]

Floats = NDArray[np.float64]
Progress = Callable[[str, int, int], None]

Corrections = list[NDArray[np.float32]] | None

_TEST, _ALL = "sharing_test", "beside"  # what is kept
_ALIKE = 1e-3  # of two probabilities
_BLOCKS = 30  # simulated to teach the networks, where calibration has none


@dataclass(frozen=True, eq=False)
class Beside:
    """What stands beside the posterior.

    calibration: None without.  score: (M,), P_NETWORK, NaN where there is none.  record: for JSON.  notes: for users.
    """

    calibration: CalibrationReport | None
    score: Floats
    record: dict[str, Any]
    notes: list[str]


def kept_or(computed: Computed, compute: Callable[[], tuple[Beside, Corrections]]) -> tuple[Beside, Corrections]:
    """What an interrupted classification has computed already, or else what is computed now, and kept."""
    if (kept := computed.kept(_ALL)) is not None:
        return _read(*kept)
    found, shared = compute()
    computed.keep(_ALL, *_written(found, shared))
    return found, shared


def beside_of(
    store: LDStore,
    names: Sequence[str],
    joint: JointBlocks,
    blocks: BlocksToLocate,
    model: TraitModel,
    options: PleiotropyOptions,
    labels: Labels | None,
    annotations: NDArray[np.float32] | None,
    how: dict[str, Any],
    computed: Computed,
    say: Progress,
) -> tuple[Beside, Corrections]:
    """Test of sharing, networks and calibration; and the networks' corrections by block, if they are any use.

    annotations: (M, A), standardised, for the networks.  computed: keeps the test as soon as it is done.
    """
    from deepwas.pleiotropy.network import calibration_report
    from deepwas.pleiotropy.sharing_test import sharing_test

    record: dict[str, Any] = {"sharing_test": None, "network": None, "calibration": None}
    if (tested_before := computed.kept(_TEST)) is not None:
        record["sharing_test"] = json.loads(tested_before[0])
    elif options.bootstrap:
        tested = sharing_test(
            blocks.some(options.learn_blocks),
            model,
            draws=options.bootstrap,
            seed=options.seed,
            progress=lambda done, total: say("testing sharing", done, total),
            **{name: value for name, value in how.items() if name != "more"},  # draws are weighed like the data
        )
        record["sharing_test"] = tested.as_dict(names)
        computed.keep(_TEST, json.dumps(record["sharing_test"]), {})
    scored = [joint.scored(i) for i in range(len(joint))]
    chromosomes = [str(store.variants["CHR"][joint.rows(i).start]) for i in range(len(joint))]
    report = None
    notes: list[str] = []
    read = None if annotations is None else annotations.__getitem__

    def simulated(used: BlocksToLocate) -> CalibrationReport:
        return calibration_report(
            used,
            model,
            scored=scored,
            chromosomes=chromosomes,
            annotations=read,
            n_blocks=number,
            seed=options.seed,
            progress=lambda done, total: say("simulating to calibrate", done, total),
            **how,
        )

    number = options.calibration_blocks or (_BLOCKS if options.network else 0)
    if number:
        report = simulated(blocks)
    score = np.full(store.n_variants, np.nan)
    shared = None
    if options.network:
        from deepwas.pleiotropy.network import NetworkOptions
        from deepwas.pleiotropy.network.stage import by_row, first_pass, network_of

        assert report is not None
        features = first_pass(
            blocks,
            model,
            scored=scored,
            chromosomes=chromosomes,
            annotations=read,
            progress=lambda done, total: say("first pass over LD blocks", done, total),
            **how,
        )
        try:
            trained, used, told = network_of(
                features,
                model,
                report,
                store.n_variants,
                labels=labels,
                options=NetworkOptions(seed=options.seed, objective=options.network_objective),
                progress=say,
            )
        except InputError as nothing:  # too few labels or blocks: the posterior stands without networks
            notes.append(f"the networks were not trained: {nothing}")
        else:
            notes += told
            score = by_row(trained.probability, features, store.n_variants)
            report = report.with_network(trained.simulated)
            known = report.as_dict()["P_NETWORK"]
            counts = used.tally.as_list()
            record["network"] = trained.record | {"labels": used.record | {"counts": counts}, "calibration": known}
            if trained.accepted:
                shared = trained.correction
            alike = max(
                float(np.abs(p - f.posterior).max()) for p, f in zip(trained.probability, features, strict=True)
            )
            if alike < _ALIKE:
                notes.append(
                    "P_NETWORK is P_PLEIOTROPY: on held-out simulated LD blocks the evidence network did not do better "
                    "than the posterior that it starts from."
                )
            if trained.accepted and options.calibration_blocks:
                report = simulated(BlocksToLocate(joint, blocks.direct, blocks.members, blocks.shapes, shared))
    if report is not None and options.calibration_blocks:
        record["calibration"] = report.as_dict()
    return Beside(report if options.calibration_blocks else None, score, record, notes), shared


def _written(found: Beside, shared: Corrections) -> tuple[str, dict[str, NDArray[Any]]]:
    """As text and arrays; `_read` reads them."""
    report = found.calibration
    arrays: dict[str, NDArray[Any]] = {"score": found.score}
    if report is not None:
        arrays |= {"truth": report.truth} | {f"p_{i}": p for i, p in enumerate(report.probability.values())}
    if shared is not None:
        arrays |= {"sizes": np.array([len(x) for x in shared]), "shared": np.concatenate(shared)}
    simulated = None if report is None else {"blocks": report.number, "names": list(report.probability)}
    return json.dumps({"record": found.record, "notes": found.notes, "simulated": simulated}), arrays


def _read(text: str, arrays: dict[str, NDArray[Any]]) -> tuple[Beside, Corrections]:
    from deepwas.pleiotropy.network import CalibrationReport

    known = json.loads(text)
    report = None
    if (simulated := known["simulated"]) is not None:
        probability = {name: arrays[f"p_{i}"] for i, name in enumerate(simulated["names"])}
        report = CalibrationReport(probability, arrays["truth"], simulated["blocks"], [])
    shared = None
    if "shared" in arrays:
        shared = np.split(arrays["shared"], np.cumsum(arrays["sizes"])[:-1])
    return Beside(report, arrays["score"], known["record"], known["notes"]), shared
