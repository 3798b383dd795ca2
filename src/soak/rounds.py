"""The soak: rounds of a tiny training that is disturbed until it ends, each compared with the one left alone.

A round starts the same run again and again; every life ends by a kill until the run is finished. After each life nothing
that was on the disk may be lost; after the last one weights, optimiser, generators and every logged loss must be those
of the undisturbed run, bit for bit.

Public: Soak, Tally, run_soak, table.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from ..checkpoint import damage, find_checkpoints, load_training_state, load_weights, step_of
from ..data.synthetic import SyntheticSet, write_set
from ..files import write_text
from .faults import FAULTS, SAVE_FAILED, corrupt
from .life import LAUNCHERS, Life, warm_up

DATA = SyntheticSet(train_scenes=6, test_scenes=1, frames=8, width=24, height=16, seed=1)
STARTED = re.compile(r"(?:Going on from \S+: step (\d+)|steps (\d+) to)")
FINISH_S = 300
"""How long a life that nobody disturbs may take."""

MODEL = {
    "class_name": "model.LVSM_scene_decoder_only.Images2LatentScene",
    "image_tokenizer": {"image_size": 16, "patch_size": 8},
    "target_pose_tokenizer": {"patch_size": 8},
    "transformer": {"d": 32, "d_head": 16, "n_layer": 2, "use_qk_norm": True},
}
TRAINING = {
    "num_views": 4,
    "num_input_views": 2,
    "num_target_views": 2,
    "view_selector": {"min_frame_dist": 4, "max_frame_dist": 7},
    "square_crop": True,
    "batch_size_per_gpu": 1,
    "grad_accum_steps": 2,
    "num_workers": 1,
    "lr": 2e-3,
    "warmup": 20,
    "perceptual_loss_weight": 0.0,
    "use_amp": False,
    "eval_every": 0,
    "vis_every": 50,
    "checkpoint_every": 5,
    "keep_checkpoint_every": 100,
    "print_every": 1,
}


@dataclass(frozen=True)
class Soak:
    """What is done. The soak ends with the round in which `kills` or `minutes` is reached.

    folder: for data, logs and what is reported. disk: for the runs; one smaller than 1 GiB is filled for real.
    world: processes. steps: of one round. launcher: entry of LAUNCHERS. corruption: share of kills after which the newest
        checkpoint is harmed.
    """

    folder: Path
    disk: Path
    kills: int = 100
    minutes: float = 60.0
    world: int = 1
    steps: int = 150
    launcher: str = "fork"
    corruption: float = 0.25
    seed: int = 0


@dataclass
class Tally:
    """What happened. wrong: everything that should not have."""

    kills: dict[str, int] = field(default_factory=dict)
    resumes: int = 0
    saves_cut_off: int = 0
    saves_failed: int = 0
    corrupted: int = 0
    fallbacks: int = 0
    rounds: int = 0
    equal_rounds: int = 0
    steps_done_again: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    @property
    def survived(self) -> int:
        """Kills of all kinds."""
        return sum(self.kills.values())


def run_soak(soak: Soak) -> Tally:
    """Disturb runs until enough kills were survived or the time is over.

    Raises:
        RuntimeError: the undisturbed run does not finish.
    """
    warm_up()
    write_set(soak.folder / "data", DATA)
    reference = soak.folder / "reference"
    if not _undisturbed(soak, reference):
        raise RuntimeError(f"the undisturbed run failed: see {reference}.log")
    tally, chance = Tally(), random.Random(soak.seed)
    begin = time.monotonic()
    with tqdm(total=soak.kills, desc="kills", unit="kill") as bar:
        while tally.survived < soak.kills and time.monotonic() - begin < 60 * soak.minutes:
            run = soak.disk / f"round{tally.rounds}"
            _round(soak, run, tally, chance, begin + 60 * soak.minutes, bar)
            differences = _differences(reference, run)
            tally.wrong += [f"{run.name}: {difference}" for difference in differences]
            tally.rounds += 1
            tally.equal_rounds += not differences
            if not differences:
                shutil.rmtree(run)
    tally.seconds = time.monotonic() - begin
    return tally


def _undisturbed(soak: Soak, run: Path) -> bool:
    life = _start(soak, run)
    return life.wait(FINISH_S) and life.status == 0


def _start(soak: Soak, run: Path) -> Life:
    data = soak.folder / "data" / "train"
    settings = {**TRAINING, "dataset_path": str(data), "checkpoint_dir": str(run), "train_steps": soak.steps}
    config, log = (soak.folder / f"{run.name}.{suffix}" for suffix in ("yaml", "log"))
    write_text(config, yaml.safe_dump({"model": MODEL, "training": settings}))
    log.unlink(missing_ok=True)
    return LAUNCHERS[soak.launcher](config, soak.world, log)


def _round(soak: Soak, run: Path, tally: Tally, chance: random.Random, until: float, bar: tqdm) -> None:
    """One run from nothing to its end, killed until enough kills were made or time is over, then left alone."""
    harmed, life_number = None, 0
    while True:
        whole, logged = _newest_whole(run), _last_step(run)
        life = _start(soak, run)
        name = chance.choice(list(FAULTS))
        alone = tally.survived >= soak.kills or time.monotonic() > until
        try:
            if alone:
                life.wait(FINISH_S)
            else:
                _until_it_speaks(life)
                FAULTS[name](life, run, chance)
        except TimeoutError as error:
            tally.wrong.append(f"{run.name}, life {life_number}: {error}")
        if not life.wait(FINISH_S):
            tally.wrong.append(f"{run.name}, life {life_number}: does not end")
            life.kill()
        _count(tally, run, life, life_number, whole, logged, harmed)
        if life.status == 0 or tally.wrong:
            return
        life_number += 1
        tally.kills[name] = tally.kills.get(name, 0) + 1
        bar.update()
        harmed = corrupt(run, chance) if chance.random() < soak.corruption else None
        tally.corrupted += harmed is not None


def _until_it_speaks(life: Life) -> None:
    """Forked processes speak at once; torchrun's import torch first, and killing them there proves little."""
    end = time.monotonic() + FINISH_S
    while not (STARTED.search(life.said()) or life.ended()) and time.monotonic() < end:
        life.wait(0)


