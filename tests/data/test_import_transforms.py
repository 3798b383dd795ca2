"""DL3DV's layout into a data set folder: where points land, axes, sizes, restarts, and what goes wrong."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from raw_chunks import config

from src.config import ConfigError
from src.data.dataset import SceneDataset, open_scenes
from src.data.import_formats import import_from
from src.data.import_transforms import opencv_w2c
from src.data.importing import ImportOptions
from src.data.lens import Lens, Undistorter
from src.data.transforms import decode_image
from src.data.view_settings import ViewSettings

PLAIN = {"k1": 0.09, "k2": -0.03, "p1": 0.004, "p2": -0.003}
RATIONAL = {"k1": 0.12, "k2": 0.05, "p1": 0.001, "p2": 0.002, "k3": 0.02, "k4": 0.03, "k5": 0.01, "k6": 0.005}
FISHEYE = {"camera_model": "OPENCV_FISHEYE", "k1": 0.02, "k2": -0.01, "k3": 0.003, "k4": -0.001}
POINTS = 0.7 * np.array([[x, y] for x in (-0.45, -0.2, 0.1, 0.4) for y in (-0.3, 0.05, 0.25)])
"""Points at depth 1, in the camera's frame."""


def distorted(points: np.ndarray, lens: dict) -> np.ndarray:
    """Where a lens sees points at depth 1, still at focal length 1; written out from OpenCV's manual. [n, 2]"""
    k = [lens.get(f"k{i}", 0.0) for i in range(1, 7)]
    x, y = points.T
    if "camera_model" in lens:
        r = np.hypot(x, y)
        t = np.arctan(r)
        factor = t * (1 + k[0] * t**2 + k[1] * t**4 + k[2] * t**6 + k[3] * t**8) / r
        return np.stack([x * factor, y * factor], axis=1)
    p1, p2, r2 = lens.get("p1", 0.0), lens.get("p2", 0.0), x**2 + y**2
    radial = (1 + k[0] * r2 + k[1] * r2**2 + k[2] * r2**3) / (1 + k[3] * r2 + k[4] * r2**2 + k[5] * r2**3)
    return np.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2),
            y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y,
        ],
        axis=1,
    )


def with_spots(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A dark picture with a soft bright spot at each place; centre of pixel (i, j) at (i + 0.5, j + 0.5). uint8"""
    width, height = size
    rows, columns = np.mgrid[:height, :width] + 0.5
    spots = [np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 2.5**2)) for x, y in pixels]
    return np.repeat(np.uint8(np.rint(250 * sum(spots)))[..., None], 3, axis=2)


def spot_near(picture: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Centre of the light within 7 pixels of a place, in the same coordinates."""
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]] + 0.5
    light = picture[..., 0] * (np.hypot(columns - place[0], rows - place[1]) < 7)
    return np.array([(columns * light).sum(), (rows * light).sum()]) / light.sum()


def poses(num: int) -> list:
    """Camera-to-world with OpenGL axes: rotations about one axis and steps along another."""
    found = []
    for i in range(num):
        matrix = np.eye(4)
        matrix[:3, :3] = cv2.Rodrigues(np.array([0.1 * i, -0.2 * i, 0.05]))[0]
        matrix[:3, 3] = 0.3 * i, 0.1, -0.2 * i
        found.append(matrix.tolist())
    return found


def write_scene(folder, lens=PLAIN, size=(192, 108), frames=3, suffix="png", factor=4):
    """A scene whose stated size is `factor` times that of its pictures, with spots where the lens sees POINTS."""
    width, height = size
    focal, centre = np.array([0.9 * max(size), 0.92 * max(size)]), np.array([0.53 * width, 0.46 * height])
    place = folder / "nerfstudio"
    (place / "images_4").mkdir(parents=True)
    names = [f"frame_{n + 1:05d}.{suffix}" for n in range(frames)]
    points = POINTS if width > height else POINTS[:, ::-1]
    picture = with_spots(distorted(points, lens) * focal + centre, size)
    for name in names:
        Image.fromarray(picture).save(
            place / "images_4" / name, **({"quality": 95} if suffix == "jpg" else {})
        )
    numbers = dict(
        zip(("w", "h", "fl_x", "fl_y", "cx", "cy"), map(float, factor * np.array([*size, *focal, *centre])))
    )
    entries = [{"file_path": f"images/{n}", "transform_matrix": p} for n, p in zip(names, poses(frames))]
    (place / "transforms.json").write_text(json.dumps({**numbers, **lens, "frames": entries}))
    return place


def run(source, out, **options):
    return import_from(ImportOptions(source, out, **{"format": "dl3dv", **options}), 1)


def frames_of(out, scene):
    return json.loads((out / "metadata" / f"{scene}.json").read_text())["frames"]


def rewrite(place, **values):
    tree = json.loads((place / "transforms.json").read_text())
    (place / "transforms.json").write_text(json.dumps({**tree, **values}))


