"""Where the weights of an autoencoder come from."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from src.checkpoint import CheckpointError
from src.config import ConfigError
from src.model.lora import Lora, LoraOfType, add_lora
from src.model.vae import ImageCodec, Vae
from src.vae_files import CONFIG, WEIGHTS, find_vae, load_vae, read_adapter, save_adapter, save_vae

SMALL = {"block_out_channels": [8, 8, 8], "norm_num_groups": 4, "mid_block_add_attention": True}


def codec(**changes: object) -> ImageCodec:
    return ImageCodec(Vae(name="tiny", architecture={**SMALL, **changes}))


def weight(of: ImageCodec) -> torch.Tensor:
    return of.vae.decoder.mid_block.attentions[0].to_q.weight


def test_a_saved_folder_fills_another_codec_and_diffusers_itself(tmp_path: Path) -> None:
    ours, other = codec(), codec()
    save_vae(ours, tmp_path / "vae")
    assert load_vae(other, str(tmp_path / "vae")) == tmp_path / "vae" / WEIGHTS
    assert torch.equal(weight(other), weight(ours))
    assert other.digest() == ours.digest()
    assert load_vae(codec(), str(tmp_path)) == tmp_path / "vae" / WEIGHTS  # the folder of a whole pipeline
    from diffusers import AutoencoderKL

    theirs = AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert torch.equal(theirs.decoder.mid_block.attentions[0].to_q.weight, weight(ours))


def test_names_of_older_files_are_understood(tmp_path: Path) -> None:
    ours, other = codec(), codec()
    old = {}
    for name, tensor in ours.vae.state_dict().items():
        for now, then in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            if f".{now}." in name and tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
            name = name.replace(f".{now}.", f".{then}.")
        old[name] = tensor.contiguous()
    safetensors.torch.save_file(old, tmp_path / WEIGHTS)
    load_vae(other, str(tmp_path / WEIGHTS))
    torch.testing.assert_close(dict(other.vae.state_dict()), dict(ours.vae.state_dict()))


def test_an_adapted_codec_takes_a_plain_file(tmp_path: Path) -> None:
    ours, other = codec(), codec()
    save_vae(ours, tmp_path)
    part = LoraOfType(lora_rank=1)
    add_lora(other.vae.decoder, Lora(Linear=part, Conv2d=part))
    load_vae(other, str(tmp_path))
    assert torch.equal(weight(other), weight(ours))


def test_another_autoencoder_is_refused(tmp_path: Path) -> None:
    save_vae(codec(), tmp_path)
    with pytest.raises(ConfigError, match=r"scaling_factor is 1.0, the autoencoder of the config has 0.5"):
        load_vae(codec(scaling_factor=0.5), str(tmp_path))
    (tmp_path / CONFIG).unlink()
    with pytest.raises(CheckpointError, match=r"another shape.* model.vae.name tiny"):
        load_vae(codec(latent_channels=8), str(tmp_path))
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(ConfigError, match="not readable as JSON"):
        load_vae(codec(), str(tmp_path))


@pytest.mark.parametrize(
    "error", [LocalEntryNotFoundError("no network"), EntryNotFoundError("404"), OSError("refused")]
)
def test_what_cannot_be_fetched_is_named_with_its_place(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(ConfigError) as caught:
        find_vae("", "sd35")
    message = str(caught.value)
    assert "\n" not in message
    assert "stabilityai/stable-diffusion-3.5-large" in message
    assert "checkpoints/pretrained/vae_sd35/diffusion_pytorch_model.safetensors" in message


def test_a_file_in_its_place_is_used_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = Path("checkpoints/pretrained/vae_sd15") / WEIGHTS
    place.parent.mkdir(parents=True)
    place.touch()
    assert find_vae("", "sd15") == place


@pytest.mark.parametrize(
    "source,name,message",
    [
        ("", "tiny", "pretrained.vae is empty and model.vae.name tiny is not published"),
        ("nowhere/at/all", "sd15", "nowhere/at/all holds no diffusion_pytorch_model.safetensors"),
        (".", "sd15", "holds no diffusion"),
    ],
)
def test_a_source_that_is_nothing_is_refused(source: str, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_vae(source, name)


def test_an_adapter_is_a_file_of_tensors_and_a_description(tmp_path: Path) -> None:
    tensors = {"conv.lora_A": torch.randn(2, 3), "conv.lora_B": torch.randn(4, 2)}
    save_adapter(tensors, {"lora": {"Conv2d": {"lora_rank": 2}}}, tmp_path / "a.safetensors")
    found, described = read_adapter(tmp_path / "a.safetensors")
    torch.testing.assert_close(found, tensors)
    assert described == json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").unlink()
    with pytest.raises(CheckpointError, match=r"a\.json: no such file"):
        read_adapter(tmp_path / "a.safetensors")
