"""The protocol of supervisord's events, read from a text."""

from __future__ import annotations

import io

import pytest

import memmon


@pytest.mark.parametrize('text, event, rest', [
    ('eventname:TICK_5 len:3\nabcREST', 'TICK_5', 'REST'),
    ('eventname:TICK_5 len:0\nREST', 'TICK_5', 'REST'),
    ('len:3 eventname:TICK_5\nä€𝄞REST', 'TICK_5', 'REST'),  # characters, not bytes
    ('ver:3.0 server:my host:1 eventname:A len:1 :x y\n\nREST', 'A', 'REST'),
    ('eventname:A:B len:1\nxREST', 'A:B', 'REST'),
    ('eventname:TICK_5 len:10000\n' + 'x' * 10000 + 'REST', 'TICK_5', 'REST'),
    # The end of stdin.
    ('', None, ''),
    ('eventname:TICK_5 len:3', None, ''),
    ('eventname:TICK_5 len:3\nab', None, ''),
    ('eventname:TICK_5 len:10000\n' + 'x' * 9999, None, ''),
    ('eventname:TICK_5 len:999999999999999\nab', None, ''),
])
def test_read_event(text: str, event: str | None, rest: str) -> None:
    stdin = io.StringIO(text, newline='\n')
    assert (memmon.read_event(stdin), stdin.read()) == (event, rest)


@pytest.mark.parametrize('header', [
    '\n', 'nonsense\n', 'eventname:TICK_5\n', 'len:5\n', 'eventname:TICK_5 len:\n',
    'eventname:TICK_5 len:-5\n', 'eventname:TICK_5 len:1.5\n', 'eventname:TICK_5 len:٣\n',
    'eventname:TICK_5 len:' + '9' * 16 + '\n', 'eventname:TICK_5 len:1_0\n',
])
def test_header_that_cannot_be_read_is_an_error(header: str) -> None:
    with pytest.raises(memmon.HeaderError) as error:
        memmon.read_event(io.StringIO(header))
    assert str(error.value) == f'this is no header of an event: {header!r}'
