"""Latents of a whole data set: the same as the model's own, restartable, and refused where they do not belong."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_run import tiny_config, write_config, write_scenes

from src.config import ConfigError
from src.data.dataset import SceneDataset
from src.data.latents import LatentStore, Meta, open_store
from src.data.scene import SceneError
from src.data.view_settings import ViewSettings
from src.model.vae import ImageCodec, Vae
from src.pre_encode import encode_dataset, open_codec
from src.runtime import Runtime

SMALL = {"block_out_channels": [8, 8, 8], "norm_num_groups": 4}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_scenes(tmp_path, num_scenes=3, num_frames=6)


@pytest.fixture
def config(tmp_path: Path, data: Path) -> object:
    return tiny_config(write_config(tmp_path / "c.yaml", data, tmp_path / "run"))


@pytest.fixture
def codec() -> ImageCodec:
    return ImageCodec(Vae(name="tiny", architecture=SMALL)).eval()


def encode(config: object, data: Path, codec: ImageCodec, dtype: str = "float32", **runtime: int) -> object:
    return encode_dataset(
        config, str(data), data / "vae_latents", codec, "here", Runtime(**runtime), dtype=dtype, images=4
    )


@torch.no_grad()
def test_stored_latents_are_the_posterior_of_the_picture_a_sample_shows(config, data, codec) -> None:
    result = encode(config, data, codec)
    assert (result.scenes, result.frames, result.skipped, result.problems) == (3, 18, 0, [])
    dataset = SceneDataset(str(data), ViewSettings.of(config))
    sample = dataset.evaluation_sample(1, (0, 4), (2,))
    stored = open_store(str(data), "vae_latents", dataset.settings).read("scene1", [0, 4, 2])
    assert stored.shape == (3, 2, 4, 4, 4)
    expected = codec.posterior(sample["image"][None].float() / 255)[0]
    torch.testing.assert_close(stored, expected, atol=1e-5, rtol=1e-5)


def test_an_interrupted_run_goes_on_and_ranks_share_the_scenes(config, data, codec) -> None:
    assert encode(config, data, codec, rank=1, world=2).scenes == 1
    first = (data / "vae_latents" / "scene1.safetensors").stat().st_mtime_ns
    result = encode(config, data, codec)
    assert (result.scenes, result.skipped) == (2, 1)
    assert (data / "vae_latents" / "scene1.safetensors").stat().st_mtime_ns == first
    assert encode(config, data, codec).skipped == 3


def test_another_autoencoder_or_size_is_refused(config, data, codec) -> None:
    encode(config, data, codec, "float16")
    meta = json.loads((data / "vae_latents" / "meta.json").read_text())
    assert (
        meta["vae_encoded"] is True
        and meta["vae_hf_model_id"] == "here"
        and meta["vae_digest"] == codec.digest()
    )
    with pytest.raises(ConfigError, match="dtype float16, but this run has float32"):
        encode(config, data, codec, "float32")
    with pytest.raises(ConfigError, match=r"vae_digest .* another autoencoder"):
        encode(config, data, ImageCodec(Vae(name="tiny", architecture=SMALL)), "float16")
    with pytest.raises(ConfigError, match="image_size 16, but this run has 24"):
        open_store(
            str(data), "vae_latents", SimpleNamespace(**{**vars(ViewSettings.of(config)), "image_size": 24})
        )
    with pytest.raises(ConfigError, match="encode_latents"):
        open_store(str(data), "elsewhere", ViewSettings.of(config))
    assert open_store(str(data), "", ViewSettings.of(config)) is None
    (data / "vae_latents" / "meta.json").write_text("{}")
    with pytest.raises(ConfigError, match="does not describe latents"):
        Meta.read(data / "vae_latents")


def test_a_frame_without_picture_has_no_latents_and_no_other_suffers(tmp_path, config, codec) -> None:
    data = write_scenes(tmp_path / "damaged", num_scenes=1, num_frames=4)
    chunk = data / "000000.torch"
    scenes = torch.load(chunk, weights_only=True)
    scenes[0]["images"][2] = torch.zeros(40, dtype=torch.uint8)
    torch.save(scenes, chunk)
    assert encode(config, data, codec).frames == 3
    store = LatentStore(data / "vae_latents")
    assert torch.isfinite(store.read("scene0", [0, 1, 3])).all()
    with pytest.raises(SceneError, match="no latents for one of its frames"):
        store.read("scene0", [0, 2])
    with pytest.raises(SceneError, match="cannot be read"):
        store.read("scene7", [0])


def test_a_codec_with_random_weights_encodes_nothing(config) -> None:
    config.model = SimpleNamespace(class_name="x", vae=Vae(name="tiny"))
    config.pretrained.vae = "random"
    with pytest.raises(ConfigError, match="belong to no model"):
        open_codec(config, torch.device("cpu"))
    config.model = SimpleNamespace(class_name="x")
    with pytest.raises(ConfigError, match="has no autoencoder"):
        open_codec(config, torch.device("cpu"))
