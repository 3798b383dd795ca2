"""The section `inference.sampling`: what `src.sample` makes of a scene.

Public: Sampling.
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import ConfigError, key


@dataclass(kw_only=True)
class Sampling:
    """Frames of one scene by a multi-view diffusion model."""

    scene_id: str = key(
        "scene by name, or by its place in the index file (without one: in the data set); several with commas; all",
        "0",
    )
    mode: str = key(
        "order of the frames: anchored, autoregressive, or independent, which samples each by itself",
        "anchored",
        choices=("anchored", "autoregressive", "independent"),
    )
    num_anchors_views: int = key("frames sampled first (anchored: spread over the video)", 4, least=1)
    limit_frames: int = key("sample only the first so many frames; 0: all", 0, least=0)
    context_frames: list = key("without an index file: frames that are given; all others are sampled", [0])
    along_path: bool = key(
        "sample the camera path of inference.render_video_config through the context instead of the scene's frames",
        False,
    )
    unit_baseline: bool = key(
        "with training.make_baseline_1 bring scenes to the scale of training, also from one context view: then the camera "
        "farthest from it is 1 away; published: false",
        True,
    )
    fps: int = key("frames per second of sampled.mp4", 10, least=1)
    offload: bool = key(
        "hold only that half of the model on the GPU which is at work: autoencoder or denoiser", False
    )

    def __post_init__(self) -> None:
        frames = self.context_frames
        if not frames or any(type(frame) is not int or frame < 0 for frame in frames):
            raise ConfigError(
                f"inference.sampling.context_frames is {frames}: expected frame numbers from 0, at least one."
            )
