"""COLMAP models, OpenCV cameras and plain photos into data set folders; a data set to nerfstudio's form and back."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image
from textured_world import FXFYCXCY, HEIGHT, WIDTH, photograph, pose

import process_data
from scripts import export_scenes
from src.camera_check.check import check_scene
from src.config import ConfigError
from src.data.dataset import SceneDataset, open_scenes
from src.data.exif import photo_facts, upright
from src.data.import_colmap import lens_of
from src.data.import_formats import FORMATS, import_from, read_in_place
from src.data.importing import ImportOptions
from src.data.lens import Lens
from src.data.scene import SceneError

NUM = 4


def write_photos(folder: Path, num: int = NUM) -> None:
    folder.mkdir(parents=True)
    for number in range(num):
        Image.fromarray(photograph(pose(number))).save(folder / f"photo_{number}.png")


def run(source: Path, out: Path, name: str, **options):
    return import_from(ImportOptions(source, out, name, **options), 1)


def frames_of(out: Path, scene: str) -> list[dict]:
    return json.loads((out / "metadata" / f"{scene}.json").read_text())["frames"]


# ----------------------------------------------------------------------------------------------- COLMAP


def write_colmap(scene: Path, *, binary: bool) -> None:
    """A model with the true cameras, written by hand as text, or by COLMAP's own library as binary."""
    write_photos(scene / "images")
    text = scene / "sparse" / "0"
    text.mkdir(parents=True)
    (text / "cameras.txt").write_text(f"1 PINHOLE {WIDTH} {HEIGHT} {' '.join(map(str, FXFYCXCY))}\n")
    lines = []
    for number in range(NUM):
        x, y, z, w = pycolmap.Rotation3d(pose(number)[:3, :3]).quat.tolist()
        t = " ".join(map(repr, map(float, pose(number)[:3, 3])))
        lines.append(f"{number + 1} {w!r} {x!r} {y!r} {z!r} {t} 1 photo_{number}.png\n\n")
    (text / "images.txt").write_text("".join(lines))
    (text / "points3D.txt").write_text("")
    if binary:
        model = pycolmap.Reconstruction(text)
        for path in text.iterdir():
            path.unlink()
        model.write_binary(text)


def test_pictures_of_phones_that_are_not_read_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    room = tmp_path / "in" / "room"
    room.mkdir(parents=True)
    for number in range(2):
        Image.fromarray(photograph(pose(number))).save(room / f"{number}.jpg")
    (room / "IMG_7.HEIC").write_bytes(b"ftypheic")
    assert run(tmp_path / "in", tmp_path / "out", "images").written == 1
    assert "room: 1 pictures (first IMG_7.HEIC) are of a kind that is not read" in caplog.text


def test_a_folder_without_a_colmap_model_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "transforms.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no COLMAP model: expected <scene>/sparse/0/cameras\.bin"):
        read_in_place("colmap", tmp_path, [], 60.0)


@pytest.mark.parametrize("binary", [False, True])
def test_a_colmap_model_gives_its_cameras(tmp_path: Path, binary: bool) -> None:
    write_colmap(tmp_path / "in" / "room", binary=binary)
    report = run(tmp_path / "in", tmp_path / "out", "colmap")
    assert (report.written, report.failed) == (1, False)
    for number, frame in enumerate(frames_of(tmp_path / "out", "room")):
        np.testing.assert_allclose(frame["w2c"], pose(number), atol=1e-9)
        np.testing.assert_allclose(frame["fxfycxcy"], FXFYCXCY)
    assert run(tmp_path / "in", tmp_path / "out", "colmap").kept == 1
    assert check_scene(open_scenes(str(tmp_path / "out/full_list.txt"))[0]).fits


@pytest.mark.parametrize(
    "model,params,fisheye",
    [
        ("SIMPLE_PINHOLE", (50, 32, 24), False),
        ("PINHOLE", (50, 52, 31, 25), False),
        ("SIMPLE_RADIAL", (50, 32, 24, 0.1), False),
        ("RADIAL", (50, 32, 24, 0.1, -0.05), False),
        ("OPENCV", (50, 52, 31, 25, 0.1, -0.05, 0.01, -0.02), False),
        ("FULL_OPENCV", (50, 52, 31, 25, 0.1, -0.05, 0.01, -0.02, 0.02, 0.03, 0.01, 0.005), False),
        ("SIMPLE_RADIAL_FISHEYE", (50, 32, 24, 0.1), True),
        ("RADIAL_FISHEYE", (50, 32, 24, 0.1, -0.03), True),
        ("OPENCV_FISHEYE", (50, 52, 31, 25, 0.1, -0.03, 0.01, -0.005), True),
    ],
)
def test_each_camera_model_bends_points_as_colmap_does(model: str, params: tuple, fisheye: bool) -> None:
    import cv2

    camera = pycolmap.Camera(model=model, width=64, height=48, params=params)
    lens = lens_of(camera)
    assert isinstance(lens, Lens) and lens.fisheye is fisheye
    points = np.array([[0.3, -0.2, 1], [-0.4, 0.25, 1], [0.05, 0.1, 1]])
    fx, fy, cx, cy = lens.fxfycxcy
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    bend = cv2.fisheye.projectPoints if fisheye else cv2.projectPoints
    given = points[:, None] if fisheye else points
    ours = bend(given, np.zeros(3), np.zeros(3), matrix, np.array(lens.distortion))[0].reshape(-1, 2)
    np.testing.assert_allclose(ours, [camera.img_from_cam(point) for point in points], atol=1e-6)


