"""Requests to stop: signals, the time limit, and waits that give way to them."""

from __future__ import annotations

import os
import signal
import time

import pytest

from src.stopping import STATUS_TIME_LIMIT, Interrupted, StopRequest, leave_signals_to_the_run, seconds_in


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("23:50:00", 85800),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("2-00:00:05", 172805),
        ("0:01", 1),
        ("", 0),
        ("soon", 0),
        ("-5", 0),
        ("1:2:3:4", 0),
        ("1.5", 0),
    ],
)
def test_a_time_limit_is_read_as_slurm_reads_it(text: str, seconds: int) -> None:
    assert seconds_in(text) == seconds


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130)]
)
def test_each_signal_has_a_status_of_its_own_and_handlers_are_put_back(number: int, status: int) -> None:
    before = signal.getsignal(number)
    with StopRequest() as request:
        assert request.status == 0
        os.kill(os.getpid(), number)
        assert request.status == status
    assert signal.getsignal(number) is before


def test_the_first_request_counts_and_a_second_signal_changes_nothing() -> None:
    with StopRequest() as request:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
    assert request.status == 138


def test_a_second_ctrl_c_ends_at_once_but_not_the_copy_that_torchrun_passes_on(monkeypatch) -> None:
    with StopRequest() as request:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert request.status == 130
        monkeypatch.setattr("src.stopping.SAME_CTRL_C_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()


def test_the_end_of_the_time_limit_ends_a_wait(monkeypatch) -> None:
    monkeypatch.setattr("src.stopping.UNITS_S", {"days": 0, "hours": 0, "minutes": 0, "seconds": 0.1})
    ended = pytest.raises(Interrupted, match="time_limit is over")
    with StopRequest("0:01") as request, ended, request.giving_way():
        time.sleep(20)
    assert request.status == STATUS_TIME_LIMIT
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_request_that_came_before_ends_a_wait_too_and_only_waits_are_ended() -> None:
    with StopRequest() as request:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # no wait: nothing is raised
        with pytest.raises(Interrupted) as stop, request.giving_way():
            pytest.fail("waited")
        assert stop.value.status == 143


def test_helper_processes_leave_signals_alone() -> None:
    child = os.fork()
    if child == 0:
        leave_signals_to_the_run()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
