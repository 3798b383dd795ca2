"""Input and target views of scenes that are to be scored without an index file.

    random    inputs and targets drawn from all frames
    kmeans    targets are every 8th frame, inputs the k-means views over all cameras among the others: the protocol of
              Long-LRM and LaCT on scenes
    uniform   inputs evenly spaced over the frames, targets over the others

A scene's choice depends on the seed and its name alone. Inputs and targets never share a frame: a scene with too few
frames is left out and counted.

Public: SELECTIONS, choose_frames, choose_index, index_text, TARGET_EVERY.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from tqdm import tqdm

from ..settings_views import ViewChoice
from .bounded_views import Chosen
from .scene import Scene, SceneError, Scenes
from .view_clusters import camera_features, kmeans_frames

TARGET_EVERY = 8
"""Frame numbers that this divides are the targets of `kmeans`."""


def _random(scene: Scene, usable: list[int], num_input: int, num_target: int, rng: random.Random) -> Chosen:
    """Inputs and targets drawn without replacement; 0 targets: all others."""
    drawn = rng.sample(usable, len(usable))
    last = num_input + num_target if num_target else len(drawn)
    return Chosen(sorted(drawn[:num_input]), sorted(drawn[num_input:last]))


def _kmeans(scene: Scene, usable: list[int], num_input: int, num_target: int, rng: random.Random) -> Chosen:
    """Targets are every 8th frame, or so many of these, evenly spaced; inputs the k-means views among the rest."""
    target = [frame for frame in usable if frame % TARGET_EVERY == 0]
    target = _evenly(target, num_target) if num_target else target
    allowed = [row for row, frame in enumerate(usable) if frame not in set(target)]
    if num_input > len(allowed) or not target or len(target) < num_target:
        raise SceneError(
            f"its {len(usable)} usable frames, every {TARGET_EVERY}th a target, do not give {num_input} input views "
            f"and {num_target or 'the'} targets apart from them"
        )
    rows = kmeans_frames(camera_features(scene, usable), num_input, allowed, rng)
    return Chosen([usable[row] for row in rows], target)


def _uniform(scene: Scene, usable: list[int], num_input: int, num_target: int, rng: random.Random) -> Chosen:
    """Inputs evenly spaced over all frames, first and last included; targets evenly spaced over the others, or all."""
    context = _evenly(usable, num_input)
    rest = [frame for frame in usable if frame not in set(context)]
    return Chosen(context, _evenly(rest, num_target) if num_target else rest)


def _evenly(frames: list[int], num: int) -> list[int]:
    """`num` of the frames, first and last included; the middle one alone. All of them if there are fewer."""
    if num >= len(frames):
        return frames
    if num == 1:
        return [frames[len(frames) // 2]]
    return [frames[round(place * (len(frames) - 1) / (num - 1))] for place in range(num)]


SELECTIONS: dict[str, Callable[[Scene, list[int], int, int, random.Random], Chosen]] = {
    "random": _random,
    "kmeans": _kmeans,
    "uniform": _uniform,
}
"""`inference.view_selection` -> function(scene, usable frames, inputs, targets, rng)."""


def choose_frames(
    scene: Scene, selection: str, num_input: int, num_target: int, rng: random.Random
) -> Chosen:
    """Input and target frames of a scene that is to be scored; the two never share a frame.

    Args:
        selection: a key of `SELECTIONS`.
        num_target: 0: as many as there are (kmeans: every 8th frame).

    Raises:
        SceneError: the scene has too few frames, or one without a camera.
    """
    usable = [frame for frame in range(scene.num_frames) if not scene.missing(frame)]
    if num_input + max(num_target, 1) > len(usable):
        raise SceneError(
            f"{len(usable)} usable frames are too few for {num_input} input views and {max(num_target, 1)} targets "
            "apart from them"
        )
    return SELECTIONS[selection](scene, usable, num_input, num_target, rng)


def choose_index(
    scenes: Scenes, choice: ViewChoice, max_scenes: int = 0
) -> tuple[dict[str, Chosen], list[tuple[str, str]]]:
    """The frames of every scene, or of the first `max_scenes`, and the scenes that have too few with the reasons."""
    chosen: dict[str, Chosen] = {}
    problems: list[tuple[str, str]] = []
    names = list(scenes.names)[: max_scenes or None]
    for position, name in enumerate(
        tqdm(names, desc="choosing views", unit="scene", disable=len(names) < 500)
    ):
        rng = random.Random(f"{choice.view_seed} {name}")
        try:
            chosen[name] = choose_frames(
                scenes[position], choice.view_selection, choice.num_input_views, choice.num_target_views, rng
            )
        except SceneError as error:
            problems.append((name, str(error)))
    return chosen, problems


def index_text(chosen: dict[str, Chosen], problems: list[tuple[str, str]]) -> str:
    """The choice as an index file: scene -> frames, null for a scene without."""
    tree: dict[str, dict | None] = {
        name: {"context": frames.context, "target": frames.target} for name, frames in chosen.items()
    }
    tree |= dict.fromkeys((name for name, _ in problems), None)
    return json.dumps(dict(sorted(tree.items()))) + "\n"