def test_an_unknown_camera_model_and_a_broken_file_are_told(tmp_path: Path) -> None:
    write_colmap(tmp_path / "in/a", binary=False)
    (tmp_path / "in/a/sparse/0/cameras.txt").write_text("1 FOV 240 180 225 225 112 96 0.9\n")
    write_colmap(tmp_path / "in/b", binary=True)
    cut = tmp_path / "in/b/sparse/0/images.bin"
    cut.write_bytes(cut.read_bytes()[:60])
    report = run(tmp_path / "in", tmp_path / "out", "colmap")
    assert not report.written
    assert [name for name, _ in report.bad_scenes] == ["a", "b"]
    assert "undistort with COLMAP" in report.bad_scenes[0][1]


# ----------------------------------------------------------------------------------------------- OpenCV cameras


def test_opencv_cameras_are_read_as_they_are(tmp_path: Path) -> None:
    write_photos(tmp_path / "in/toy/pictures")
    entry = dict(zip(("fx", "fy", "cx", "cy"), FXFYCXCY.tolist())) | {"w": WIDTH, "h": HEIGHT}
    entries = [
        entry | {"w2c": pose(n).tolist(), "file_path": f"pictures/photo_{n}.png"} for n in range(NUM)
    ] + [entry | {"w2c": pose(0).tolist(), "file_path": "../../secret.png"}]
    (tmp_path / "in/toy/opencv_cameras.json").write_text(json.dumps(entries))
    report = run(tmp_path / "in", tmp_path / "out", "opencv")
    frames = frames_of(tmp_path / "out", "toy")
    assert report.written == 1 and len(report.bad_frames) == 1 and "leads out" in report.bad_frames[0][1]
    for number, frame in enumerate(frames[:NUM]):
        np.testing.assert_array_equal(frame["w2c"], pose(number))
        written = np.asarray(Image.open(tmp_path / "out/metadata" / frame["image_path"]))
        np.testing.assert_array_equal(written, photograph(pose(number)))


# ----------------------------------------------------------------------------------------------- photos


def save_with_exif(path: Path, pixels: np.ndarray, **tags) -> None:
    exif = Image.Exif()
    for tag, value in tags.items():
        (exif if tag == "orientation" else exif.get_ifd(0x8769))[
            {
                "orientation": 0x112,
                "f35": 0xA405,
                "focal": 0x920A,
                "res": 0xA20E,
                "unit": 0xA210,
                "w": 0xA002,
                "h": 0xA003,
            }[tag]
        ] = value
    Image.fromarray(pixels).save(path, exif=exif, quality=98)


def test_photos_stand_upright_and_keep_their_focal_length(tmp_path: Path) -> None:
    folder = tmp_path / "in/walk"
    folder.mkdir(parents=True)
    seen = photograph(pose(0))
    save_with_exif(
        folder / "a.jpg", np.rot90(seen), orientation=6, f35=26.0
    )  # stored turned left, shown turned right
    save_with_exif(folder / "b.jpg", seen, focal=4.2, res=1000.0, unit=3, w=4000, h=3000)
    report = run(tmp_path / "in", tmp_path / "out", "images")
    a, b = frames_of(tmp_path / "out", "walk")
    assert report.written == 1 and not report.failed
    upright_a = np.asarray(Image.open(tmp_path / "out/metadata" / a["image_path"])).astype(int)
    # What JPEG takes away from strong colours; upside down it would be 60 and more.
    assert np.abs(upright_a.mean(axis=2) - seen.mean(axis=2)).mean() < 6
    diagonal = math.hypot(WIDTH, HEIGHT)
    np.testing.assert_allclose(
        a["fxfycxcy"], [26 / math.hypot(36, 24) * diagonal] * 2 + [WIDTH / 2, HEIGHT / 2]
    )
    # 4.2 mm at 1000 pixels a centimetre of the 4000 pixel wide original.
    np.testing.assert_allclose(b["fxfycxcy"][0], 420 * WIDTH / 4000)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_is_undone_as_pillow_does(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    save_with_exif(tmp_path / "x.png", pixels, orientation=orientation)
    facts = photo_facts((tmp_path / "x.png").read_bytes())
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "x.png")))
    np.testing.assert_array_equal(upright(pixels, facts.orientation), expected)
    assert (facts.height, facts.width) == expected.shape[:2]