@pytest.mark.parametrize("lens", [PLAIN, RATIONAL, FISHEYE], ids=["plain", "rational", "fisheye"])
@pytest.mark.parametrize("size", [(192, 108), (108, 192)], ids=["landscape", "portrait"])
def test_points_land_where_the_new_cameras_project_them(tmp_path, lens, size):
    """To a twentieth of a pixel: half a pixel in the lens' centre would show as far as the lens bends."""
    write_scene(tmp_path / "in/a", lens, size)
    report = run(tmp_path / "in", tmp_path / "out")
    assert (report.written, report.failed) == (1, False)
    scene = open_scenes(str(tmp_path / "out/full_list.txt"))[0]
    picture, (fxfycxcy, _) = decode_image(scene.encoded(0)), scene.camera(0)
    assert picture.shape[:2] == size[::-1]
    points = POINTS if size[0] > size[1] else POINTS[:, ::-1]
    places = points * fxfycxcy[:2] + fxfycxcy[2:]
    inside = [p for p in places if 8 < p[0] < size[0] - 8 and 8 < p[1] < size[1] - 8]
    assert len(inside) >= 6
    for place in inside:
        assert np.linalg.norm(spot_near(picture, place) - place) < 0.06


def test_the_published_half_pixel_shift_shows_in_a_strongly_bent_lens():
    """Control of the test above: with the lens' centre half a pixel off, points miss by more than the right way does."""
    lens, size = {"k1": 0.5, "k2": 0.2, "p1": 0.0, "p2": 0.0}, (192, 108)
    numbers = (150.0, 150.0, 96.0, 54.0)
    points = POINTS * 1.15
    picture = with_spots(distorted(points, lens) * numbers[:2] + numbers[2:], size)
    missed = []
    for published in (False, True):
        undistort = Undistorter(
            Lens(*size, numbers, (0.5, 0.2, 0, 0, 0, 0, 0, 0)), *size, published=published
        )
        straight = undistort(picture)
        places = points * undistort.fxfycxcy[:2] + undistort.fxfycxcy[2:]
        inside = [p for p in places if 8 < p[0] < 184 and 8 < p[1] < 100]
        missed.append(max(np.linalg.norm(spot_near(straight, place) - place) for place in inside))
    assert missed[0] < 0.1 < missed[1]


def test_axes_become_opencv_and_colmaps_world():
    """A camera at (1, 2, 3) that looks along -z with y up: right stays, up becomes -down, backward becomes -forward."""
    given = np.eye(4)
    given[:3, 3] = 1, 2, 3
    w2c = opencv_w2c(given.tolist(), undo_world=False)
    np.testing.assert_allclose(w2c @ [1, 2, 2, 1], [0, 0, 1, 1])  # one unit ahead
    np.testing.assert_allclose(w2c @ [1, 3, 3, 1], [0, -1, 0, 1])  # one unit above
    turned = opencv_w2c(given.tolist(), undo_world=True)
    np.testing.assert_allclose(
        turned @ [2, 1, -2, 1], [0, 0, 1, 1]
    )  # the same point: x, y exchanged, z turned
    assert np.linalg.det(turned[:3, :3]) == pytest.approx(1)


def test_without_distortion_the_bytes_stay(tmp_path):
    place = write_scene(tmp_path / "in/a", {}, suffix="jpg")
    run(tmp_path / "in", tmp_path / "out")
    kept, source = tmp_path / "out/images/a/00001.jpg", place / "images_4/frame_00002.jpg"
    assert kept.read_bytes() == source.read_bytes()
    np.testing.assert_allclose(
        frames_of(tmp_path / "out", "a")[1]["fxfycxcy"], [172.8, 176.64, 101.76, 49.68]
    )
    assert run(tmp_path / "in", tmp_path / "out", image_format="png").written == 1
    assert (tmp_path / "out/images/a/00001.png").is_file() and not kept.exists()


def test_nothing_in_the_source_changes_and_a_second_run_keeps_everything(tmp_path):
    write_scene(tmp_path / "in/a")
    write_scene(tmp_path / "in/b")
    files = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "in").rglob("*") if p.is_file()}
    assert run(tmp_path / "in", tmp_path / "out").written == 2
    assert run(tmp_path / "in", tmp_path / "out").kept == 2
    assert files == {
        p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "in").rglob("*") if p.is_file()
    }


