"""scripts/benchmark_growth.py and benchmark_step.py: counts against formulas, real steps, files that are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from scripts import benchmark_growth, benchmark_step
from src.bench import growth, limits, processes, steps
from src.bench.chart import Panel, draw_chart
from src.bench.growth import DECODER, FAMILIES, HALVES, LACT, Scale, Sizes, frame_on_paper, step_on_paper
from src.bench.noise import NoiseTraining, StepFailed
from src.model import family_config
from src.runtime import Runtime
from src.settings import load_config

CONFIG = Path(__file__).resolve().parents[1] / "config" / "debug.yaml"
SIZES = Sizes(width=32, d_head=8, layers=2, patch=4, latents=24)
SCALE = Scale(inputs=2, size=16, batch=3)


@pytest.fixture(autouse=True)
def quick_limits(monkeypatch) -> None:
    monkeypatch.setattr(limits, "SIDE", 256)
    monkeypatch.setattr(limits, "COPIED", 2**20)


# ----------------------------------------------------------------------------------------------- counts


def trunk(d: int, tokens: int, used: int) -> int:
    """Forward pass of a block: 12 d^2 multiply-adds a token in the linear maps, 2 n^2 d in attention; each counts as two.
    In the last block of a stack tokens that are not used are projected, to be keys and values, and that is all.
    """
    return 6 * d**2 * tokens + 18 * d**2 * used + 4 * tokens * used * d


def test_counted_steps_are_those_of_the_formulas() -> None:
    """Backward costs twice the forward pass, but pictures and rays, first of all, need no gradient."""
    d, p, scenes, pixels = SIZES.width, 16, SCALE.batch, SIZES.patch**2
    tokenizers = 2 * (9 * pixels * d * 2 * p + 6 * pixels * d * p)
    head = 2 * 3 * pixels * d * p
    ends = scenes * (2 * tokenizers + 3 * head)
    found = {f: step_on_paper(growth.training_config(f, SIZES, SCALE))["step_flop"] for f in FAMILIES}
    assert found[DECODER] == 3 * scenes * (trunk(d, 3 * p, 3 * p) + trunk(d, 3 * p, p)) + ends
    latents = SIZES.latents
    halves = trunk(d, 2 * p + latents, latents) + trunk(d, latents + p, p)
    assert found[HALVES] == 3 * scenes * halves + ends
    assert found[LACT] > found[DECODER]


def test_paper_knows_what_grows_with_what() -> None:
    """A frame of LaCT and of the encoder-decoder costs the same whatever the context; of decoder-only it does not."""
    few, many = (SCALE.along("inputs", n) for n in (2, 8))
    for family, factor in ((LACT, 1.0), (HALVES, 1.0)):
        section = growth.section(family, SIZES, 16)
        a, b = (frame_on_paper(section, scale) for scale in (few, many))
        assert b["frame_flop"] == factor * a["frame_flop"] and b["encode_flop"] > a["encode_flop"], family
        assert b["frame_paper_bytes"] == a["frame_paper_bytes"], family
    section = growth.section(DECODER, SIZES, 16)
    a, b = (frame_on_paper(section, scale) for scale in (few, many))
    assert b["frame_flop"] > 3 * a["frame_flop"] and b["frame_paper_bytes"] > 2 * a["frame_paper_bytes"]


# ----------------------------------------------------------------------------------------------- steps on noise


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_on_noise_are_steps(family) -> None:
    run = NoiseTraining(growth.training_config(family, SIZES, SCALE), Runtime())
    before = [p.detach().clone() for p in run.model.parameters()]
    run.number = 10_000  # past the warm-up of the learning rate
    results = [run.step() for _ in range(3)]
    assert all(result.stepped for result in results)
    assert results[-1].terms["loss"] < results[0].terms["loss"]  # the same batch each time
    assert all(not torch.equal(a, b) for a, b in zip(before, run.model.parameters()))


def test_a_step_that_cannot_be_done_is_told(monkeypatch) -> None:
    run = NoiseTraining(growth.training_config(DECODER, SIZES, SCALE), Runtime())

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(run.model, "encode", full)
    with pytest.raises(StepFailed, match="no memory left"):
        run.step()


# ----------------------------------------------------------------------------------------------- commands


def test_the_growth_command_writes_figures_tables_and_charts(tmp_path, monkeypatch, capsys) -> None:
    row = processes.Row(1, 0.2, 0.1, 0.0, 1000, 4)
    monkeypatch.setattr(processes, "measure", lambda config, count, repeats, folder: row)
    words = "--width 32 --d_head 8 --layers 2 --patch 4 --latents 8 --side 8 --inputs 1 2 --sizes 8 16 --batches 1 2"
    assert benchmark_growth.main(["--output", str(tmp_path), *words.split(), "--repeats", "1"]) == 0
    report = json.loads((tmp_path / "growth.json").read_text())
    assert {len(rows) for rows in report["rows"].values()} == {6} and report["limits"]["jpeg"] > 0
    text = (tmp_path / "growth.md").read_text()
    assert text in capsys.readouterr().out and text.count("| LaCT | 2 |") == 2 and "CPU-s each" in text
    assert {p.name for p in tmp_path.glob("*.png")} == {
        f"growth_{name}.png" for name in ("inputs", "size", "batch", "rates")
    }


@pytest.mark.slow
def test_two_processes_take_steps_together(tmp_path) -> None:
    row = processes.measure(growth.training_config(DECODER, SIZES, SCALE), 2, 2, tmp_path)
    assert (row.processes, row.samples) == (2, 6) and row.step_s > 0 and row.all_reduce_s > 0


def step_report(tmp_path: Path, *words: str) -> list[dict]:
    arguments = ["--config", str(CONFIG), "training.batch_size_per_gpu=2", *words, "--output", str(tmp_path)]
    assert benchmark_step.main([*arguments, "--steps", "2"]) == 0
    return json.loads((tmp_path / "step.json").read_text())["rows"]


def test_the_step_command_compares_variants(tmp_path, capsys) -> None:
    rows = step_report(tmp_path, "--variants", "blocks", "speed")
    assert [row["variant"] for row in rows] == ["blocks", "speed"]
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-6)
    assert rows[0]["norms"] == pytest.approx(rows[1]["norms"], rel=1e-4) and len(rows[0]["norms"]) > 20
    for row in rows:
        assert row["step_s"] > 0 and row["images_s"] == pytest.approx(2 * 5 / row["step_s"])
        assert 0 < row["mfu"] < 1
    assert "| speed |" in capsys.readouterr().out


def test_a_variant_without_enough_memory_is_a_row_of_the_table(tmp_path, monkeypatch, capsys) -> None:
    class Full(NoiseTraining):
        def step(self, **_: object) -> None:
            raise StepFailed("OutOfMemoryError: tried to allocate more")

    monkeypatch.setattr(steps, "NoiseTraining", Full)
    rows = step_report(tmp_path, "--variants", "speed")
    assert rows[0]["problem"].startswith("OutOfMemory")
    assert "| speed | OutOfMemoryError: tried to allocate more |" in capsys.readouterr().out


def test_variants_that_compute_something_else_stand_out() -> None:
    norms = {"a": 2.0, "b": 1e-3}
    row, other = (
        steps.Row(name, step_s=seconds, loss=0.5, norms={**norms, "b": small})
        for name, seconds, small in (("one", 2.0, 1e-3), ("other", 1.0, 1.05e-3))
    )
    assert row.differs(row) == 0 and other.differs(row) == pytest.approx(0.05)
    table = steps.table([row, other])
    assert "| other | 1.000 | 2.00 |" in table and "| 5e-02 |" in table


def test_work_is_counted_once_whatever_is_recomputed() -> None:
    counts = {
        plan: steps.step_flops(load_config(CONFIG, [f"training.activations={plan}", *more], family_config))
        for plan, more in (("speed", []), ("blocks", []), ("memory", ["training.grad_accum_steps=3"]))
    }
    assert counts["blocks"] == counts["speed"] and counts["memory"] == 3 * counts["speed"]


def test_every_variant_can_be_set() -> None:
    for name, overrides in steps.VARIANTS.items():
        assert load_config(CONFIG, overrides, family_config), name


@pytest.mark.slow
def test_a_compiled_step_equals_an_eager_one(monkeypatch) -> None:
    """Loss and gradients, on the CPU; needs a C++ compiler."""
    compiled: list[nn.Module] = []
    compile_module = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, *a, **k: (compiled.append(self), compile_module(self, *a, **k))
    )
    results = {}
    for name in ("speed", "compiled_speed", "compiled_products"):
        config = load_config(CONFIG, ["training.warmup=0", *steps.VARIANTS[name]], family_config)
        run = NoiseTraining(config, Runtime())
        taken = [run.step() for _ in range(3)]
        results[name] = [(step.terms["loss"].item(), step.grad_norm) for step in taken]
    assert len(compiled) == 2 * 3
    for name in ("compiled_speed", "compiled_products"):
        for ours, eager in zip(results[name], results["speed"]):
            assert ours == pytest.approx(eager, rel=1e-4), name


# ----------------------------------------------------------------------------------------------- charts


def test_charts_stand_in_rows_and_draw_broken_lines(tmp_path) -> None:
    line = {"a": [(1.0, 1.0), (4.0, 9.0)]}
    plain, more = (
        Panel("s", "n", line),
        Panel("s", "n", line, dashed=line, dotted={"limit": [(1, 2), (4, 2)]}),
    )
    draw_chart([plain, plain, more], tmp_path / "a.png", columns=2)
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (2 * 620, 2 * 420)
    sizes = []
    for number, panel in enumerate((plain, more)):
        draw_chart([panel], tmp_path / f"{number}.png")
        with Image.open(tmp_path / f"{number}.png") as image:
            sizes.append(sum(pixel != 255 for pixel in image.convert("L").tobytes()))
    assert sizes[1] > sizes[0] + 300
