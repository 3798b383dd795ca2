"""The pose estimator of UP-LVSM: tokens of a target image and the scene's latents to seven numbers."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry.camera import full_precision
from .transformer import TransformerSettings, transformer_stack


class PoseHead(nn.Module):
    """[b, d] -> [b, out]"""

    def __init__(self, d: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d, d // 2)
        self.fc2 = nn.Linear(d // 2, out)
        for layer in (self.fc1, self.fc2):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class PoseEstimator(nn.Module):
    """Pose code (translation, quaternion xyzw) of each target image, in the model's own world frame."""

    def __init__(self, num_layers: int, settings: TransformerSettings, *, qk_norm_eps: float) -> None:
        super().__init__()
        plain = replace(settings, special_init=False)
        self.transformer_estimator = transformer_stack(num_layers, plain, qk_norm_eps=qk_norm_eps)
        self.absT_head = PoseHead(settings.d, 3)
        self.quaR_head = PoseHead(settings.d, 4)

    def forward(self, targets: Tensor, scene: Tensor) -> Tensor:
        """
        Args:
            targets: tokens of the target images. [b, n, d]
            scene: latents, one set for each target. [b, l, d]

        Returns:
            float32 pose code; the quaternion has length 1 unless it was shorter than 1e-3. [b, 7]
        """
        used = slice(targets.shape[1])
        tokens = self.transformer_estimator(torch.cat([targets, scene], dim=1), used=used)
        with full_precision(tokens.device):  # in bf16 a position would be off by up to 0.4 %
            pooled = tokens.float().mean(dim=1)
            quat = self.quaR_head(pooled)
            quat = quat / quat.norm(dim=-1, keepdim=True).clamp_min(1e-3)
            return torch.cat([self.absT_head(pooled), quat], dim=-1)
