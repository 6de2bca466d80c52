"""Networks along LD blocks that learn which variants act on several traits, and how well probabilities are calibrated.

Names are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "BlockFeatures": "deepwas.pleiotropy.network.features",
    "CalibrationReport": "deepwas.pleiotropy.network.calibration",
    "Labels": "deepwas.pleiotropy.network.labels",
    "NetworkOptions": "deepwas.pleiotropy.network.options",
    "NetworkResult": "deepwas.pleiotropy.network.fit",
    "block_features": "deepwas.pleiotropy.network.features",
    "calibration_report": "deepwas.pleiotropy.network.calibration",
    "fit_network": "deepwas.pleiotropy.network.fit",
    "mixture_labels": "deepwas.pleiotropy.network.labels",
    "plot_reliability": "deepwas.pleiotropy.network.calibration",
    "read_labels": "deepwas.pleiotropy.network.labels",
}

__all__ = [
    "BlockFeatures",
    "CalibrationReport",
    "Labels",
    "NetworkOptions",
    "NetworkResult",
    "block_features",
    "calibration_report",
    "fit_network",
    "mixture_labels",
    "plot_reliability",
    "read_labels",
]

if TYPE_CHECKING:
    from deepwas.pleiotropy.network.calibration import CalibrationReport, calibration_report, plot_reliability
    from deepwas.pleiotropy.network.features import BlockFeatures, block_features
    from deepwas.pleiotropy.network.fit import NetworkResult, fit_network
    from deepwas.pleiotropy.network.labels import Labels, mixture_labels, read_labels
    from deepwas.pleiotropy.network.options import NetworkOptions


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'deepwas.pleiotropy.network' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
