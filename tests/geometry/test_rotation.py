"""Laws of quaternions, the pose code and slerp."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from src.geometry.rotation import (
    decode_pose,
    encode_pose,
    matrix_to_quat_xyzw,
    quat_xyzw_to_matrix,
    slerp,
)


def rotations(case: str) -> torch.Tensor:
    """Rotation matrices of one kind, made with SciPy. [n, 3, 3] float64"""
    axes = torch.nn.functional.normalize(torch.randn(200, 3, dtype=torch.float64), dim=-1)
    axes = torch.cat([torch.eye(3, dtype=torch.float64), axes])
    angles = {
        "any": torch.rand(203, 1, dtype=torch.float64) * 2 * math.pi,
        "tiny": torch.full((203, 1), 1e-7, dtype=torch.float64),
        "none": torch.zeros(203, 1, dtype=torch.float64),
        "half turn": torch.full((203, 1), math.pi, dtype=torch.float64),
        "near half turn": torch.full((203, 1), math.pi - 1e-6, dtype=torch.float64),
    }[case]
    return torch.from_numpy(Rotation.from_rotvec((axes * angles).numpy()).as_matrix())


CASES = ["any", "tiny", "none", "half turn", "near half turn"]


@pytest.mark.parametrize("case", CASES)
def test_matrix_to_quaternion_and_back(case):
    matrices = rotations(case)
    quat = matrix_to_quat_xyzw(matrices)
    torch.testing.assert_close(quat.norm(dim=-1), torch.ones(203, dtype=torch.float64))
    assert (quat[:, 3] >= 0).all()
    torch.testing.assert_close(quat_xyzw_to_matrix(quat), matrices, atol=1e-12, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_quaternion_agrees_with_scipy_up_to_sign(case):
    matrices = rotations(case)
    expected = torch.from_numpy(Rotation.from_matrix(matrices.numpy()).as_quat())
    cosine = (matrix_to_quat_xyzw(matrices) * expected).sum(-1).abs()
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_pose_code_holds_translation_then_quaternion():
    quarter_about_z = torch.tensor([[0.0, -1, 0, 5], [1, 0, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]])
    half = math.sqrt(0.5)
    torch.testing.assert_close(encode_pose(quarter_about_z), torch.tensor([5.0, 6, 7, 0, 0, half, half]))
    torch.testing.assert_close(decode_pose(encode_pose(quarter_about_z)), quarter_about_z)


def test_length_and_sign_of_a_quaternion_do_not_matter_to_the_pose():
    code = torch.randn(10, 7, dtype=torch.float64)
    scaled = torch.cat([code[:, :3], -3.5 * code[:, 3:]], dim=-1)
    torch.testing.assert_close(decode_pose(scaled), decode_pose(code))
    torch.testing.assert_close(torch.linalg.det(decode_pose(code)), torch.ones(10, dtype=torch.float64))


def test_decode_pose_is_differentiable():
    code = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(decode_pose, code)


def test_slerp_meets_its_ends_on_the_shorter_arc_at_constant_speed():
    start, end = matrix_to_quat_xyzw(rotations("any")), matrix_to_quat_xyzw(rotations("any"))
    turn = (Rotation.from_quat(start.numpy()).inv() * Rotation.from_quat(end.numpy())).magnitude()
    for t in (0.0, 0.25, 1.0):
        quat = slerp(start, -end, torch.tensor(t))
        done = (Rotation.from_quat(start.numpy()).inv() * Rotation.from_quat(quat.numpy())).magnitude()
        torch.testing.assert_close(torch.from_numpy(done), t * torch.from_numpy(turn), atol=1e-6, rtol=0)


def test_slerp_between_equal_rotations_stays():
    quat = matrix_to_quat_xyzw(rotations("any"))
    torch.testing.assert_close(slerp(quat, quat.clone(), torch.tensor(0.3)), quat)
