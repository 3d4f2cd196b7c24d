"""What follows from a reading, from many, and over a thousand ticks of virtual time."""

from __future__ import annotations

import math
from random import Random
from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import FATAL, GB, MB, options, process, reading
from supervisor.states import ProcessStates

import memmon
from memmon import (BLOCKED, BRIEF, DUE, HARD, HELD, NEAR, SOFT, TOO_LOW, WITHIN, Course, History,
                    Job, Reading, Restart, Server, TooLow)

NOW = 10_000.0


def history(**fields: Any) -> History:
    """Return a history with fields of its own; restarts and too_low as tables of values."""
    made = History(process())
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def restarts(*ago: float, level: str = SOFT, is_for_total: bool = False) -> list[Restart]:
    return [Restart(NOW - secs, level, is_for_total) for secs in sorted(ago, reverse=True)]


# One reading. The limit is 200MB..300MB.

ANY = '-a 200MB..300MB'
EXACTLY_OVER = 200 + 1 / MB
TOO_LOW_SOFT = {SOFT: TooLow(NOW - 60, 220 * MB)}
TOO_LOW_BOTH = {SOFT: TooLow(NOW - 300, 220 * MB), HARD: TooLow(NOW - 60, 400 * MB)}


@pytest.mark.parametrize('mb, args, fields, verdict', [
    (None, '', {}, WITHIN),                           # not known is not over
    (0, '', {}, WITHIN),
    (200, '', {}, WITHIN),                            # exactly at the limit
    (EXACTLY_OVER, '', {}, DUE),
    (9999, '', {}, DUE),
    # -w
    (160 - 1 / MB, '-w 80%', {}, WITHIN),
    (160, '-w 80%', {}, NEAR),
    (200, '-w 80%', {}, NEAR),
    (200, '-w 100', {}, NEAR),
    (EXACTLY_OVER, '-w 80%', {}, DUE),
    (160, '', {}, WITHIN),
    (None, '-w 80', {}, WITHIN),
    (160, '-w 80 -f 10m -r 1/1h', {'restarts': restarts(1)}, NEAR),
    (160, '-w 80', {'is_blocked': True}, NEAR),
    # its pool
    (250, '', {'is_blocked': True}, BLOCKED),
    (9999, '', {'is_blocked': True}, BLOCKED),        # whatever its size
    (250, '-f 10m -r 1/1h', {'is_blocked': True, 'restarts': restarts(9)}, BLOCKED),
    (200, '', {'is_blocked': True}, WITHIN),
    # -f
    (250, '-f 10m', {}, BRIEF),                       # since just now
    (250, '-f 10m', {'over_since': NOW - 599.9}, BRIEF),
    (250, '-f 10m', {'over_since': NOW - 600}, DUE),  # exactly long enough
    (300, '-f 10m', {'over_since': NOW}, BRIEF),      # exactly at the hard size
    (300 + 1 / MB, '-f 10m', {'over_since': NOW}, DUE),
    (250, '', {'over_since': NOW}, DUE),
    # -r
    (250, '-r 3/1h', {'restarts': restarts(3000, 2000)}, DUE),
    (250, '-r 3/1h', {'restarts': restarts(3000, 2000, 1000)}, HELD),
    (250, '-r 3/1h', {'restarts': restarts(4000, 3000, 2000, 1000)}, HELD),
    (9999, '-r 3/1h', {'restarts': restarts(3000, 2000, 1000)}, HELD),  # however far over it is
    (250, '-r 3/1h', {'restarts': restarts(3600, 2000, 1000)}, DUE),    # one is an hour ago
    (250, '-r 3/1h', {'restarts': restarts(3599.9, 2000, 1000)}, HELD),
    (250, '-r 1/1h', {'restarts': restarts(1000, is_for_total=True)}, HELD),
    (250, '', {'restarts': restarts(*range(601, 700))}, DUE),           # no cap without -r
    (250, '-r 1/1m', {'restarts': restarts(30)}, HELD),                 # before that
    (250, '-f 10m -r 1/1h', {'restarts': restarts(1000)}, HELD),        # before BRIEF
    (350, '-f 10m -r 1/1h', {'restarts': restarts(1000)}, HELD),
    # in vain
    (250, '', {'restarts': restarts(600)}, DUE),
    (250, '', {'restarts': restarts(599.9)}, TOO_LOW),
    (250, '', {'restarts': restarts(9000, 599.9)}, TOO_LOW),
    (250, '-f 10m', {'restarts': restarts(300)}, BRIEF),                # not yet
    (250, '-f 4m', {'restarts': restarts(300), 'over_since': NOW - 240}, TOO_LOW),
    (250, '', {'restarts': restarts(60, is_for_total=True)}, DUE),      # that was something else
    (9999, '-r 9/1h', {'restarts': restarts(60, level=HARD)}, TOO_LOW),
    (250, '-f 10m', {'restarts': restarts(700), 'over_since': NOW - 650}, TOO_LOW),
    (250, '-f 10m', {'restarts': restarts(1300), 'over_since': NOW - 650}, DUE),
    (250, '', {'restarts': restarts(60, level=HARD)}, TOO_LOW),         # soft is below hard
    (350, '', {'restarts': restarts(60)}, DUE),                         # once at the hard one
    (350, '', {'restarts': restarts(60, level=HARD, is_for_total=True)}, DUE),
    (350, '', {'restarts': restarts(600, level=HARD)}, DUE),
    # in vain before: its peak is known
    (250, '', {'too_low': {SOFT: TooLow(NOW - 59.9, 100 * MB)}}, TOO_LOW),  # not taken yet
    (250, '', {'too_low': {SOFT: TooLow(NOW - 60, 166 * MB)}}, DUE),
    (300, '', {'too_low': {SOFT: TooLow(NOW - 60, 200 * MB)}}, TOO_LOW),  # exactly half more
    (300, '', {'too_low': {SOFT: TooLow(NOW - 60, 200 * MB - 1)}}, DUE),
    (250, '', {'too_low': TOO_LOW_SOFT}, TOO_LOW),
    (250, '', {'too_low': TOO_LOW_SOFT, 'restarts': restarts(5000)}, TOO_LOW),  # not forgotten yet
    (310, '', {'too_low': TOO_LOW_SOFT}, DUE),                          # over the hard size
    (310, '', {'too_low': {SOFT: TooLow(NOW, 310 * MB)}}, DUE),         # at once
    (600, '', {'too_low': TOO_LOW_BOTH}, TOO_LOW),
    (600 + 1 / MB, '', {'too_low': TOO_LOW_BOTH}, DUE),
    (600 + 1 / MB, '', {'too_low': {HARD: TooLow(NOW - 59, 400 * MB)}}, TOO_LOW),
    (310, '', {'too_low': TOO_LOW_SOFT, 'restarts': restarts(30, level=HARD)}, TOO_LOW),
])
def test_judge(mb: float | None, args: str, fields: Dict[str, Any], verdict: str) -> None:
    taken = reading(None if mb is None else mb * MB, ANY)
    assert memmon.judge(taken, history(**fields), options(f'{ANY} {args}'), NOW) == verdict


