"""What follows from what was measured: values, limits, verdicts, memory of the machine, reports.

Nothing here runs but memmon's own code: supervisord and time are made up.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Iterable, Sequence

import pytest
from harness import MEMMON, run

import memmon

MB, GB = 2 ** 20, 2 ** 30
MACHINE = 8 * GB


def options(*argv: str) -> memmon.Options:
    return memmon.parse_args(argv)


def process(name: str = 'web', pid: int = 7) -> memmon.Process:
    return memmon.Process(group=name, name=name, pid=pid, start=0, stop=0, now=0,
                          state=20 if pid else 0, statename='RUNNING' if pid else 'STOPPED',
                          spawnerr='')


def reading(mb: float | None, *argv: str, total_mb: int | None = None, **fields: Any
            ) -> memmon.Reading:
    """Return a reading of a process, with the limit that an option gives it."""
    limit = (options(*argv).total if total_mb is not None else options(*argv).limits[0]
             ) if argv else None
    size, urgent = memmon.in_bytes(limit.sizes if limit else None, MACHINE)
    return memmon.Reading(process(), 725, False, None if mb is None else int(mb * MB), limit=limit,
                          size=size, urgent=urgent,
                          total=None if total_mb is None else total_mb * MB)._replace(**fields)


# Values.

@pytest.mark.parametrize('text, percent', [
    ('25%', 25), ('25%%', 25), ('100%', 100), ('.5%', 0.5), ('0.1%', 0.1), (' 12.5 % ', 12.5),
    ('80', 80),
])
def test_parse_percent(text: str, percent: float) -> None:
    assert memmon.parse_percent(text) == percent


@pytest.mark.parametrize('text', [
    '', '%', '0%', '0.0%', '100.1%', '150%', '-5%', '25%%%', '%25', '5%MB', '1e1%', 'nan%',
])
def test_parse_percent_refuses(text: str) -> None:
    with pytest.raises(ValueError, match='is not a percentage: give more than 0% and at most 100%'):
        memmon.parse_percent(text)


SIZE_200, SIZE_300 = memmon.Size(200 * MB), memmon.Size(300 * MB)
QUARTER, HALF = memmon.Size(0, 25), memmon.Size(0, 50)


@pytest.mark.parametrize('text, sizes', [
    ('200MB', (SIZE_200, None)),
    ('25%', (QUARTER, None)),
    ('200MB..300MB', (SIZE_200, SIZE_300)),
    ('200MB .. 300MB', (SIZE_200, SIZE_300)),
    ('200MB..200MB', (SIZE_200, SIZE_200)),
    ('25%..50%', (QUARTER, HALF)),
    ('25%%..50%%', (QUARTER, HALF)),
    ('200MB..50%', (SIZE_200, HALF)),
    ('25%..300MB', (QUARTER, SIZE_300)),
    ('none', None),
    (' None ', None),
])
def test_parse_limit(text: str, sizes: memmon.Sizes) -> None:
    assert memmon.parse_limit(text) == sizes


@pytest.mark.parametrize('text, why', [
    ('300MB..200MB', 'has its sizes in the wrong order'),
    ('50%..25%', 'has its sizes in the wrong order'),
    ('..300MB', "'' is not a size"),
    ('200MB..', "'' is not a size"),
    ('200MB..none', "'none' is not a size"),
    ('none..200MB', "'none' is not a size"),
    ('1..2..3', r"'2\.\.3' is not a size"),
    ('0..1', "'0' is not a size"),
    ('150%', "'150%' is not a percentage"),
    ('0%..5%', "'0%' is not a percentage"),
])
def test_parse_limit_refuses(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        memmon.parse_limit(text)


@pytest.mark.parametrize('text, rate', [
    ('3/1h', (3, 3600)), ('1/1', (1, 1)), ('10/7d', (10, 604800)), (' 3 / 1.5h ', (3, 5400)),
])
def test_parse_rate(text: str, rate: tuple[int, int]) -> None:
    assert memmon.parse_rate(text) == rate


@pytest.mark.parametrize('text, why', [
    ('3', 'is not N/DURATION'), ('', 'is not N/DURATION'), ('/1h', 'is not N/DURATION'),
    ('0/1h', 'is not N/DURATION'), ('-1/1h', 'is not N/DURATION'), ('1.5/1h', 'is not N/DURATION'),
    ('3/', 'is not N/DURATION'), ('3/0', "'0' is not a duration"),
    ('3/soon', "'soon' is not a duration"), ('3/1h/2', "'1h/2' is not a duration"),
])
def test_parse_rate_refuses(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        memmon.parse_rate(text)


@pytest.mark.parametrize('argv, error', [
    ('-a 1MB -f 0', "-f: '0' is not a duration: give a number of seconds above 0, or a number with "
     's, m, h or d, such as 5m'),
    ('-a 1MB -r 3', "-r: '3' is not N/DURATION with an N above 0, such as 3/1h"),
    ('-a 1MB -r 0/1h', "-r: '0/1h' is not N/DURATION with an N above 0, such as 3/1h"),
    ('-a 1MB -k uss', "-k: 'uss' is not a kind of memory: give rss, or pss"),
    ('-a none', 'nothing to watch: give a limit with -p, -g, -a or -t, such as -a 200MB; see '
     'memmon --help'),
    ('-p a=none -g b=none', 'nothing to watch: give a limit with -p, -g, -a or -t, such as -a '
     '200MB; see memmon --help'),
    ('-p a=300MB..200MB', "-p: '300MB..200MB' has its sizes in the wrong order: the second one, at "
     'which memmon no longer waits, must not be below the first'),
    ('-a 150%', "-a: '150%' is not a percentage: give more than 0% and at most 100%"),
    ('-a 0%', "-a: '0%' is not a percentage: give more than 0% and at most 100%"),
    ('-t none', "-t: 'none' is not a limit for the total: give a size, such as 85%"),
])
def test_value_that_makes_no_sense_gets_one_line(argv: str, error: str) -> None:
    done = run(MEMMON, *argv.split(), env={'SUPERVISOR_SERVER_URL': 'unix:///nonexistent/s'})
    assert done == (2, '', f'memmon: {error}\n')


def test_options_are_kept() -> None:
    parsed = options('-a', '25%', '-p', 'db=none', '-t', '80%..90%', '-f', '10m', '-r', '3/1h',
                     '--dry-run')
    assert parsed.limits == (
        memmon.Limit('program', 'db', None, '-p db=none'),
        memmon.Limit('any', '*', (QUARTER, None), '-a 25%'))
    assert parsed.total == memmon.Limit('total', '', (memmon.Size(0, 80), memmon.Size(0, 90)),
                                        '-t 80%..90%')
    assert (parsed.patience, parsed.restarts, parsed.dry_run) == (600, (3, 3600), True)


def test_nothing_waits_and_nothing_is_capped_without_options() -> None:
    parsed = options('-a', '1MB')
    assert (parsed.total, parsed.patience, parsed.restarts, parsed.kind, parsed.dry_run) == (
        None, 0, None, 'rss', False)


LONG_OPTIONS_OF_SUPERLANCE = ['help', 'cumulative', 'program=', 'groupname=', 'any=', 'email=',
                              'sendmail_program=', 'uptime=', 'name=']


def prefixes_of_superlance() -> list[tuple[str, str]]:
    """Return the long options of superlance's memmon, and how they may be shortened there."""
    return [(prefix, option) for option in LONG_OPTIONS_OF_SUPERLANCE
            for prefix in (option.rstrip('=')[:length] for length in range(1, len(option) + 1))
            if prefix not in ('c', 'h', 'he', 'hel')]  # -c is what people write; help needs no unit


