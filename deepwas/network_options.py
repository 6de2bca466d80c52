"""The options of a network: which, how large, and how it is computed."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from deepwas.errors import InputError

if TYPE_CHECKING:
    from deepwas.inputs import InputSizes

__all__ = ["ComputeDtype", "Network", "NetworkOptions", "require_monotone_names", "required_inputs"]

Network = Literal["constant", "linear", "softplus", "mlp", "residual", "cnn", "enformer"]
ComputeDtype = Literal["float32", "bfloat16"]

_BOUND = 7.0
_WIDTHS = {"residual": 128, "cnn": 32, "enformer": 64}
_AT_ONCE = {"cnn": 4096, "enformer": 512}
_WINDOWED = ("cnn", "enformer")
_MONOTONE = ("linear", "softplus", "mlp")
_SPARSE = ("linear", "softplus", "mlp", "residual")


@dataclass(frozen=True)
class NetworkOptions:
    """Which network maps a variant's inputs to the logarithm of its effect variance.

    network: from annotations alone 'constant', 'linear' (log-linear), 'softplus' (softplus-linear, the form of S-LDSC),
        'mlp' or 'residual' (a normalised residual MLP, for large sizes); from windows of tracks or sequence around the
        variant, with annotations if there are any, 'cnn' or 'enformer' (convolutions, then attention).
    hidden: widths of the layers of 'mlp', and of the MLP that 'cnn' and 'enformer' end in; there () for none.
    width: channels of 'residual' (None: 128), 'cnn' (32) and 'enformer' (64).
    depth: their residual blocks, or Transformer blocks.  heads: of attention; width is a multiple of 2 heads.
    kernel: bins or bases that the first convolution spans, odd.
    maf_alpha: exponent of f_j = [2q(1 - q)]^(1 + alpha) exp(network): a number, 'learned' (from -1, which is no
        dependence), or None for no such factor. Alpha is that of effects per allele (Schoech et al. 2019).
    bound: most nats by which annotations move log f from its start, 0 for no bound. None: 7, and none for 'linear' and
        'softplus', which are published models.
    compute_dtype: of the layers before the last, 'float32' or 'bfloat16'. Parameters, the last layer and log f are
        float32.
    variants_at_once: variants whose activations are held at a time, in training too, where they are then computed
        twice; 0 for all. None: 4,096 for 'cnn', 512 for 'enformer', all for the others.
    monotone: 'NAME:+' for each annotation that may only raise f, 'NAME:-' for each that may only lower it; of 'linear',
        'softplus' and 'mlp'.
    sparse: strength of a group lasso on the annotations' first weights; of 'linear', 'softplus', 'mlp', 'residual'.
    """

    network: Network = "mlp"
    hidden: tuple[int, ...] = (32, 32)
    width: int | None = None
    depth: int = 4
    heads: int = 4
    kernel: int = 9
    maf_alpha: float | Literal["learned"] | None = None
    bound: float | None = None
    compute_dtype: ComputeDtype = "float32"
    variants_at_once: int | None = None
    monotone: tuple[str, ...] = ()
    sparse: float = 0.0

    def __post_init__(self) -> None:
        for name in ("hidden", "monotone"):  # lists, as JSON and TOML give them
            value = getattr(self, name)
            if isinstance(value, str):
                raise InputError(f"{name} is {value!r}; give a list.")
            object.__setattr__(self, name, tuple(value))
        for name, allowed in (("network", Network), ("compute_dtype", ComputeDtype)):
            if getattr(self, name) not in get_args(allowed):
                raise InputError(f"{name} is {getattr(self, name)!r}; give one of {', '.join(get_args(allowed))}.")
        if (self.network == "mlp" and not self.hidden) or min(self.hidden, default=1) < 1:
            raise InputError(f"hidden is {self.hidden}; give one positive width per layer, such as 32,32.")
        least = {"width": 1, "depth": 1, "heads": 1, "kernel": 1, "variants_at_once": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(f"{name} is {value}; at least {low} is needed.")
        if self.kernel % 2 == 0:
            raise InputError(f"kernel is {self.kernel}; give an odd number, so that it has a middle.")
        if self.network == "enformer" and self.channels % (2 * self.heads):
            raise InputError(f"width is {self.channels}; with {self.heads} heads give a multiple of {2 * self.heads}.")
        if self.bound is not None and not 0 <= self.bound < float("inf"):
            raise InputError(f"bound is {self.bound}; give nats, or 0 for no bound.")
        if not 0 <= self.sparse < float("inf"):
            raise InputError(f"sparse is {self.sparse}; it must be 0 or more.")
        self._check_alpha()
        self._check_interpretable()

    def _check_alpha(self) -> None:
        alpha = self.maf_alpha
        if alpha is None or alpha == "learned":
            return
        if isinstance(alpha, str) or not -3 <= alpha <= 1:
            raise InputError(f"maf_alpha is {alpha!r}; give 'learned', or a number from -3 to 1 such as -0.38.")

    def _check_interpretable(self) -> None:
        for text in self.monotone:
            name, _, sign = text.rpartition(":")
            if not name or sign not in ("+", "-"):
                raise InputError(
                    f"monotone has {text!r}; give NAME:+ (may only raise f) or NAME:- (may only lower it)."
                )
        names = [text.rpartition(":")[0] for text in self.monotone]
        if len(set(names)) != len(names):
            raise InputError(f"monotone names {max(names, key=names.count)} twice; give each annotation one sign.")
        for option, able in (("monotone", _MONOTONE), ("sparse", _SPARSE)):
            if getattr(self, option) and self.network not in able:
                raise InputError(f"{option} is for {', '.join(able)}; the network is {self.network}.")

    @property
    def channels(self) -> int:
        """The width given, or the network's default."""
        return _WIDTHS.get(self.network, 64) if self.width is None else self.width

    @property
    def output_bound(self) -> float | None:
        """The bound in nats that holds for this network, or None."""
        if self.bound is None:
            return None if self.network in ("constant", "linear", "softplus") else _BOUND
        return self.bound or None

    @property
    def chunk(self) -> int | None:
        """Variants whose activations are held at a time, or None for all."""
        if self.variants_at_once is None:
            return _AT_ONCE.get(self.network)
        return self.variants_at_once or None


