"""FID and KID: how alike two sets of pictures are as a whole, by the features of the Inception network.

Both are those of torch-fidelity, which need not be installed for anything else; its weights are read from a file. They
compare distributions, so they need many pictures: the covariance behind FID has 2048 x 2048 entries and no full rank below
2049 pictures, and with few of them FID is biased by more than methods differ. KID is unbiased, and its spread is reported.

Sources: "GANs Trained by a Two Time-Scale Update Rule", arXiv 1706.08500; "Demystifying MMD GANs", arXiv 1801.01401.

Public: DistributionScores, INCEPTION, load_inception, features_of, distribution_scores.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from tqdm import tqdm

from .config import ConfigError
from .output_folders import Picture
from .torch_files import TorchFileError, read_torch_file

INCEPTION = "checkpoints/pretrained/weights-inception-2015-12-05-6726825d.pth"
_SHA256 = "6726825d"  # the published file carries it in its name

FEATURE = "2048"
KID_SUBSETS, KID_SUBSET = 100, 1000
"""Number and size of the random subsets whose mean is KID, as published."""

Network = Callable[[Tensor], Tensor]
"""Pictures uint8 [n, 3, h, w] -> features [n, d]."""


@dataclass(frozen=True)
class DistributionScores:
    """Lower is better. kid, kid_deviation: mean and standard deviation over subsets; fid: None with too few pictures."""

    fid: float | None
    kid: float
    kid_deviation: float
    pictures: tuple[int, int]


def load_inception(path: Path, device: torch.device) -> Network:
    """The network of FID, its weights from a file; nothing is downloaded.

    Raises:
        ConfigError: torch-fidelity is not installed, or the file is missing or another one.
    """
    again = "run `python -m scripts.download_weights inception_fid`."
    if not path.is_file():
        raise ConfigError(
            f"{path} is missing: FID and KID need the weights of Inception; to get them, {again}"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(_SHA256):
        raise ConfigError(
            f"{path} has sha256 {digest[:8]}..., expected {_SHA256}...: it is cut off or another file. Delete it and {again}"
        )
    try:
        read_torch_file(path)  # the library opens files without looking for code in them
    except TorchFileError as error:
        raise ConfigError(f"{path} {error}.") from error
    extractor = _fidelity("feature_extractor_inceptionv3").FeatureExtractorInceptionV3(
        "inception-v3-compat", [FEATURE], feature_extractor_weights_path=str(path)
    )
    extractor = extractor.to(device)
    return lambda pictures: extractor(pictures.to(device))[0].cpu()


def _fidelity(module: str) -> ModuleType:
    try:
        return importlib.import_module(f"torch_fidelity.{module}")
    except ImportError as error:
        raise ConfigError(
            f"FID and KID need torch-fidelity ({error}): pip install torch-fidelity==0.4.0"
        ) from error


@torch.no_grad()
def features_of(pictures: Sequence[Picture], network: Network, *, at_once: int = 32) -> Tensor:
    """Features of picture files. [n, d]

    Raises:
        ValueError: a file is no picture.
    """
    found = []
    for first in tqdm(range(0, len(pictures), at_once), desc="features", unit="batch"):
        images = [(p.load() * 255).round().to(torch.uint8) for p in pictures[first : first + at_once]]
        same = len({image.shape for image in images}) == 1
        found += map(network, [torch.stack(images)] if same else [image[None] for image in images])
    return torch.cat(found)


def distribution_scores(
    samples: Tensor, truths: Tensor, *, kid_subset: int = KID_SUBSET
) -> DistributionScores:
    """FID and KID between the features of two sets. [n, d], [m, d]

    Args:
        kid_subset: pictures in each subset of KID; its mean does not depend on it, its spread does.

    Raises:
        ValueError: fewer pictures than one subset of KID.
    """
    counts = len(samples), len(truths)
    if min(counts) < kid_subset:
        raise ValueError(
            f"{counts[0]} samples and {counts[1]} truths are too few: KID takes subsets of {kid_subset}. Score the frames of "
            "more scenes, or choose a smaller --kid_subset (its mean stays unbiased, its spread grows)."
        )
    kid = _fidelity("metric_kid").kid_features_to_metric(
        samples.double(),
        truths.double(),
        kid_subsets=KID_SUBSETS,
        kid_subset_size=kid_subset,
        verbose=False,
    )
    fid = None
    if min(counts) > samples.shape[1]:
        statistics = [
            _fidelity("metric_fid").fid_features_to_statistics(features.double())
            for features in (samples, truths)
        ]
        scores = _fidelity("metric_fid").fid_statistics_to_metric(*statistics, verbose=False)
        fid = scores["frechet_inception_distance"]
    mean, deviation = (float(kid[f"kernel_inception_distance_{name}"]) for name in ("mean", "std"))
    return DistributionScores(fid, mean, deviation, counts)