@pytest.mark.parametrize('args', ['', '-a none'])
def test_process_without_a_limit_is_within_it(args: str) -> None:
    assert memmon.judge(reading(9999 * MB, args), history(), options('-a 1 -w 1'), NOW) == WITHIN


# For the total, of which the limit is 1GB..2GB.

LATELY = restarts(599, is_for_total=True)
LATELY_HARD = restarts(9, level=HARD, is_for_total=True)


@pytest.mark.parametrize('mb, total_mb, args, fields, verdict', [
    (900, 1024, '', {}, WITHIN),
    (900, None, '', {}, WITHIN),
    (None, 1025, '', {}, WITHIN),
    (900, 1024, '-w 80', {}, NEAR),
    (900, 1024 + 1 / MB, '', {}, DUE),
    (1, 1025, '', {}, DUE),                                   # of what is large judges the listener
    (900, 1025, '', {'is_blocked': True}, BLOCKED),
    (900, 1025, '-r 1/1h', {'restarts': restarts(9)}, HELD),
    (900, 3000, '-r 1/1h', {'restarts': restarts(9)}, HELD),  # over the hard size as well
    (900, 1025, '', {'restarts': restarts(9)}, DUE),          # for a limit of its own
    (900, 1025, '', {'too_low': {SOFT: TooLow(NOW - 99, GB)}}, DUE),
    (900, 1025, '', {'restarts': LATELY}, TOO_LOW),                     # no base yet
    (900, 1025, '', {'restarts': LATELY, 'total_base': reading(900 * MB)}, TOO_LOW),
    (900, 1025, '', {'restarts': LATELY, 'total_base': reading(950 * MB)}, TOO_LOW),
    # by 1 % of the limit
    (910.24, 1025, '', {'restarts': LATELY, 'total_base': reading(900 * MB)}, TOO_LOW),
    (910.25, 1025, '', {'restarts': LATELY, 'total_base': reading(900 * MB)}, DUE),
    (900, 2048, '', {'restarts': LATELY, 'total_base': reading(900 * MB)}, TOO_LOW),
    # At the hard size once more, and then only if it grows.
    (900, 2049, '', {'restarts': LATELY, 'total_base': reading(900 * MB)}, DUE),
    (900, 2049, '', {'restarts': LATELY_HARD, 'total_base': reading(900 * MB)}, TOO_LOW),
    (920, 2049, '', {'restarts': LATELY_HARD, 'total_base': reading(900 * MB)}, DUE),
    (900, 1025, '', {'restarts': restarts(600, is_for_total=True)}, DUE),
    # Where both have been read exactly, growth is not that of a bound.
    (900, 1025, '', {'restarts': LATELY, 'total_base': reading(900 * MB, bound=MB)}, TOO_LOW),
    (900, 1025, '', {'restarts': LATELY, 'total_base': reading(
        MB, bound=900 * MB, is_exact=False)}, TOO_LOW),
])
def test_judge_for_the_total(mb: float | None, total_mb: float | None, args: str,
                             fields: Dict[str, Any], verdict: str) -> None:
    limit = '-t 1GB..2GB'
    part = reading(None if mb is None else mb * MB, limit)
    total = reading(None if total_mb is None else total_mb * MB, limit)
    assert memmon.judge(part, history(**fields), options(f'{limit} {args}'), NOW, total) == verdict


# What memmon took down and has not brought back: it gave up at 1600, and now is 1725.

LAST = memmon.LAST_SECOND


@pytest.mark.parametrize('state, fields, expected', [
    ('FATAL', {'start': 1590, 'stop': 1591}, True),    # a try of supervisord's
    ('FATAL', {'start': 1601, 'stop': 1602}, False),   # an operator has tried
    ('FATAL', {'start': 1800, 'stop': 1801}, True),    # the clock was set back
    ('BACKOFF', {'start': 1723, 'stop': 1724}, True),  # supervisord goes on trying
    ('STARTING', {'start': 1725, 'stop': 1724}, True),
    ('EXITED', {'start': 1720, 'stop': 1723}, True),
    ('EXITED', {'start': 1700, 'stop': 1722}, False),
    ('EXITED', {'start': 1590, 'stop': 1591}, True),
    ('RUNNING', {'start': 1716}, True),                # a broken one fails after three seconds
    ('RUNNING', {'start': 1715}, False),
    ('RUNNING', {'start': 1800}, False),
    ('RUNNING', {'start': LAST, 'now': LAST}, False),  # after 2038
    ('STOPPED', {'start': 1590, 'stop': 1595}, True),  # by memmon
    ('STOPPED', {'start': 1590, 'stop': 1601}, False),
    ('STOPPED', {'start': 1601, 'stop': 1602}, False),
    ('STOPPED', {'start': 0, 'stop': 0}, False),       # by an update, which does not start it
])
def test_process_is_lost_until_it_is_up_or_an_operator_has_taken_over(
        state: str, fields: Dict[str, Any], expected: bool) -> None:
    made = History(process(state=getattr(ProcessStates, state), **fields))
    made.lost = memmon.Lost(1600, math.inf)
    assert memmon.is_lost(made, NOW) == expected


