"""The options of a posterior."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from deepwas.errors import InputError

__all__ = ["Frequencies", "MissingPrior", "PosteriorOptions", "Solver"]

Solver = Literal["auto", "cholesky", "cg"]
MissingPrior = Literal["refuse", "zero"]
Frequencies = Literal["gwas", "panel"]


@dataclass(frozen=True)
class PosteriorOptions:
    """How posterior effects are computed; every field checks itself.

    cross_fitted: of a run, take the cross-fitted prior; None takes it if there is one.
    noise: sigma2; None takes what the run learned, and 1 with a table of priors.
    solver: 'cholesky' (exact), 'cg' (means to `rtol`, variances estimated from probes, with a standard error), or
        'auto': exact for blocks of at most 2,048 directions.
    probes: random signs of CG.  rtol: relative residual of CG, by default 1e-5 in float32 and 1e-8 in float64.
    seed: of the probes.
    missing_prior: of variants that a table of priors lacks: 'refuse', or 'zero': they have no effect.
    frequencies: for the scale per allele: 'gwas', the GWAS's own where it gives them and else the LD panel's, or
        'panel', the LD panel's throughout.
    """

    cross_fitted: bool | None = None
    noise: float | None = None
    solver: Solver = "auto"
    probes: int = 32
    rtol: float | None = None
    seed: int = 0
    missing_prior: MissingPrior = "refuse"
    frequencies: Frequencies = "gwas"

    def __post_init__(self) -> None:
        allowed = {"solver": Solver, "missing_prior": MissingPrior, "frequencies": Frequencies}
        for name, values in allowed.items():
            if getattr(self, name) not in get_args(values):
                raise InputError(f"{name} is {getattr(self, name)!r}; give one of {', '.join(get_args(values))}.")
        for name, least in (("probes", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; at least {least} is needed.")
        if self.noise is not None and not 0 < self.noise < math.inf:
            raise InputError(f"noise is {self.noise}; it must be positive and finite.")
        if self.rtol is not None and not 0 < self.rtol < 1:
            raise InputError(f"rtol is {self.rtol}; give a relative residual above 0 and below 1, such as 1e-5.")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)
