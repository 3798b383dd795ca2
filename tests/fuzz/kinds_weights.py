"""Checkpoints, files of weights, autoencoders with adapters, caches of scenes.

Public: KINDS.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import tiny_run
import torch
from torch import nn

from scripts import info
from src.checkpoint import load_into, load_weights
from src.geometry.camera import Cameras, Views
from src.model import build_model
from src.model.kv_cache import KVCache
from src.model.kvlvsm import KVLVSM
from src.model.kvlvsm import Config as KVConfig
from src.model.vae import ImageCodec, Vae
from src.run import Run, open_run, save
from src.runtime import start
from src.settings import RunConfig
from src.vae_files import load_vae, read_adapter, save_adapter, save_vae
from src.warm_start import start_from

from .damage import NAMES, Hostile, damage_bytes, damage_file, damage_json, damage_tree
from .kinds_scenes import damaged_safetensors
from .sandbox import Case, Finding, Kind, command


def _require_finite(module: nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        if not torch.isfinite(tensor.float()).all():
            raise Finding(f"{name} was filled with what is not finite")


# ----------------------------------------------------------------------------------------------- checkpoints of a run


def _config(folder: Path, run: Path, **training: Any) -> RunConfig:
    path = tiny_run.write_config(
        folder / "run.yaml", folder / "data" / "train", run, async_save=False, **training
    )
    return tiny_run.tiny_config(path)


def _train(run: Run, steps: int) -> None:
    """Updates that cost nothing: moments in the optimiser and a step count."""
    for _ in range(steps):
        for parameter in run.model.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)
        run.optimizer.step()
        run.progress.advance(2, stepped=True, bad=False)


def _make_run(folder: Path) -> None:
    tiny_run.write_scenes(folder / "data", num_scenes=2)
    with _opened(_config(folder, folder / "run")) as run:
        for _ in range(2):
            _train(run, 2)
            save(run)
    (folder / "run.yaml").unlink()


def _checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "run").glob("ckpt_*"))


def _damage_run(folder: Path, rng: random.Random, structural: bool, canary: Path) -> str:
    newest = _checkpoints(folder)[-1]
    path = newest / rng.choice(("model.safetensors", "training_state.pt", "checkpoint.json"))
    if not structural:
        data, how = damage_bytes(path.read_bytes(), rng)
        path.write_bytes(data)
        return f"{path.name}: {how}"
    way = rng.random()
    if way < 0.12:
        return damage_file(path, rng)
    if way < 0.3:
        return _damage_names(folder, rng)
    how = _damage_content(path, rng, canary)
    if rng.random() < 0.8:
        _restamp(newest)
        how += ", digests made to fit"
    return how


def _damage_content(path: Path, rng: random.Random, canary: Path) -> str:
    if path.suffix == ".json":
        data, how = damage_json(path.read_bytes(), rng)
    elif path.suffix == ".safetensors":
        data, how = damaged_safetensors(path.read_bytes(), rng)
    else:
        tree = torch.load(path, weights_only=True)
        tree, how = damage_tree(tree, rng, extra=(Hostile(canary), torch.zeros(3), math.nan))
        data = _saved(tree, rng)
    path.write_bytes(data)
    return f"{path.name}: {how}"


def _saved(tree: Any, rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    torch.save(tree, buffer, _use_new_zipfile_serialization=rng.random() < 0.85)
    return buffer.getvalue()


def _restamp(checkpoint: Path) -> None:
    """Write a manifest whose digests belong to the files, as whoever made them could."""
    from src.checkpoint import manifest_digest, sha256

    try:
        manifest = json.loads((checkpoint / "checkpoint.json").read_bytes())
        for name in manifest["sha256"]:
            known = name == "checkpoint.json"
            manifest["sha256"][name] = manifest_digest(manifest) if known else sha256(checkpoint / name)
        (checkpoint / "checkpoint.json").write_text(json.dumps(manifest))
    except (ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError):
        return


def _damage_names(folder: Path, rng: random.Random) -> str:
    """Folders that are links, files with the names of folders, names that are nearly right."""
    run, newest = folder / "run", _checkpoints(folder)[-1]
    way = rng.randrange(7)
    if way == 0:  # a checkpoint that lies elsewhere
        (folder / "elsewhere").mkdir()
        shutil.move(newest, folder / "elsewhere" / newest.name)
        newest.symlink_to(folder / "elsewhere" / newest.name)
        return "the newest is a link"
    if way == 1:
        (run / ".ckpt_0000000000000004.tmp").write_text("a file")
        return "a file where a folder is made"
    if way == 2:
        (run / "ckpt_0000000000000006").write_text("a file")
        return "a file where a checkpoint goes"
    if way == 3:
        newest.rename(newest.with_name("ckpt_9999999999999999"))
        return "a step beyond all"
    if way == 4:
        (run / ".ckpt_0000000000000006.tmp").symlink_to(folder / "data")
        return "a leftover that leads elsewhere"
    if way == 5:
        shutil.copytree(newest, run / "ckpt_0000000000000008")
        return "a copy under another step"
    name = rng.choice(
        [
            n
            for n in NAMES
            if n and "/" not in n and "\0" not in n and len(n) < 200 and n.isascii() and n not in "..."
        ]
    )
    shutil.copytree(newest, run / name)
    return f"a copy called {name!r}"


@contextlib.contextmanager
def _opened(config: RunConfig) -> Iterator[Run]:
    run = open_run(config, start(0))
    try:
        yield run
    finally:
        run.saver.close()


def resumes(case: Case) -> None:
    """A run goes on in the folder, takes two steps and saves; the next one goes on from there."""
    shutil.copytree(case.given / "run", case.output / "run", symlinks=True)
    with _opened(_resumed_config(case, keep_checkpoints=1)) as run:
        _require_finite(run.model)
        _require_state(run)
        _train(run, 2)
        _require_finite(run.model)
        save(run)
        run.saver.finish()
    with _opened(_resumed_config(case)) as again:
        if again.progress.step != run.progress.step:
            raise Finding(f"saved at step {run.progress.step}, found at {again.progress.step}")


def _resumed_config(case: Case, **training: Any) -> RunConfig:
    settings = {"async_save": False, **training}
    path = tiny_run.write_config(
        case.output / "run.yaml", case.given / "data" / "train", case.output / "run", **settings
    )
    return tiny_run.tiny_config(path)


def _require_state(run: Run) -> None:
    """Progress counts, and the optimiser has moments of its parameters' shapes."""
    counts = vars(run.progress)
    wrong = [name for name, value in counts.items() if type(value) is not int or not 0 <= value < 2**63]
    if wrong:
        raise Finding(f"progress {counts}")
    for parameter, state in run.optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            if state[name].shape != parameter.shape or not torch.isfinite(state[name]).all():
                raise Finding(f"{name} of a parameter of shape {tuple(parameter.shape)}")