@pytest.mark.parametrize('until, expected', [(NOW + 1, True), (NOW, False)])
def test_what_a_memmon_before_has_left_is_lost_for_some_time(until: float, expected: bool) -> None:
    made = History(process(state=FATAL, start=1590, stop=1591))
    made.lost = memmon.Lost(1600, until)
    assert memmon.is_lost(made, NOW) == expected


def test_what_is_still_down_is_told_each_day(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = memmon.Listener(options(), Server('unix:///none'))
    reports: list[memmon.Report] = []
    monkeypatch.setattr(listener, 'report', reports.append)
    made = history(process=process(state=FATAL, spawnerr='no such file'),
                   lost=memmon.Lost(1600, math.inf))
    listener.monitor.histories['web:web'] = made
    for hours in range(50):
        listener.find_blocked(NOW + hours * H)
    assert [report.text for report in reports] == [
        'still down web:web: it is FATAL: no such file; no other process of its pool is '
        'touched'] * 2
    mail = memmon.write_mail(options(), reports[0])
    assert mail['Subject'] == 'memmon: process web:web is still down'


# When to look again.

@pytest.mark.parametrize('mb, args, fields, waits, size', [
    (100, '', {}, False, 200),
    (200, '', {}, False, 200),
    (250, '', {}, False, 300),
    (350, '', {}, False, math.inf),
    (100, '', {}, True, 300),                     # a before command waits
    (100, '-f 5m', {}, False, 300),
    (250, '-f 5m', {}, False, 300),
    (100, '', {'is_blocked': True}, False, math.inf),
    (100, '-r 1/1h', {'restarts': restarts(9)}, False, math.inf),
    (100, '-r 1/1h', {'restarts': restarts(3600)}, False, 200),
    (100, '', {'restarts': restarts(9)}, False, 300),  # soft would be in vain
    (100, '', {'restarts': restarts(9, level=HARD)}, False, math.inf),
    (100, '', {'restarts': restarts(600)}, False, 200),
    (230, '', {'too_low': {SOFT: TooLow(NOW - 60, 180 * MB)}}, False, 270),
    (230, '', {'too_low': {SOFT: TooLow(NOW - 9, 180 * MB)}}, False, 300),
    (100, '', {'too_low': {SOFT: TooLow(NOW - 60, 100 * MB)}}, False, 200),
    (350, '', {'too_low': {SOFT: TooLow(NOW - 60, 900 * MB), HARD: TooLow(NOW - 60, 400 * MB)}},
     False, 600),
])
def test_next_size(mb: float, args: str, fields: Dict[str, Any], waits: bool, size: float) -> None:
    taken, made = reading(mb * MB, ANY), history(**fields)
    assert memmon.next_size(taken, made, options(f'{ANY} {args}'), NOW, waits) == size * MB


def test_what_comes_later_was_not_lost_by_the_memmon_before(monkeypatch: pytest.MonkeyPatch
                                                            ) -> None:
    known: list[memmon.Process] = []
    monkeypatch.setattr(memmon, 'find_children', lambda pid: (memmon.PROC_FILES, frozenset()))
    monkeypatch.setattr(Server, 'processes', lambda server: known)
    monitor = memmon.Monitor(options(), Server('unix:///none'))
    for at in (1, 700):  # no process at the first look, which is the one that matters
        monitor.name_children(monitor.site.began + at)
        known = [process()._replace(pid=0, state=FATAL, statename='FATAL', stop=1090, now=1100)]
    assert [history.lost for history in monitor.histories.values()] == [None]


def test_growth_counts_from_the_last_look_that_found_the_total_within_its_limit(
        monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-t 300MB', web=lambda secs: 100 + secs)
    for at in (0, 60, 120, 180, 240, 300):
        world.now = at
        world.look(at)
    base = world.listener.monitor.histories['web'].total_base
    assert base and base.memory == 280 * MB


@pytest.mark.parametrize('processes, is_planned', [(memmon.PROC_FILES, True),
                                                   (memmon.ProcessTable({}), False)])
def test_no_look_follows_a_restart_where_each_is_a_ps(processes: memmon.Processes,
                                                      is_planned: bool) -> None:
    listener = memmon.Listener(options(), Server('unix:///none'))
    listener.interval, listener.monitor.processes = 60, processes
    listener.take([])
    assert (listener.look_at < math.inf) == is_planned


def test_what_was_never_read_is_no_reason_to_look() -> None:
    listener = memmon.Listener(options(), Server('unix:///none'))
    listener.interval, listener.monitor.running = 60, [history(rate=9.0 * MB)]
    listener.plan_look(listener.last_tick, 0)
    assert listener.look_at == math.inf


FIELDS = st.fixed_dictionaries({
    'is_blocked': st.booleans(), 'over_since': st.sampled_from([math.inf, NOW, NOW - 300]),
    'restarts': st.lists(st.builds(Restart, st.sampled_from([NOW - 9, NOW - 700]),
                                   st.sampled_from([SOFT, HARD]), st.booleans()), max_size=2),
    'too_low': st.dictionaries(st.sampled_from([SOFT, HARD]), st.builds(
        TooLow, st.sampled_from([NOW - 9, NOW - 99]), st.integers(1, 999 * MB)))})
ARGS = st.sampled_from(['', '-f 5m', '-r 1/5m', '-r 2/1h', '-f 5m -r 1/1h', '-w 50'])


@given(FIELDS, ARGS, st.integers(0, 999), st.integers(0, 999))
def test_no_restart_is_due_before_the_next_size(fields: Dict[str, Any], args: str, now_mb: int,
                                                later_mb: int) -> None:
    """What is not due now, and stays below that size, is not due at this moment either."""
    parsed = options(f'{ANY} {args}')
    taken, made = reading(now_mb * MB, ANY), history(**fields)
    if memmon.judge(taken, made, parsed, NOW) == DUE:
        return
    size = memmon.next_size(taken, made, parsed, NOW, False)
    if now_mb <= later_mb and later_mb * MB <= size and not (
            parsed.patience and made.over_since < math.inf):
        assert memmon.judge(reading(later_mb * MB, ANY), made, parsed, NOW) != DUE


@given(FIELDS, ARGS, st.integers(0, 999))
def test_judge_changes_nothing_and_is_due_only_over_a_limit(fields: Dict[str, Any], args: str,
                                                            mb: int) -> None:
    made, taken = history(**fields), reading(mb * MB, ANY)
    before = dict(vars(made))
    verdict = memmon.judge(taken, made, options(f'{ANY} {args}'), NOW)
    assert vars(made) == before
    assert (verdict in (WITHIN, NEAR)) == (mb <= 200)
    assert verdict != DUE or not made.is_blocked


# What is remembered.

def notes(*pairs: tuple[float, float | None], made: History | None = None) -> History:
    """Return a history after looks at times that have shown megabytes."""
    made = made or History(process())
    for at, mb in pairs:
        made.note(reading(None if mb is None else mb * MB, ANY), at)
    return made


@pytest.mark.parametrize('looks, over_since', [
    ([(1, 100)], math.inf), ([(1, 201)], 1), ([(1, 201), (2, 400), (3, 201)], 1),
    ([(1, 201), (2, 200)], math.inf), ([(1, 201), (2, 200), (3, 201)], 3),
    ([(1, 201), (2, None), (3, 201)], 1),  # not known is not below
    ([(1, None)], math.inf),
])
def test_over_since_is_the_first_of_the_looks_that_were_over(
        looks: Sequence[tuple[float, float | None]], over_since: float) -> None:
    assert notes(*looks).over_since == over_since


@pytest.mark.parametrize('looks, rate', [
    ([(1, 725)], 1), ([(1, 100), (3, 120)], 10), ([(1, 100), (3, 80)], -10), ([(1, None)], 0),
    ([(1, 100), (3, 120), (4, None)], 0), ([(1, 100), (1, 100)], 0),
])
def test_rate_is_the_growth_since_the_last_look_or_the_start(
        looks: Sequence[tuple[float, float | None]], rate: float) -> None:
    assert notes(*looks).rate == rate * MB


def test_rate_is_that_of_the_bound_where_the_measure_changes() -> None:
    made = notes((1, 100))
    made.note(reading(500 * MB, ANY, bound=130 * MB, is_exact=False), 2)
    assert made.rate == 30 * MB and len(made.course.points) == 1
    made.note(reading(510 * MB, ANY, is_exact=False), 3)
    assert made.rate == 10 * MB and len(made.course.points) == 1


def test_rate_of_a_young_process_of_unknown_age_is_not_known() -> None:
    made = History(process())
    made.note(reading(500 * MB, ANY, process=process(start=memmon.LAST_SECOND)), 1)
    assert made.rate == 0


def test_peak_of_a_limit_too_low_is_the_most_of_a_minute() -> None:
    made = history(too_low={SOFT: TooLow(100, 210 * MB)})
    peaks = [notes((at, mb), made=made).too_low[SOFT].peak // MB
             for at, mb in ((100, 250), (130, 240), (160, 260), (161, 500))]
    assert peaks == [250, 250, 260, 260]


def test_vain_is_forgotten_after_ten_minutes_on_end_below_the_limit() -> None:
    made = history(too_low={SOFT: TooLow(0, 210 * MB)})
    notes((0, 250), (1, 100), (599, 100), (600 - 1 / 8, 200), made=made)
    assert made.too_low
    notes((600, 200), made=made)
    assert not made.too_low


@pytest.mark.parametrize('looks, is_kept', [
    ([(0, 250), (300, 100), (500, 250), (900, 100)], True),  # not on end
    ([(0, 250), (300, 100), (500, 250), (1099, 100)], True),
    ([(0, 250), (300, 100), (500, 250), (1100, 100)], False),
    ([(0, 250), (700, None)], True),
])
def test_ten_minutes_begin_anew_with_each_look_that_is_over(
        looks: Sequence[tuple[float, float | None]], is_kept: bool) -> None:
    assert bool(notes(*looks, made=history(too_low={SOFT: TooLow(0, MB)})).too_low) == is_kept


def test_another_run_is_looked_at_anew_but_the_program_is_remembered() -> None:
    made = notes((1, 250), made=history(too_low={SOFT: TooLow(0, MB)}, restarts=restarts(1)))
    made.said = {'held': 1}
    made.show(process(now=2000))  # the same run
    assert made.over_since == 1 and made.said and made.process.now == 2000
    for process_again in (process(pid=1500), process(start=1500)):
        again = notes((1, 250), made=history(too_low={SOFT: TooLow(0, MB)}, restarts=restarts(1)))
        again.total_base = again.part = again.reading
        again.wrapper_due = 5000
        again.said, again.total_said = {'held': 1}, {'held': 1}
        again.show(process_again)
        assert [again.over_since, again.course.points, again.reading, again.rate,
                again.total_base, again.part, again.wrapper_due] == [
                    math.inf, [], None, 0, None, None, process_again.start + 10]
        assert (again.said, again.total_said) == ({}, {})
        assert again.too_low and again.restarts and again.over_last == 1


def test_what_was_said_of_an_excess_is_forgotten_with_it() -> None:
    made = notes((1, 250))
    made.said = {'held': 1, 'refused at soft': 1, 'postponed': 1, 'near limit': 1}
    made.too_low = {SOFT: TooLow(1, 250 * MB)}
    made.total_said = {'held': 1, 'would restart': 1}
    notes((2, 250), made=made)
    assert len(made.said) == 4
    notes((3, 190), (4, 190), made=made)
    assert made.said == {'held': 1, 'near limit': 1} and made.too_low
    assert len(made.total_said) == 2
    made.said['refused at soft'] = 4  # by a worker that measured after that look
    notes((5, 250), made=made)
    assert made.said == {'held': 1, 'near limit': 1}  # which each stand there once


def test_restarts_are_counted_in_a_sliding_window() -> None:
    made = history(restarts=restarts(0, 100, 200))
    assert [len(made.restarts_within(secs, NOW)) for secs in (0, 1, 100, 101, 201)] == [
        0, 1, 1, 2, 3]


# The course.

def course_of(sizes: Iterable[int], secs: float = 60) -> Course:
    course = Course()
    for number, size in enumerate(sizes):
        course.add(number * secs, size)
    return course


@given(st.integers(1, 600), st.randoms(use_true_random=False))
def test_course_keeps_its_ends_and_its_peak_in_32_points(looks: int, random: Random) -> None:
    sizes = [random.randrange(2 ** 63) for _ in range(looks)]  # a list strategy gives few long ones
    points = course_of(sizes).points
    assert points[0] == (0, sizes[0]) and points[-1] == ((len(sizes) - 1) * 60, sizes[-1])
    assert max(size for _, size in points) == max(sizes)
    assert len(points) <= 32 and (len(sizes) < 32 or len(points) > 15)
    times = [at for at, _ in points]
    assert times == sorted(set(times))
    assert all(sizes[int(at) // 60] == size for at, size in points)


def test_points_of_a_long_course_are_evenly_spread() -> None:
    times = [at for at, _ in course_of(range(5000)).points]
    steps = [later - earlier for earlier, later in zip(times[1:-1], times[2:-1])]
    assert len(times) > 15 and max(steps) <= 3 * min(steps)


@pytest.mark.parametrize('sizes, picture', [
    ([], ''), ([0, 0], '▁▁'), ([1], ''), ([0, 1, 2, 3, 4, 5, 6, 7, 8], '▁▂▃▄▅▆▇██'),
    ([100 * MB, 200 * MB, 50 * MB], '▅█▃'),
])
def test_picture_of_a_course(sizes: Sequence[int], picture: str) -> None:
    assert course_of(sizes).draw(0).partition('  ')[0] == picture


H = 3600


@pytest.mark.parametrize('mbs, secs, room_mb, text', [
    ([], H, 5, ''), ([10], H, 5, ''),
    ([10, 20], H, 30, '10MB -> 20MB in 1:00:00, peak 20MB, growing 10MB/h, reaches its limit in '
                      '3:00:00'),
    # From its recent half: flat for long, or at first.
    ([10, 10, 10, 10, 10, 20, 30, 40, 50], H, 80,
     '10MB -> 50MB in 8:00:00, peak 50MB, growing 10MB/h, reaches its limit in 8:00:00'),
    ([10, 40, 50, 50, 50], H, 80, '10MB -> 50MB in 4:00:00, peak 50MB'),
    ([10, 90, 20], H, 5, '10MB -> 20MB in 2:00:00, peak 90MB'),
    ([20, 10], H, 5, '20MB -> 10MB in 1:00:00, peak 20MB'),
    ([10, 20], H, 0, '10MB -> 20MB in 1:00:00, peak 20MB'),     # it is over
    ([10, 20], H, -9, '10MB -> 20MB in 1:00:00, peak 20MB'),
    ([10, 20], H, math.inf, '10MB -> 20MB in 1:00:00, peak 20MB'),
    ([10, 20], H, 10 * 24 * 365, '10MB -> 20MB in 1:00:00, peak 20MB, growing 10MB/h, reaches its '
                                 'limit in 365 days, 0:00:00'),
    ([10, 20], H, 10 * 24 * 365 + 1, '10MB -> 20MB in 1:00:00, peak 20MB'),
    ([10, 20], 0, 5, '10MB -> 20MB in 0:00:00, peak 20MB'),
])
def test_course_in_words(mbs: Sequence[int], secs: float, room_mb: float, text: str) -> None:
    assert course_of([mb * MB for mb in mbs], secs).describe(room_mb * MB) == text


@given(st.lists(st.integers(0, 2 ** 50), max_size=80), st.integers(0, 10 ** 6),
       st.one_of(st.integers(-2 ** 50, 2 ** 50), st.just(math.inf)))
def test_course_has_words_for_all_numbers(sizes: list[int], secs: float, room: float) -> None:
    assert bool(course_of(sizes, secs).describe(room)) == (len(sizes) > 1)


# A thousand ticks: the listener with all that it decides; looking and restarting are made up.

Program = Callable[[float], float]  # megabytes by seconds of uptime


class World:
    """A listener in virtual time, of which each restart takes no time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, args: str, tick_secs: float = 60,
                 **programs: Program) -> None:
        self.now = 0.0
        self.tick_secs = tick_secs
        self.programs = programs
        self.options = options(args)
        self.outcomes: dict[str, str] = {}  # of the restarts, by program; else they succeed
        self.restarts: list[tuple[float, str]] = []
        self.reports: list[tuple[float, str, str]] = []  # when, event, name
        self.looks = 0
        monkeypatch.setattr(memmon, 'time', SimpleNamespace(
            monotonic=lambda: self.now, time=lambda: self.now, process_time=lambda: 0.0))
        self.listener = memmon.Listener(self.options, Server('unix:///none'))
        monitor, workers = self.listener.monitor, self.listener.workers
        for pid, name in enumerate(programs, 1):
            made = History(process(name, pid=pid, start=0))
            made.blank = made.blank._replace(
                limit=memmon.find_limit(made.process, self.options.limits))
            made.pool = (name,)
            monitor.histories[name] = made
        monitor.running = list(monitor.histories.values())
        monkeypatch.setattr(monitor, 'look', self.look)
        self.due: list[Job] = []
        monkeypatch.setattr(workers, 'add', self.due.extend)
        monkeypatch.setattr(self.listener, 'report', lambda report: self.reports.append(
            (self.now, report.event, report.reading.process.name if report.reading else '')))

    def begin_run(self, name: str) -> None:
        """Have a program crash, or be restarted by an operator."""
        made = self.listener.monitor.histories[name]
        made.show(made.process._replace(pid=made.process.pid + 100, start=int(self.now)))

    def measure(self, made: History, limit: memmon.Limit) -> Reading:
        uptime = self.now - made.process.start
        size = int(self.programs[made.process.name](uptime) * MB)
        return Reading(made.process, limit, *memmon.sizes_of(limit, 8 * GB),
                       memmon.MEASURES['rss'], size, size, size, int(self.now))

    def look(self, now: float) -> None:
        self.looks += 1
        monitor, total = self.listener.monitor, self.options.total
        for made in monitor.running:
            if made.blank.limit.given:
                made.note(self.measure(made, made.blank.limit), now)
        if total:
            parts = {made.process.pid: self.measure(made, total) for made in monitor.running}
            monitor.children = frozenset(parts)
            monkey = pytest.MonkeyPatch()
            with monkey.context() as patch:
                patch.setattr(memmon, 'take_reading', lambda _, of, *rest: parts[of.process.pid])
                monitor.look_at_total(total, now, math.inf)

    def look_and_restart(self, is_tick: bool) -> None:
        self.listener.look_at = math.inf
        self.listener.look(is_tick)
        due = list(self.due)
        self.due.clear()
        for job in due:
            name = job.reading.process.name
            event = self.outcomes.get(name, 'restarted')
            self.restarts.append((self.now, name))
            if event == 'restarted':
                self.begin_run(name)
            elif event in memmon.LOST_EVENTS:
                history = self.listener.monitor.histories[name]
                history.process = history.process._replace(state=FATAL, pid=0)
            self.listener.take([(job, memmon.Report(event, '', job.reading, job.total, 9))])

    def pass_ticks(self, ticks: int = 1000) -> World:
        for _ in range(ticks):
            self.listener.interval = int(self.tick_secs)
            self.listener.last_tick = self.now
            self.look_and_restart(is_tick=True)
            end = self.now + self.tick_secs
            while self.listener.look_at < end:
                self.now = max(self.now, self.listener.look_at)
                self.look_and_restart(is_tick=False)
            self.now = end
        return self

    def said(self, event: str) -> list[float]:
        return [at for at, said, _ in self.reports if said == event]


def loads(mb: float, secs: float, start: float = 10) -> Program:
    """Return a program that grows evenly for so long, and stays there."""
    return lambda uptime: start + (mb - start) * min(1, uptime / secs)


def leaks(mb_per_hour: float, start: float = 50) -> Program:
    return lambda uptime: start + mb_per_hour * uptime / H


def swings(low: float, high: float, period: float) -> Program:
    return lambda uptime: low if uptime % period < period / 2 else high


@pytest.mark.parametrize('program', [
    loads(250, 2), loads(600, 60), loads(250, 45), loads(250, 3), loads(600, 90),
], ids=['loads for 2 s', '10 MB/s up to 600', '45 s', '3 s', '90 s'])
@pytest.mark.parametrize('tick_secs', [5, 60, 60.5])  # supervisord's ticks are late at times
def test_slow_loader_is_restarted_once_or_twice_and_told_once(
        program: Program, tick_secs: float, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-a 200MB', tick_secs, web=program).pass_ticks()
    assert 1 <= len(world.restarts) <= 2
    assert len(world.said('limit too low')) == 1


def test_program_that_oscillates_around_its_limit_is_restarted_in_vain_once_in_ten_minutes(
        monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-a 200MB', web=swings(100, 250, 240)).pass_ticks()
    assert len(world.restarts) == 1  # it is never below its limit for ten minutes on end
    world = World(monkeypatch, '-a 200MB', web=swings(100, 250, 1800)).pass_ticks()
    times = [at for at, _ in world.restarts]
    assert 1 < len(times) and min(b - a for a, b in zip(times, times[1:])) >= 600


@pytest.mark.parametrize('mb_per_hour', [100, 300, 850])
def test_slow_leak_is_restarted_each_time_it_is_over(mb_per_hour: float,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-a 200MB', web=leaks(mb_per_hour)).pass_ticks()
    hours = 1000 * 60 / H
    assert len(world.restarts) == pytest.approx(hours * mb_per_hour / 150, rel=0.1, abs=1)
    assert not world.said('limit too low')


@pytest.mark.parametrize('args', ['-a 200MB', '-a 200MB..400MB'])
def test_fast_leak_is_restarted_all_the_same_and_told_once(args: str,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """10 MB/s: 650 MB at the next tick, 600 MB more in the minute after, and half of all that."""
    sizes: list[float] = []

    def leak(uptime: float) -> float:
        sizes.append(50 + 10 * uptime)
        return sizes[-1]

    world = World(monkeypatch, args, web=leak).pass_ticks()
    assert len(world.restarts) > 300 and len(world.said('limit too low')) == 1
    assert max(sizes) < 1.5 * (1250 + 150)  # and what a restart and the next tick take


def test_hard_size_bounds_once_what_was_in_vain_at_the_soft_one(monkeypatch: pytest.MonkeyPatch
                                                                ) -> None:
    """3 MB/s: 200 MB after 50 seconds, 400 MB after 117."""
    world = World(monkeypatch, '-a 200MB..400MB', web=leaks(3 * H)).pass_ticks()
    times = [at for at, _ in world.restarts]
    assert times[1] - times[0] == pytest.approx(117, abs=2)
    assert times[2] - times[1] > 117 + 60


def test_crash_in_between_changes_nothing_of_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-a 200MB', web=loads(250, 45))
    for _ in range(20):
        world.pass_ticks(7)
        world.begin_run('web')
    assert len(world.restarts) == 1 and len(world.said('limit too low')) == 1


def test_crash_in_between_does_not_void_r(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-a 200MB -r 3/1d', web=leaks(600))
    for _ in range(100):
        world.pass_ticks(7)
        world.begin_run('web')
        world.pass_ticks(3)
    world = World(monkeypatch, '-a 200MB -r 3/1d', web=leaks(600))
    for _ in range(40):
        world.pass_ticks(24)
        if world.programs['web'](world.now - world.listener.monitor.histories[
                'web'].process.start) <= 200:
            world.begin_run('web')
    assert [int(at // 86400) for at, _ in world.restarts] == [0] * 3
    assert world.said('held')


def test_cap_slides_and_its_hold_is_said_once_for_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-a 200MB -r 2/6h', web=leaks(600)).pass_ticks()
    times = [at for at, _ in world.restarts]
    assert all(later - earlier >= 6 * H for earlier, later in zip(times, times[2:]))
    assert len(times) in (5, 6) and len(world.said('held')) in (2, 3)


def test_patience_waits_for_as_long_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-a 200MB -f 10m', web=loads(250, 3600)).pass_ticks(100)
    over = 3600 * 190 / 240
    assert over + 600 <= world.restarts[0][0] <= over + 720


def test_peaks_shorter_than_the_patience_restart_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not World(monkeypatch, '-a 200MB -f 10m', web=swings(100, 250, 1100)).pass_ticks(
        ).restarts


def test_dry_run_says_it_once_for_each_excess(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-a 200MB --dry-run', web=swings(100, 250, 12000)).pass_ticks()
    assert not world.restarts and len(world.said('would restart')) == 5


def test_dry_run_says_it_once_for_each_excess_of_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-t 200MB --dry-run', web=swings(100, 250, 12000)).pass_ticks()
    assert not world.restarts and len(world.said('would restart')) == 5


def test_dry_run_judges_the_total_beside_each_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-a 40MB -t 100MB --dry-run', large=lambda uptime: 80.0,
                  small=lambda uptime: 60.0).pass_ticks(2)
    assert sorted(report[1:] for report in world.reports) == [
        ('would restart', 'large'), ('would restart', 'large'), ('would restart', 'small')]


def test_near_limit_is_said_once_for_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-a 200MB -w 80', web=swings(100, 170, 1200)).pass_ticks(500)
    assert len(world.said('near limit')) == 1
    world.begin_run('web')
    assert len(world.pass_ticks(500).said('near limit')) == 2


def test_program_that_does_not_grow_is_looked_at_at_ticks_only(monkeypatch: pytest.MonkeyPatch
                                                               ) -> None:
    assert World(monkeypatch, '-a 200MB', web=lambda uptime: 150.0).pass_ticks().looks <= 1001


def test_total_restarts_the_leak_and_not_what_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-t 1GB', db=lambda uptime: 700.0, web=leaks(200)).pass_ticks()
    names = [name for _, name in world.restarts]
    assert names.count('db') <= 1 + 1000 * 60 // 600 and names.count('web') >= 5


@pytest.mark.parametrize('mb_per_sec', [1, 2, 3])
def test_leak_that_brings_the_total_over_again_is_seen_before_the_next_tick_and_nothing_else_pays(
        mb_per_sec: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a look half a second after the last, it has not grown by 1 % of the total's limit."""
    sizes: list[float] = []

    def leak(uptime: float) -> float:
        sizes.append(20 + mb_per_sec * uptime)
        return sizes[-1]

    world = World(monkeypatch, '-t 200MB', web=leak, calm=lambda uptime: 30)
    world.now = 48
    world.pass_ticks()
    assert {name for _, name in world.restarts} == {'web'} and max(sizes) < 175


def test_total_that_no_restart_helps_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-t 500MB', a=lambda uptime: 300.0, b=lambda uptime: 290.0)
    world.pass_ticks(9)  # less than ten minutes
    assert [name for _, name in world.restarts] == ['a', 'b']
    assert len(world.said('total too low')) == 1


def test_what_does_not_grow_is_restarted_once_at_the_hard_size_of_the_total(
        monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-t 500MB..550MB', a=lambda uptime: 300.0, b=lambda uptime: 290.0)
    world.pass_ticks(9)
    assert [name for _, name in world.restarts] == ['a', 'b']


def test_total_exempts_what_has_no_limit_but_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-t 500MB -p db=none', db=lambda uptime: 450.0,
                  a=lambda uptime: 60.0).pass_ticks(5)
    assert {name for _, name in world.restarts} == {'a'}


def test_total_that_only_waits_for_f_is_not_said_to_be_too_low(monkeypatch: pytest.MonkeyPatch
                                                               ) -> None:
    world = World(monkeypatch, '-t 500MB..900MB -f 10m', a=lambda uptime: 600.0).pass_ticks(10)
    assert not world.restarts and not world.reports
    world.pass_ticks(1)
    assert [at for at, _ in world.restarts] == [600]


def test_total_over_its_hard_size_does_not_wait_for_f(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-t 500MB..900MB -f 10m', a=lambda uptime: 901.0).pass_ticks(1)
    assert world.restarts[0] == (0, 'a')


def test_one_process_at_a_time_is_restarted_for_the_total_the_largest_first(
        monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-t 500MB', a=loads(300, 9000, 300), b=loads(310, 9000, 310),
                  c=loads(10, 9000, 10)).pass_ticks(1)
    assert world.restarts == [(0, 'b'), (1, 'a')]  # each looked at a second after the last


def test_total_does_not_wait_for_what_before_lets_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-t 500MB -p b=100MB', a=lambda uptime: 400.0,
                  b=lambda uptime: 200.0)
    world.outcomes = {'b': 'postponed'}
    assert world.pass_ticks(1).restarts[:2] == [(0, 'b'), (1, 'a')]


def test_pool_that_is_being_restarted_gets_no_second_worker(
        monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-a 200MB', a=lambda uptime: 300.0, b=lambda uptime: 300.0)
    first, second = world.listener.monitor.histories.values()
    second.pool = first.pool
    world.listener.workers.queue = [[Job(first, reading(300 * MB), None)]]
    assert world.pass_ticks(3).restarts == []
    world.listener.workers.queue = []
    assert {name for _, name in world.pass_ticks(1).restarts} == {'a', 'b'}


def test_pool_that_has_lost_a_member_loses_no_other_at_any_look(
        monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-a 200MB', a=lambda uptime: 300.0, b=loads(300, 300),
                  c=loads(300, 300))
    world.outcomes = {'a': 'gave up starting'}
    lost, other, _ = world.listener.monitor.histories.values()
    lost.pool = other.pool
    world.pass_ticks(10)
    assert [name for _, name in world.restarts] == ['a', 'c']


@pytest.mark.parametrize('args', ['-a 500MB', '-t 500MB'])
def test_each_excess_that_is_put_off_is_told_and_told_again_after_an_hour(
        args: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, args, web=swings(100, 600, 4 * H))
    world.outcomes = {'web': 'postponed'}
    world.pass_ticks()
    assert world.said('postponed') == [2 * H, 6 * H, 10 * H, 14 * H]
    assert world.said('postponed for an hour') == [3 * H, 7 * H, 11 * H, 15 * H]


@pytest.mark.parametrize('event', ['not restarted', 'failed to stop'])
def test_what_cannot_be_restarted_is_told_once_an_excess_and_again_after_an_hour(
        event: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member of its pool that never gets up, say; or a stop that supervisord refuses."""
    world = World(monkeypatch, '-a 500MB', web=swings(100, 600, 4 * H))
    world.outcomes = {'web': event}
    world.pass_ticks()
    assert world.said(event) == [2 * H, 6 * H, 10 * H, 14 * H]
    assert world.said('postponed for an hour') == [3 * H, 7 * H, 11 * H, 15 * H]
    tried = world.listener.monitor.histories['web'].failures_total
    assert tried == (len(world.restarts) if event == 'failed to stop' else 0)


@pytest.mark.parametrize('args', ['-p a=60MB -t 90MB', '-p a=60MB -t 90MB -f 50s',
                                  '-p a=60MB -t 900MB'])
def test_restart_that_was_refused_is_asked_for_once_a_tick_though_two_limits_ask(
        args: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, args, a=lambda uptime: 100.0, b=lambda uptime: 5.0)
    world.outcomes = {'a': 'postponed'}
    world.pass_ticks(5)
    assert world.restarts == [(at, 'a') for at in (0, 60, 120, 180, 240)[args.endswith('s'):]]


def test_what_was_refused_for_the_total_is_forgotten_when_that_is_within_its_limit(
        monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-t 90MB', a=lambda uptime: 100.0 if uptime < 1 else 50.0)
    world.outcomes = {'a': 'postponed'}
    world.pass_ticks(1)
    assert world.restarts and not world.listener.monitor.histories['a'].total_said


def test_refused_restart_is_asked_for_again_at_the_hard_size_of_the_total(
        monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-p a=60MB -t 90MB..105MB', a=lambda uptime: 100.0 + uptime)
    world.outcomes = {'a': 'postponed'}
    world.pass_ticks(1)
    assert [at for at, _ in world.restarts] == [0, pytest.approx(6, abs=3)]


def test_total_is_not_too_low_where_a_restart_for_another_limit_is_due(
        monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-p a=60MB -t 90MB', a=lambda uptime: 80.0, b=lambda uptime: 70.0)
    a, b = world.listener.monitor.histories.values()
    a.restarts = b.restarts = [Restart(-1, SOFT, True)]  # which did not help
    world.outcomes = {'a': 'postponed'}
    world.pass_ticks(3)
    assert {name for _, name in world.restarts} == {'a'} and not world.said('total too low')


def test_restart_that_r_no_longer_holds_is_not_held() -> None:
    listener = memmon.Listener(options('-a 200MB -r 1/1h'), Server('unix:///none'))
    made, over = history(), reading(250 * MB)
    for verdict, is_held in ((HELD, True), (memmon.BLOCKED, True), (TOO_LOW, False), (HELD, True),
                             (BRIEF, False), (HELD, True), (DUE, False)):
        listener.conclude(made, over, None, verdict, True, NOW)
        assert ('held' in made.said) == is_held, verdict


def test_what_is_restarted_for_its_own_limit_goes_before_the_total(
        monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-t 500MB -p b=100MB', a=lambda uptime: 400.0,
                  b=lambda uptime: 200.0).pass_ticks(1)
    assert [name for at, name in world.restarts if at == 0] == ['b']


@pytest.mark.parametrize('mb, began, is_failing, stop_requested, left', [
    (1500, 99, False, True, None),   # it is under way
    (1500, 50, False, True, None),   # over soft, however long that takes
    (3000, 91, False, True, None),   # over hard, for ten seconds
    (3000, 90, False, True, 2300),   # then without what is being stopped
    (3000, 90, False, False, 3000),
    (2500, 90, False, True, None),   # which brings it below its hard size
    (1500, 99, True, True, 1500),    # a program whose start fails for days
])
@pytest.mark.parametrize('change', [{}, {'is_done': True}, {'process': {'pid': 8}}])
def test_total_waits_for_the_stop_under_way(
        change: Dict[str, Any], mb: float, began: float, is_failing: bool, stop_requested: bool,
        left: float | None) -> None:
    """But neither for the command after a restart, nor for a start."""
    listener = memmon.Listener(options('-t 1GB..2GB'), Server('unix:///none'))
    made = history(part=reading(700 * MB, '-t 1GB..2GB'))
    made.process = made.process._replace(**change.get('process', {}))
    job = Job(made, reading(), None)
    job.stop_requested, job.is_reported = stop_requested, is_failing
    job.is_done = change.get('is_done', False)
    worker = memmon.Worker(1, 1, [job])
    worker.began = began
    listener.workers.workers = [worker]
    found = listener.without_stopping(reading(mb * MB, '-t 1GB..2GB'), 100)
    assert (found.memory if found else None) == (mb * MB if change else left and left * MB)


def test_hint_on_descendants_comes_once_for_all_runs(caplog: pytest.LogCaptureFixture) -> None:
    monitor = memmon.Monitor(options(), Server('unix:///none'))
    small = memmon.ProcessTable({7: (1, MB), 8: (7, MB)})
    large = memmon.ProcessTable({7: (1, MB), 8: (7, 100 * MB)})
    made = History(process())
    said = []
    made.blank = reading(MB)
    for processes in (small, large, large):
        monitor.processes = processes
        monitor.look_for_wrapper(made)
        said.append(len(caplog.records))
    made.show(process(start=2000))
    monitor.look_for_wrapper(made)
    other = History(process('other'))
    other.blank = reading(MB, '')  # it has no limit
    monitor.look_for_wrapper(other)
    assert said + [len(caplog.records)] == [0, 1, 1, 1]
    assert caplog.records[0].getMessage().startswith(
        'web:web uses 1MB, and its descendants use 100MB: add -c to count them as well; ')
