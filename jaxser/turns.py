"""Who trains when: runs that the devices' places do not divide evenly take turns at them, so that no device waits.

With 25 runs on two devices, 13 and 12, one would wait for a run's whole time. In place of that each has 12 places: one run sits
out the first half of the updates, another the second, and then these two catch up, one on each device. All end after 12.5 runs'
time. That work which may be interrupted can end so soon, and never sooner, is McNaughton's theorem (Management Science 6(1),
1959).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd

SECONDS = 3.0
"""From one look at the losses to the next: what a call of the devices costs by itself, some milliseconds, is little of that."""

FEWEST = 64
"""Updates of a run in a call that is not its last, however long they take: to go from run to run has its price too, of some
updates of the smallest heads. As many are in the first call, before anything is known of their pace."""

ROWS = 100_000
"""The most batches in a call, of all its runs: they lie in memory twice."""

LEAST = 250
"""Updates of a run for which a call has room in any case."""

TURNS = 24
"""The most turns of a run: they carry states from device to device, which costs some milliseconds."""


@dataclass(frozen=True)
class Course:
    """How runs are laid out over the places of the devices, and over time."""

    places: int
    """Runs that each device has at a time."""
    turn: int
    """Updates of a run after which places change hands."""
    look: int
    """The most updates of a run in a call of the devices, after which its losses are looked at."""


@dataclass
class Pace:
    """How many updates of a run the next call should have, so that it takes `seconds`, or a little longer."""

    updates: int = FEWEST
    seconds: float = SECONDS

    def heard(self, updates: int, seconds: float) -> None:
        """Of a call what it had and what it took."""
        self.updates = max(FEWEST, round(updates * self.seconds / max(seconds, 1e-6)))


def course_of(updates: Sequence[int], devices: int, places: int, parallel: int = 1, most: int = 0) -> Course:
    """A course for runs of these lengths; where `most` is given, with no more updates of a run in a call."""
    at_once, longest = devices * parallel, max(updates)
    turns = 1
    if len(set(updates)) > 1:
        turns = TURNS  # so that devices whose runs are short get others'
    elif len(updates) > devices * places:
        # Then all devices pass through as many runs in the last turn too, be it full or not.
        turns = min(TURNS, at_once // gcd(len(updates), at_once))
    turn, look = -(-longest // turns), max(LEAST, ROWS // (devices * places))
    return Course(places, turn, min(turn, look, most or look))


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
