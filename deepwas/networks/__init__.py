"""Networks that map a variant's inputs to the logarithm of its effect variance, for one trait or several.

A network is called with `Inputs` of leading axes (...), and returns log f of (..., traits). Every network starts as the
constant prior: its output is `log_base` for every variant until training moves it, so that step 0 is already sane. They
return log f, so effect variances are positive by construction.
"""

from deepwas.networks.annotation import LinearPrior, MLPPrior, MonotonePrior, ResidualPrior
from deepwas.networks.apply import apply_network, predict_log_variance
from deepwas.networks.base import Prior
from deepwas.networks.frequency import centre_heterozygosity
from deepwas.networks.layers import Held
from deepwas.networks.make import count_parameters, make_network
from deepwas.networks.traits import add_trait, of_trait, trunk_labels, with_trunk
from deepwas.networks.windows import WindowPrior

__all__ = [
    "Held",
    "LinearPrior",
    "MLPPrior",
    "MonotonePrior",
    "Prior",
    "ResidualPrior",
    "WindowPrior",
    "add_trait",
    "apply_network",
    "centre_heterozygosity",
    "count_parameters",
    "make_network",
    "of_trait",
    "predict_log_variance",
    "trunk_labels",
    "with_trunk",
]