@pytest.mark.parametrize('prefix, option', prefixes_of_superlance())
def test_abbreviation_of_superlance_is_unambiguous(prefix: str, option: str) -> None:
    values = {'program': 'a=1MB', 'groupname': 'a=1MB', 'any': '1MB', 'email': 'a@example.com',
              'sendmail_program': 'cat', 'uptime': '1d', 'name': 'x'}
    name = option.rstrip('=')
    written = f'--{prefix}={values[name]}' if name in values else f'--{prefix}'
    parsed = options(written, '-a', '1MB') if name != 'any' else options(written)
    spelled = options(written.replace(f'--{prefix}', f'--{name}', 1), '-a', '1MB')
    if name in ('program', 'groupname', 'any'):
        assert parsed.limits[0].given == f'--{name} {values[name]}'
    else:
        assert parsed == spelled


# Which limit, and what it comes to.

@pytest.mark.parametrize('text, size, urgent', [
    ('200MB', 200 * MB, None),
    ('25%', 2 * GB, None),
    ('100%', 8 * GB, None),
    ('200MB..300MB', 200 * MB, 300 * MB),
    ('25%..50%', 2 * GB, 4 * GB),
    ('200MB..50%', 200 * MB, 4 * GB),
    ('5GB..25%', 2 * GB, 2 * GB),  # over the second, at once
    ('none', None, None),
])
def test_in_bytes(text: str, size: int | None, urgent: int | None) -> None:
    assert memmon.in_bytes(memmon.parse_limit(text), MACHINE) == (size, urgent)


# Verdicts.

PAIR = ('-a', '200MB..300MB')
TOTAL = ('-t', '1GB..2GB')
WITHIN, NEAR, BRIEF, TOO_LOW, HELD, DUE = (memmon.WITHIN, memmon.NEAR, memmon.BRIEF,
                                           memmon.TOO_LOW, memmon.HELD, memmon.DUE)


