"""Fine-mapping: which variants have effects of their own, under a learned prior."""

from deepwas.finemapping.options import FineMapOptions
from deepwas.finemapping.sets import CredibleSet
from deepwas.finemapping.trait import FineMapping, GenomeFineMapping, finemap, finemap_blocks

__all__ = ["CredibleSet", "FineMapOptions", "FineMapping", "GenomeFineMapping", "finemap", "finemap_blocks"]
