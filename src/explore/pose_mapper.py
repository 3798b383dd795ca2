"""From cameras of the real world to the pose space that a model without poses has made up, and back.

UP-LVSM agrees with itself on where a picture was taken, not with the world: the first photo is near its origin, lengths
and bends are its own. A small network, fitted on posed scenes (`python -m src.fit_pose_mapper`), takes a camera given
relative to the first photo, in units of the distance to the photo farthest from it, to the pose that the model would
estimate there; another one goes back. Both see where the model puts that farthest photo, which tells a scene's scale.

Public: PoseMapper, Mapping, relative_poses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import CheckpointError
from ..files import replacing
from ..geometry.camera import Cameras
from ..geometry.frames import WorldFrame
from ..geometry.rotation import decode_pose, encode_pose

CODE = 7
FORMAT = 1


def relative_poses(c2w: Tensor) -> tuple[WorldFrame, int]:
    """The frame of the first camera, in which the one farthest from it is at distance 1, and which one that is.

    [1, v, 4, 4]; cameras in one place keep their scale.
    """
    poses = c2w.double()
    distance = (poses[0, :, :3, 3] - poses[0, 0, :3, 3]).norm(dim=-1)
    far = int(distance.argmax())
    scale = 1 / distance[far] if distance[far] > 0 else torch.ones((), dtype=torch.float64)
    return WorldFrame(torch.linalg.inv(poses[:, 0]), scale[None]), far


class _Network(nn.Module):
    """A guessed pose code and where the model puts the first and the farthest photo -> a better one; the same at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3 * CODE, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, CODE)
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, guess: Tensor, first: Tensor, far: Tensor) -> Tensor:
        """[n, 7] three times -> [n, 7]"""
        code = guess + self.layers(torch.cat([guess, first, far], dim=-1))
        quat = code[:, 3:] / code[:, 3:].norm(dim=-1, keepdim=True).clamp_min(1e-3)
        return torch.cat([code[:, :3], quat], dim=-1)


class PoseMapper(nn.Module):
    """Both directions, and the guess from which they start: the similarity that takes the first and the farthest photo
    to where the model puts them.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.width = width
        self.to_model, self.from_model = _Network(width), _Network(width)

    def forward(self, poses: Tensor, first: Tensor, far: Tensor) -> Tensor:
        """Camera-to-world relative to the first photo -> in the model's space. [n, 4, 4], codes [n, 7] twice"""
        anchor, scale = decode_pose(first), (far[:, :3] - first[:, :3]).norm(dim=-1)
        moved = torch.cat([poses[:, :3, :3], poses[:, :3, 3:] * scale[:, None, None]], dim=-1)
        guess = anchor @ torch.cat([moved, poses[:, 3:]], dim=-2)
        return decode_pose(self.to_model(encode_pose(guess), first, far))

    def back(self, poses: Tensor, first: Tensor, far: Tensor) -> Tensor:
        """The other way. [n, 4, 4], codes [n, 7] twice -> [n, 4, 4]"""
        anchor, scale = decode_pose(first), (far[:, :3] - first[:, :3]).norm(dim=-1).clamp_min(1e-6)
        moved = torch.linalg.inv(anchor) @ poses
        moved = torch.cat([moved[:, :3, :3], moved[:, :3, 3:] / scale[:, None, None]], dim=-1)
        guess = torch.cat([moved, poses[:, 3:]], dim=-2)
        return decode_pose(self.from_model(encode_pose(guess), first, far))

    def for_place(self, estimated: Cameras, given: Cameras | None) -> Mapping:
        """The mapping of one scene.

        Args:
            estimated: where the model puts the photos. [1, v]
            given: their true cameras; None: unknown.
        """
        return Mapping(self, estimated, given)

    def save(self, path: Path, about: dict[str, Any]) -> None:
        """Write weights and what is known of them; the file appears only when it is whole."""
        content = {"format": FORMAT, "width": self.width, "about": about, "weights": self.state_dict()}
        with replacing(path) as temporary:
            torch.save(content, temporary)

    @classmethod
    def load(cls, path: Path) -> PoseMapper:
        """Raises CheckpointError if the file is no pose mapper."""
        try:
            content = torch.load(path, weights_only=True, map_location="cpu")
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}")
            mapper = cls(int(content["width"]))
            mapper.load_state_dict(content["weights"])
        except FileNotFoundError:
            raise CheckpointError(
                f"{path}: no such pose mapper. Make one with python -m src.fit_pose_mapper."
            ) from None
        except Exception as error:  # unpickling damaged files raises anything
            raise CheckpointError(
                f"{path} is no pose mapper ({type(error).__name__}): fit a new one."
            ) from error
        return mapper.eval()


class Mapping:
    """The pose mapper on one scene: cameras of its world -> cameras of the model's."""

    def __init__(self, mapper: PoseMapper, estimated: Cameras, given: Cameras | None) -> None:
        self.mapper = mapper
        self.estimated = Cameras(
            estimated.c2w.float().cpu(), estimated.fxfycxcy.float().cpu(), estimated.height, estimated.width
        )
        codes = encode_pose(self.estimated.c2w[0])  # [v, 7]
        if given is None:
            distance = (codes[:, :3] - codes[0, :3]).norm(dim=-1)
            self.frame, far = None, int(distance.argmax())
        else:
            self.frame, far = relative_poses(given.c2w.cpu())
        self.first, self.far = codes[:1], codes[far : far + 1]

    @torch.no_grad()
    def __call__(self, cameras: Cameras) -> Cameras:
        """[1, v] -> [1, v]"""
        relative = self.frame.apply(cameras) if self.frame else cameras
        n = relative.num_views
        return relative.at(self.mapper(relative.c2w[0].float(), *self._anchors(n))[None])

    @torch.no_grad()
    def keys(self) -> Cameras:
        """Cameras of the photos relative to the first, as far as the mapper can tell. [1, v]"""
        n = self.estimated.num_views
        return self.estimated.at(self.mapper.back(self.estimated.c2w[0], *self._anchors(n))[None])

    def _anchors(self, n: int) -> tuple[Tensor, Tensor]:
        return self.first.expand(n, -1), self.far.expand(n, -1)
