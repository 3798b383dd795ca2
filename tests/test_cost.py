"""What a training step costs, against the formulas on paper."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from src.cost import step_cost
from src.model import family_config
from src.settings import RunConfig, load_config

CONFIGS = Path(__file__).resolve().parents[1] / "config"


@pytest.fixture
def config() -> RunConfig:
    """12 layers, width 768, 1024 tokens a view, 2 inputs and 6 targets."""
    return load_config(CONFIGS / "lvsm_decoder_only_1gpu.yaml", [], family_config)


def test_flops_are_those_of_the_formula(config: RunConfig) -> None:
    """24 d^2 per token for the linear maps and 4 n^2 d for attention, in each layer and pass; backward costs twice.
    In the last block context tokens are keys and values, and nothing else is made of them.
    """
    d, layers, n, used, targets = 768, 12, 3 * 1024, 1024, 6
    whole = 24 * d**2 * n + 4 * d * n**2
    last = 6 * d**2 * n + 18 * d**2 * used + 4 * d * n * used
    trunk = 3 * targets * ((layers - 1) * whole + last)
    assert step_cost(config).flops == pytest.approx(trunk, rel=0.005)  # the rest: tokenizers and head


def test_checkpointing_keeps_the_stream_between_blocks_and_little_else(config: RunConfig) -> None:
    stream = 6 * 3 * 1024 * 768 * 4 * 12  # targets x tokens x width x float32 x blocks
    every_block = step_cost(config).kept_bytes
    assert stream <= every_block <= 1.4 * stream
    free = replace(config, training=replace(config.training, grad_checkpoint_every=0))
    assert step_cost(free).kept_bytes > 8 * every_block


def test_state_is_16_bytes_a_parameter(config: RunConfig) -> None:
    cost = step_cost(config)
    assert cost.parameters == 85_840_896
    assert cost.state_bytes == 16 * 85_840_896