@pytest.mark.parametrize("damage", ["picture", "metadata", "partial"])
def test_a_half_written_scene_is_done_again(tmp_path, damage):
    write_scene(tmp_path / "in/a")
    out = tmp_path / "out"
    run(tmp_path / "in", out)
    whole = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    if damage == "picture":
        (out / "images/a/00001.png").write_bytes(b"")
    else:
        (out / "metadata/a.json").unlink()
        if damage == "partial":
            (out / "images/a").rename(out / "images/.a.partial")
    assert run(tmp_path / "in", out).written == 1
    assert whole == {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_missing_and_damaged_pictures_are_counted_and_made_up_for_later(tmp_path):
    place = write_scene(tmp_path / "in/a", frames=4)
    saved = (place / "images_4/frame_00002.png").read_bytes()
    (place / "images_4/frame_00002.png").unlink()
    (place / "images_4/frame_00004.png").write_bytes(saved[:50])
    report = run(tmp_path / "in", tmp_path / "out")
    assert report.written == 1 and [where for where, _ in report.bad_frames] == ["a frame 1", "a frame 3"]
    assert "images_4/frame_00002.png is not there" in report.bad_frames[0][1]
    assert run(tmp_path / "in", tmp_path / "out").bad_frames == report.bad_frames
    (place / "images_4/frame_00002.png").write_bytes(saved)
    assert len(run(tmp_path / "in", tmp_path / "out").bad_frames) == 1


@pytest.mark.parametrize("path", ["../../../secret.png", "/etc/hostname", None, 7])
def test_paths_that_leave_the_scene_are_not_followed(tmp_path, path):
    place = write_scene(tmp_path / "in/a", frames=2)
    tree = json.loads((place / "transforms.json").read_text())
    tree["frames"][0]["file_path"] = path
    rewrite(place, frames=tree["frames"])
    (tmp_path / "secret.png").write_bytes((place / "images_4/frame_00001.png").read_bytes())
    report = run(tmp_path / "in", tmp_path / "out", format="nerfstudio")
    assert [why.partition("file_path")[0] for _, why in report.bad_frames] == [""]
    assert len(list((tmp_path / "out/images/a").iterdir())) == 1


@pytest.mark.parametrize(
    "values,words",
    [
        ({"frames": []}, "list of frames"),
        ({"fl_x": "wide"}, "no usable"),
        ({"fl_x": -1}, "positive"),
        ({"k1": float("nan")}, "finite"),
        ({"camera_model": "EQUIRECTANGULAR"}, "EQUIRECTANGULAR is not known"),
        ({"w": 432.0, "h": 768.0}, "192x108 pixels, but its camera is for 432x768"),
        (
            {"frames": [{"file_path": "images/frame_00001.png", "transform_matrix": [[0] * 4] * 4}]},
            "singular",
        ),
        ({"frames": [{"file_path": "images/frame_00001.png", "transform_matrix": "x"}]}, "not a 4x4"),
    ],
)
def test_what_a_scene_cannot_mean_is_refused_in_words(tmp_path, values, words):
    rewrite(write_scene(tmp_path / "in/a"), **values)
    write_scene(tmp_path / "in/b")
    report = run(tmp_path / "in", tmp_path / "out")
    assert report.written == 1 and [where for where, _ in report.bad_scenes] == ["a"]
    assert words in report.bad_scenes[0][1] and "\n" not in report.bad_scenes[0][1]
    assert (tmp_path / "out/full_list.txt").read_text() == "metadata/b.json\n"


def test_frames_come_in_the_order_of_their_numbers(tmp_path):
    place = write_scene(tmp_path / "in/a", frames=3)
    tree = json.loads((place / "transforms.json").read_text())
    rewrite(place, frames=[tree["frames"][i] for i in (2, 0, 1)])
    run(tmp_path / "in", tmp_path / "out")
    assert [frame["source"][-5] for frame in frames_of(tmp_path / "out", "a")] == ["1", "2", "3"]
    run(tmp_path / "in", tmp_path / "raw", format="nerfstudio")
    assert [frame["source"][-5] for frame in frames_of(tmp_path / "raw", "a")] == ["3", "1", "2"]


def test_a_folder_without_scenes_says_what_was_expected(tmp_path):
    with pytest.raises(ConfigError, match=r"transforms\.json"):
        run(tmp_path, tmp_path / "out")
    with pytest.raises(ConfigError, match="no such folder"):
        run(tmp_path / "nowhere", tmp_path / "out")


def test_imported_scenes_are_samples(tmp_path):
    write_scene(tmp_path / "in/a", size=(108, 192), frames=6)
    run(tmp_path / "in", tmp_path / "out")
    path = tmp_path / "out/full_list.txt"
    sample = SceneDataset(str(path), ViewSettings.of(config(path))).evaluation_sample(0, (0, 5), (2,))
    assert sample["image"].shape == (3, 3, 28, 28) and torch.isfinite(sample["c2w"]).all()


def test_real_photos_get_the_cameras_of_their_undistorted_copies(shared, tmp_path):
    """fox: photos 0001, 0003 here are frames 0, 2 of the chunk, in the same world."""
    source = shared / "data/fox_nerfstudio"
    report = run(source, tmp_path / "out", format="nerfstudio")
    assert (report.written, report.failed) == (1, False)
    ours = open_scenes(str(tmp_path / "out/full_list.txt"))[0]
    chunk = torch.load(shared / "data/re10k_format/train/000000.torch", weights_only=True)
    fox = next(scene for scene in chunk if scene["key"] == "fox")
    assert ours.num_frames == 25
    for here, there in ((0, 0), (1, 2)):
        stored = fox["cameras"][there, 6:].reshape(3, 4).double().numpy()
        np.testing.assert_allclose(ours.camera(here)[1][:3], stored, atol=1e-5)
