"""How many scenes the published versions of well-known data sets have: fewer on the disk were not all downloaded or
converted.

Public: expected_scenes.
"""

from __future__ import annotations

import re
from pathlib import PurePath

KNOWN: tuple[tuple[str, str, int], ...] = (
    ("re10k|realestate10k", "train", 66_033),
    ("re10k|realestate10k", "test", 7_194),
    ("acid", "train", 11_075),
    ("acid", "test", 1_972),
    ("dl3dv", "test", 140),
)
"""(pattern of a folder's name, part of the data set, scenes). RealEstate10K: pixelSplat's chunks as Less3Depend counts them
(4,866 for training) and the evaluation index; ACID: pixelSplat; DL3DV: its benchmark."""


def expected_scenes(path: str) -> int:
    """Scenes of the data set that a path seems to name, by its folders; 0: none that is known."""
    parts = [part.lower() for part in PurePath(path).parts]
    for pattern, stage, count in KNOWN:
        if stage in parts and any(re.match(rf"({pattern})(\W|_|$)", part) for part in parts):
            return count
    return 0