def fine_tunes(case: Case) -> None:
    """A new run takes the weights of the folder alone."""
    settings = {"resume_ckpt": str(case.given / "run"), "reset_training_state": True}
    path = tiny_run.write_config(
        case.output / "new.yaml", case.given / "data" / "train", case.output / "new", **settings
    )
    with _opened(tiny_run.tiny_config(path)) as run:
        _require_finite(run.model)


def inspects(case: Case) -> None:
    """`scripts.info` of the folder and of each checkpoint in it."""
    for path in (case.given / "run", *_checkpoints(case.given)):
        command(info.main, path)


CHECKPOINTS = Kind("checkpoints", _make_run, _damage_run, (resumes, fine_tunes, inspects))


# ----------------------------------------------------------------------------------------------- files of weights


@functools.cache
def _tiny_model_config() -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        return tiny_run.tiny_config(tiny_run.write_config(place / "c.yaml", place, place)).model


def _model() -> nn.Module:
    torch.manual_seed(0)
    return build_model(_tiny_model_config())


WRAPPED = {
    "lvsm.pt": lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3},
    "lvsm.ckpt": lambda state: {"state_dict": state, "hyper_parameters": {"lr": 1e-3}, "callbacks": {}},
    "plain.pth": lambda state: state,
    "ddp.pt": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
}