def required_inputs(options: NetworkOptions, sizes: InputSizes) -> tuple[str, ...]:
    """Names of the `Inputs` that the network reads; an error if `sizes` lacks one, or has windows that it ignores."""
    name = options.network
    windows = tuple(x for x in ("tracks", "sequence") if getattr(sizes, x) is not None)
    if name in _WINDOWED:
        if not windows:
            raise InputError(
                f"the {name} network reads tracks or sequence; give --tracks FILE or --sequence FILE, or --network mlp."
            )
    elif windows:
        raise InputError(
            f"the {name} network does not read {' and '.join(windows)}; give --network cnn or enformer, or leave out "
            f"{' and '.join('--' + x for x in windows)}."
        )
    elif name != "constant" and sizes.annotations < 1:
        raise InputError(
            f"the {name} network needs at least one annotation. Give --annotations, or network 'constant'."
        )
    read = list(windows)
    if sizes.annotations and name != "constant":
        read.insert(0, "annotations")
    if options.maf_alpha is not None and name != "constant":
        if not sizes.log_heterozygosity:
            raise InputError(
                "maf_alpha needs allele frequencies, and there are none. Give an LD store with them, or leave it out."
            )
        read.append("log_heterozygosity")
    return tuple(read)


def require_monotone_names(options: NetworkOptions, names: Sequence[str], *, with_missing: bool = True) -> None:
    """InputError if option `monotone` names what is no annotation.

    with_missing: let NAME:missing pass where NAME is there, since that column is made only where values are missing.
    """
    for text in options.monotone:
        name = text.rpartition(":")[0]
        if name not in names and not (with_missing and name.removesuffix(":missing") in names):
            close = difflib.get_close_matches(name, names, n=3) or list(names[:5])
            raise InputError(f"monotone names {name!r}, which is no annotation. Did you mean {', '.join(close)}?")
