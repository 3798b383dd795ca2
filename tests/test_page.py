"""The results page: safe against what scene names may hold, complete in itself, and working in a real browser."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from src.page import MOST_COLUMNS, write_page
from src.visualize import save_image, sheet

NAMES = [
    "<script>alert(1)</script>",
    "\"'&amp;</script><img src=x onerror=alert(2)>",
    "\u2028 caf\u00e9",
    "plain",
]
PSNR = [20.0, 35.5, 27.25, 31.0]


def means(value: float) -> dict:
    return {"psnr": value, "ssim": value / 50}


def table(value: float) -> dict:
    both = {"mean_over_scenes": means(value), "mean_over_images": means(value), "scenes": 4, "images": 12}
    return {**both, "without_context_targets": dict(both)}


def scene(position: int, name: str, psnr: float, frames: list[int]) -> dict:
    return {
        "scene": name,
        "position": position,
        "context": [0, 50],
        "frames": frames,
        "context_targets": [0] if 0 in frames else [],
        "mean": means(psnr),
        "floors": {"nearest_input": means(15.0), "mean_colour": means(11.0)},
        "per_view": {"psnr": [psnr] * len(frames), "ssim": [psnr / 50] * len(frames)},
    }


def make_report(names: list[str], psnr: list[float], frames: list[int]) -> dict:
    """What `evaluate` returns, in small."""
    return {
        "model": "UPLVSM",
        "family": "src.model.uplvsm.unposedLVSM",
        "target_aware": True,
        "protocol": {
            "index_file": "index_<b>.json",
            "index_sha256": "ab" * 32,
            "config_digest": "0123456789abcdef",
            "precision": "fp32",
            "torch_version": "2.14.1",
        },
        "weights": {"path": "weights.pt", "digest": "cd" * 32},
        "headline": means(28.4),
        "render": table(28.4),
        "floors": {"nearest_input": table(15.0), "mean_colour": table(11.0)},
        "swapped_cameras": {**table(12.0), "psnr_drop": 16.4},
        "counts": {
            "scenes_in_index": 6,
            "null": 1,
            "usable": 4,
            "evaluated": 4,
            "broken_renders": 0,
            "missing": 1,
            "images": 12,
            "context_targets": 4,
            "scenes_with_context_targets": 4,
        },
        "missing": [{"scene": "<i>lost</i>", "reason": "not in the data set"}],
        "seconds": 1.5,
        "scenes_per_second": 2.7,
        "scenes": [scene(i, name, value, frames) for i, (name, value) in enumerate(zip(names, psnr))],
    }


def write_results(folder: Path, report: dict, size: int = 24) -> Path:
    """Scene folders with pictures, and the page."""
    for entry in report["scenes"]:
        place = folder / f"{entry['position']:06d}"
        targets = torch.rand(len(entry["frames"]), 3, size, size)
        save_image(place / "input.png", sheet([torch.rand(2, 3, size, size)]))
        save_image(place / "gt_vs_pred.png", sheet([targets, targets]))
    return write_page(folder, report)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return write_results(tmp_path, make_report(NAMES, PSNR, [0, 20, 30]))


class Scripts(HTMLParser):
    """Text of the script elements and the names of all tags, as a browser's parser would find them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script":
            self.texts.append(data)


def embedded(path: Path) -> dict:
    parser = Scripts()
    parser.feed(path.read_text(encoding="utf-8"))
    assert parser.tags.count("script") == 2, "a scene name opened a script element"
    assert "img" not in parser.tags
    return json.loads(parser.texts[0])


def test_scene_names_come_back_from_the_data_block_as_they_were(page: Path) -> None:
    data = embedded(page)
    assert [entry["scene"] for entry in data["scenes"]] == NAMES
    assert data["report"]["missing"][0]["scene"] == "<i>lost</i>"


def test_the_data_block_cannot_end_its_script_element(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "alert(1)</script>" not in text
    assert "<i>lost" not in text


def test_the_page_asks_for_nothing_from_elsewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]{2,}", text)
    assert "default-src 'none'" in text


def test_pictures_are_embedded_and_the_files_are_linked(page: Path) -> None:
    entry = embedded(page)["scenes"][1]
    assert entry["sheet"]["uri"].startswith("data:image/jpeg;base64,")
    assert entry["input"]["file"] == "000001/input.png"
    assert entry["floor"] == means(15.0)


def test_of_many_targets_some_are_embedded_from_the_first_to_the_last(tmp_path: Path) -> None:
    report = make_report(["long"], [30.0], list(range(100, 121)))
    shown = embedded(write_results(tmp_path, report, size=16))["scenes"][0]["sheet"]["shown"]
    assert (len(shown), shown[0], shown[-1]) == (MOST_COLUMNS, 0, 20)


def test_a_page_without_pictures_and_scores_is_still_a_page(tmp_path: Path) -> None:
    report = make_report(["a"], [1.0], [1])
    for part in (report, report["render"], report["scenes"][0]):
        part.update(
            {
                name: {}
                for name in ("headline", "floors", "mean", "mean_over_scenes", "per_view")
                if name in part
            }
        )
    assert embedded(write_page(tmp_path, {**report, "swapped_cameras": None}))["scenes"][0]["mean"] == {}


