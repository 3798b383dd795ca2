"""FID and KID against their formulas, refusals, and what is said of missing files. The network is a stand-in."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from scripts import score_distribution
from src import fid
from src.config import ConfigError
from src.output_folders import Picture
from src.visualize import save_image

pytest.importorskip("torch_fidelity")
CPU = torch.device("cpu")


def means(pictures: Tensor) -> Tensor:
    """Six numbers of each picture: means of its halves' colours."""
    assert pictures.dtype == torch.uint8
    halves = (pictures.float() / 255).chunk(2, dim=-1)
    return torch.cat([half.mean(dim=(-2, -1)) for half in halves], dim=1)


def test_fid_is_the_frechet_distance() -> None:
    """|mean difference|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)), with diagonal covariances: sum of (sqrt a - sqrt b)^2."""
    g = np.random.default_rng(0)
    base = g.normal(size=(4000, 3))
    base = (base - base.mean(0)) @ np.linalg.inv(
        np.linalg.cholesky(np.cov(base, rowvar=False))
    ).T  # covariance 1
    one = torch.from_numpy(base * [1.0, 2, 3])
    two = torch.from_numpy(base[:, [1, 2, 0]] * [2.0, 2, 1] + [1.0, 0, 2])
    found = fid.distribution_scores(one, two, kid_subset=50)
    assert found.fid == pytest.approx(1 + 4 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2, rel=1e-6)
    same = fid.distribution_scores(one, one, kid_subset=50)
    assert same.fid == pytest.approx(0, abs=1e-6) and found.kid > 10 * abs(same.kid)


def test_kid_is_the_unbiased_kernel_distance() -> None:
    """With subsets of everything: mean k(x, x') + mean k(y, y') - 2 mean k(x, y), k = (x y / d + 1)^3."""
    x, y = torch.randn(40, 5).double(), torch.randn(40, 5).double() + 0.4
    xx, yy, xy = (((a @ b.T) / 5 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    n = 40
    expected = (
        (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (n * (n - 1)) - 2 * xy.mean()
    )
    found = fid.distribution_scores(x, y, kid_subset=40)
    assert found.kid == pytest.approx(float(expected), rel=1e-9) and found.kid_deviation < 1e-9


def test_few_pictures_have_no_fid_and_fewer_no_kid() -> None:
    x = torch.randn(30, 64)
    found = fid.distribution_scores(x, x + 1, kid_subset=10)
    assert found.fid is None and found.kid > 0 and found.pictures == (30, 30)
    with pytest.raises(ValueError, match="30 samples and 30 truths are too few: KID takes subsets of 1000"):
        fid.distribution_scores(x, x)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 frames of two scenes; the renders are darker."""
    g = torch.Generator().manual_seed(0)
    for number in range(24):
        place = tmp_path / "method" / f"scene{number % 2}"
        picture = torch.rand(3, 8, 8 + 8 * (number % 2), generator=g)
        save_image(place / "target" / f"{number:06d}.png", picture)
        save_image(place / "render" / f"{number:06d}.png", picture * 0.8)
    return tmp_path / "method"


def test_features_do_not_depend_on_how_pictures_are_grouped(folder: Path) -> None:
    pictures = [Picture(path) for path in sorted(folder.glob("*/render/*.png"))]
    torch.testing.assert_close(
        fid.features_of(pictures, means, at_once=5), fid.features_of(pictures, means, at_once=1)
    )


def test_the_command_writes_scores(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(score_distribution, "load_inception", lambda path, device: means)
    words = ["--name", f"mine={folder}", "--kid_subset", "20", "--output", str(tmp_path / "out.json")]
    assert score_distribution.main(words) == 0
    assert (tmp_path / "out.json").is_file()
    assert capsys.readouterr().out.splitlines()[1].split()[::4] == ["mine", "24"]


def test_mistakes_are_told_in_a_line(folder: Path, capsys: pytest.CaptureFixture) -> None:
    name = ["--name", f"mine={folder}"]
    for words, message in (
        ([], "holds 24 frames, KID takes 1000 at a time"),
        (["--kid_subset", "20", "--inception", "nowhere.pth"], "download_weights inception_fid"),
    ):
        assert score_distribution.main([*name, *words]) == 2
        assert message in capsys.readouterr().err
    next(folder.glob("*/target/*.png")).unlink()
    assert (
        score_distribution.main(name) == 2 and "lacks the truth of 1 of 24 frames" in capsys.readouterr().err
    )


def test_weights_are_checked_before_they_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"cut off")
    with pytest.raises(ConfigError, match="cut off or another file"):
        fid.load_inception(path, CPU)
    torch.save({"x": print}, path)  # a name of code inside
    monkeypatch.setattr(fid, "_SHA256", hashlib.sha256(path.read_bytes()).hexdigest()[:8])
    with pytest.raises(ConfigError, match="can run code"):
        fid.load_inception(path, CPU)


@pytest.mark.slow
def test_the_network_gives_2048_features_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With random weights of the published shapes."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path / "weights.pth"
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *a, **k: {})
    monkeypatch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    torch.save(module.FeatureExtractorInceptionV3("x", ["2048"]).state_dict(), path)
    monkeypatch.undo()
    monkeypatch.setattr(fid, "_SHA256", hashlib.sha256(path.read_bytes()).hexdigest()[:8])
    network = fid.load_inception(path, CPU)
    assert network(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, 2048)
