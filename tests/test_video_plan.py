"""Plans of videos: every frame once, conditioned on frames that exist, for any number of frames and anchors."""

from __future__ import annotations

import pytest

from src.video_plan import PLANS, Call, anchored, autoregressive, independent

LENGTHS = [1, 2, 3, 4, 5, 7, 8, 12, 13, 14, 40, 81]


@pytest.mark.parametrize("mode", PLANS)
@pytest.mark.parametrize("anchors", [1, 2, 3, 4, 5, 8, 13, 50])
def test_every_frame_is_made_once_and_only_from_frames_made_before(mode: str, anchors: int) -> None:
    for total in LENGTHS:
        made: list[int] = []
        for call in PLANS[mode](list(range(total)), anchors):
            assert set(call.made) <= set(made), (total, call)
            assert call.target
            made += call.target
        assert sorted(made) == list(range(total)), total


@pytest.mark.parametrize(
    "total,number,expected",
    [
        (4, 4, (1, 2, 3)),
        (5, 4, (1, 2, 3, 4)),
        (12, 4, (3, 6, 9)),
        (13, 4, (3, 6, 9, 12)),
        (15, 4, (3, 6, 9, 12)),
        (9, 2, (4, 8)),
        (10, 2, (5,)),
    ],
)
def test_the_published_anchors_are_multiples_of_a_share_and_one_less_where_it_divides(
    total: int, number: int, expected: tuple[int, ...]
) -> None:
    assert anchored(list(range(total)), number, published=True)[0].target == expected


@pytest.mark.parametrize("anchors", [1, 2, 4, 5, 8, 20])
def test_as_many_anchors_as_asked_for_evenly_spread_up_to_the_last_frame(anchors: int) -> None:
    total = 40
    calls = anchored(list(range(total)), anchors)
    places = [place for call in calls for place in call.target][:anchors]
    gaps = {b - a for a, b in zip([-1, *places], places)}
    assert places[-1] == total - 1 and max(gaps) - min(gaps) <= 1


def test_anchors_beyond_four_come_in_threes_conditioned_on_the_last_before_them() -> None:
    calls = anchored(list(range(40)), 8)
    assert calls[:3] == [Call((), (4, 9, 14, 19)), Call((19,), (24, 29, 34)), Call((34,), (39,))]


def test_a_group_is_conditioned_on_the_anchor_nearest_in_frame_numbers_not_in_places() -> None:
    frames = [0, 1, 2, 100, 101, 102, 103, 104]
    calls = anchored(frames, 2)
    assert calls[0] == Call((), (3, 7))
    assert calls[1] == Call((3,), (0, 1, 2))  # 100 is nearer than 104
    assert calls[2] == Call((7,), (4, 5, 6))  # 103 completes the group of 101 and 102 and is nearer to 104


def test_ties_go_to_the_earlier_anchor_and_the_last_incomplete_group_is_made() -> None:
    calls = anchored(list(range(1, 15)), 4, published=True)
    assert calls[0].target == (3, 6, 9, 12)
    assert sum(len(call.target) for call in calls) == 14
    assert len(calls[-1].target) == 1 and calls[-1].made == (12,)


def test_autoregressive_goes_on_from_the_last_frame_and_makes_left_overs() -> None:
    assert autoregressive(list(range(9))) == [
        Call((), (0, 1, 2, 3)),
        Call((3,), (4, 5, 6)),
        Call((6,), (7, 8)),
    ]


def test_the_reference_is_the_frame_made_last_or_the_first_given_view() -> None:
    assert Call((), (0,)).reference(2) == 0
    assert Call((5,), (6,)).reference(1) == 1 and Call((5,), (6,)).reference(2) == 2


def test_independent_frames_see_the_context_alone() -> None:
    assert independent([7, 8]) == [Call((), (0,)), Call((), (1,))]


@pytest.mark.parametrize("mode", PLANS)
def test_nothing_to_sample_and_no_anchor_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match="no frames"):
        PLANS[mode]([], 4)
    with pytest.raises(ValueError, match="anchor"):
        PLANS[mode]([1], 0)
