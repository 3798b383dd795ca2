"""PSNR, SSIM and LPIPS against other ways to compute them."""

from __future__ import annotations

import math
from pathlib import Path

import lpips as lpips_package
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from torch import Tensor

from src import metrics
from src.config import ConfigError
from src.metrics import METRICS, PSNR_CAP, _random_trunk, build_metrics, compare, load_lpips, psnr, ssim
from src.settings import Inference, Pretrained

CPU = torch.device("cpu")


def pair(n: int, height: int, width: int, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Smooth pictures and noisy copies, in places outside [0, 1]."""
    smooth = F.interpolate(torch.rand(n, 3, 4, 4), (height, width), mode="bicubic", align_corners=False)
    return smooth + noise * torch.randn(n, 3, height, width), smooth


def test_psnr_is_that_of_clamped_images() -> None:
    pred, target = torch.full((2, 3, 4, 5), 0.5), torch.full((2, 3, 4, 5), 0.4)
    pred[1], target[1] = 1.7, 0.9  # 1.7 counts as 1
    torch.testing.assert_close(psnr(pred, target), torch.tensor([20.0, 20.0]))


def test_psnr_of_identical_images_is_the_cap() -> None:
    image = torch.rand(2, 3, 4, 4)
    assert psnr(image, image).tolist() == [PSNR_CAP, PSNR_CAP]


@pytest.mark.parametrize("height, width", [(32, 32), (40, 24), (11, 17)], ids=["square", "tall", "smallest"])
@pytest.mark.parametrize("noise", [0.003, 0.3])
def test_ssim_equals_scikit_image(height: int, width: int, noise: float) -> None:
    pred, target = pair(9, height, width, noise)
    expected = [
        structural_similarity(
            a.double().numpy(),
            b.double().numpy(),
            win_size=11,
            gaussian_weights=True,
            channel_axis=0,
            data_range=1.0,
        )
        for a, b in zip(pred, target)
    ]
    np.testing.assert_allclose(ssim(pred, target).numpy(), expected, rtol=0, atol=1e-6)


def test_ssim_of_flat_images_is_exact() -> None:
    """Variances are zero: only the luminance term is left."""
    pred, target = torch.full((1, 3, 16, 16), 0.7), torch.full((1, 3, 16, 16), 0.3)
    expected = (2 * 0.21 + 1e-4) / (0.49 + 0.09 + 1e-4)
    assert ssim(pred, target).item() == pytest.approx(expected, abs=1e-6)
    assert ssim(pred, pred).item() == pytest.approx(1.0, abs=1e-7)


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="at least 11"):
        ssim(torch.rand(1, 3, 10, 20), torch.rand(1, 3, 10, 20))


def test_metrics_do_not_depend_on_autocast_or_batch() -> None:
    pred, target = pair(11, 24, 24)
    for metric in (psnr, ssim):
        alone = torch.cat([metric(a[None], b[None]) for a, b in zip(pred, target)])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            together = metric(pred, target)
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


# ----------------------------------------------------------------------------------------------- LPIPS


def lpips_by_hand(pred: Tensor, target: Tensor) -> Tensor:
    """LPIPS v0.1, VGG, written out from its paper's formula with the trunk of `random`."""
    folder = Path(lpips_package.__file__).parent
    heads = torch.load(folder / "weights/v0.1/vgg.pth", map_location="cpu", weights_only=True)
    trunk = _random_trunk()
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    features = []
    for image in (pred, target):
        x, maps = (2 * image - 1 - shift[:, None, None]) / scale[:, None, None], []
        for stage in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
            x = F.max_pool2d(x, 2) if maps else x
            for index in stage:
                x = F.relu(
                    F.conv2d(x, trunk[f"features.{index}.weight"], trunk[f"features.{index}.bias"], padding=1)
                )
            maps.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        features.append(maps)
    terms = [
        F.conv2d((a - b).square(), heads[f"lin{k}.model.1.weight"]).mean(dim=(1, 2, 3))
        for k, (a, b) in enumerate(zip(*features))
    ]
    return sum(terms)


@pytest.fixture(scope="module")
def lpips_metric() -> torch.nn.Module:
    return load_lpips("random", CPU)


def test_lpips_equals_its_formula(lpips_metric: torch.nn.Module) -> None:
    pred, target = pair(3, 16, 24)
    torch.testing.assert_close(lpips_metric(pred, target), lpips_by_hand(pred, target), rtol=1e-5, atol=1e-7)


def test_lpips_of_the_metric_is_that_of_the_package(lpips_metric: torch.nn.Module) -> None:
    """The faster way of the metric and the one that has gradients, on sides that are no multiples of anything."""
    pred, target = pair(2, 37, 51)
    with_gradients = lpips_metric(pred.clone().requires_grad_(), target)
    assert with_gradients.requires_grad
    torch.testing.assert_close(lpips_metric(pred, target), with_gradients.detach(), rtol=1e-5, atol=1e-7)


def test_pairs_among_images_are_scored_as_each_alone(lpips_metric: torch.nn.Module) -> None:
    images = torch.cat(pair(2, 32, 24))
    pairs = [(2, 0), (3, 0), (2, 1), (1, 1), (2, 0)]
    for metric in (psnr, ssim, lpips_metric):
        alone = torch.cat([metric(images[a : a + 1], images[b : b + 1]) for a, b in pairs])
        torch.testing.assert_close(compare(metric, images, pairs), alone, rtol=1e-6, atol=1e-7)


def test_many_pairs_are_scored_in_groups_and_few_features_kept(
    lpips_metric: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, pairs = torch.rand(5, 3, 16, 16), [(i % 4, 4 - i % 3) for i in range(21)]
    expected = [compare(metric, images, pairs) for metric in (psnr, ssim, lpips_metric)]
    monkeypatch.setattr(metrics, "_KEPT", 2)
    sizes = []

    def remember(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        sizes.append(len(a))
        return psnr(a, b)

    assert torch.equal(compare(remember, images, pairs), expected[0]) and max(sizes) <= 8
    for metric, values in zip((psnr, ssim, lpips_metric), expected):
        torch.testing.assert_close(compare(metric, images, pairs), values, rtol=1e-6, atol=1e-7)


def test_each_image_is_looked_at_once(lpips_metric: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, see = [], type(lpips_metric)._see
    monkeypatch.setattr(
        type(lpips_metric), "_see", lambda self, images: seen.append(len(images)) or see(self, images)
    )
    images, pairs = torch.rand(5, 3, 16, 16), [(2, 0), (4, 0), (3, 1), (4, 1)]
    distances = lpips_metric.compare(images, pairs)
    assert sum(seen) == 5 and max(seen) == 2
    seen.clear()
    monkeypatch.setattr(
        type(lpips_metric), "_at_once", 4
    )  # as where there is no processor's cache to keep to
    torch.testing.assert_close(lpips_metric.compare(images, pairs), distances, rtol=1e-6, atol=1e-7)
    assert seen == [4, 1]


def test_lpips_of_identical_images_is_zero(lpips_metric: torch.nn.Module) -> None:
    image = torch.rand(2, 3, 16, 16)
    assert lpips_metric(image, image).tolist() == [0.0, 0.0]


def test_lpips_is_computed_in_float32_under_autocast(lpips_metric: torch.nn.Module) -> None:
    pred, target = pair(1, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = lpips_metric(pred, target)
    assert torch.equal(inside, lpips_metric(pred, target))


def test_lpips_network_is_frozen_and_whole(lpips_metric: torch.nn.Module) -> None:
    assert not any(p.requires_grad for p in lpips_metric.parameters())
    assert not any(t.is_meta for t in lpips_metric.state_dict().values())
    assert not lpips_metric.network.training


def test_a_missing_trunk_is_named_with_the_command_that_brings_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vgg16-397923af\.pth.*scripts\.download_weights vgg16"):
        load_lpips(str(tmp_path / "vgg16-397923af.pth"), CPU)


def test_another_file_in_the_place_of_the_trunk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vgg16-397923af.pth"
    path.write_bytes(b"cut off")
    with pytest.raises(ConfigError, match=r"7 bytes.*expected 397923af"):
        load_lpips(str(path), CPU)


# ----------------------------------------------------------------------------------------------- table


def test_only_the_named_metrics_are_built() -> None:
    pretrained = Pretrained(vgg16="nowhere.pth")
    assert list(build_metrics(["ssim", "psnr"], pretrained, CPU)) == ["ssim", "psnr"]


def test_an_unknown_metric_is_refused_and_the_table_is_what_the_settings_allow() -> None:
    with pytest.raises(ConfigError, match="vmaf is not a metric"):
        build_metrics(["vmaf"], Pretrained(), CPU)
    Inference(metrics=list(METRICS))


@pytest.mark.gpu
def test_metrics_on_a_gpu_equal_those_on_the_cpu_with_tf32_allowed(lpips_metric: torch.nn.Module) -> None:
    device = torch.accelerator.current_accelerator()
    pred, target = pair(3, 48, 40)
    torch.set_float32_matmul_precision("high")
    try:
        on_device = load_lpips("random", device)(pred.to(device), target.to(device)).cpu()
        scores = ssim(pred.to(device), target.to(device)).cpu()
    finally:
        torch.set_float32_matmul_precision("highest")
    torch.testing.assert_close(on_device, lpips_metric(pred, target), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores, ssim(pred, target), rtol=0, atol=1e-6)
    assert math.isfinite(float(scores.sum()))
