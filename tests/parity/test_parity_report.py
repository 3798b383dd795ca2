"""The rules by which golden files are judged, on small files made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.check_parity import main
from src.config import ConfigError
from src.parity import NO_SUCH_STAGE, READERS, find_reader
from src.parity.report import Golden, Rows, compare, covers, load_golden

NAN, INF = float("nan"), float("inf")


def golden(outputs: dict, **given: Any) -> Golden:
    exact = [{"match": "*", "abs": 0.0, "rel": 0.0}]
    parts = {
        "optional": [],
        "stage": [],
        "tolerances": exact,
        "system": "lvsm",
        "kind": "metrics",
        "case": "made",
    }
    parts |= {"config": {}, "state_dict": {}, "inputs": {}, "extra": {}, "path": Path("made.pt")}
    return Golden(outputs=outputs, **{**parts, **given})


def verdict(stored: Any, ours: Any, **given: Any) -> str:
    """Verdict on the one entry `x`; `abs`, `rel`, `fro`, `mean` make its tolerance."""
    rule = {name: given.pop(name) for name in ("abs", "rel", "fro", "mean") if name in given}
    tolerances = [{"match": "*", "abs": 0.0, "rel": 0.0, **rule}]
    (line,) = compare(golden({"x": stored}, tolerances=tolerances, **given), {"x": ours}, {})
    return line.verdict


# ----------------------------------------------------------------------------------------------- entries


def test_entries_are_the_leaves_of_the_outputs() -> None:
    outputs = {
        "steps": [{"loss": 1.0, "seen": [3, 1]}, {"loss": 2.0, "seen": []}],
        "norms": {"block.0.weight": torch.zeros(2)},
        "nested": [[1, [2, 3]], "word"],
        "tensors": [torch.zeros(1), torch.ones(1)],
        "nothing": {},
        "pair": (torch.zeros(1), {"a": 1.0}),
    }
    names = [line.name for line in compare(golden(outputs), outputs, {})]
    assert names == [
        *("steps.0.loss", "steps.0.seen", "steps.1.loss", "steps.1.seen", "norms.block.0.weight"),
        *("nested", "tensors.0", "tensors.1", "nothing", "pair.0", "pair.1.a"),
    ]


@pytest.mark.parametrize(
    "pattern, name, covered",
    [
        ("stages", "stages.block.0", True),
        ("stages", "stages_of", False),
        ("losses.norm_*", "losses.norm_lpips", True),
        ("*.cls", "image.cls", True),
        ("*.cls", "image.cls.row", True),
        ("a.*.c", "a.b.x.c", True),
        ("Render", "render", False),
    ],
)
def test_a_pattern_covers_what_it_names_and_everything_below(pattern: str, name: str, covered: bool) -> None:
    assert covers([pattern], name) is covered


# ----------------------------------------------------------------------------------------------- verdicts


def test_what_we_do_not_compute_is_unchecked_unless_optional_or_no_stage_of_ours() -> None:
    outputs = {"render": 1.0, "extra": 1.0, "stages": {"a": 1.0, "b": 1.0}}
    file = golden(outputs, optional=["extra"], stage=["stages"])
    found = {line.name: line.verdict for line in compare(file, {}, {"stages.a": "computed in another order"})}
    assert found == {
        "render": "unchecked",
        "extra": "optional",
        "stages.a": "no such stage",
        "stages.b": "unchecked",
    }


def test_a_required_output_cannot_be_excused_by_the_table_of_stages() -> None:
    (line,) = compare(golden({"render": 1.0}), {}, {"render": "no reason"})
    assert line.verdict == "unchecked"


def test_an_optional_output_never_fails() -> None:
    assert verdict(1.0, 2.0, optional=["x"]) == "optional"
    assert verdict("a", "b", optional=["x"]) == "optional"


def test_none_means_not_recorded() -> None:
    assert verdict(None, 3.0) == "optional"


def test_no_gradient_agrees_with_a_gradient_of_zero() -> None:
    file = golden({"grad_norms": {"w": 0.0, "v": 0.5}})
    found = [line.verdict for line in compare(file, {"grad_norms": {"w": None, "v": None}}, {})]
    assert found == ["ok", "FAIL"]


def test_the_first_tolerance_that_matches_wins() -> None:
    rules = [{"match": "loss*", "abs": 0.0, "rel": 0.1}, {"match": "*", "abs": 9.0, "rel": 0.0}]
    lines = compare(golden({"loss": 1.0, "other": 1.0}, tolerances=rules), {"loss": 1.2, "other": 1.2}, {})
    assert [line.verdict for line in lines] == ["FAIL", "ok"]


@pytest.mark.parametrize(
    "ours, rule, expected",
    [
        ([1.0, 100.9], {"abs": 0.0, "rel": 0.01}, "ok"),
        ([1.02, 100.0], {"abs": 0.0, "rel": 0.01}, "FAIL"),
        ([1.02, 100.0], {"abs": 0.02, "rel": 0.01}, "ok"),
        ([2.0, 100.0], {"fro": 0.011}, "ok"),  # |error| 1, |stored| 100.005
        ([2.0, 100.0], {"fro": 0.009}, "FAIL"),
        ([1.5, 100.5], {"abs": 1.0, "mean": 0.5}, "ok"),
        ([1.5, 100.6], {"abs": 1.0, "mean": 0.5}, "FAIL"),
        ([NAN, 100.0], {"abs": 1.0}, "FAIL"),
        ([INF, 100.0], {"abs": 1.0}, "FAIL"),
    ],
)
def test_numbers_are_judged_by_the_rule_of_the_file(ours: list, rule: dict, expected: str) -> None:
    assert verdict(torch.tensor([1.0, 100.0]), torch.tensor(ours), **rule) == expected
    assert verdict([1.0, 100.0], ours, **rule) == expected


def test_infinity_agrees_with_itself_only() -> None:
    assert verdict(torch.tensor([INF]), torch.tensor([INF]), abs=1.0) == "ok"
    assert verdict(torch.tensor([INF]), torch.tensor([100.0]), abs=1.0, rel=0.1) == "FAIL"
    assert verdict(torch.tensor([NAN]), torch.tensor([100.0]), abs=1.0, rel=0.1) == "FAIL"


@pytest.mark.parametrize(
    "stored, ours, expected",
    [
        ("slerp", "slerp", "ok"),
        ("slerp", "linear", "FAIL"),
        (True, True, "ok"),
        (True, 1, "FAIL"),
        (3, 3, "ok"),
        (3, 4, "FAIL"),
        ([3, [4, 5]], [3, [4, 5]], "ok"),
        ([3, [4, 5]], [3, [4]], "FAIL"),
        ([], [], "ok"),
        ([], [1], "FAIL"),
        ({"refused": True}, {"refused": True}, "ok"),
        (torch.tensor([1, 2]), torch.tensor([1, 2]), "ok"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "FAIL"),
        (torch.tensor([True]), torch.tensor([False]), "FAIL"),
        (1.0, None, "FAIL"),
        (1.0, torch.tensor(1.0), "ok"),
        ((3, "a"), [3, "a"], "ok"),
        ({}, {"more": 1.0}, "ok"),
        ({}, [], "FAIL"),
        (torch.zeros(2), None, "FAIL"),
        (torch.zeros(2), "zero", "FAIL"),
        (torch.zeros(2), [[0.0], [0.0, 0.0]], "FAIL"),
    ],
)
def test_words_booleans_and_integers_must_be_equal(stored: Any, ours: Any, expected: str) -> None:
    assert verdict(stored, ours, abs=9.0) == expected


def test_plain_numbers_of_ours_are_compared_in_float64() -> None:
    rates = [1e-4 / 3, 1e-4 / 7]
    assert verdict(torch.tensor(rates, dtype=torch.float64), rates, rel=1e-12) == "ok"


def test_a_rule_that_gives_no_number_allows_no_error() -> None:
    only = {"tolerances": [{"match": "x", "rel": 0.1}]}
    (line,) = compare(golden({"x": 1.0}, **only), {"x": 1.05}, {})
    assert (line.verdict, line.tolerance) == ("ok", "0 + 0.1 rel")
    (line,) = compare(golden({"y": 1.0}, **only), {"y": 1.05}, {})  # no rule matches
    assert (line.verdict, line.tolerance) == ("FAIL", "0")


def test_levels_of_pictures_have_a_tolerance() -> None:
    stored, ours = torch.tensor([10, 0], dtype=torch.uint8), torch.tensor([9, 1], dtype=torch.uint8)
    assert verdict(stored, ours, abs=1) == "ok"
    assert verdict(stored, ours, abs=1, mean=0.5) == "FAIL"


def test_a_stage_may_have_merged_leading_axes_and_a_result_may_not() -> None:
    stored = torch.rand(2, 3, 4, 5)
    assert verdict(stored, stored.reshape(6, 4, 5), stage=["x"]) == "ok"
    assert verdict(stored, stored.reshape(6, 4, 5)) == "FAIL"
    assert verdict(stored, stored.reshape(2, 3, 5, 4), stage=["x"]) == "FAIL"
    assert verdict(stored, stored[:1], stage=["x"]) == "FAIL"


def test_of_a_stage_only_the_rows_that_we_compute_are_compared() -> None:
    stored = torch.rand(4, 3)
    assert verdict(stored, Rows(stored[:2], lambda x: x[:2]), stage=["x"]) == "ok"
    assert verdict(stored, Rows(stored[:2] + 1, lambda x: x[:2]), stage=["x"]) == "FAIL"


# ----------------------------------------------------------------------------------------------- the script


def write(folder: Path, *, drop: str = "", **given: Any) -> str:
    """A golden file of kind `metrics` on random pictures; `given` replaces its entries."""
    target = torch.rand(2, 3, 16, 16)
    mse = torch.full((2,), 0.01)
    raw = {
        "system": "lvsm",
        "case": "made",
        "kind": "metrics",
        "config": {},
        "state_dict": {},
        "inputs": {"target": 0.8 * target, "prediction": 0.8 * target + 0.1},
        "outputs": {"psnr": -10 * mse.log10()},
        "optional": [],
        "stage": [],
        "tolerances": [{"match": "*", "abs": 1e-4, "rel": 0.0}],
    } | given
    raw.pop(drop, None)
    path = folder / "made.pt"
    torch.save(raw, path)
    return str(path)


def test_agreement_is_exit_status_0_with_one_line_for_each_entry(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([write(tmp_path)]) == 0
    line, totals = capsys.readouterr().out.splitlines()
    name, max_abs, max_rel, tolerance, word = line.split()
    assert (name, tolerance, word) == ("lvsm/made/psnr", "0.0001", "ok")
    assert 0 <= float(max_abs) < 1e-4 and 0 <= float(max_rel) < 1e-4
    assert totals == "1 files, 1 entries: 1 ok, 0 FAIL, 0 optional, 0 no such stage, 0 unchecked"


def test_disagreement_is_exit_status_1_and_does_not_stop_the_next_file(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bad = write(tmp_path, outputs={"psnr": torch.tensor([20.0, 20.001])})
    (tmp_path / "second").mkdir()
    assert main([bad, write(tmp_path / "second")]) == 1
    assert "2 entries: 1 ok, 1 FAIL" in capsys.readouterr().out


def test_an_output_that_is_not_computed_is_exit_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([write(tmp_path, outputs={"sharpness": 1.0})]) == 1
    assert "1 unchecked" in capsys.readouterr().out


@pytest.mark.parametrize("given", [{"kind": "sculpture"}, {"system": "other"}], ids=["kind", "system"])
def test_an_unknown_kind_fails(given: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([write(tmp_path, **given)]) == 1
    assert "no reader for kind" in capsys.readouterr().out


def test_a_reader_that_breaks_is_a_failure_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert (
        main(
            [write(tmp_path, inputs={"target": torch.rand(1, 3, 8, 8), "prediction": torch.rand(1, 3, 8, 8)})]
        )
        == 1
    )
    out = capsys.readouterr().out
    assert "lvsm/made/(run)" in out and "at least 11" in out


def test_a_file_that_cannot_be_read_is_exit_status_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(tmp_path / "absent.pt")]) == 2
    assert "absent.pt: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no pickle"])
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "damaged.pt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"damaged\.pt: not readable") as caught:
        load_golden(path)
    assert "weights_only" not in str(caught.value), "torch's own message invites to open the file unsafely"


@pytest.mark.parametrize("drop", ["optional", "stage", "state_dict"])
def test_lists_without_entries_may_be_left_out(drop: str, tmp_path: Path) -> None:
    assert main([write(tmp_path, drop=drop)]) == 0


def test_a_file_of_another_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it has no tolerances"):
        load_golden(write(tmp_path, drop="tolerances"))


# ----------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("kind", READERS, ids="/".join)
def test_every_reader_in_the_table_exists(kind: tuple[str, str]) -> None:
    assert callable(find_reader(*kind))


def test_every_missing_stage_has_a_reader_and_a_reason() -> None:
    assert NO_SUCH_STAGE.keys() <= READERS.keys()
    assert all(reason for table in NO_SUCH_STAGE.values() for reason in table.values())
