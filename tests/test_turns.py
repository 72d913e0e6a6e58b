"""Places that change hands: who trains when, held against the theorem that says how soon all can be done."""

from math import ceil, gcd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxser import devices, turns
from jaxser.turns import Course


def times_of(lengths: list[int], count: int, course: Course) -> tuple[list[int], int, int]:
    """What every run was trained, the updates after which all devices are done, each as long as its slowest, and the turns."""
    done, seconds, number = [0] * len(lengths), 0, 0
    for order in turns.seatings(lengths, count, course):
        assert len(order) == count * course.places
        there = [run for run in order if run is not None]
        assert len(set(there)) == len(there)  # nobody is in two places
        trained = {run: min(course.turn, lengths[run] - done[run]) for run in there}
        assert all(trained.values())
        blocks = [order[device * course.places : (device + 1) * course.places] for device in range(count)]
        seconds += max(sum(trained[run] for run in block if run is not None) for block in blocks)
        for run, updates in trained.items():
            done[run] += updates
        number += 1
    return done, seconds, number


def test_three_runs_on_two_devices_by_hand():
    # Two turns each: three turns of one place a device, 15 updates, where one device with two runs would take 20.
    course = turns.course_of([10, 10, 10], 2, 1)
    assert (course.places, course.turn) == (1, 5)
    assert list(turns.seatings([10, 10, 10], 2, course)) == [[0, 1], [0, 2], [1, 2]]


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 5_000))
def test_runs_of_one_length_end_as_soon_as_any_schedule_can(runs: int, count: int, updates: int):
    # McNaughton (1959): work that may be interrupted can end after its mean over devices, or its longest run, and no sooner.
    course = turns.course_of([updates] * runs, count, turns.places_for(runs, count, 1))
    done, seconds, number = times_of([updates] * runs, count, course)
    assert done == [updates] * runs
    soonest = max(updates, runs * updates / count)
    share = count // gcd(runs, count)
    divide = runs <= count * course.places or updates == share * course.turn
    assert soonest <= seconds <= (soonest if divide else soonest + course.turn)
    assert seconds <= ceil(runs / count) * updates  # without turns
    if runs % count == 0 or runs < count:
        assert number == 1


@given(st.lists(st.integers(1, 500), min_size=1, max_size=30), st.integers(1, 5), st.integers(1, 4))
def test_runs_of_any_lengths_are_all_trained_and_no_device_has_two_more(lengths: list[int], count: int, parallel: int):
    course = turns.course_of(lengths, count, turns.places_for(len(lengths), count, parallel), parallel)
    for order in turns.seatings(lengths, count, course):
        blocks = [order[device * course.places : (device + 1) * course.places] for device in range(count)]
        there = [sum(run is not None for run in block) for block in blocks]
        assert max(there) == ceil(sum(there) / count)
    assert times_of(lengths, count, course)[0] == lengths


def test_short_runs_go_to_the_device_with_the_long_one():
    course = turns.course_of([1, 4, 7, 4], 2, 2)
    assert next(turns.seatings([1, 4, 7, 4], 2, course)) == [2, 0, 1, 3]


def test_a_run_moves_where_another_device_would_idle():
    # In the end three runs are left, and two of them had places on one device.
    orders = turns.seatings([3, 5, 4, 3, 3, 4, 4], 3, Course(places=2, turn=2, look=1))
    *_, before, last = [{run: place // 2 for place, run in enumerate(order) if run is not None} for order in orders]
    assert sorted(last.values()) == [0, 1, 2]  # each device has one of them
    there = [run for run in last if run in before]
    shared = {before[run] for run in there}
    assert len(shared) < len(there)
    assert sum(last[run] == before[run] for run in there) == len(shared)  # one of those who shared a device stays there


@given(st.integers(1, 60), st.integers(1, 5))
def test_the_first_turn_is_as_runs_are_dealt(runs: int, count: int):
    course = turns.course_of([9] * runs, count, turns.places_for(runs, count, 1))
    order = next(turns.seatings([9] * runs, count, course))
    dealt = devices.dealt(runs, 1, count)
    for place, run in enumerate(order):
        assert run is None or dealt[run] == place // course.places


@pytest.mark.parametrize(
    ("runs", "count", "parallel", "places"),
    [
        (25, 2, 1, 12),  # one sits out
        (24, 2, 1, 12),
        (1, 2, 1, 1),
        (3, 4, 1, 1),
        (25, 2, 13, 13),  # 13 at once take as long as 12
        (25, 2, 12, 12),  # 13 would take two passes
        (25, 8, 3, 3),
        (25, 8, 4, 4),
        (25, 1, 25, 25),
    ],
)
def test_runs_sit_out_where_that_spares_a_pass(runs: int, count: int, parallel: int, places: int):
    assert turns.places_for(runs, count, parallel) == places


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 90_000), st.integers(0, 400))
def test_a_call_has_room_for_no_more_than_a_turn_and_some_memory(runs: int, count: int, updates: int, most: int):
    places = turns.places_for(runs, count, 1)
    look = turns.course_of([updates] * runs, count, places, most=most).look
    assert 1 <= look <= min(updates, most or updates)
    assert look <= turns.LEAST or look * count * places <= turns.ROWS


def test_calls_take_the_seconds_asked_for():
    pace = turns.Pace(seconds=2.0)
    for _ in range(5):  # five milliseconds a call, and one an update
        pace.heard(pace.updates, 0.005 + 0.001 * pace.updates)
    assert abs(pace.updates - 1995) < 1
    pace.heard(pace.updates, 1e4)
    assert pace.updates == turns.FEWEST
    pace.heard(1, 0.0)
    assert pace.updates > turns.FEWEST