@pytest.mark.parametrize('mb, over_secs, restarts, fresh_mb, argv, verdict', [
    (None, 9999, 9, None, '', WITHIN),             # not known is not over
    (200, 9999, 9, None, '', WITHIN),              # exactly at the limit
    (200 + 1 / MB, 0, 0, None, '', DUE),           # just over
    (200 + 1 / MB, 0, 0, None, '-f 10m', BRIEF),
    (250, 599.9, 0, None, '-f 10m', BRIEF),
    (250, 600, 0, None, '-f 10m', DUE),            # exactly long enough
    (300, 0, 0, None, '-f 10m', BRIEF),            # exactly at the second size
    (300 + 1 / MB, 0, 0, None, '-f 10m', DUE),     # just over it: nothing to wait for
    (250, 0, 2, None, '-r 3/1h', DUE),
    (250, 0, 3, None, '-r 3/1h', HELD),
    (250, 0, 4, None, '-r 3/1h', HELD),
    (9999, 0, 3, None, '-r 3/1h', HELD),           # however far over it is
    (250, 0, 99, None, '', DUE),                   # no cap without -r
    (250, 0, 0, 201, '', TOO_LOW),
    (300 - 1 / MB, 0, 0, 200, '', TOO_LOW),
    (300, 0, 0, 200, '', DUE),                     # half as much again
    (350, 0, 0, 250, '', TOO_LOW),                 # the second size changes nothing about that
    (250, 0, 3, 201, '-f 10m -r 3/1h', TOO_LOW),   # before BRIEF and HELD
    (250, 0, 3, None, '-f 10m -r 3/1h', BRIEF),    # before HELD
    (160, 0, 0, None, '-w 80%', NEAR),
    (160 - 1 / MB, 0, 0, None, '-w 80%', WITHIN),
    (200, 0, 0, None, '-w 80%', NEAR),
    (250, 0, 0, None, '-w 80%', DUE),
    (160, 0, 9, 150, '-w 80% -f 10m -r 3/1h', NEAR),
])
def test_judge(mb: float | None, over_secs: float, restarts: int, fresh_mb: int | None, argv: str,
               verdict: str) -> None:
    fresh = None if fresh_mb is None else fresh_mb * MB
    assert memmon.judge(reading(mb, *PAIR), over_secs, restarts, fresh,
                        options('-a', '200MB', *argv.split())) == verdict


@pytest.mark.parametrize('mb, total_mb, over_secs, restarts, fresh_mb, verdict', [
    (900, 1024, 999, 0, None, WITHIN),
    (900, 1025, 0, 0, None, BRIEF),
    (900, 1025, 60, 0, None, DUE),
    (900, 2048, 0, 0, None, BRIEF),
    (900, 2049, 0, 0, None, DUE),
    (900, 2049, 60, 1, None, HELD),
    (900, 2049, 60, 0, 601, TOO_LOW),    # what the process uses counts here, and not the total
    (900, 2049, 60, 0, 600, DUE),
])
def test_judge_of_the_total(mb: int, total_mb: int, over_secs: float, restarts: int,
                            fresh_mb: int | None, verdict: str) -> None:
    fresh = None if fresh_mb is None else fresh_mb * MB
    assert memmon.judge(reading(mb, *TOTAL, total_mb=total_mb), over_secs, restarts, fresh,
                        options('-t', '1GB', '-f', '60', '-r', '1/1h')) == verdict


def test_judge_of_an_exempt_process() -> None:
    assert memmon.judge(reading(9999, '-p', 'web=none', '-a', '1MB'), 9, 0, None,
                        options('-a', '1MB', '-w', '80%')) == WITHIN


@pytest.mark.parametrize('mb, fresh_mb, gains_nothing', [
    (250, 201, True), (9999, 201, True), (250, 200, False), (250, 12, False), (250, None, False),
    (None, 201, False),
])
def test_gains_nothing(mb: int | None, fresh_mb: int | None, gains_nothing: bool) -> None:
    fresh = None if fresh_mb is None else fresh_mb * MB
    assert memmon.gains_nothing(reading(mb, *PAIR), fresh) == gains_nothing


@pytest.mark.parametrize('mb, fresh_mb, gains_nothing', [
    (300, 201, True), (300, 200, False), (300, 12, False), (300, None, False),
])
def test_gains_nothing_for_the_total(mb: int, fresh_mb: int | None, gains_nothing: bool) -> None:
    fresh = None if fresh_mb is None else fresh_mb * MB
    total = reading(mb, *TOTAL, total_mb=5000)
    assert memmon.gains_nothing(total, fresh) == gains_nothing


# How it is told.

FRESH = memmon.Result(memmon.RESTARTED, 'pid 7 -> 9', 9, 12 * MB)


def job(of: memmon.Reading, **fields: Any) -> memmon.Job:
    return memmon.Job(of, memmon.Debt(), **fields)


@pytest.mark.parametrize('of, text', [
    (reading(270.6, '-a', '200MB'), 'RSS 270.6MB is over 200MB (-a 200MB)'),
    (reading(3000, '-a', '25%'), 'RSS 2.9GB is over 2GB (-a 25%)'),
    (reading(250, *PAIR), 'RSS 250MB is over 200MB (-a 200MB..300MB)'),
    (reading(350, *PAIR), 'RSS 350MB is over 300MB (-a 200MB..300MB)'),
    (reading(900, '-a', '200MB', pss=250 * MB), 'PSS 250MB is over 200MB (-a 200MB)'),
    (reading(250, '-a', '200MB', with_descendants=True),
     'RSS 250MB with its descendants is over 200MB (-a 200MB)'),
    (reading(2150, '-t', '85%', total_mb=8000),
     'total 7.8GB is over 6.8GB (-t 85%), and web:web is the largest with 2.1GB'),
])
def test_describe_cause(of: memmon.Reading, text: str) -> None:
    assert memmon.describe_cause(of) == text


