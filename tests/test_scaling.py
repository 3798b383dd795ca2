"""What GPUs tell one another, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scripts import scaling as command
from src.gpus import GPUS
from src.model import family_config
from src.scaling import (
    BUCKET_BYTES,
    LINKS,
    Link,
    Work,
    count,
    ddp_bytes,
    efficiency,
    fsdp_bytes,
    step_seconds,
    talk,
    worthwhile,
)
from src.settings import load_config

CONFIGS = Path(__file__).resolve().parents[1] / "config"
LINK = Link("round", inside=100e9, between=10e9, latency=1e-3, share=0.5)
TEN_BUCKETS = 10 * BUCKET_BYTES  # 262 144 000 bytes


def test_bytes_are_those_of_a_ring() -> None:
    """Two passes round the ring, each moving (n - 1) / n of the gradients; fsdp has three."""
    assert ddp_bytes(800, 1) == 0
    assert ddp_bytes(800, 2) == 800
    assert ddp_bytes(800, 8) == 1400
    assert ddp_bytes(800, 512) == pytest.approx(1596.875)
    assert fsdp_bytes(800, 8) == 2100
    assert fsdp_bytes(800, 8, micro_steps=4) == 8400


def test_the_slower_link_counts_once_there_are_two_machines() -> None:
    assert LINK.seconds(50e9, 0, 8) == pytest.approx(1.0)
    assert LINK.seconds(5e9, 0, 16) == pytest.approx(1.0)
    assert LINK.seconds(0, 3, 8) == pytest.approx(
        3 * 2 * 3 * 1e-3
    )  # 3 buckets, there and back in a tree of depth 3
    assert LINK.seconds(0, 1, 9) == pytest.approx(2 * 4 * 1e-3)


def test_talk_hides_behind_the_backward_pass_but_for_the_last_bucket() -> None:
    link = replace(LINK, latency=0.0)
    talk = 2 * 15 / 16 * TEN_BUCKETS / 5e9  # 0.0983 s on 16 GPUs
    hidden = Work(forward_s=0.1, backward_s=0.2, micro_steps=2, size=TEN_BUCKETS)
    assert step_seconds(hidden, link, 1) == pytest.approx(0.6)
    assert step_seconds(hidden, link, 16) == pytest.approx(0.6 + talk / 10)
    short = replace(hidden, backward_s=0.01, micro_steps=1)
    assert step_seconds(short, link, 16) == pytest.approx(0.11 + talk - 0.01)
    assert efficiency(short, link, 16) == pytest.approx(0.11 / (0.1 + talk))


def test_sharded_weights_are_gathered_twice_and_summed_once_in_each_micro_step() -> None:
    link = replace(LINK, latency=0.0)
    once = 15 / 16 * TEN_BUCKETS / 5e9  # 0.0492 s
    work = Work(forward_s=0.03, backward_s=0.06, micro_steps=4, size=TEN_BUCKETS)
    expected = 4 * (0.03 + (once - 0.03) + 0.06 + (2 * once - 0.06))
    assert step_seconds(work, link, 16, "fsdp") == pytest.approx(expected)


def test_a_split_batch_stops_paying_where_talk_is_as_long_as_work() -> None:
    link = replace(LINK, latency=0.0)
    works = {n: Work(1.0 / n, 2.0 / n, 1, TEN_BUCKETS) for n in (1, 2, 4, 8, 16, 32, 64, 128)}
    # From 16 on talk takes 0.1 s at most: at 16 hidden behind 0.125 s, at 32 behind 0.0625 s of 0.094 s in all.
    assert [round(efficiency(works[n], link, n), 2) for n in (8, 16, 32)] == [1.0, 0.95, 0.71]
    assert worthwhile(works, link) == 16
    assert worthwhile(works, link, least=0.7) == 32


def test_the_work_of_a_config_is_that_of_the_formula() -> None:
    """LVSM decoder-only, 6 targets of 3 x 1024 tokens, squared error alone. The last product of a block is not recomputed:
    nothing in the backward pass needs it.
    """
    overrides = [
        "training.perceptual_loss_weight=0",
        "training.grad_checkpoint_every=1",
        "model.transformer.n_layer=2",
    ]
    config = load_config(CONFIGS / "lvsm_decoder_only_1gpu.yaml", overrides, family_config)
    counts, n, used, d = count(config), 3 * 1024, 1024, 768
    last = 6 * d**2 * n + 10 * d**2 * used + 4 * d * n * used  # all tokens are keys, but targets alone go on
    forward = 6 * (24 * d**2 * n + 4 * d * n**2 + last + 8 * d**2 * used)
    recomputed = 6 * (16 * d**2 * n + 4 * d * n**2 + last)
    assert counts.work == pytest.approx(3 * forward, rel=0.03)  # the rest: tokenizers and head
    assert counts.recomputed == pytest.approx(recomputed, rel=1e-6)
    assert counts.loss_work == 0
    h100 = next(gpu for gpu in GPUS if gpu.name == "H100 SXM")
    work = counts.work_of(2, h100, config.training, 0.5)
    assert work.forward_s == pytest.approx(2 * forward / (989e12 / 2), rel=0.03)
    assert work.backward_s == pytest.approx(2 * (2 * forward + recomputed) / (989e12 / 2), rel=0.03)


def test_a_plan_says_what_processes_tell_one_another() -> None:
    """100 MB of gradients: 2 x 7 / 8 of it within a machine, at 0.8 x 450 GB/s; 3 x 2 x 15 / 16 with fsdp and 2 micro-steps."""
    training = load_config(CONFIGS / "debug.yaml", [], family_config).training
    within = talk(training, 100_000_000, 8)
    assert within.startswith("0.175 GB") and "NVLink" in within and "InfiniBand" not in within
    sharded = talk(replace(training, parallel="fsdp", grad_accum_steps=2), 100_000_000, 16)
    assert sharded.startswith("0.562 GB") and all(link.name in sharded for link in LINKS)
    assert (
        "0.23 s by 25 Gb/s Ethernet" in sharded
    )  # 0.5625 / (3.125 x 0.8), and 4 buckets x 8 messages x 50 us


def test_the_command_writes_table_and_chart(tmp_path, capsys) -> None:
    words = ["--config", str(CONFIGS / "debug.yaml"), "--output", str(tmp_path), "--total", "16"]
    assert command.main(words) == 0
    assert all(link.name in (tmp_path / "scaling.md").read_text() for link in LINKS)
    assert (tmp_path / "scaling.png").is_file()
    assert command.main([*words, "--gpu", "V100 SXM2", "training.use_amp=true"]) == 2
    assert "training.amp_dtype=fp16" in capsys.readouterr().err
