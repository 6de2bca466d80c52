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

_LEARNING_RATES = {"constant": 0.02, "linear": 0.02, "softplus": 0.02, "mlp": 0.005, "residual": 0.002, "cnn": 0.002}
_SMALLEST_RATE = 0.001  # of what is not named, the transformers

# What runs did before there was an option for it; their records are read as if they had said so.
_BEFORE = {"bound": 0.0}


@dataclass(frozen=True)
class FitOptions(NetworkOptions):
    """How a prior is learned: by which network (see `NetworkOptions`), from what, and how it is trained.

    What is maximised:
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

    What is held out:
    cross_fit: train one network per section of the genome, so that each variant's prior comes from a network that did
        not see its section; otherwise only the first of them is trained.
    folds: number of sections (whole chromosomes where there are enough, else runs of LD blocks), or 'loco' for one a
        chromosome: leave one chromosome out. Each network trains on all but two: one for early stopping, one held out.
    test_chromosomes, validation_chromosomes: instead of sections, train one network on the other chromosomes, stop it
        by the second, and score it on the first.

    Training:
    steps: most optimiser steps.  batch_blocks: LD blocks a batch.
    accumulate: batches whose gradients are summed for a step, where one of that many blocks does not fit in memory.
    learning_rate: peak, 'auto' to find it by a range test on training blocks, or None for the network's default.
    weight_decay: of AdamW, on weights.  warmup: share of the steps.  clip_norm: largest gradient norm.
    ema: decay of an exponential moving average of the parameters, from 0 to below 1, which is then what is evaluated
        and kept; None for the parameters themselves. 0.98 averages over some 50 steps.
    ensemble: networks a rotation, from different seeds; their prior is the mean of their f.
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
    folds: int | Literal["loco"] = 5
    test_chromosomes: tuple[str, ...] = ()
    validation_chromosomes: tuple[str, ...] = ()
    steps: int = 600
    batch_blocks: int = 8
    accumulate: int = 1
    learning_rate: float | Literal["auto"] | None = None
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip_norm: float = 1.0
    ema: float | None = None
    ensemble: int = 1
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
        self._check_held_out()
        least = {"probes": 2, "steps": 1, "batch_blocks": 1, "accumulate": 1, "ensemble": 1, "evaluate_every": 1}
        for name, low in (least | {"patience": 1, "seed": 0}).items():
            if getattr(self, name) < low:
                raise InputError(f"{name} is {getattr(self, name)}; at least {low} is needed.")
        for name in ("rtol", "clip_norm", "learning_rate", "noise"):
            value = getattr(self, name)
            if name == "learning_rate" and isinstance(value, str):
                if value != "auto":
                    raise InputError(f"learning_rate is {value!r}; give a number, or 'auto' to find it.")
            elif value is not None and not 0 < value < float("inf"):
                raise InputError(f"{name} is {value}; it must be positive and finite.")
        if not 1 <= self.mismatch_threshold < float("inf"):
            raise InputError(f"mismatch_threshold is {self.mismatch_threshold}; it is a ratio, 1 or more.")
        if self.memory is not None and not 0 <= self.memory < float("inf"):
            raise InputError(f"memory is {self.memory}; give GB, 0 to stream always, or None for half of what is free.")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup is {self.warmup}; it is a share of the steps, from 0 to below 1.")
        if not 0 <= self.weight_decay < float("inf"):
            raise InputError(f"weight_decay is {self.weight_decay}; it must be 0 or more.")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise InputError(f"ema is {self.ema}; it is a decay, from 0 to below 1, such as 0.98.")

    def _check_held_out(self) -> None:
        if self.folds != "loco" and (isinstance(self.folds, str) or self.folds < 3):
            raise InputError(
                f"folds is {self.folds!r}; at least 3 are needed (training, validation, test), or 'loco' for one a "
                "chromosome."
            )
        for name in ("test_chromosomes", "validation_chromosomes"):  # lists, as JSON and TOML give them
            value = getattr(self, name)
            if isinstance(value, str):
                raise InputError(f"{name} is {value!r}; give a list.")
            object.__setattr__(self, name, tuple(map(str, value)))
        test, validation = self.test_chromosomes, self.validation_chromosomes
        if bool(test) != bool(validation):
            given, missing = ("test", "validation") if test else ("validation", "test")
            raise InputError(f"{given}_chromosomes need {missing}_chromosomes beside them. Give both.")
        if both := sorted(set(test) & set(validation)):
            raise InputError(f"chromosome {both[0]} is in test_chromosomes and in validation_chromosomes.")

    @property
    def rotates(self) -> bool:
        """Whether each section of the genome is held out in turn."""
        return self.cross_fit and not self.test_chromosomes

    @property
    def peak_learning_rate(self) -> float | None:
        """The learning rate given, or the network's default; None where it is to be found."""
        if isinstance(self.learning_rate, str):
            return None
        return _LEARNING_RATES.get(self.network, _SMALLEST_RATE) if self.learning_rate is None else self.learning_rate

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, for `run.json`."""
        return {name: list(x) if isinstance(x, tuple) else x for name, x in asdict(self).items()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> FitOptions:
        """The inverse of `as_dict`; what is not there has its default. Unknown names are an error."""
        unknown = sorted(set(content) - {f.name for f in fields(cls)})
        if unknown:
            raise InputError(f"unknown option {', '.join(unknown)}: was this run made by a newer deepwas?")
        return cls(**content)

    @classmethod
    def of_record(cls, content: dict[str, Any]) -> FitOptions:
        """The options of a run, from its record, which may be older than some of them."""
        return cls.from_dict(_BEFORE | content)