@pytest.mark.parametrize('of, text', [
    (reading(1), '-'),
    (reading(1, '-a', '200MB'), '200MB'),
    (reading(1, '-a', '25%'), '2GB'),
    (reading(1, *PAIR), '200MB..300MB'),
    (reading(1, '-p', 'web=none', '-a', '1MB'), 'none'),
])
def test_describe_sizes(of: memmon.Reading, text: str) -> None:
    assert memmon.describe_sizes(of) == text


def news(of: memmon.Reading, result: memmon.Result = FRESH, *argv: str, **fields: Any
         ) -> memmon.News:
    return memmon.news_of_restart(options('-a', '1MB', *argv), job(of, **fields), result)


def test_line_of_a_restart_says_what_it_gained() -> None:
    item = news(reading(270.6, '-a', '200MB'))
    assert item.line == ('restarted web:web: RSS 270.6MB is over 200MB (-a 200MB), uptime 0:12:05; '
                         'pid 7 -> 9, RSS 270.6MB -> 12MB')
    assert (item.level, item.subject) == (20, 'process web:web restarted')


def test_line_of_a_restart_says_pss_where_that_counted() -> None:
    line = news(reading(900, '-a', '200MB', pss=250 * MB)).line
    assert 'RSS' not in line
    assert line.endswith('; pid 7 -> 9, PSS 250MB -> 12MB')


def test_line_of_the_second_restart_within_an_hour_says_so() -> None:
    assert news(reading(250, '-a', '200MB'), recent=1).line.endswith(
        ' -> 12MB, restart 2 within the hour')
    assert 'within the hour' not in news(reading(250, '-a', '200MB')).line


def test_line_of_a_futile_restart_is_a_warning_with_both_figures() -> None:
    futile = FRESH._replace(fresh=240 * MB)
    item = news(reading(250, *PAIR), futile, '-u', '1')
    assert item.line == (
        'restarted web:web: RSS 250MB is over 200MB (-a 200MB..300MB), uptime 0:12:05; pid 7 -> 9, '
        'RSS 250MB -> 240MB; the limit is below what the program needs: RSS 240MB when it is '
        'fresh, 200MB allowed (-a 200MB..300MB); memmon leaves it alone until it uses 360MB, or '
        'has been below its limit')
    # Mailed however long it had been up.
    assert (item.level, item.subject) == (30, 'process web:web restarted')


def test_line_of_a_restart_that_does_not_help_the_total() -> None:
    item = news(reading(250, *TOTAL, total_mb=1500), FRESH._replace(fresh=240 * MB))
    assert item.level == 30
    assert item.line.endswith('; a restart does not help: the program needs RSS 240MB when it is '
                              'fresh; memmon leaves it alone until it uses 360MB')


def test_line_of_a_failed_restart_counts_nothing() -> None:
    failed = memmon.Result(memmon.START_FAILED, 'it is FATAL', 0)
    assert news(reading(250, '-a', '200MB'), failed, recent=3).line == (
        'failed to start web:web: RSS 250MB is over 200MB (-a 200MB), uptime 0:12:05; it is FATAL')


@pytest.mark.parametrize('rate, times', [('3/1h', '3 times within 1:00:00'),
                                         ('1/1d', 'once within 1 day, 0:00:00')])
def test_news_of_hold(rate: str, times: str) -> None:
    item = memmon.news_of_hold(memmon.parse_rate(rate), reading(250, '-a', '200MB'), '')
    assert item.line == ('held web:web: RSS 250MB is over 200MB (-a 200MB), uptime 0:12:05; memmon '
                         f'has restarted it {times}, and leaves it running')
    assert (item.level, item.subject, item.event) == (30, 'process web:web held', 'held')


def test_news_of_dry_run() -> None:
    item = memmon.news_of_dry_run(reading(250, '-a', '200MB'), '')
    assert item.line == ('would restart web:web: RSS 250MB is over 200MB (-a 200MB), uptime '
                         '0:12:05')
    assert (item.level, item.subject, item.event) == (20, 'would restart process web:web', '')


def test_mail_names_the_kind_the_pair_and_the_total() -> None:
    of = reading(900, *TOTAL, total_mb=5000, pss=250 * MB)
    body = str(memmon.write_mail(options('-a', '1MB', '-m', 'bob'), news(of)).get_payload())
    for row in ['PSS:      250MB', 'total:    4.9GB', 'limit:    1GB..2GB',
                'set by:   -t 1GB..2GB', 'old pid:  7', 'new pid:  9']:
        assert f'\n{row}\n' in body


class Runs(memmon.Server):
    """supervisord with one process, which runs."""

    def process(self, namespec: str) -> memmon.Process:
        return process()


