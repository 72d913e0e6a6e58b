"""Who trains when: runs that the devices' places do not divide evenly take turns at them, so that no device waits for another.

With 25 runs on two devices, 13 and 12, one would wait for a run's whole time. In place of that each has 12 places, one run sits
out at a time, and whoever has most updates before it comes next: all end after 12.5 runs' time. It is the preemptive schedule
of McNaughton (Management Science 6(1), 1959) in equal steps: as soon as any schedule can end, to a turn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd

CHUNK = 250
"""Updates between two looks at the losses, and those that a line of losses.csv takes the mean of."""

LOOKS = 100
"""Of long runs, the most looks: each costs some milliseconds, so more updates then lie between two of them."""

TURNS = 24
"""The most turns of a run: each carries states from device to device, and the last may leave one device idle."""


@dataclass(frozen=True)
class Course:
    """How runs are laid out over the places of the devices, and over time."""

    places: int
    """Runs that each device has at a time."""
    turn: int
    """Updates of a run after which places change hands; whole looks."""
    look: int
    """Updates of a run between two looks at the losses."""

    def within(self, updates: int) -> "Course":
        """The same with no more than so many updates between two looks."""
        look = min(self.look, updates)
        return Course(self.places, -(-self.turn // look) * look, look)


def course_of(updates: Sequence[int], devices: int, places: int, chunk: int = CHUNK) -> Course:
    """A course for runs of these lengths, with about `chunk` updates or more between two looks."""
    seats, longest = devices * places, max(updates)
    turns = 1
    if len(set(updates)) > 1:
        turns = TURNS  # so that devices whose runs are short get others'
    elif len(updates) > seats:
        turns = min(TURNS, seats // gcd(len(updates), seats))  # after so many all runs have had as many
    turn = -(-longest // turns)
    looks = max(1, round(turn / updates_a_look(longest, chunk)))
    look = -(-turn // looks)
    return Course(places, looks * look, look)


def updates_a_look(longest: int, least: int = CHUNK) -> int:
    """Updates between two looks, where the longest run has so many: equal chunks compile once and waste next to nothing."""
    return -(-longest // -(-longest // max(least, -(-longest // LOOKS))))


def places_for(runs: int, devices: int, parallel: int) -> int:
    """How many runs a device should have at a time, of which it trains `parallel` at once."""
    # Where that spares a device a whole pass the surplus takes turns; within a pass one run more costs nothing.
    fewest = runs // devices
    return fewest if fewest and fewest % parallel == 0 else -(-runs // devices)


def seatings(left: Sequence[int], devices: int, course: Course) -> Iterator[list[int | None]]:
    """Turn after turn, the run at each place, the places of a device side by side; None where one stays empty.

    `left` are the updates that each run has before it. The runs with most of them get places, as many on one device as on
    another, or one more; who has a place on a device keeps it as long as that allows. In the first turn runs of one length are
    dealt to the devices in turn.
    """
    left, seated = list(left), [[] for _ in range(devices)]
    while any(left):
        waiting = [run for run in range(len(left)) if left[run]]
        chosen = sorted(waiting, key=lambda run: -left[run])[: devices * course.places]
        most = -(-len(chosen) // devices)
        seated = [[run for run in mine if run in chosen][:most] for mine in seated]
        for run in chosen:
            if not any(run in mine for mine in seated):
                min(seated, key=lambda mine: (len(mine), sum(left[other] for other in mine))).append(run)
        yield [run for mine in seated for run in [*mine, *[None] * (course.places - len(mine))]]
        for run in chosen:
            left[run] = max(0, left[run] - course.turn)
