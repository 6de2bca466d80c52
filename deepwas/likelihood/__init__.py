"""The likelihood of summary statistics under LD: exact, by conjugate gradients, and the LD score objective.

`log_likelihood` and `log_likelihood_and_grad` take one `LDBlock`; the functions underneath (`exact_log_density`,
`cg_log_densities`) take arrays, stacks of blocks of one shape, and are what training runs inside `jit`.
"""

from deepwas.likelihood.api import SolveInfo, choose_solver, log_likelihood, log_likelihood_and_grad
from deepwas.likelihood.cg import cg_log_densities, cg_log_density
from deepwas.likelihood.exact import exact_log_density
from deepwas.likelihood.factor import Factor, encode_factor
from deepwas.likelihood.ldscore import adjusted_ld_squared, ld_score_loss, ld_score_weights
from deepwas.likelihood.operator import covariance_operator

__all__ = [
    "Factor",
    "SolveInfo",
    "adjusted_ld_squared",
    "cg_log_densities",
    "cg_log_density",
    "choose_solver",
    "covariance_operator",
    "encode_factor",
    "exact_log_density",
    "ld_score_loss",
    "ld_score_weights",
    "log_likelihood",
    "log_likelihood_and_grad",
]