@pytest.mark.parametrize('of, why', [
    (reading(250, '-a', '200MB'), 'now it is RSS 150MB'),
    (reading(250, *TOTAL, total_mb=1500), 'now the total is 190MB'),
])
def test_second_look_that_finds_all_well_says_what_it_saw(
        of: memmon.Reading, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = memmon.ProcessTable({7: memmon.Row(1, 150 * MB), 8: memmon.Row(1, 40 * MB)})
    monkeypatch.setattr(memmon, 'read_process_table', lambda: table)
    restarter = memmon.Restarter(Runs('unix:///nowhere'), 1, options('-a', '1MB'),
                                 lambda: False)
    _, result = restarter.restart(job(of))
    assert result == memmon.Result(memmon.LEFT_ALONE, why)


# What is remembered of a process.

def note(pid: int, fresh: int = -1) -> memmon.Note:
    return memmon.Note(0, 0, 0, 0, memmon.OUTCOMES.index(memmon.RESTARTED), pid, fresh)


def begun(pid: int = 7) -> memmon.Watched:
    watched = memmon.Watched(process(pid=pid))
    watched.begin_run(process(pid=pid))
    return watched


def test_restarts_are_counted_in_a_sliding_window() -> None:
    watched = begun()
    for pid, now in [(8, 0.0), (9, 10.0), (10, 20.0)]:
        watched.note_restart(reading(1)._replace(process=process(pid=pid - 1)), note(pid), now,
                             3600)
    assert [len(watched.restarts_within(20, now, 10)) for now in (20, 29, 30, 39, 40)] == [
        2, 2, 1, 1, 0]
    assert len(watched.restarts_within(3600, 40, 10)) == 3


def test_restart_by_somebody_else_clears_the_count() -> None:
    watched = begun()
    watched.note_restart(reading(1), note(8), 0, 3600)
    assert len(watched.restarts_within(60, 1, 8)) == 1
    assert watched.restarts_within(60, 1, 99) == []
    watched.note_restart(reading(1)._replace(process=process(pid=99)), note(100), 2, 3600)
    assert len(watched.restarts_within(60, 3, 100)) == 1


def test_over_since_begins_anew_below_the_limit_and_with_another_pid() -> None:
    watched = begun()
    watched.note_reading(reading(250, *PAIR), 10)
    watched.note_reading(reading(250, *PAIR), 20)
    assert watched.over_since == 10
    watched.note_reading(reading(None, *PAIR), 25)  # not known: neither over nor below
    assert watched.over_since == 10
    watched.note_reading(reading(200, *PAIR), 30)
    assert watched.over_since is None
    watched.note_reading(reading(250, *PAIR), 40)
    watched.begin_run(process(pid=7))
    assert watched.over_since == 40
    watched.begin_run(process(pid=8))
    assert watched.over_since is None


# Ticks.

class Supervisord(memmon.Server):
    """supervisord as memmon asks it."""

    world: World

    def pid(self) -> int:
        return os.getppid()

    def processes(self) -> list[memmon.Process]:
        return [process(name, pid) for name, pid in self.world.pids.items()]


class World:
    """A memmon, its supervisord with some programs, and time.

    A restart gives a program what it uses when it is fresh.
    """

    is_slow = False  # whether memmon ticks during a restart

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *argv: str, **mb: float) -> None:
        self.now = 1000.0
        self.mb = mb                       # what the programs use
        self.fresh = dict.fromkeys(mb, 10.0)
        self.pids = {name: 100 + i for i, name in enumerate(mb)}
        self.options = options(*argv)
        self.restarted: list[str] = []     # in the last tick, as is the next
        self.lines: list[str] = []
        self.is_restarting = False
        self.starts = 0
        self.put_off: list[str] = []       # by a command that comes before
        server = Supervisord('unix:///nowhere')
        server.world = self
        self.listener = memmon.Listener(self.options, server)
        monkeypatch.setattr('time.monotonic', lambda: self.now)
        monkeypatch.setattr(memmon.log, 'log', lambda level, form, *args: self.tell(form, *args))
        monkeypatch.setattr(memmon.log, 'warning', self.tell)
        monkeypatch.setattr(memmon, 'read_machine_memory', lambda: MACHINE)
        monkeypatch.setattr(self.listener.watch, 'find_children', self.find_children)
        monkeypatch.setattr(self.listener.workers, 'dispatch', self.dispatch)

    def tell(self, form: str, *args: object) -> None:
        self.lines.append(form % args)

    def find_children(self) -> tuple[memmon.Processes, frozenset[int]]:
        rows = {self.pids[name]: memmon.Row(os.getppid(), int(mb * MB))
                for name, mb in self.mb.items() if self.pids[name]}
        return memmon.ProcessTable(rows), frozenset(rows)

    def dispatch(self, jobs: Sequence[memmon.Job], news: object, supervisord_pid: int) -> None:
        if not self.is_restarting:
            for job in jobs:
                self.is_restarting = True
                self.do(job)
                self.is_restarting = False

    def do(self, job: memmon.Job) -> None:
        if job.reading.process.name in self.put_off:
            self.listener.note([(job, note(0)._replace(
                outcome=memmon.OUTCOMES.index(memmon.PUT_OFF)))])
        else:
            self.restart(job)

    def restart(self, job: memmon.Job) -> None:
        name = job.reading.process.name
        self.restarted.append(name)
        if self.is_slow:
            self.pids[name] = 0
            self.listener.tick()
        self.begin_run(name)
        if self.is_slow:
            self.listener.tick()
        fresh = int(self.mb[name] * MB)
        result = memmon.Result(memmon.RESTARTED, 'pids', self.pids[name], fresh)
        self.tell('%s', memmon.news_of_restart(self.options, job, result).line)
        self.listener.note([(job, note(self.pids[name], fresh))])

    def begin_run(self, name: str) -> None:
        """Give a program another pid."""
        self.starts += 1
        self.pids[name] = 1000 + self.starts
        self.mb[name] = self.fresh[name]

    def tick(self, secs: float = 60, **mb: float) -> list[str]:
        """Let time pass, programs use other memory, and memmon tick; return what it restarted."""
        self.now += secs
        self.mb.update(mb)
        self.restarted, self.lines = [], []
        self.listener.tick()
        assert not [line for line in self.lines if line.startswith('nothing checked')], self.lines
        return self.restarted

    def said(self, text: str) -> bool:
        return any(text in line for line in self.lines)


