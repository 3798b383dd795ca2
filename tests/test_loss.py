"""The image losses against straightforward computations, and where their gradients go."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import io
from torch import Tensor

from src.config import ConfigError
from src.loss import VGG19_CHANNELS, ImageLoss, PerceptualLoss, build_image_loss, load_perceptual
from src.settings import Pretrained, Training

CPU = torch.device("cpu")
NARROW = [3, 4, "M", 4, 5, "M", 5, 5, 6, 6, "M", 6, 6, 7, 7, "M", 7, 7, 8, 8, "M"]
CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30)
TERMS = {
    "loss",
    "l2_loss",
    "psnr",
    "lpips_loss",
    "perceptual_loss",
    "norm_lpips_loss",
    "norm_perceptual_loss",
}


@pytest.fixture
def network() -> PerceptualLoss:
    network = PerceptualLoss(NARROW)
    for parameter in network.parameters():
        parameter.normal_(0, 0.3)
    return network


def perceptual_by_hand(state: dict[str, Tensor], pred: Tensor, target: Tensor) -> float:
    """Image by image, layer by layer, in float64."""
    scales = dict(zip((2, 7, 12, 21, 30), (1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5)))
    mean = torch.tensor([123.68, 116.779, 103.939], dtype=torch.float64)[:, None, None]
    sums: dict[int, list[float]] = {-1: []} | {index: [] for index in scales}
    for one, other in zip(pred.double(), target.double()):
        a, b = 255 * one - mean, 255 * other - mean
        sums[-1].append(float((a - b).abs().mean()))
        for index in CONVOLUTIONS:
            if index in (5, 10, 19, 28):
                a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
            weight, bias = (state[f"features.{index}.{kind}"].double() for kind in ("weight", "bias"))
            a, b = (F.conv2d(x[None], weight, bias, padding=1)[0].clamp_min(0) for x in (a, b))
            if index in scales:
                sums[index].append(float((a - b).abs().mean()))
    total = sum(scale * np.mean(sums[index]) for index, scale in scales.items())
    return (float(np.mean(sums[-1])) + total) / 255


@pytest.mark.parametrize("height, width", [(32, 32), (20, 36)], ids=["square", "wide"])
def test_perceptual_loss_equals_a_plain_loop(network: PerceptualLoss, height: int, width: int) -> None:
    pred, target = torch.rand(3, 3, height, width), torch.rand(3, 3, height, width)
    expected = perceptual_by_hand(network.state_dict(), pred, target)
    assert float(network(pred, target)) == pytest.approx(expected, rel=1e-5)


def test_gradients_reach_the_prediction_alone(network: PerceptualLoss) -> None:
    pred = torch.rand(1, 2, 3, 16, 16, requires_grad=True)
    target = torch.rand(1, 2, 3, 16, 16, requires_grad=True)
    ImageLoss(0.0, {"perceptual": (0.5, network)})(pred, target)["loss"].backward()
    assert pred.grad is not None and pred.grad.abs().sum() > 0
    assert target.grad is None
    assert all(parameter.grad is None for parameter in network.parameters())


def test_frozen_network_is_in_evaluation_mode_without_unused_layers(network: PerceptualLoss) -> None:
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert {name.split(".")[1] for name in network.state_dict()} == {str(i) for i in CONVOLUTIONS}


# ----------------------------------------------------------------------------------------------- weighted sum


def test_loss_is_the_weighted_sum_and_reports_each_term(network: PerceptualLoss) -> None:
    pred, target = torch.rand(2, 3, 3, 16, 16), torch.rand(2, 3, 3, 16, 16)
    found = ImageLoss(0.7, {"perceptual": (0.2, network)})(pred, target)
    mse = float((pred - target).square().mean())
    term = float(network(pred.flatten(0, 1), target.flatten(0, 1)))
    assert found.keys() == TERMS
    assert float(found["loss"]) == pytest.approx(0.7 * mse + 0.2 * term, rel=1e-6)
    assert float(found["l2_loss"]) == pytest.approx(mse, rel=1e-6)
    assert float(found["psnr"]) == pytest.approx(-10 * math.log10(mse), rel=1e-6)  # of the mean, not a mean
    assert float(found["perceptual_loss"]) == pytest.approx(term, rel=1e-6)
    assert float(found["norm_perceptual_loss"]) == pytest.approx(term / mse, rel=1e-6)
    assert float(found["lpips_loss"]) == float(found["norm_lpips_loss"]) == 0.0


def test_reported_terms_hold_no_graph() -> None:
    pred = torch.rand(1, 1, 3, 4, 4, requires_grad=True)
    found = ImageLoss(1.0, {})(pred, torch.rand(1, 1, 3, 4, 4))
    assert [name for name, value in found.items() if value.requires_grad] == ["loss"]


def test_without_l2_weight_the_error_is_reported_as_a_constant(network: PerceptualLoss) -> None:
    found = ImageLoss(0.0, {"perceptual": (1.0, network)})(
        torch.rand(1, 1, 3, 16, 16), torch.rand(1, 1, 3, 16, 16)
    )
    assert float(found["l2_loss"]) == pytest.approx(1e-8)
    assert float(found["loss"]) == float(found["perceptual_loss"])


def test_alpha_of_the_target_is_left_out() -> None:
    pred, target = torch.rand(1, 2, 3, 4, 4), torch.rand(1, 2, 4, 4, 4)
    found = ImageLoss(1.0, {})(pred, target)
    assert float(found["l2_loss"]) == pytest.approx(float((pred - target[:, :, :3]).square().mean()))


def test_loss_of_a_bf16_render_is_float32() -> None:
    pred, target = torch.rand(1, 1, 3, 4, 4).bfloat16(), torch.rand(1, 1, 3, 4, 4)
    found = ImageLoss(1.0, {})(pred, target)
    assert all(value.dtype == torch.float32 for value in found.values())


def test_networks_without_weight_are_not_built() -> None:
    training = Training(lpips_loss_weight=0.0, perceptual_loss_weight=0.0)
    loss = build_image_loss(training, Pretrained(vgg16="nowhere", vgg19="nowhere"), CPU)
    assert loss.terms == {}


def test_a_loss_without_any_weight_is_refused() -> None:
    training = Training(l2_loss_weight=0.0, lpips_loss_weight=0.0, perceptual_loss_weight=0.0)
    with pytest.raises(ConfigError, match=r"training\.l2_loss_weight.*nothing to minimise"):
        build_image_loss(training, Pretrained(), CPU)


def test_lpips_term_is_the_mean_of_the_metric() -> None:
    training = Training(lpips_loss_weight=0.5, perceptual_loss_weight=0.0)
    loss = build_image_loss(training, Pretrained(vgg16="random"), CPU)
    pred, target = torch.rand(1, 2, 3, 16, 16, requires_grad=True), torch.rand(1, 2, 3, 16, 16)
    found = loss(pred, target)
    assert float(found["lpips_loss"]) > 0
    expected = float(found["l2_loss"]) + 0.5 * float(found["lpips_loss"])
    assert float(found["loss"].detach()) == pytest.approx(expected, rel=1e-6)
    found["loss"].backward()
    assert pred.grad is not None


# ----------------------------------------------------------------------------------------------- files


def write_matconvnet(path: Path, channels: list) -> dict[str, np.ndarray]:
    """A network file of MatConvNet's layout: conv, relu, pool as structs in a cell array, then a softmax."""
    rng, layers, stored, before = np.random.default_rng(0), [], {}, 3
    for width in channels:
        if width == "M":
            layers.append({"type": "pool", "pool": [2, 2]})
            continue
        weight = rng.standard_normal((3, 3, before, width)).astype(np.float32)
        bias = rng.standard_normal((1, width)).astype(np.float32)
        stored[len(layers)] = (weight, bias)
        cell = np.empty((1, 2), dtype=object)
        cell[0, 0], cell[0, 1] = weight, bias
        layers += [{"type": "conv", "weights": cell}, {"type": "relu"}]
        before = width
    array = np.empty((1, len(layers) + 1), dtype=object)
    for index, layer in enumerate([*layers, {"type": "softmax"}]):
        array[0, index] = layer
    io.savemat(path, {"layers": array}, do_compression=True)
    return stored


