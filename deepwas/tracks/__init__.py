"""Windows around variants: signals of tracks in bins, and the reference and alternative sequence, extracted once."""

from __future__ import annotations

from deepwas.tracks.extract import extract_tracks
from deepwas.tracks.options import SequenceOptions, TrackOptions
from deepwas.tracks.sequence import extract_sequence
from deepwas.tracks.store import WindowFile, open_windows

__all__ = ["SequenceOptions", "TrackOptions", "WindowFile", "extract_sequence", "extract_tracks", "open_windows"]
