"""What every test may rely on: one thread, one seed, a quiet environment, and where things are.

Fixtures: repo_root, shared, cli_env.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

REPO_ROOT = Path(__file__).resolve().parents[1]
SEED = 0


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module is imported: processes that tests start inherit these."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["WANDB_MODE"] = "disabled"
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "WANDB_API_KEY"):
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def deterministic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts from the same generators and computes on one thread; without the mark `gpu`, on the CPU."""
    if not request.node.get_closest_marker("gpu"):
        # Two runs on a GPU need not be equal bit for bit.
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    np.random.seed(SEED)
    random.seed(SEED)


@pytest.fixture(autouse=True)
def logging_left_alone() -> Iterator[None]:
    """Programs set up logging for their process; pytest's own handlers come back."""
    root, ours = logging.getLogger(), logging.getLogger("src")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])  # which also forgets what loggers remember of levels
    ours.setLevel(before[2])
    logging.disable(logging.NOTSET)  # scripts silence what they repeat many times


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """Folder of the checkout."""
    return REPO_ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder `shared` beside the checkout (parity files, real captures); the test is skipped where it is absent."""
    folder = REPO_ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder} with parity files and real captures, which is not there")
    return folder


@pytest.fixture(scope="session")
def cli_env() -> dict[str, str]:
    """Environment for commands that a test starts: one thread, no GPU (two processes cannot share one), and `src`
    importable from any folder.
    """
    path = os.pathsep.join(filter(None, [str(REPO_ROOT), os.environ.get("PYTHONPATH", "")]))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "disabled",
        "CUDA_VISIBLE_DEVICES": "",
    }