def test_matconvnet_filters_are_transposed_into_place(tmp_path: Path) -> None:
    path = tmp_path / "vgg.mat"
    stored = write_matconvnet(path, NARROW)
    state = load_perceptual(str(path), CPU, NARROW).state_dict()
    assert {int(name.split(".")[1]) for name in state} == set(CONVOLUTIONS)
    for index in CONVOLUTIONS:
        weight, bias = stored[index]
        ours = state[f"features.{index}.weight"]
        assert float(ours[1, 2, 0, 2]) == weight[0, 2, 2, 1]
        np.testing.assert_array_equal(ours.numpy(), np.transpose(weight, (3, 2, 0, 1)))
        np.testing.assert_array_equal(state[f"features.{index}.bias"].numpy(), bias[0])


def test_a_missing_network_is_named_with_the_command_that_brings_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.mat.*vlfeat\.org.*scripts\.download_weights vgg19"):
        load_perceptual(str(tmp_path / "absent.mat"), CPU)


@pytest.mark.parametrize("kept", [0.0, 0.0001, 0.5, 0.99])
def test_a_cut_off_network_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "vgg.mat"
    write_matconvnet(path, NARROW)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ConfigError, match=r"vgg\.mat \(\d+ bytes\) is cut off or another file"):
        load_perceptual(str(path), CPU, NARROW)


def test_a_network_of_other_widths_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vgg.mat"
    write_matconvnet(path, NARROW[:9])
    with pytest.raises(ConfigError, match="does not hold the convolutions of VGG19"):
        load_perceptual(str(path), CPU, NARROW)


def test_random_network_is_asked_for_by_name_and_always_the_same() -> None:
    one, other = (load_perceptual("random", CPU, NARROW).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert VGG19_CHANNELS.count("M") == 5
