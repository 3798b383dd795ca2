"""The cache of bytes on the disk: bounded, shared, and never in the way."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time

import pytest

from src.data.remote import byte_cache
from src.data.remote.byte_cache import SHARES, ByteCache


@pytest.fixture(autouse=True)
def any_disk(monkeypatch):
    monkeypatch.setattr(byte_cache, "FREE_SHARE", 0.0)


def stored(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and len(file.name) == 32)


def test_gives_back_what_was_put(tmp_path):
    cache = ByteCache(tmp_path, SHARES * 1000)
    cache.put("a", b"x" * 100)
    cache.put("b", b"")
    assert cache.get("a", 100) == b"x" * 100 and cache.get("b", 0) == b""
    assert cache.get("a", 99) is None and cache.get("c", 100) is None
    assert ByteCache(tmp_path, SHARES * 1000).get("a", 100) == b"x" * 100


def test_a_bound_of_zero_keeps_and_reads_nothing(tmp_path):
    ByteCache(tmp_path, SHARES * 1000).put("a", b"x" * 100)
    off = ByteCache(tmp_path, 0)
    off.put("b", b"y")
    assert off.get("a", 100) is None and stored(tmp_path) == 104


def test_what_was_used_longest_ago_goes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(byte_cache, "SHARES", 1)
    cache = ByteCache(tmp_path, 1040)
    for number in range(10):
        cache.put(str(number), bytes(100))
        path = cache._path(str(number))
        os.utime(path, ns=(number, number))
    assert stored(tmp_path) == 1040 and cache.get("0", 100) == bytes(100)  # used now
    cache.put("new", bytes(100))
    assert (
        cache.get("1", 100) is None and cache.get("0", 100) and cache.get("new", 100) and cache.get("9", 100)
    )


def test_damaged_and_foreign_files_are_not_believed(tmp_path):
    cache = ByteCache(tmp_path, SHARES * 1000)
    cache.put("a", b"x" * 100)
    cache._path("a").write_bytes(bytes(104))  # as a power cut leaves it
    assert cache.get("a", 100) is None
    cache.put("a", b"x" * 100)
    assert cache.get("a", 100) == b"x" * 100


def test_a_lock_that_somebody_holds_is_not_waited_for(tmp_path):
    from src.files import exclusive

    cache = ByteCache(tmp_path, SHARES * 1000)
    cache.put("a", b"x")
    with exclusive(cache._path("a").parent / "lock", wait=True):
        begin = time.monotonic()
        cache.put("a", b"yy")
        assert time.monotonic() - begin < 0.5
    assert cache.get("a", 1) == b"x"


def test_a_full_disk_is_told_once_and_does_no_harm(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    cache = ByteCache(tmp_path, SHARES * 1000)
    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    for number in range(5):
        cache.put(str(number), b"x")
        assert cache.get(str(number), 1) is None
    assert [record.getMessage().count("No space left") for record in caplog.records] == [1]


def test_a_share_of_the_disk_is_left_to_others(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(byte_cache, "FREE_SHARE", 1.1)
    cache = ByteCache(tmp_path, SHARES * 1000)
    cache.put("a", b"x")
    assert cache.get("a", 1) is None and "of the disk are free" in caplog.text


def write_for_ever(folder, bound, seed):
    cache, rng = ByteCache(folder, bound), random.Random(seed)
    while True:
        size = rng.randrange(1, 900)
        key = f"{rng.randrange(3000)}-{size}"
        if cache.get(key, size) is None:
            cache.put(key, key.encode() * (size // len(key)) + b"." * (size % len(key)))


def test_processes_that_are_killed_while_writing_stay_within_the_bound(tmp_path):
    """The count survives kills: it may be too high, never too low."""
    bound = SHARES * 2000
    largest = 0
    for life in range(2):
        writers = [
            multiprocessing.Process(target=write_for_ever, args=(tmp_path, bound, 10 * life + number))
            for number in range(3)
        ]
        for writer in writers:
            writer.start()
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            try:
                largest = max(largest, stored(tmp_path))
            except OSError:  # a file went away while it was counted
                continue
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
    assert bound / 2 < largest <= bound and stored(tmp_path) <= bound


@pytest.mark.parametrize("content", ["", "12a", "-"])
def test_a_count_that_was_cut_off_is_made_anew(tmp_path, content):
    cache = ByteCache(tmp_path, SHARES * 1000)
    cache.put("a", b"x" * 100)
    (cache._path("a").parent / "count").write_text(content)
    cache.put("a", b"y" * 100)
    assert cache.get("a", 100) == b"y" * 100
    assert int((cache._path("a").parent / "count").read_text()) == 208