def test_a_guessed_field_of_view_is_said_and_unposed_photos_cannot_train(tmp_path: Path, caplog) -> None:
    write_photos(tmp_path / "in/walk")
    with caplog.at_level(logging.WARNING):
        run(tmp_path / "in", tmp_path / "out", "images", fov_deg=90)
    assert "ASSUMED" in caplog.text and "4 of 4" in caplog.text
    assert frames_of(tmp_path / "out", "walk")[0]["fxfycxcy"][0] == pytest.approx(WIDTH / 2)
    scene = open_scenes(str(tmp_path / "out/full_list.txt"))[0]
    assert not scene.posed and not scene.missing(0)
    assert "no poses" in check_scene(scene).verdict
    with pytest.raises(SceneError, match="no poses"):
        SceneDataset._views(object.__new__(SceneDataset), scene, 0, [0, 1], 1)


def test_structure_from_motion_finds_the_cameras(tmp_path: Path) -> None:
    (tmp_path / "in/walk").mkdir(parents=True)
    fxfycxcy = np.array([300.0, 300.0, 160.0, 120.0])
    for number in range(5):
        picture = photograph(pose(number), fxfycxcy, (320, 240))
        Image.fromarray(picture).save(tmp_path / f"in/walk/{number}.png")
    report = run(tmp_path / "in", tmp_path / "out", "images", poses="colmap", fov_deg=56)
    assert report.written == 1 and len(report.bad_frames) <= 1
    scene = open_scenes(str(tmp_path / "out/full_list.txt"))[0]
    assert scene.posed and check_scene(scene).fits
    usable = [n for n in range(5) if not scene.missing(n)]
    found = np.array([np.linalg.inv(scene.camera(n)[1])[:3, 3] for n in usable])
    true = np.array([np.linalg.inv(pose(n))[:3, 3] for n in usable])
    ratio = [np.linalg.norm(x[1:] - x[:-1], axis=1) for x in (found, true)]
    np.testing.assert_allclose(ratio[0] / ratio[0].mean(), ratio[1] / ratio[1].mean(), rtol=0.1)
    assert run(tmp_path / "in", tmp_path / "out", "images", poses="colmap", fov_deg=56).kept == 1


# ----------------------------------------------------------------------------------------------- all formats


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_with_nothing_in_it_says_what_was_expected(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        run(tmp_path, tmp_path / "out", name)


def test_the_command_ends_with_figures_and_pictures_of_the_cameras(tmp_path: Path, capsys) -> None:
    write_colmap(tmp_path / "in/test/room", binary=False)
    arguments = [
        "--format",
        "colmap",
        "--base_path",
        str(tmp_path / "in"),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert process_data.main([*arguments, "--mode", "test", "--num_processes", "1"]) == 0
    assert "room: cameras fit" in capsys.readouterr().out
    assert (tmp_path / "out/test/camera_check/room.png").is_file()


def test_to_nerfstudio_and_back_is_exact(tmp_path: Path) -> None:
    write_colmap(tmp_path / "in/room", binary=False)
    (tmp_path / "in/room/images/photo_1.png").write_bytes(b"no picture")
    run(tmp_path / "in", tmp_path / "a", "colmap")
    assert (
        export_scenes.main(["--input", str(tmp_path / "a/full_list.txt"), "--output", str(tmp_path / "ns")])
        == 0
    )
    run(tmp_path / "ns", tmp_path / "b", "nerfstudio")
    before, after = frames_of(tmp_path / "a", "room"), frames_of(tmp_path / "b", "room")
    assert [f.get("missing") for f in after] == [None, True, None, None]
    for x, y in zip(before, after, strict=True):
        assert (x["fxfycxcy"], x["w2c"], x["image_path"]) == (y["fxfycxcy"], y["w2c"], y["image_path"])
        if x["image_path"]:
            name = Path(x["image_path"]).relative_to("..")
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    c2w = np.array(
        json.loads((tmp_path / "ns/room/transforms.json").read_text())["frames"][1]["transform_matrix"]
    )
    np.testing.assert_allclose(c2w, np.linalg.inv(pose(2)) @ np.diag([1, -1, -1, 1]), atol=1e-9)
