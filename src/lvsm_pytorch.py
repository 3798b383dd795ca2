"""The module API: three lines in a notebook instead of a trainer. See docs/module_api.md.

    from parallax_nvs.lvsm_pytorch import LVSM     (in a checkout: from src.lvsm_pytorch import LVSM)
    lvsm = LVSM(dim=512, max_image_size=256, patch_size=16)
    render = lvsm(input_images, input_rays, target_rays)

Names, arguments and results are those of lvsm-pytorch 0.1.6.

Public: LVSM, CameraWrapper, MAE, MAECameraWrapper, to_plucker_rays, camera_arguments, ImageAndPluckerRayEncoder,
get_mask_subset_prob.
"""

from __future__ import annotations

from .model.lvsm_pytorch.cameras import CameraWrapper, MAECameraWrapper, camera_arguments, to_plucker_rays
from .model.lvsm_pytorch.encoder import ImageAndPluckerRayEncoder
from .model.lvsm_pytorch.lvsm import LVSM
from .model.lvsm_pytorch.mae import MAE, get_mask_subset_prob

__all__ = [
    "LVSM",
    "MAE",
    "CameraWrapper",
    "ImageAndPluckerRayEncoder",
    "MAECameraWrapper",
    "camera_arguments",
    "get_mask_subset_prob",
    "to_plucker_rays",
]
