"""What of a run's settings shapes a sample.

Public: ViewSettings.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import ConfigError
from ..settings import RunConfig
from ..settings_views import ViewSelector


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """What of a run's settings shapes a sample; names as in `settings.Training` and `model.image_tokenizer`."""

    image_size: int
    patch_size: int
    square_crop: bool
    image_shape: list[int]
    pose_frame: str
    scene_scale_factor: float
    pose_norm: str
    num_views: int
    num_target_views: int
    target_has_input: bool
    target_has_input_share: float
    view_sampler: str
    view_selector: ViewSelector
    sort_context_index: bool
    sort_target_index: bool
    max_fov: float
    skip_bad_shape: bool
    augment: bool
    zoom_max: float
    make_baseline_1: bool
    keep_principal_point: bool
    vae_latents: str

    @classmethod
    def of(cls, config: RunConfig, *, latents: bool = False) -> ViewSettings:
        """Collect them from a run's config; ConfigError if pictures could not be cut into patches.

        latents: samples carry the latents of `training.vae_latents`, which training alone reads.
        """
        training, tokenizer = config.training, config.model.image_tokenizer
        names = [name for name in cls.__dataclass_fields__ if name not in ("image_size", "patch_size")]
        values = {name: getattr(training, name) for name in names}
        if any(side % tokenizer.patch_size for side in training.image_shape):
            raise ConfigError(
                f"training.image_shape is {training.image_shape}: expected multiples of the model's patch size "
                f"{tokenizer.patch_size}."
            )
        if not latents:
            values["vae_latents"] = ""
        return cls(image_size=tokenizer.image_size, patch_size=tokenizer.patch_size, **values)
