"""The table of --check."""

from __future__ import annotations

import pytest
from samples import FATAL, MB, options, process, reading

import memmon
from memmon import Reading

READINGS = [
    reading('a:a', 250 * MB, '-p a=100MB', process=process('a:a', pid=1234)),
    reading('b:b', 50 * MB, '-p b=100MB', peak=61 * MB, uptime=90061),
    reading('c:c', None, '-p c=100MB', process=process('c:c', FATAL)),
    reading('d:d', 1, ''),
    reading('e:e', None, '-p e=100MB'),
    reading('f:f', 5 * MB, '-p f=none'),
]


@pytest.mark.parametrize('columns, bar', [(100, 29), (87, 16), (73, 2), (72, 1), (71, 0), (5, 0)])
def test_bar_is_as_long_as_there_is_room(columns: int, bar: int) -> None:
    lines = memmon.format_table(READINGS, options(), columns)
    assert lines == [line.rstrip() for line in [
        'PROCESS   PID          UPTIME      RSS  PEAK  LIMIT  SET BY      USED',
        'a:a      1234         0:12:05    250MB     -  100MB  -p a=100MB  250%  ' + '#' * bar,
        'b:b         7  1 day, 1:01:01     50MB  61MB  100MB  -p b=100MB   50%  '
        + '#' * (bar // 2),
        'c:c         -           FATAL        -     -  100MB  -p c=100MB     -',
        'd:d         7         0:12:05        1     -      -  no option      -',
        'e:e         7         0:12:05  unknown     -  100MB  -p e=100MB     -',
        'f:f         7         0:12:05      5MB     -   none  -p f=none      -',
    ]]


def test_table_without_peaks_has_no_column_of_them() -> None:
    readings = [one._replace(peak=None) for one in READINGS[:2]]
    assert memmon.format_table(readings, options('-k pss -a 1'), 80) == [
        'PROCESS   PID          UPTIME    PSS  LIMIT  SET BY      USED',
        'a:a      1234         0:12:05  250MB  100MB  -p a=100MB  250%  #################',
        'b:b         7  1 day, 1:01:01   50MB  100MB  -p b=100MB   50%  ########']


@pytest.mark.parametrize('args', ['--check', '--check -t 1GB'])
def test_table_without_limits_has_no_columns_of_them(args: str) -> None:
    assert memmon.format_table(READINGS[1:4], options(args), 80) == [
        'PROCESS  PID          UPTIME   RSS  PEAK',
        'b:b        7  1 day, 1:01:01  50MB  61MB',
        'c:c        -           FATAL     -     -',
        'd:d        7         0:12:05     1     -']


def test_table_of_nothing_is_a_heading() -> None:
    assert memmon.format_table([], options(), 80) == [
        'PROCESS  PID  UPTIME  RSS  LIMIT  SET BY  USED']


def test_table_is_sorted_by_what_is_used_of_the_limit_then_by_memory() -> None:
    readings = [
        reading('a:a', 50 * MB, '-a 100MB'), reading('b:b', 3, ''), reading('c:c', None, '-a 1'),
        reading('d:d', 0, ''), reading('e:e', 20, '-a 10'), reading('f:f', 50, '-a 100'),
        reading('g:g', 900 * MB, ''), reading('h:h', 0, '-a 1'),
    ]
    names = [one.process.name for one in sorted(readings, key=memmon.rank, reverse=True)]
    assert names == ['e', 'a', 'f', 'h', 'g', 'b', 'd', 'c']


@pytest.mark.parametrize('taken, is_unmeasured', [
    (reading(rss=None), True),
    (reading(rss=0), False),
    (reading(rss=None, process=process(state=FATAL)), False),
])
def test_running_process_without_an_rss_is_unmeasured(taken: Reading, is_unmeasured: bool) -> None:
    assert memmon.is_unmeasured(taken) == is_unmeasured