def _make_weights(folder: Path) -> None:
    state = {name: tensor.clone() for name, tensor in _model().state_dict().items()}
    for name, wrap in WRAPPED.items():
        torch.save(wrap(state), folder / name)
    safetensors.torch.save_file(state, folder / "lvsm.safetensors")


def _damage_weights(folder: Path, rng: random.Random, structural: bool, canary: Path) -> str:
    path = folder / rng.choice([*WRAPPED, "lvsm.safetensors"])
    for other in folder.iterdir():
        if other != path:
            other.unlink()
    if not structural:
        data, how = damage_bytes(path.read_bytes(), rng)
    elif (way := rng.random()) < 0.05:
        return damage_file(path, rng)
    elif path.suffix == ".safetensors":
        data, how = damaged_safetensors(path.read_bytes(), rng)
    elif way < 0.3:
        data, how = _damaged_zip(path.read_bytes(), rng)
    elif way < 0.4:
        data, how = _foreign(rng, canary)
    else:
        tree, how = damage_tree(
            torch.load(path, weights_only=True), rng, extra=(Hostile(canary), nn.Linear(2, 2))
        )
        data = _saved(tree, rng)
    path.write_bytes(data)
    return f"{path.name}: {how}"


def _foreign(rng: random.Random, canary: Path) -> tuple[bytes, str]:
    """Files that other programs call .pt."""
    module = nn.Linear(2, 2)
    buffer = io.BytesIO()
    choice = rng.choice(("module", "TorchScript", "pickle", "hostile", "list", "tensor", "nested state"))
    if choice == "TorchScript":
        torch.jit.save(torch.jit.script(module), buffer)
    elif choice == "pickle":
        import pickle

        pickle.dump({"model": Hostile(canary)}, buffer)
    else:
        things = {
            "module": module, "hostile": {"model": {"a": Hostile(canary)}}, "list": [torch.zeros(2)],
            "tensor": torch.zeros(2), "nested state": {"model": {"model": module.state_dict()}},
        }  # fmt: skip
        torch.save(things[choice], buffer)
    return buffer.getvalue(), choice


