"""Readings: what is over which limit, and what a second look measures."""

from __future__ import annotations

from typing import Any

import pytest
from samples import GB, MB, process, reading

import memmon
from memmon import ProcessTable, Row


@pytest.mark.parametrize('rss, args, fields, is_over, is_urgent, share', [
    (200 * MB - 1, '-a 200MB', {}, False, False, 1 - 1 / (200 * MB)),
    (200 * MB, '-a 200MB', {}, False, False, 1),  # exactly at the limit
    (200 * MB + 1, '-a 200MB', {}, True, False, 1 + 1 / (200 * MB)),
    (0, '-a 200MB', {}, False, False, 0),
    (None, '-a 200MB', {}, False, False, None),   # not known
    (300 * MB, '', {}, False, False, None),       # no limit
    (300 * MB, '-a 1MB', {'size': None}, False, False, None),  # exempt
    (50, '-a 0.000001%', {'size': 0}, True, False, None),      # less than a byte
    (250 * MB, '-a 200MB..300MB', {}, True, False, 1.25),
    (300 * MB, '-a 200MB..300MB', {}, True, False, 1.5),
    (300 * MB + 1, '-a 200MB..300MB', {}, True, True, 1.5 + 1 / (200 * MB)),
    (None, '-a 200MB..300MB', {}, False, False, None),
    (GB // 4 + 1, '-a 25%', {}, True, False, 1 + 4 / GB),
    # What counts.
    (250 * MB, '-a 200MB', {'pss': 200 * MB}, False, False, 1),
    (250 * MB, '-a 200MB', {'pss': 0}, False, False, 0),
    (1, '-t 200MB', {'total': 200 * MB}, False, False, 1),
    (1, '-t 200MB', {'total': 200 * MB + 1}, True, False, 1 + 1 / (200 * MB)),
    (None, '-t 200MB..300MB', {'total': 400 * MB}, True, True, 2),
    (400 * MB, '-t 200MB', {'total': 0}, False, False, 0),
])
def test_limit_is_exceeded(rss: int | None, args: str, fields: dict[str, Any], is_over: bool,
                           is_urgent: bool, share: float | None) -> None:
    taken = reading(rss=rss, arg=args, **fields)
    assert (memmon.is_over(taken), memmon.is_urgent(taken)) == (is_over, is_urgent)
    assert memmon.share_of(taken) == (None if share is None else pytest.approx(share, rel=1e-12))


# Measuring again.

SUPERVISORD = 40
TABLE = ProcessTable({SUPERVISORD: Row(1, 1), 7: Row(SUPERVISORD, 10), 8: Row(7, 100),
                      9: Row(SUPERVISORD, 1000), 12: Row(1, 10000)})


@pytest.mark.parametrize('fields, rss, total', [
    ({}, 10, None),
    ({'with_descendants': True}, 110, None),
    ({'process': process(pid=8)}, None, None),   # another PID namespace, or another machine
    ({'process': process(pid=12)}, None, None),
    ({'process': process(pid=0)}, None, None),
    ({'process': process(pid=99)}, None, None),
    ({'total': 5, 'with_descendants': True}, 110, 1110),
    ({'total': 5, 'process': process(pid=12)}, None, 5),
])
def test_measure_again(fields: dict[str, Any], rss: int | None, total: int | None,
                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('time.time', lambda: 1725.9)
    old = reading(rss=5 * MB, pss=5 * MB, **{'uptime': 1, **fields})
    assert memmon.measure_again(TABLE, SUPERVISORD, old, 'rss') == old._replace(
        uptime=725, rss=rss, pss=None, total=total)


@pytest.mark.parametrize('readable, with_descendants, pss', [
    ([7, 8], False, 3), ([7, 8], True, 6), ([8], False, None), ([8], True, 13), ([], True, None),
])
def test_pss_counts_where_it_can_be_read(readable: list[int], with_descendants: bool,
                                         pss: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_pss(pid: int) -> int:
        if pid not in readable:
            raise PermissionError
        return 3
    monkeypatch.setattr(memmon, 'read_pss', read_pss)
    seen = memmon.measure_again(TABLE, SUPERVISORD, reading(with_descendants=with_descendants),
                                'pss')
    assert (seen.rss, seen.pss) == (110 if with_descendants else 10, pss)
    assert seen.memory == (pss or seen.rss)


def test_total_is_of_all_below_supervisord(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memmon, 'read_pss', lambda pid: 3)
    assert memmon.measure_total(TABLE, SUPERVISORD, 'rss') == 1110
    assert memmon.measure_total(TABLE, SUPERVISORD, 'pss') == 9
