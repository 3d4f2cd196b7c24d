"""Histories of memmon's whole listener, and of wrong ones: simulation.py says what runs.

    SIMULATED_HISTORIES=100000 pytest tests/test_simulation.py -k goes_wrong    plays so many
    SIMULATED_SEED=123 pytest -n 0 tests/test_simulation.py -k goes_wrong       plays one again
"""

from __future__ import annotations

import os
from typing import Any, Callable, Iterator

import pytest
from simulation import World, describe, play

import memmon

SEED = os.environ.get('SIMULATED_SEED')
HISTORIES = 1 if SEED else int(os.environ.get('SIMULATED_HISTORIES', '200'))
PARTS = 1 if SEED else 4 if HISTORIES < 1000 else 100  # for as many cores; each ends in time
ENOUGH = 1000                           # histories in which a wrong program is noticed


def wrong_histories(first: int, count: int) -> Iterator[World]:
    """Play histories, and yield those in which something went wrong."""
    for seed in range(first, first + count):
        world = play(seed)
        if world.wrongs:
            yield world


@pytest.mark.parametrize('part', range(PARTS))
def test_nothing_goes_wrong_in_a_history(part: int) -> None:
    count = HISTORIES // PARTS
    for world in wrong_histories(int(SEED or part * count), count):
        pytest.fail(describe(world), pytrace=False)


def test_history_is_the_same_again() -> None:
    assert describe(play(7)) == describe(play(7))


# Wrong programs.

def stop_in_two_calls(server: memmon.Server, namespec: str) -> memmon.Process:
    before = server.process(namespec)
    server.call(bool, 'supervisor.stopProcess', namespec, False)
    return before


def each_in_a_pool_of_its_own(process: memmon.Process, *args: object) -> tuple[str, ...]:
    return process.group, process.name


def nothing_is_lost(history: memmon.History, now: float) -> bool:
    return False


def never_again(seen: memmon.Process, *args: Any, step: Callable[..., Any] = memmon.next_step
                ) -> Any:
    """Give up what is FATAL."""
    found = step(seen, *args)
    return (memmon.NOTHING, 'it is FATAL') if found[0] == memmon.DOWN else found


def trust_the_first_look(work: memmon.Job) -> None:
    """Measure nothing again."""


def never_refuse(error: Any, url: str, explain: Callable[..., Exception] = memmon.explain
                 ) -> Exception:
    """Take SHUTDOWN_STATE for a lost answer."""
    return memmon.SupervisordError(str(explain(error, url)))


def start_only_what_was_measured(work: memmon.Job,
                                 stop: Callable[..., Any] = memmon.Job.stop) -> None:
    """Ignore the first look of the multicall."""
    stop(work)
    work.stopped = work.stopped and work.stopped._replace(start=work.old.start)


def keep_no_restarts(history: memmon.History, secs: float, now: float) -> list[memmon.Restart]:
    """Forget -r."""
    return []


# The last: the first history in which the wrong program was noticed, to save time.
WRONG: tuple[tuple[Any, str, Any, str, int], ...] = (
    (memmon.Server, 'stop', stop_in_two_calls, 'has stopped it', 105),
    (memmon.Job, 'stop', start_only_what_was_measured, 'has stopped it', 165),
    (memmon, 'pool_of', each_in_a_pool_of_its_own, 'is down because of memmon', 0),
    (memmon, 'next_step', never_again, 'is down because of memmon', 896),
    (memmon, 'next_step', never_again, 'is FATAL, and memmon has stopped it', 7),
    (memmon, 'is_lost', nothing_is_lost, 'is down because of memmon', 403),
    (memmon.Job, 'look_again', trust_the_first_look, 'was not measured', 0),
    (memmon, 'explain', never_refuse, 'alarm in a planned shutdown', 25),
    (memmon.History, 'restarts_within', keep_no_restarts, 'times of', 1),
    (memmon, 'FIRST_UP_SECS', 0.1, 'is down because of memmon', 32),
)


@pytest.mark.parametrize('place, name, wrong, what, first', WRONG)
def test_wrong_program_is_noticed(place: Any, name: str, wrong: Any, what: str, first: int,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, name, wrong)
    assert any(what in text for world in wrong_histories(first, ENOUGH) for text in world.wrongs)