def _damaged_zip(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Records of a zip file gone, renamed, given twice, compressed, or emptied."""
    source, target = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    names = source.namelist()
    chosen, way = rng.choice(names), rng.choice(("remove", "rename", "twice", "compress", "empty", "bomb"))
    with zipfile.ZipFile(target, "w") as written:
        for name in names:
            content, packing = source.read(name), zipfile.ZIP_STORED
            if name == chosen and way == "remove":
                continue
            if name == chosen and way == "bomb":
                content, packing = bytes(400 * 2**20), zipfile.ZIP_DEFLATED
            if way == "compress":
                packing = zipfile.ZIP_DEFLATED
            new = (
                rng.choice(("../../x", "/x", "data.pkl", "x/data.pkl"))
                if name == chosen and way == "rename"
                else name
            )
            written.writestr(new, b"" if name == chosen and way == "empty" else content, packing)
            if name == chosen and way == "twice":
                written.writestr(name, content[::-1])
    return target.getvalue(), f"zip record {chosen.rpartition('/')[2]}: {way}"


def _file(case: Case) -> Path:
    return next(iter(case.given.iterdir()), case.given / "gone.pt")


def fills(case: Case) -> None:
    """Strictly, as scoring and resuming do."""
    model = _model()
    load_into(model, load_weights(_file(case)), _file(case))
    _require_finite(model)


def warms(case: Case) -> None:
    """`training.init_from`: whatever fits."""
    model = _model()
    start_from(model, _file(case))
    _require_finite(model)


def _inspects_file(case: Case) -> None:
    command(info.main, _file(case))


WEIGHTS = Kind("weights", _make_weights, _damage_weights, (fills, warms, _inspects_file))


# ----------------------------------------------------------------------------------------------- autoencoders, adapters


def _codec() -> ImageCodec:
    torch.manual_seed(0)
    sizes = {"block_out_channels": [8, 8, 8], "norm_num_groups": 4, "mid_block_add_attention": False}
    return ImageCodec(Vae(name="tiny", architecture=sizes))


def _make_vae(folder: Path) -> None:
    save_vae(_codec(), folder / "vae")
    tensors = {"layer.lora_A": torch.randn(2, 4), "layer.lora_B": torch.randn(4, 2)}
    save_adapter(tensors, {"rank": 2, "layers": ["layer"]}, folder / "adapter.safetensors")


def _damage_vae(folder: Path, rng: random.Random, structural: bool, canary: Path) -> str:
    names = (
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "adapter.json",
        "adapter.safetensors",
    )
    path = folder / rng.choice(names)
    if structural and rng.random() < 0.1:
        return damage_file(path, rng)
    if not structural:
        data, how = damage_bytes(path.read_bytes(), rng)
    else:
        change: Callable = damage_json if path.suffix == ".json" else damaged_safetensors
        data, how = change(path.read_bytes(), rng)
    path.write_bytes(data)
    return f"{path.name}: {how}"


def fills_vae(case: Case) -> None:
    """`pretrained.vae`."""
    codec = _codec()
    load_vae(codec, str(case.given / "vae"))
    _require_finite(codec)


def reads_adapter(case: Case) -> None:
    """A file of adapters and its description."""
    tensors, description = read_adapter(case.given / "adapter.safetensors")
    if not isinstance(description, dict) or not all(map(torch.is_tensor, tensors.values())):
        raise Finding("an adapter is tensors and a description")


AUTOENCODERS = Kind("autoencoders", _make_vae, _damage_vae, (fills_vae, reads_adapter))


# ----------------------------------------------------------------------------------------------- caches


@functools.cache
def _one_way() -> KVLVSM:
    from src.config import build

    section = {
        "class_name": "src.model.kvlvsm.KVLVSM",
        "image_tokenizer": {"image_size": 16, "patch_size": 8},
        "target_pose_tokenizer": {"patch_size": 8},
        "transformer": {"d": 16, "d_head": 8, "n_layer": 2},
    }
    problems: list[str] = []
    config = build(KVConfig, section, "model", problems)
    torch.manual_seed(0)
    return build_model(config).eval()


def _views(count: int) -> Views:
    c2w = torch.eye(4).repeat(1, count, 1, 1)
    c2w[..., 0, 3] = torch.arange(count)
    cameras = Cameras(c2w, torch.tensor([12.0, 12.0, 8.0, 8.0]).expand(1, count, 4), 16, 16)
    return Views(torch.rand(1, count, 3, 16, 16), cameras)


def _make_cache(folder: Path) -> None:
    with torch.no_grad():
        _one_way().encode(_views(2), keep_images=True).save(folder / "scene.pt")


def _damage_cache(folder: Path, rng: random.Random, structural: bool, canary: Path) -> str:
    path = folder / "scene.pt"
    if not structural:
        data, how = damage_bytes(path.read_bytes(), rng)
    elif (way := rng.random()) < 0.05:
        return damage_file(path, rng)
    elif way < 0.2:
        data, how = _damaged_zip(path.read_bytes(), rng)
    else:
        tree = torch.load(path, weights_only=True)
        if rng.random() < 0.3:
            tree["fingerprint"] = ""
        tree, how = damage_tree(tree, rng, extra=(Hostile(canary), torch.zeros(3)))
        data = _saved(tree, rng)
    path.write_bytes(data)
    return how


def renders(case: Case) -> None:
    """A picture from the cache, and one after a view was added."""
    path = case.given / "scene.pt"
    scene, model = KVCache.load(path).to(dtype=torch.float32), _one_way()
    with torch.no_grad():
        try:
            image = model.render(scene, _views(1).cameras)
            model.add_view(scene, _views(1))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if not torch.isfinite(image).all():
        raise Finding("a render that is not finite")


CACHES = Kind("caches", _make_cache, _damage_cache, (renders,))

KINDS = (CHECKPOINTS, WEIGHTS, AUTOENCODERS, CACHES)
