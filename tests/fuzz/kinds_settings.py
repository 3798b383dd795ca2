"""Configs and command lines.

Public: KINDS.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import yaml

from src import train
from src.cli import read_config
from src.data.view_settings import ViewSettings
from src.model import family_config
from src.settings import config_digest, config_from_tree, load_config, to_plain

from .damage import PLAIN, damage_bytes, damage_file, damage_tree
from .sandbox import Case, Finding, Kind, command

CONFIGS = Path(__file__).resolve().parents[2] / "config"


def _make_configs(folder: Path) -> None:
    for path in sorted(CONFIGS.rglob("*.yaml")):
        shutil.copy(path, folder / path.name)


def _damage_config(folder: Path, rng: random.Random, structural: bool, canary: Path) -> str:
    files = sorted(folder.glob("*.yaml"))
    path = rng.choice(files)
    for other in files:
        if other != path:
            other.unlink()
    if not structural:
        data, how = damage_bytes(path.read_bytes(), rng)
    elif (way := rng.random()) < 0.05:
        return damage_file(path, rng)
    elif way < 0.45:
        data, how = _damaged_text(path.read_text(), rng, canary)
    else:
        tree, how = damage_tree(yaml.safe_load(path.read_text()), rng)
        data = yaml.safe_dump(tree, allow_unicode=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    path.write_bytes(data)
    return f"{path.name}: {how}"


def _laughs(depth: int) -> str:
    """Each line holds the one before ten times."""
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, depth))]
    return "\n".join(lines)


def _laughing_maps(depth: int) -> str:
    items = ", ".join
    lines = [
        "a0: &a0 {x: 1}",
        *(f"a{n}: &a{n} {{{items(f'k{i}: *a{n - 1}' for i in range(10))}}}" for n in range(1, depth)),
    ]
    return "\n".join(lines)


def _damaged_text(text: str, rng: random.Random, canary: Path) -> tuple[bytes, str]:
    lines = text.splitlines()
    place = rng.randrange(len(lines))
    additions = {
        "laughs": _laughs(12),
        "laughing maps": _laughing_maps(12),
        "laughs in the model": "model: &m\n  class_name: x\n"
        + "\n".join(f"  {line}" for line in _laughs(10).splitlines()),
        "a list in itself": "a: &a [*a]",
        "a map in itself": "a: &a {b: *a}",
        "an unknown anchor": "a: *nobody",
        "a map merged into itself": "a: &a\n  <<: *a",
        "merged scalars": "a:\n  <<: 3",
        "many merges": "a: &a {x: 1}\nb:\n  <<: [" + "*a, " * 5000 + "*a]",
        "python": f"a: !!python/object/apply:builtins.open ['{canary}', 'w']",
        "python name": "a: !!python/name:os.system",
        "binary": "a: !!binary gICAgA==",
        "bad binary": "a: !!binary =====",
        "a date": "a: 2020-13-45",
        "a time": "training: {lr: 2020-01-01T00:00:00Z}",
        "a set": "training: !!set {lr, warmup}",
        "an ordered map": "training: !!omap [lr: 1]",
        "a wrong tag": "training: !!int {a: 1}",
        "a number that is none": "a: !!float abc",
        "sexagesimal": "training: {train_steps: 190:20:30}",
        "octal": "training: {train_steps: 0o17}",
        "a long number": "training: {train_steps: " + "9" * rng.choice((400, 6000)) + "}",
        "deep lists": "a: " + "[" * 5000,
        "deep maps": "a: " + "{b: " * 300 + "1" + "}" * 300,
        "deep blocks": "\n".join(" " * n + "a:" for n in range(400)),
        "two documents": "---\na: 1",
        "tabs": "\tmodel: 1",
        "a long line": "a: " + "x" * 10**6,
        "a null byte": "a: \0",
        "a number as key": "3: 4",
        "a list as key": "? [a, b]\n: c",
        "a directive": "%YAML 9.9\n---\na: 1",
    }
    how = rng.choice(list(additions))
    if rng.random() < 0.5:
        return additions[how].encode(), f"only {how}"
    if rng.random() < 0.1:
        return text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig"))), "another encoding"
    return "\n".join([*lines[:place], additions[how], *lines[place:]]).encode(), how


def shows(case: Case) -> None:
    """`--print-config`."""
    command(train.main, "--config", _only(case), "--print-config")


def loads(case: Case) -> None:
    """What a run does with its settings: views, digest, a copy inside the checkpoint that is read again."""
    _require_round_trip(load_config(_only(case), [], family_config), case)


def _require_round_trip(config, case: Case) -> None:
    digest = config_digest(config)
    again = config_from_tree(json.loads(json.dumps(to_plain(config))), family_config)
    if config_digest(again) != digest:
        raise Finding("the config in a checkpoint is not the config")
    again = config_from_tree(yaml.safe_load(yaml.safe_dump(to_plain(config))), family_config)
    if config_digest(again) != digest:
        raise Finding("the config.yaml of a run is not the config")
    if hasattr(config.model, "image_tokenizer"):
        try:
            ViewSettings.of(config)
        except ValueError as error:
            raise ValueError(f"{_only(case)}: {error}") from error


def _only(case: Case) -> Path:
    return next(iter(case.given.iterdir()), case.given / "gone.yaml")


def _make_words(folder: Path) -> None:
    shutil.copy(CONFIGS / "debug.yaml", folder / "debug.yaml")
    (folder / "words.json").write_text("[]")


KEYS = (
    "training.lr", "training.train_steps", "training.dataset_path", "training.view_selector", "training.view_sampler",
    "training.view_selector.min_frame_dist", "training.image_shape", "training.use_amp", "training.amp_dtype",
    "training.num_views", "training.beta1", "model", "model.transformer", "model.transformer.d", "model.class_name",
    "model.image_tokenizer.patch_size", "inference.metrics", "inference.chunk", "inference.render_video_config",
    "inference.render_video_config.traj_type", "inference.checkpoint", "pretrained", "pretrained.vae", "optimizer.lr",
    "parameters.training.lr", "parameters", "training", "", ".", "a..b", "training.", "model.class_name.x", "3", "__class__",
)  # fmt: skip


def _damage_words(folder: Path, rng: random.Random, structural: bool, canary: Path) -> str:
    """Words of a command line; in one case of two a good one with damaged letters."""
    words = []
    for _ in range(rng.choice((1, 1, 2, 4))):
        key = rng.choice(KEYS)
        value = rng.choice(
            [
                *map(_text, PLAIN),
                "[1,",
                "{a: b}",
                "*a",
                "&a [*a]",
                "!!python/name:os.system",
                _laughs(2),
                "2020-13-45",
            ]
        )
        equals = rng.choice(("=", "=", "=", " =", "= ", "==", "", ":"))
        words += f"{key}{equals}{value}".split(" ") if rng.random() < 0.2 else [f"{key}{equals}{value}"]
    if not structural:
        data, _ = damage_bytes(rng.choice(words).encode("utf-8", "surrogatepass"), rng)
        words = [data.replace(b"\0", b"").decode("utf-8", "surrogateescape")]  # as the system hands it over
    (folder / "words.json").write_text(json.dumps(words))
    return ascii(words)[:200]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def overrides(case: Case) -> None:
    """`--print-config` with words behind the config."""
    words = json.loads((case.given / "words.json").read_text())
    command(train.main, "--config", case.given / "debug.yaml", "--print-config", *words)


def overridden(case: Case) -> None:
    """The same as a run uses it."""
    words = [word for word in json.loads((case.given / "words.json").read_text()) if not word.startswith("-")]
    try:
        config = read_config(["--config", str(case.given / "debug.yaml"), *words], "")
    except SystemExit as error:
        raise ValueError("command line: refused") from error
    _require_round_trip(config, case)


KINDS = (
    Kind("configs", _make_configs, _damage_config, (shows, loads)),
    Kind("overrides", _make_words, _damage_words, (overrides, overridden)),
)
