"""`src.train`, except that rank 1 dies of SIGKILL in the middle of update 4, once: it leaves a file beside its config."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_pre_hook

from src.train import main

UPDATES = 4


def die_in_update(number: int, mark: Path) -> None:
    """Kill this process right before its optimiser does that update, counted from 1."""
    count = 0

    def before(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_pre_hook(before)


if __name__ == "__main__":
    mark = Path(f"{sys.argv[-1]}.died")
    if os.environ["RANK"] == "1" and not mark.exists():
        die_in_update(UPDATES, mark)
    sys.exit(main())
