"""What stands beside the posterior of a classification: the test of sharing, networks, calibration by simulation."""

from __future__ import annotations

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

if TYPE_CHECKING:
    from deepwas.pleiotropy.network import CalibrationReport, Labels

__all__ = ["Beside", "beside_of"]

Floats = NDArray[np.float64]
Progress = Callable[[str, int, int], None]

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


def beside_of(
    store: LDStore,
    names: Sequence[str],
    joint: JointBlocks,
    blocks: BlocksToLocate,
    model: TraitModel,
    options: PleiotropyOptions,
    labels: Labels | None,
    how: dict[str, Any],
    say: Progress,
) -> tuple[Beside, list[NDArray[np.float32]] | None]:
    """Test of sharing, networks and calibration; and the networks' corrections by block, if they are any use."""
    from deepwas.pleiotropy.network import calibration_report
    from deepwas.pleiotropy.sharing_test import sharing_test

    record: dict[str, Any] = {"sharing_test": None, "network": None, "calibration": None}
    if options.bootstrap:
        tested = sharing_test(
            blocks.some(options.learn_blocks),
            model,
            draws=options.bootstrap,
            seed=options.seed,
            progress=lambda done, total: say("testing sharing", done, total),
            **how,
        )
        record["sharing_test"] = tested.as_dict(names)
    scored = [joint.scored(i) for i in range(len(joint))]
    chromosomes = [str(store.variants["CHR"][joint.rows(i).start]) for i in range(len(joint))]
    report = None
    notes: list[str] = []

    def simulated(used: BlocksToLocate) -> CalibrationReport:
        return calibration_report(
            used,
            model,
            scored=scored,
            chromosomes=chromosomes,
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
            progress=lambda done, total: say("first pass over LD blocks", done, total),
            **how,
        )
        try:
            trained, used = network_of(
                features,
                model,
                report,
                store.n_variants,
                labels=labels,
                options=NetworkOptions(seed=options.seed),
                progress=say,
            )
        except InputError as nothing:  # too few labels or blocks: the posterior stands without networks
            notes.append(f"the networks were not trained: {nothing}")
        else:
            score = by_row(trained.probability, features, store.n_variants)
            report = report.with_network(trained.simulated)
            known = report.as_dict()["P_NETWORK"]
            record["network"] = trained.record | {"labels": used.record, "calibration": known}
            if trained.accepted:
                shared = trained.correction
                report = simulated(BlocksToLocate(joint, blocks.direct, blocks.members, blocks.shapes, shared))
    if report is not None and options.calibration_blocks:
        record["calibration"] = report.as_dict()
    return Beside(report if options.calibration_blocks else None, score, record, notes), shared
