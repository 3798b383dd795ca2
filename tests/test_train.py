"""Whole training runs in one process: learning, resuming, refusing, stopping."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_run import largest_difference, losses, records, tiny_config, write_config, write_scenes
from torch import Tensor
from waits import Waits

from src.checkpoint import find_checkpoints, load_training_state, load_weights, read_manifest
from src.data.loader import training_loader
from src.loss import build_image_loss
from src.model import build_model
from src.model.lvsm_decoder_only import LVSMDecoderOnly
from src.optim import build_optimizer
from src.runtime import Runtime, grad_scaler
from src.step import train_step
from src.train import main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data"))


@pytest.fixture
def train(data: Path, tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    """Run `main` on the tiny config with other settings; exit status and run folder."""

    def run(name: str = "run", *words: str, **training: Any) -> tuple[int, Path]:
        config = write_config(tmp_path / f"{name}.yaml", data, tmp_path / name, **training)
        return main(["--config", str(config), *words]), tmp_path / name

    return run


def steps(run: Path) -> list[int]:
    return [read_manifest(path)["step"] for path in find_checkpoints(run)]


def assert_same_run(a: Path, b: Path) -> None:
    """Weights, optimiser, counters and generators are equal bit for bit."""
    first, second = load_weights(a), load_weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    one, other = (load_training_state(find_checkpoints(run)[-1]) for run in (a, b))
    assert one["progress"] == other["progress"]
    for key, moments in one["optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, other["optimizer"]["state"][key][name])
    assert torch.equal(one["random"][0]["torch"], other["random"][0]["torch"])


# ----------------------------------------------------------------------------------------------- learning


def test_one_scene_is_learnt_by_heart(tmp_path) -> None:
    """Far beyond the mean colour of the targets, the best a model without eyes could do (about 13 dB)."""
    data = write_scenes(tmp_path / "data", num_scenes=1)
    config = write_config(
        tmp_path / "c.yaml", data, tmp_path / "run", lr=4e-3, warmup=10, train_steps=150, checkpoint_every=150
    )
    assert main(["--config", str(config)]) == 0
    psnr = {entry["step"]: entry["psnr"] for entry in records(tmp_path / "run")}
    assert psnr[1] < 14
    assert sum(psnr[step] for step in range(141, 151)) / 10 > 20


def test_accumulated_micro_batches_equal_one_large_batch(train) -> None:
    _, whole = train("whole", batch_size_per_gpu=4)
    _, parts = train("parts", batch_size_per_gpu=1, grad_accum_steps=4)
    assert largest_difference(whole, parts) < 1e-5
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.parametrize(
    ("class_name", "sizes"),
    [
        ("model.LVSM_scene_encoder_decoder.Images2LatentScene", {"encoder_n_layer": 1, "decoder_n_layer": 1}),
        ("src.model.ptlvsm.posedTargetLVSM", {"n_layer": 1}),
        (
            "src.model.uplvsm.unposedLVSM",
            {"encoder_n_layer": 1, "estimator_n_layer": 1, "decoder_n_layer": 1},
        ),
    ],
)
def test_every_family_trains_with_recomputation_and_dynamic_context(
    class_name: str, sizes: dict, data: Path, tmp_path
) -> None:
    path = write_config(
        tmp_path / "c.yaml", data, tmp_path / "run",
        grad_checkpoint_every=1, dynamic_input_view_num=True, train_steps=3, vis_every=2, eval_every=3,
        log_grad_norm_details=True,
    )  # fmt: skip
    tree = yaml.safe_load(path.read_text())
    tree["model"]["class_name"] = class_name
    transformer = {"d": 32, "d_head": 16, "use_qk_norm": True, **sizes}
    if "n_layer" not in sizes:
        transformer["n_latent_vectors"] = 4
    tree["model"]["transformer"] = transformer
    if class_name.startswith("src."):
        backbone = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 24, "num_register_tokens": 1}
        tree["model"]["image_tokenizer"]["backbone"] = backbone
        tree["pretrained"] = {"dinov2": "random"}
    path.write_text(yaml.safe_dump(tree))
    assert main(["--config", str(path)]) == 0
    assert steps(tmp_path / "run") == [2, 3]
    assert len(records(tmp_path / "run", "eval")) == 1
    # DistributedDataParallel counts on every parameter having a gradient.
    trained = {name.removeprefix("grad_norm/") for name in records(tmp_path / "run")[0] if "/" in name}
    assert trained == load_weights(tmp_path / "run").keys()


# ----------------------------------------------------------------------------------------------- what a run writes


def test_a_run_writes_its_config_logs_pictures_and_scores(train) -> None:
    status, run = train(vis_every=3, eval_every=3, log_grad_norm_details=True)
    assert status == 0
    assert steps(run) == [2, 4, 6]
    assert list(losses(run)) == [1, 2, 3, 4, 5, 6]
    assert {"psnr", "lr", "grad_norm", "it_per_s", "images_per_s", "data_share", "memory_gib"} <= records(
        run
    )[0].keys()
    assert "grad_norm/transformer_blocks.0.attn.fc.weight" in records(run)[0]
    assert [entry["step"] for entry in records(run, "eval")] == [3, 6]
    assert records(run, "eval")[0]["counts"]["evaluated"] == 6
    assert len(list((run / "tensorboard").iterdir())) == 1
    for step in (3, 6):
        folder = run / f"iter_{step:08d}"
        uids = [line.split()[0] for line in (folder / "uids.txt").read_text().splitlines()]
        span = f"{uids[0]}_{uids[-1]}"
        assert sorted(p.name for p in folder.iterdir()) == [
            f"input_{span}.jpg",
            f"supervision_{span}.jpg",
            "uids.txt",
        ]


def test_the_saved_config_is_plain_yaml_that_starts_the_same_run(train, tmp_path) -> None:
    _, run = train()
    tree = yaml.safe_load((run / "config.yaml").read_text())
    assert tree["training"]["lr"] == 2e-3
    assert tree == read_manifest(find_checkpoints(run)[-1])["config"]
    assert main(["--config", str(run / "config.yaml"), f"training.checkpoint_dir={tmp_path / 'again'}"]) == 0
    assert_same_run(run, tmp_path / "again")


# ----------------------------------------------------------------------------------------------- resuming


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(train, tmp_path) -> None:
    """Whatever the save point, with accumulation, and across the end of an epoch (6 scenes, 4 samples a step)."""
    settings = {"grad_accum_steps": 2, "checkpoint_every": 1, "keep_checkpoints": 0}
    _, straight = train("straight", **settings)
    for stopped_at in (1, 3, 5):
        run = tmp_path / f"from{stopped_at}"
        name = f"ckpt_{stopped_at:016d}"
        shutil.copytree(straight / name, run / name)
        assert train(run.name, **settings)[0] == 0
        assert_same_run(straight, run)
        assert losses(run) == {s: loss for s, loss in losses(straight).items() if s > stopped_at}


def test_a_damaged_newest_checkpoint_costs_its_steps_and_nothing_else(train, capsys) -> None:
    _, straight = train("straight")
    _, run = train("run")
    shutil.rmtree(run / "ckpt_0000000000000006")
    weights = run / "ckpt_0000000000000004" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert train("run")[0] == 0
    assert "ckpt_0000000000000004 is damaged" in capsys.readouterr().err
    assert_same_run(straight, run)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(train, capsys) -> None:
    _, run = train()
    for path in find_checkpoints(run):
        (path / "model.safetensors").unlink()
    assert train()[0] == 2
    assert "all 3 checkpoints are damaged" in capsys.readouterr().err


def test_a_finished_run_says_so(train, capsys) -> None:
    _, run = train()
    before = (run / "log.jsonl").read_text()
    assert train()[0] == 0
    assert "This run is finished: 6 steps. Raise training.train_steps" in capsys.readouterr().err
    assert (run / "log.jsonl").read_text() == before


def test_settings_of_the_optimiser_come_from_the_config_after_a_restart(train) -> None:
    _, run = train()
    train("run", "training.train_steps=8", "training.weight_decay=0.3")
    groups = load_training_state(find_checkpoints(run)[-1])["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]


# ----------------------------------------------------------------------------------------------- starting from others


def test_fine_tuning_takes_the_weights_alone_and_then_goes_on_from_its_own_checkpoints(train) -> None:
    _, base = train("base")
    settings = {"resume_ckpt": str(base), "reset_training_state": True, "lr": 0.0, "weight_decay": 0.0}
    _, tuned = train("tuned", train_steps=2, **settings)
    assert largest_difference(base, tuned) == 0
    assert steps(tuned) == [2]
    train("tuned", train_steps=4, **(settings | {"resume_ckpt": "no such file"}))
    assert steps(tuned) == [2, 4]


def test_going_on_from_another_run_keeps_the_optimiser_and_its_step_unless_told_otherwise(train) -> None:
    _, base = train("base")
    _, longer = train("longer", resume_ckpt=str(base), train_steps=7, checkpoint_every=1)
    assert steps(longer) == [7]
    _, anew = train("anew", resume_ckpt=str(base), reset_lr_scheduler=True, train_steps=1, checkpoint_every=1)
    assert steps(anew) == [1]
    moments = load_training_state(find_checkpoints(anew)[-1])["optimizer"]["state"][0]
    assert moments["step"] == 7  # six updates of the base run and one of its own


def test_a_published_file_needs_fresh_training_state(train, tmp_path, capsys) -> None:
    _, base = train("base")
    path = tmp_path / "published.pt"
    extra = {"loss_computer.perceptual_loss_module.vgg.features.0.weight": torch.zeros(1)}
    torch.save({"model": {**load_weights(base), **extra}, "param_update_step": 9}, path)
    assert train("a", resume_ckpt=str(path))[0] == 2
    assert "training.reset_training_state=true" in capsys.readouterr().err
    status, tuned = train("b", resume_ckpt=str(path), reset_training_state=True, lr=0.0, weight_decay=0.0)
    assert status == 0
    assert largest_difference(base, tuned) == 0
    assert "ignored 1 under loss_computer." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checkpoint_dir": ""}, "training.checkpoint_dir is empty"),
        ({"dataset_path": ""}, "training.dataset_path is empty"),
        ({"dataset_path": "nowhere/full_list.txt"}, "nowhere/full_list.txt"),
        ({"resume_ckpt": "nowhere", "reset_training_state": True}, "nowhere: no such checkpoint"),
        ({"perceptual_loss_weight": 0.5}, "imagenet-vgg-verydeep-19.mat"),
        ({"grad_acum_steps": 2}, "Did you mean training.grad_accum_steps?"),
    ],
)
def test_mistakes_end_with_a_message_and_status_2(
    train, settings: dict, message: str, capsys, monkeypatch, tmp_path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(**settings)[0] == 2
    assert message in capsys.readouterr().err


def test_checkpoints_of_another_program_in_the_folder_are_not_passed_over(train, tmp_path, capsys) -> None:
    (tmp_path / "run").mkdir()
    torch.save({"model": {}}, tmp_path / "run" / "ckpt_0000000000004000.pt")
    assert train()[0] == 2
    assert "ckpt_0000000000004000.pt of another program" in capsys.readouterr().err


def test_print_config_shows_the_settings_and_trains_nothing(train, capsys) -> None:
    status, run = train("run", "--print-config", "training.lr=1e-4")
    assert status == 0 and not run.exists()
    assert "lr: 0.0001  # command line" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------- bad steps and signals


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], None], set[int]], None]:
    """Make the loss NaN in the given calls (from 1), or call something there."""

    def install(calls: set[int], act: Callable[[], None] | None = None) -> None:
        count = 0

        def build(*arguments: Any) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
            inner = build_image_loss(*arguments)

            def image_loss(pred: Tensor, target: Tensor) -> dict[str, Tensor]:
                nonlocal count
                count += 1
                terms = inner(pred, target)
                if count in calls and act:
                    act()
                elif count in calls:
                    terms["loss"] = terms["loss"] * float("nan")
                return terms

            image_loss.at = lambda step: image_loss  # the same in every step
            return image_loss

        monkeypatch.setattr("src.run.build_image_loss", build)

    return install


def test_a_step_that_is_not_finite_is_skipped_counted_and_logged_with_its_scenes(
    train, spoil, capsys
) -> None:
    spoil({3})
    status, run = train(checkpoint_every=1, keep_checkpoints=0)
    assert status == 0
    before, after = (load_weights(run / f"ckpt_{step:016d}") for step in (2, 3))
    assert all(torch.equal(before[name], after[name]) for name in before)
    (bad,) = records(run, "bad_step")
    assert bad["step"] == 3 and len(bad["scenes"]) == 2 and bad["terms"]["loss"] is None
    assert all(scene in capsys.readouterr().err for scene in bad["scenes"][:1])
    last = load_training_state(find_checkpoints(run)[-1])["progress"]
    assert (last["step"], last["samples_seen"], last["bad"], last["bad_in_a_row"]) == (6, 12, 1, 0)


def test_too_many_bad_steps_in_a_row_stop_the_run_and_leave_its_checkpoints_alone(
    train, spoil, capsys
) -> None:
    spoil({3, 5, 6, 7})
    status, run = train(train_steps=20, max_bad_steps=3, checkpoint_every=4, keep_checkpoints=0)
    assert status == 3
    assert "3 steps in a row were not finite or failed" in capsys.readouterr().err
    assert steps(run) == [4]
    assert [entry["step"] for entry in records(run, "bad_step")] == [3, 5, 6, 7]


def test_a_gradient_that_is_too_large_skips_the_step_but_the_schedule_goes_on(train) -> None:
    _, run = train(allowed_gradnorm_factor=1e-9, train_steps=3, checkpoint_every=1, keep_checkpoints=0)
    first, last = load_weights(run / "ckpt_0000000000000001"), load_weights(run)
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert [(e["skipped"], e["bad"], e["lr"]) for e in records(run)] == [
        (1, 0, 0.0),
        (2, 0, 1e-3),
        (3, 0, 2e-3),
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_writes_a_checkpoint_and_the_run_goes_on_from_there(train, spoil, number: int) -> None:
    _, straight = train("straight")
    spoil({3}, lambda: os.kill(os.getpid(), number))
    status, run = train("run")
    assert status == 128 + number
    assert steps(run)[-1] == 3
    spoil(set())
    assert train("run")[0] == 0
    assert_same_run(straight, run)


def test_the_time_limit_writes_a_checkpoint_and_ends_with_a_status_of_its_own(train, capsys) -> None:
    status, run = train(train_steps=100_000, checkpoint_every=100_000, time_limit="0:02")
    assert status == 124 and len(steps(run)) == 1
    assert steps(run) == [list(losses(run))[-1]]
    assert "training.time_limit is over. Start again to go on" in capsys.readouterr().err


def test_a_failed_forward_pass_costs_its_step_and_nothing_else(train, spoil, capsys) -> None:
    def fail() -> None:
        raise RuntimeError("out of memory\nand more")

    spoil({3}, fail)
    status, run = train(checkpoint_every=1, keep_checkpoints=0)
    assert status == 0
    before, after = (load_weights(run / f"ckpt_{step:016d}") for step in (2, 3))
    assert all(torch.equal(before[name], after[name]) for name in before)
    (bad,) = records(run, "bad_step")
    assert bad["problem"] == "RuntimeError: out of memory" and len(bad["scenes"]) == 2
    told = capsys.readouterr().err
    assert "Traceback" in told and "Step 3 failed and was skipped on all ranks (1 in a row, 1 in all)" in told


def test_gradients_of_a_step_that_failed_midway_are_gone(train, spoil) -> None:
    """Its first micro-batch went through: nothing of it may reach the next update."""

    def fail() -> None:
        raise ValueError("a bad batch")

    spoil({6}, fail)  # the second micro-batch of step 3
    settings = {"batch_size_per_gpu": 1, "grad_accum_steps": 2, "checkpoint_every": 1, "keep_checkpoints": 0}
    _, run = train("failed", **settings)
    spoil({6})  # NaN in its place
    _, skipped = train("skipped", **settings)
    assert [entry["step"] for entry in records(run, "bad_step")] == [3]
    assert_same_run(run, skipped)


def test_a_process_that_cannot_go_on_does_not_wait_for_the_others_to_leave(train, spoil, monkeypatch) -> None:
    """Leaving nccl's group waits for ranks that wait for this one."""
    left: list[bool] = []
    monkeypatch.setattr("src.train.stop", lambda: left.append(True))

    def fail() -> None:
        raise torch.AcceleratorError("an illegal memory access")

    spoil({2}, fail)
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        train()
    assert not left
    spoil(set())
    assert train()[0] == 0 and left


