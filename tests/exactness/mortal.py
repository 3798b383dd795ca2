"""`src.train`, except that rank 1 dies of SIGKILL in the middle of update 4, once: when torchrun starts it first."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from torch.optim.optimizer import register_optimizer_step_pre_hook

from src.train import main

UPDATES = 4


def die_in_update(number: int) -> None:
    """Kill this process right before its optimiser does that update, counted from 1."""
    count = 0

    def before(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_pre_hook(before)


if __name__ == "__main__":
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        die_in_update(UPDATES)
    sys.exit(main())