def test_patience_is_a_duration_whatever_the_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    for interval, count in [(5, 120), (60, 10), (3600, 1)]:
        world = World(monkeypatch, '-a', '100MB', '-f', '10m', a=150)
        ticks = [world.tick(interval) for _ in range(count + 1)]
        assert ticks == [[]] * count + [['a']]


def test_patience_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-a', '100MB', '-f', '150', a=150)
    world.fresh['a'] = 150
    assert [world.tick(a=mb) for mb in (150, 150, 100, 150, 150)] == [[]] * 5
    world.begin_run('a')
    assert [world.tick() for _ in range(4)] == [[], [], [], ['a']]


def test_second_size_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-a', '100MB..200MB', '-f', '10m', a=150)
    assert [world.tick(a=mb) for mb in (150, 200, 201)] == [[], [], ['a']]
    assert world.said('RSS 201MB is over 200MB (-a 100MB..200MB)')


def test_percentage_is_read_anew_at_each_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-a', '25%', a=1500)
    assert world.tick() == []
    monkeypatch.setattr(memmon, 'read_machine_memory', lambda: 4 * GB)
    assert world.tick() == ['a']
    assert world.said('is over 1GB (-a 25%)')


def test_cap_is_a_sliding_window_and_its_hold_is_said_once(monkeypatch: pytest.MonkeyPatch
                                                           ) -> None:
    world = World(monkeypatch, '-a', '100MB', '-r', '2/10m', a=150)
    assert [world.tick(a=150), world.tick(240, a=150)] == [['a'], ['a']]
    assert world.said('restart 2 within the hour')
    said = []
    for _ in range(6):
        assert world.tick(60, a=9999) == [] or world.now == 1660
        said.append(world.said('held a:a: '))
        if world.restarted:
            break
    assert (world.now, said) == (1660, [True, False, False, False, False, False])
    assert world.said('restart 3 within the hour')
    # 300 seconds after the second one.
    assert world.tick(60, a=150) == [] and world.said('held a:a: ')


