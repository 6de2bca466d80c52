"""How traits depend on one another: noise correlation, genetic correlation, and directed effects of trait on trait."""

from deepwas.pleiotropy.structure.effects import TraitEffects, trait_effects
from deepwas.pleiotropy.structure.instruments import Instruments, select_instruments
from deepwas.pleiotropy.structure.noise import NoiseCorrelation, noise_correlation
from deepwas.pleiotropy.structure.spectral import noise_correlation_from_blocks

__all__ = [
    "Instruments",
    "NoiseCorrelation",
    "TraitEffects",
    "noise_correlation",
    "noise_correlation_from_blocks",
    "select_instruments",
    "trait_effects",
]
