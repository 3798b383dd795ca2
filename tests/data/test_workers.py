"""Loader processes that die, fail or read, and what the run sees of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils.data import Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from src.data.workers import ReadAhead, WorkerDied

KEYS = 10


@pytest.fixture(autouse=True)
def a_death_is_found_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch looks every five seconds whether its processes live."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


class Items(Dataset):
    """Item n is n squared; reading 4 goes wrong, as often as the file `faults` has lines."""

    def __init__(self, folder: Path, *faults: str) -> None:
        self.faults = folder / "faults"
        self.faults.write_text("\n".join(faults))

    def __getitem__(self, key: int) -> int:
        faults = self.faults.read_text().split()
        if key == 4 and faults:
            self.faults.write_text("\n".join(faults[1:]))
            if faults[0] == "error":
                raise ValueError("a file that is damaged")
            os.kill(os.getpid(), signal.Signals[faults[0]])
        return key**2


def reader(items: Items, num_workers: int = 2) -> ReadAhead:
    return ReadAhead(
        items,
        range(KEYS),
        num_workers=num_workers,
        prefetch_factor=2,
        pin=False,
        describe=lambda key: f"scene{key}",
    )


def items_and_errors(reading: ReadAhead) -> Iterator[int | str]:
    """What each call gives, until there is no more."""
    while True:
        try:
            yield next(reading)
        except StopIteration:
            return
        except (RuntimeError, ValueError) as error:
            yield f"{type(error).__name__}: {error}".partition("\n")[0]


def test_a_process_that_is_killed_is_told_with_its_scene_and_nothing_is_missed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = list(items_and_errors(reader(Items(tmp_path, "SIGKILL"))))
    assert found == [key**2 for key in range(KEYS)]
    (told,) = caplog.messages
    assert told.startswith(
        "A loader process died (SIGKILL) while it read scene4. Is the machine out of memory?"
    )


def test_what_kills_two_processes_is_given_up_and_reading_goes_on_behind_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = list(items_and_errors(reader(Items(tmp_path, "SIGSEGV", "SIGSEGV"))))
    assert found[4] == "WorkerDied: 2 loader processes died while they read scene4"
    assert found[:4] + found[5:] == [key**2 for key in range(KEYS) if key != 4]
    assert [message.partition(" while")[0] for message in caplog.messages] == [
        "A loader process died (SIGSEGV)"
    ] * 2


def test_processes_that_cannot_even_start_are_not_started_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.data.workers._begin", lambda _: os._exit(3))
    with pytest.raises(WorkerDied, match="scene0"):
        next(reader(Items(tmp_path)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_reading_that_fails_costs_its_item_alone(num_workers: int, tmp_path: Path) -> None:
    found = list(items_and_errors(reader(Items(tmp_path, "error"), num_workers)))
    assert found[4].startswith("ValueError: ")
    assert found[:4] + found[5:] == [key**2 for key in range(KEYS) if key != 4]


def test_closing_leaves_no_process(tmp_path: Path) -> None:
    reading = reader(Items(tmp_path))
    next(reading)
    workers = list(reading._loader._workers)
    assert all(worker.is_alive() for worker in workers)
    reading.close()
    assert not any(worker.is_alive() for worker in workers)