def test_a_run_folder_that_another_machine_does_not_see_is_refused(train, monkeypatch, capsys) -> None:
    assert train(train_steps=2)[0] == 0
    monkeypatch.setattr("src.run.all_gather_objects", lambda value: [value, False])
    assert train(train_steps=4)[0] == 2
    assert "the same folder on all machines" in capsys.readouterr().err


def test_pictures_leave_generators_and_training_mode_alone(train, monkeypatch) -> None:
    modes: list[bool] = []

    def forward(model: torch.nn.Module, *views: Any) -> Any:
        modes.append(model.training)
        return inner(model, *views)

    inner = LVSMDecoderOnly.forward
    monkeypatch.setattr(LVSMDecoderOnly, "forward", forward)
    assert train(train_steps=2, vis_every=1)[0] == 0
    assert modes == [True, False, True, False]


@pytest.mark.parametrize("amp_dtype", ["fp32", "fp16"])
def test_the_host_waits_for_the_device_once_in_a_step(data: Path, tmp_path, amp_dtype: str) -> None:
    """Once: for the `tolist` of `clip_or_skip`, which is not seen here. AdamW waits only on a CPU: SGD instead."""
    config = tiny_config(
        write_config(
            tmp_path / "c.yaml", data, tmp_path, use_amp=True, amp_dtype=amp_dtype, perceptual_loss_weight=0.5
        )
    )
    config.pretrained.vgg19 = "random"
    runtime, training = Runtime(), config.training
    model = build_model(config.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = grad_scaler(runtime.device, training)
    scaler.load_state_dict(scaler.state_dict() | {"scale": 8.0})  # low enough not to overflow
    image_loss = build_image_loss(training, config.pretrained, runtime.device)
    batches = [next(training_loader(config, rank=0, world=1)) for _ in range(2)]
    with Waits() as waits:
        result = train_step(model, batches, 1, optimizer, scaler, image_loss, training, runtime)
    assert result.stepped
    assert waits.found == []


def test_fp16_finds_its_scale_without_bad_steps(data: Path, tmp_path) -> None:
    """The scaler starts far too high: some steps overflow and are skipped, none counts as bad, then it learns."""
    config = tiny_config(
        write_config(tmp_path / "c.yaml", data, tmp_path / "run", use_amp=True, amp_dtype="fp16", warmup=0)
    )
    runtime = Runtime()
    model = build_model(config.model)
    optimizer, scaler = (
        build_optimizer(model, config.training, runtime.device),
        grad_scaler(runtime.device, config.training),
    )
    scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**30})
    image_loss = build_image_loss(config.training, config.pretrained, runtime.device)
    batch = next(training_loader(config, rank=0, world=1))
    results = [
        train_step(model, [batch], step, optimizer, scaler, image_loss, config.training, runtime)
        for step in range(24)
    ]
    assert not results[0].stepped and results[-1].stepped
    assert not any(result.bad for result in results)
    assert scaler.get_scale() < 2.0**30
    assert results[-1].terms["loss"] < results[0].terms["loss"]


def test_a_file_or_a_checkpoint_is_no_run_folder(train, tmp_path, capsys) -> None:
    (tmp_path / "weights.pt").touch()
    assert train("weights.pt")[0] == 2
    assert "weights.pt is a file" in capsys.readouterr().err
    inside = tmp_path / f"ckpt_{1:016d}"
    inside.mkdir()
    assert train(inside.name)[0] == 2
    assert "is one checkpoint" in capsys.readouterr().err and not list(inside.iterdir())


def test_a_training_state_of_another_model_is_refused_with_a_message(train, capsys) -> None:
    _, run = train(train_steps=2, checkpoint_every=2)
    (newest,) = find_checkpoints(run)
    state, manifest = load_training_state(newest), json.loads((newest / "checkpoint.json").read_text())
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)
    torch.save(state, run / "forged.pt")  # not in place: the loaded state is mapped from the file
    os.replace(run / "forged.pt", newest / "training_state.pt")
    digest = hashlib.sha256((newest / "training_state.pt").read_bytes()).hexdigest()
    manifest["sha256"]["training_state.pt"] = digest
    (newest / "checkpoint.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    assert train(train_steps=3)[0] == 2
    assert "does not belong to this model" in capsys.readouterr().err