def _count(
    tally: Tally, run: Path, life: Life, number: int, whole: int, logged: int, harmed: str | None
) -> None:
    """Judge a life that has ended.

    Args:
        whole: step of the newest whole checkpoint when it started; 0: none.
        logged: last step in `log.jsonl` at that time.
        harmed: what was done to the newest checkpoint just before.
    """
    said, where = life.said(), f"{run.name}, life {number}"
    tally.saves_cut_off += any(path.stat().st_mtime > life.began for path in run.glob(".ckpt_*.tmp"))
    tally.saves_failed += said.count(SAVE_FAILED)
    if _newest_whole(run) < whole:
        tally.wrong.append(f"{where}: checkpoint {whole} was whole, now the newest is {_newest_whole(run)}")
    if life.status > 0 and "is the disk full" not in said and "Connection" not in said:
        tally.wrong.append(f"{where}: ended with status {life.status}: {said.strip().splitlines()[-1:]}")
    started = STARTED.search(said)
    if not started:
        return
    if whole:
        step = int(started[1] or 0)
        tally.resumes += 1
        tally.steps_done_again += max(0, logged - step)
        if step != whole:
            tally.wrong.append(f"{where}: went on from step {step}, but {whole} was whole")
    if harmed:
        tally.fallbacks += 1
        if "is damaged" not in said:
            tally.wrong.append(f"{where}: had {harmed}, and said nothing")


def _newest_whole(run: Path) -> int:
    """Step of the newest checkpoint that is whole; 0: none."""
    return max((step_of(path) for path in find_checkpoints(run) if damage(path) is None), default=0)


def _last_step(run: Path) -> int:
    lines = (run / "log.jsonl").read_text().splitlines() if (run / "log.jsonl").is_file() else []
    return json.loads(lines[-1])["step"] if lines else 0


def _differences(reference: Path, run: Path) -> list[str]:
    """In what a finished run differs from the undisturbed one."""
    ours, theirs = (find_checkpoints(folder)[-1:] for folder in (run, reference))
    if not ours or ours[0].name != theirs[0].name:
        return [f"its last checkpoint is {ours}, not {theirs[0].name}"]
    found = []
    if not _same(load_weights(ours[0]), load_weights(theirs[0])):
        found.append("the final weights differ")
    if not _same(load_training_state(ours[0]), load_training_state(theirs[0])):
        found.append("the final training state differs")
    expected = dict(_losses(reference))
    wrong = sorted({step for step, loss in _losses(run) if loss != expected[step]})
    return found + ([f"losses differ at steps {wrong[:5]}"] if wrong else [])


def _losses(run: Path) -> list[tuple[int, float]]:
    """Step and loss of every training record, also of steps that were done again."""
    entries = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [(entry["step"], entry["loss"]) for entry in entries if entry["kind"] == "train"]


def _same(one: Any, other: Any) -> bool:
    """Whether nests of tensors and plain values are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.is_tensor(other) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


def table(soak: Soak, tally: Tally) -> str:
    """What was survived, as Markdown."""
    rows = {
        "processes, launcher": f"{soak.world}, {soak.launcher}",
        "time": f"{tally.seconds / 60:.1f} min",
        **{f"kills: {name}": count for name, count in sorted(tally.kills.items())},
        "kills survived": tally.survived,
        "resumes": tally.resumes,
        "kills in the middle of a save": tally.saves_cut_off,
        "saves that failed on a full disk": tally.saves_failed,
        "newest checkpoint corrupted": tally.corrupted,
        "fallbacks to the one before": tally.fallbacks,
        "steps done again": tally.steps_done_again,
        "runs finished": tally.rounds,
        "of them equal bit for bit to the undisturbed run": tally.equal_rounds,
        "things that went wrong": len(tally.wrong),
    }
    return "\n".join(
        ["| what | count |", "|---|---|", *(f"| {what} | {count} |" for what, count in rows.items())]
    )