# ----------------------------------------------------------------------------------------------- a real browser


class Browser:
    """Headless Chromium driven over its debugging pipe: JSON messages that end in a zero byte, no package needed."""

    def __init__(self, binary: str, profile: Path) -> None:
        commands, self.to_browser = os.pipe()
        self.from_browser, answers = os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--mute-audio"]
        options += [f"--user-data-dir={profile}", "--window-size=1300,1000", "about:blank"]
        redirect = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'  # where Chromium expects the pipe
        self.process = subprocess.Popen(
            ["bash", "-c", redirect, binary, *options],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self.buffer, self.number, self.events = b"", 0, []
        self.session = ""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _receive(self, timeout_s: float = 60) -> dict:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.from_browser], [], [], timeout_s)
            assert ready, "the browser does not answer"
            part = os.read(self.from_browser, 2**20)
            assert part, "the browser has ended"
            self.buffer += part
        line, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(line)

    def open(self, url: str) -> None:
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=url)
        self.wait("document.documentElement?.dataset.ready === 'yes'")

    def run(self, expression: str) -> Any:
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, condition: str, timeout_s: float = 30) -> None:
        end = time.monotonic() + timeout_s
        while not self.run(condition):
            assert time.monotonic() < end, f"never became true: {condition}"
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """A mouse click in the middle of an element, as a person would make it."""
        spot = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send(
                "Input.dispatchMouseEvent", type=kind, x=spot[0], y=spot[1], button="left", clickCount=1
            )

    def press(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {}
        code = {"Enter": 13, "Escape": 27, "ArrowRight": 39}.get(key, 0)
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def complaints(self) -> list[str]:
        """Exceptions, dialogs, errors of console and log, and requests that would leave this machine."""
        found = []
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            if method in ("Runtime.exceptionThrown", "Page.javascriptDialogOpening"):
                found.append(json.dumps(params)[:500])
            elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
                found.append(json.dumps(params["args"])[:500])
            elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(json.dumps(params["entry"])[:500])
            elif method == "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith(("file:", "data:", "about:")):
                    found.append(f"request to {url}")
        return found

    def close(self) -> None:
        os.close(self.to_browser)  # Chromium ends when its pipe does
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.from_browser)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        message = "needs Chromium to try the results page (apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    browser = Browser(binary, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


SHOWN = "[...document.querySelectorAll('.card')].map(card => card.dataset.scene)"


def sorted_names(*, descending: bool) -> list[str]:
    return [name for _, name in sorted(zip(PSNR, NAMES), reverse=descending)]


def test_in_a_browser_scenes_are_sorted_searched_and_opened(browser: Browser, page: Path) -> None:
    browser.events.clear()
    browser.open(page.as_uri())
    assert browser.run(SHOWN) == NAMES
    browser.click("#sort button[value=psnr]")
    assert browser.run(SHOWN) == sorted_names(descending=True)
    browser.click("#direction")
    assert browser.run(SHOWN) == sorted_names(descending=False)

    browser.press("/")
    for letter in "pla":
        browser.press(letter)
    assert browser.run(SHOWN) == ["plain"]
    browser.run(
        "document.querySelector('#search').value = ''; document.querySelector('#search').blur();"
        "document.querySelector('#search').dispatchEvent(new Event('input'))"
    )

    browser.click(".card")
    assert browser.run("document.querySelector('#viewer').open")
    assert browser.run("document.querySelector('#viewer .name').textContent") == NAMES[0]
    browser.wait(
        "document.querySelector('#viewer .tile').style.backgroundImage.includes('000000/gt_vs_pred.png')"
    )
    browser.press("ArrowRight")
    assert browser.run("document.querySelector('#viewer .name').textContent") == NAMES[2]
    browser.press("Escape")
    browser.wait("!document.querySelector('#viewer').open")
    assert browser.complaints() == []


def test_in_a_browser_the_address_holds_order_and_search(browser: Browser, page: Path) -> None:
    browser.open(page.as_uri() + "#sort=psnr&dir=asc&q=script")
    assert browser.run(SHOWN) == [NAMES[0], NAMES[1]]


def test_in_a_browser_the_label_target_aware_is_seen(browser: Browser, page: Path) -> None:
    browser.open(page.as_uri())
    assert browser.run("document.querySelector('#aware').checkVisibility()")
    assert "Target-aware" in browser.run("document.body.innerText")


def test_in_a_browser_thousands_of_scenes_are_drawn_as_they_come_into_view(
    browser: Browser, tmp_path: Path
) -> None:
    names = [f"scene{i:05d}" for i in range(5000)]
    report = make_report(names, [10 + i * 0.001 for i in range(5000)], [0, 1, 2])
    browser.events.clear()
    browser.open(write_page(tmp_path, report).as_uri())
    first = browser.run("document.querySelectorAll('.card').length")
    assert 0 < first < 300
    browser.run("window.scrollTo(0, document.body.scrollHeight)")
    browser.wait(f"document.querySelectorAll('.card').length > {first}")
    assert browser.complaints() == []
