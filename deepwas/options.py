"""The options of a fit: one frozen object that checks itself, for Python, command line and `run.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from deepwas.errors import InputError
from deepwas.network_options import NetworkOptions

__all__ = ["FitOptions"]

Objective = Literal["likelihood", "ld-score"]
Solver = Literal["auto", "cholesky", "cg"]
MismatchAction = Literal["report", "down-weight", "exclude"]
FactorDtype = Literal["float32", "float16", "int8"]

_LEARNING_RATES = {"constant": 0.02, "linear": 0.02, "softplus": 0.02, "mlp": 0.005}


@dataclass(frozen=True)
class FitOptions(NetworkOptions):
    """How a prior is learned: by which network (see `NetworkOptions`), from what, and how it is trained.

    objective: 'likelihood' (full) or 'ld-score' (the regression baseline).
    solver: 'cholesky' (exact), 'cg', or 'auto', whichever takes fewer operations for each block size.
    probes, rtol: of CG in training; its steps are raised, its preconditioner widened, or Cholesky taken, when a
        residual stays above rtol. With 15 probes there are 16 right-hand sides, a width that processors multiply fast.
    noise: sigma2, or None to learn it.
    mismatch: what to do with LD blocks whose z-scores do not fit their LD: 'report', 'down-weight' their likelihood in
        training, or 'exclude' them from training and early stopping. They are tested, and get priors, all the same.
    mismatch_threshold: observed over expected energy above which a block is flagged; see `deepwas.training.mismatch`.
    factor_dtype: of the LD in memory: 'float32', 'float16' (half of it) or 'int8' (a quarter).
    memory: GB that the LD may take, beyond which it streams from disk; None for half of what is free.
    cross_fit: train one network per section of the genome, so that each variant's prior comes from a network that did
        not see its section; otherwise only the first of them is trained.
    folds: number of sections (whole chromosomes where there are enough, else runs of LD blocks). Each network trains
        on all but two: one for early stopping, one held out.
    steps: most optimiser steps.  batch_blocks: LD blocks a step.
    learning_rate: peak, or None for the network's default (0.02, MLP 0.005).  weight_decay: of AdamW, on weights.
    warmup: share of the steps.  clip_norm: largest gradient norm.
    evaluate_every: steps between evaluations, of which every fifth writes a checkpoint; few, because on little data the
        best step comes early.
    patience: evaluations without a better validation log-likelihood before training stops.
    seed: of everything random.
    """

    objective: Objective = "likelihood"
    solver: Solver = "auto"
    probes: int = 15
    rtol: float = 1e-2
    noise: float | None = None
    mismatch: MismatchAction = "report"
    mismatch_threshold: float = 1.5
    factor_dtype: FactorDtype = "float32"
    memory: float | None = None
    cross_fit: bool = True
    folds: int = 5
    steps: int = 600
    batch_blocks: int = 8
    learning_rate: float | None = None
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip_norm: float = 1.0
    evaluate_every: int = 5
    patience: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (
            ("objective", Objective),
            ("solver", Solver),
            ("mismatch", MismatchAction),
            ("factor_dtype", FactorDtype),
        ):
            if getattr(self, name) not in get_args(allowed):
                raise InputError(f"{name} is {getattr(self, name)!r}; give one of {', '.join(get_args(allowed))}.")
        least = {"probes": 2, "folds": 3, "steps": 1, "batch_blocks": 1, "evaluate_every": 1, "patience": 1, "seed": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise InputError(f"{name} is {getattr(self, name)}; at least {low} is needed.")
        for name in ("rtol", "clip_norm", "learning_rate", "noise"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{name} is {value}; it must be positive and finite.")
        if not 1 <= self.mismatch_threshold < float("inf"):
            raise InputError(f"mismatch_threshold is {self.mismatch_threshold}; it is a ratio, 1 or more.")
        if self.memory is not None and not 0 <= self.memory < float("inf"):
            raise InputError(f"memory is {self.memory}; give GB, 0 to stream always, or None for half of what is free.")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup is {self.warmup}; it is a share of the steps, from 0 to below 1.")
        if not 0 <= self.weight_decay < float("inf"):
            raise InputError(f"weight_decay is {self.weight_decay}; it must be 0 or more.")

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate given, or the network's default."""
        return _LEARNING_RATES[self.network] if self.learning_rate is None else self.learning_rate

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, for `run.json`."""
        return asdict(self) | {"hidden": list(self.hidden)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> FitOptions:
        """The inverse of `as_dict`. Unknown names are an error."""
        unknown = sorted(set(content) - {f.name for f in fields(cls)})
        if unknown:
            raise InputError(f"unknown option {', '.join(unknown)}: was this run made by a newer deepwas?")
        return cls(**(content | {"hidden": tuple(content.get("hidden", ()))}))