@pytest.mark.parametrize('argv, kept', [((), 60), (('-r', '1000/2h'), 120), (('-r', '2/1d'), 2)])
def test_restarts_are_not_remembered_for_ever(argv: tuple[str, ...], kept: int,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-a', '100MB', *argv, a=150)
    for _ in range(300):
        world.tick(60, a=150)
    assert len(world.listener.watch.watched['a:a'].restarts) == kept


def test_restart_by_somebody_else_ends_a_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-a', '100MB', '-r', '1/1d', a=150)
    assert [world.tick(a=150), world.tick(a=150)] == [['a'], []]
    assert world.said('held a:a: ')
    world.begin_run('a')
    assert world.tick(a=150) == ['a']
    assert not world.said('within the hour')
    assert world.tick(a=150) == [] and world.said('held a:a: ')


def test_limit_below_what_a_program_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-a', '100MB', a=120)
    world.fresh['a'] = 120
    assert world.tick() == ['a']
    assert world.said('the limit is below what the program needs')
    for mb in (120, 150, 179.9):
        assert world.tick(a=mb) == []
        assert not world.lines
    assert world.tick(a=180) == ['a']
    assert world.said('the limit is below what the program needs')
    assert world.tick() == []


def test_limit_counts_again_once_a_program_has_been_below_it(monkeypatch: pytest.MonkeyPatch
                                                             ) -> None:
    world = World(monkeypatch, '-a', '100MB', a=120)
    world.fresh['a'] = 120
    assert [world.tick(), world.tick(), world.tick(a=100), world.tick(a=101)] == [
        ['a'], [], [], ['a']]


def test_program_that_starts_small_is_restarted_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-a', '100MB', a=150)
    assert [world.tick(a=150) for _ in range(5)] == [['a']] * 5
    assert world.said('restart 5 within the hour')


def test_fresh_size_does_not_count_when_somebody_else_has_started_it(
        monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-a', '100MB', a=120)
    world.fresh['a'] = 120
    assert [world.tick(), world.tick()] == [['a'], []]
    world.begin_run('a')
    assert [world.tick(), world.tick()] == [['a'], []]


# The total.

def test_total_restarts_the_largest_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-t', '500MB', a=100, b=300, c=200)
    assert world.tick() == ['b']
    assert world.said('total 600MB is over 500MB (-t 500MB), and b:b is the largest with 300MB')
    assert world.tick() == []  # 310 MB
    assert [world.tick(a=400, c=390), world.tick()] == [['a'], []]


def test_total_exempts_but_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-t', '500MB', '-p', 'db=none', db=450, a=60)
    assert [world.tick(), world.tick()] == [['a'], []]


@pytest.mark.parametrize('mb, fresh', [(dict(db=900, a=50, b=40), 45), (dict(a=300, b=290), 260)])
def test_total_does_not_restart_fresh_programs_for_ever(mb: dict[str, float], fresh: float,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-t', '500MB', '-p', 'db=none', '-m', 'bob', **mb)
    world.fresh.update(a=fresh, b=fresh)
    ticks, told = [], 0
    for _ in range(10):
        ticks.append(world.tick())
        told += world.said('but there is no process left whose restart would help')
    assert ticks == [['a'], ['b']] + [[]] * 8
    assert told == 1


def test_total_of_programs_that_no_restart_helps_is_told_anew_after_it_was_kept(
        monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-t', '500MB', '-a', 'none', a=600)
    told = []
    for mb in (600, 600, 400, 600, 600):
        assert world.tick(a=mb) == []
        told.append(world.said('no process left whose restart would help'))
    assert told == [True, False, False, True, False]


@pytest.mark.parametrize('is_slow', [False, True])
def test_total_and_a_limit_below_what_a_program_needs(is_slow: bool,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """What a restart for the one limit has shown must not be forgotten after one for the other."""
    monkeypatch.setattr(World, 'is_slow', is_slow)
    world = World(monkeypatch, '-a', '100MB', '-p', 'db=none', '-t', '1GB', db=2000, a=150)
    world.fresh['a'] = 150
    ticks = [world.tick() for _ in range(8)]
    assert ticks == [['a'], ['a']] + [[]] * 6


def test_total_restarts_a_leak_that_peaked_while_it_started(monkeypatch: pytest.MonkeyPatch
                                                            ) -> None:
    world = World(monkeypatch, '-t', '500MB', a=600)
    world.fresh['a'] = 480
    assert [world.tick(), world.tick(a=20), world.tick(a=300), world.tick(a=510)] == [
        ['a'], [], [], ['a']]


def test_total_waits_and_hurries_as_any_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-t', '500MB..800MB', '-f', '2m', a=600)
    assert [world.tick(a=mb) for mb in (600, 600, 500, 600, 600, 600)] == [[]] * 5 + [['a']]
    assert world.tick(a=801) == ['a']


def test_total_is_capped_as_any_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-t', '500MB', '-r', '1/1h', a=600, b=50)
    assert [world.tick(), world.tick(a=600), world.tick(a=600)] == [['a'], ['b'], []]
    assert [world.said('held '), world.said('no process left')] == [False, True]


def test_hold_because_of_the_total_is_said_once_beside_a_limit_of_its_own(
        monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-a', '100MB', '-p', 'db=none', '-t', '1GB', '-r', '1/1d', db=2000,
                  a=150)
    world.fresh['a'] = 150
    assert world.tick() == ['a']
    assert [(world.tick(), world.said('held a:a')) for _ in range(4)] == [
        ([], True), ([], False), ([], False), ([], False)]


def test_total_waits_for_restarts_that_other_limits_ask_for(monkeypatch: pytest.MonkeyPatch
                                                            ) -> None:
    world = World(monkeypatch, '-p', 'a=100MB', '-t', '500MB', a=150, b=400)
    assert [world.tick(), world.tick()] == [['a'], []]


def test_total_does_not_wait_for_restarts_that_are_put_off(monkeypatch: pytest.MonkeyPatch
                                                           ) -> None:
    world = World(monkeypatch, '-p', 'a=100MB', '-t', '500MB', '-o', 'before=exit 75', a=300,
                  b=250)
    world.put_off = ['a']
    assert [world.tick() for _ in range(3)] == [[], ['b'], []]


# Dry run.

def test_dry_run_says_it_once_for_each_excess(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-a', '100MB', '--dry-run', a=150)
    said = []
    for mb in (150, 150, 90, 150, 150):
        assert world.tick(a=mb) == []
        said.append(world.said('would restart a:a: RSS 150MB is over 100MB'))
    world.begin_run('a')
    assert world.tick(a=150) == []
    assert said + [world.said('would restart')] == [True, False, False, True, False, True]


def test_dry_run_of_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, '-t', '500MB', '--dry-run', a=400, b=300)
    said = [(world.tick(a=mb), world.said('would restart a:a: total '))
            for mb in (400, 400, 9, 400)]
    assert said == [([], True), ([], False), ([], False), ([], True)]


# The memory of the machine or of its container.

UNLIMITED = 0x7FFFFFFFFFFFF000


def write_tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name.lstrip('/')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def cgroup_limits(tmp_path: Path, groups: str, mounts: Iterable[tuple[str, str, str]],
                  files: dict[str, str]) -> list[int]:
    """Return the limits that trees of files set.

    groups: /proc/self/cgroup. mounts: root, point below tmp_path, and what follows the dash in
    /proc/self/mountinfo. files: texts by path below tmp_path; a number is that of a limit.
    """
    lines = [f'{i} 1 0:{i} {root} {tmp_path}{point} rw,nosuid shared:{i} - {rest}\n'
             for i, (root, point, rest) in enumerate(mounts, 30)]
    proc = tmp_path / 'proc'
    write_tree(tmp_path, files)
    write_tree(proc, {'cgroup': groups, 'mountinfo': ''.join([
        '21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n',
        '22 21 0:5 / /mnt rw,relatime - tmpfs  rw\n',  # whose source is an empty string
        *lines])})
    return memmon.read_cgroup_limits(str(proc))


def v1(limit: int) -> str:
    return f'cache 0\nhierarchical_memory_limit {limit}\ntotal_rss 5\n'


V2 = 'cgroup2 cgroup2 rw,nsdelegate'
V1 = 'cgroup cgroup rw,memory'


@pytest.mark.parametrize('groups, mounts, files, limits', [
    pytest.param('0::/a/b\n', [('/', '/cg', V2)],
                 {'cg/a/b/memory.max': 'max\n', 'cg/a/memory.max': '300\n'}, [300],
                 id='version 2: the one above is limited'),
    pytest.param('0::/a/b\n', [('/', '/cg', V2)],
                 {'cg/a/b/memory.max': '500\n', 'cg/a/memory.max': '300\n'}, [500, 300],
                 id='version 2: both are'),
    pytest.param('0::/a/b\n', [('/', '/cg', V2)],
                 {'cg/a/b/memory.max': 'max\n', 'cg/a/memory.max': 'max\n'}, [],
                 id='version 2: none is'),
    pytest.param('0::/a/b\n', [('/', '/cg', V2)], {'cg/a/cgroup.procs': ''}, [],
                 id='version 2: no memory controller'),
    pytest.param('0::/\n', [('/', '/cg', V2)], {'cg/memory.max': '300\n'}, [300],
                 id='version 2: a namespace of its own'),
    pytest.param('0::/../../x\n', [('/', '/cg', V2)], {'cg/memory.max': '300\n'}, [300],
                 id='version 2: outside of its namespace'),
    pytest.param('0::/docker/7f\n', [('/docker/7f', '/cg', V2)],
                 {'cg/memory.max': '300\n', 'memory.max': '1\n'}, [300],
                 id='version 2: only the own group is mounted'),
    pytest.param('0::/docker/7f/a\n', [('/docker/7f', '/cg', V2)],
                 {'cg/memory.max': '300\n', 'cg/a/memory.max': '200\n'}, [200, 300],
                 id='version 2: below the group that is mounted'),
    pytest.param('0::/docker/7fff\n', [('/docker/7f', '/cg', V2)],
                 {'cg/memory.max': '300\n', 'cg/ff/memory.max': '1\n'}, [300],
                 id='version 2: beside the group that is mounted'),
    pytest.param('0::/a\\b c\n', [('/', '/my\\040cg', V2)],
                 {'my cg/a\\b c/memory.max': '300\n'}, [300], id='version 2: escapes'),
    pytest.param('0::/a:b\n', [('/', '/cg', V2)], {'cg/a:b/memory.max': '300\n'}, [300],
                 id='version 2: a colon in the path'),
    pytest.param('0::/gone (deleted)\n', [('/', '/cg', V2)], {'cg/memory.stat': ''}, [],
                 id='version 2: a group that is gone'),
    pytest.param('4:memory:/a/b\n', [('/', '/cg/memory', V1)], {
        'cg/memory/a/b/memory.limit_in_bytes': f'{UNLIMITED}\n',
        'cg/memory/a/b/memory.stat': v1(256)}, [256],
        id='version 1: the leaf says unlimited'),
    pytest.param('4:memory:/\n', [('/', '/cg/memory', V1)],
                 {'cg/memory/memory.stat': v1(UNLIMITED)}, [UNLIMITED], id='version 1: none is'),
    pytest.param('4:cpu,memory:/docker/7f\n',
                 [('/docker/7f', '/elsewhere', 'cgroup cgroup rw,cpu,memory')],
                 {'elsewhere/memory.stat': v1(256)}, [256],
                 id='version 1: elsewhere, with another controller'),
    pytest.param('5:cpu:/a\n4:memory:/b\n1:name=systemd:/c\n0::/c\n',
                 [('/', '/cg/cpu', 'cgroup cgroup rw,cpu'), ('/', '/cg/memory', V1),
                  ('/', '/cg/systemd', 'cgroup cgroup rw,name=systemd'),
                  ('/', '/cg/unified', V2)],
                 {'cg/memory/b/memory.stat': v1(256), 'cg/cpu/a/memory.stat': v1(1),
                  'cg/cpu/b/memory.stat': v1(2), 'cg/unified/c/cgroup.procs': ''}, [256],
                 id='hybrid: memory is in version 1'),
    pytest.param('5:cpu:/a\n0::/c\n',
                 [('/', '/cg/cpu', 'cgroup cgroup rw,cpu'), ('/', '/cg/unified', V2)],
                 {'cg/unified/c/memory.max': '300\n'}, [300],
                 id='hybrid: memory is in version 2'),
    pytest.param('4:memory:/a\n', [], {}, [], id='nothing is mounted'),
    pytest.param('', [], {}, [], id='no groups'),
])
def test_read_cgroup_limits(groups: str, mounts: list[tuple[str, str, str]],
                            files: dict[str, str], limits: list[int], tmp_path: Path) -> None:
    assert cgroup_limits(tmp_path, groups, mounts, files) == limits


def test_machine_bounds_what_a_container_allows() -> None:
    machine = os.sysconf('SC_PHYS_PAGES') * memmon.PAGE_BYTES
    assert 0 < memmon.read_machine_memory() <= machine
