"""What of a run's settings shapes a sample.

Public: ViewSettings.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..config import ConfigError
from ..settings import RunConfig
from ..settings_remote import Remote
from ..settings_views import ViewSelector


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """What of a run's settings shapes a sample, and how it is fetched; names as in `settings.Training` and `model.image_tokenizer`."""

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
    fast_decode: bool = False
    remote: Remote = field(default_factory=Remote)

    @classmethod
    def of(cls, config: RunConfig, *, training: bool = False) -> ViewSettings:
        """Collect them from a run's config; ConfigError if pictures could not be cut into patches.

        training: with `training.vae_latents` and `training.fast_decode`, which hold for training alone.
        """
        section, tokenizer = config.training, config.model.image_tokenizer
        names = [name for name in cls.__dataclass_fields__ if name not in ("image_size", "patch_size")]
        values = {name: getattr(section, name) for name in names}
        if any(side % tokenizer.patch_size for side in section.image_shape):
            raise ConfigError(
                f"training.image_shape is {section.image_shape}: expected multiples of the model's patch size "
                f"{tokenizer.patch_size}."
            )
        if not training:
            values.update(vae_latents="", fast_decode=False)
        return cls(image_size=tokenizer.image_size, patch_size=tokenizer.patch_size, **values)
