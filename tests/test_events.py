"""The event protocol, spoken to the real script."""

from __future__ import annotations

import os

import pytest
from harness import (LIMIT, MEMMON, Done, StartListener, StartSupervisord, assert_equal,
                     children_of, messages, open_files, rss_kb, run, section, wait_until)

URL = 'unix:///nonexistent/supervisor.sock'


def exchange(stdin: bytes, **env: str) -> Done:
    """Give memmon its whole input at once."""
    return run(MEMMON, '-a', '1GB', stdin=stdin, env={'SUPERVISOR_SERVER_URL': URL, **env})


def event(name: str, payload: str = '', server: str = 'supervisor') -> bytes:
    """Return an event as supervisord writes it, which counts characters and then encodes them."""
    return (f'ver:3.0 server:{server} serial:21 pool:memmon poolserial:10 eventname:{name} '
            f'len:{len(payload)}\n{payload}').encode()


def answers(count: int) -> str:
    """Return what memmon prints that gets so many events."""
    return 'READY\n' + 'RESULT 2\nOKREADY\n' * count


@pytest.mark.parametrize('stdin, count', [
    (b'', 0),
    (event('PROCESS_LOG')[:-1], 0),
    (event('PROCESS_LOG', 'cut off')[:-1], 0),
    (event('PROCESS_LOG'), 1),
    (event('PROCESS_LOG') * 2, 2),
])
def test_end_of_input_ends_memmon(stdin: bytes, count: int) -> None:
    done = exchange(stdin)
    assert (done.status, done.stdout) == (0, answers(count))


@pytest.mark.parametrize('payload', [
    '',
    '\n',
    'a\nb\n\nc',
    'a\r\nb\rc',
    'ünï©ødé \N{SNOWMAN} \N{PILE OF POO}',
    '\0\x1a',
    'ver:3.0 len:5\n',
    'x' * 65536,
    'é' * 65536,
], ids=lambda payload: ascii(payload[:30]))
@pytest.mark.parametrize('locale', ['C', 'C.UTF-8', 'en_US.ISO-8859-1'])
def test_payload_is_read_whole(payload: str, locale: str) -> None:
    stdin = event('PROCESS_LOG_STDOUT', payload) + event('REMOTE_COMMUNICATION')
    done = exchange(stdin, LC_ALL=locale)
    assert (done.status, done.stdout) == (0, answers(2))
    assert 'PROCESS_LOG_STDOUT is not a TICK event' in done.stderr


@pytest.mark.parametrize('server', ['my host', 'host:9001', 'é'])
def test_identifier_may_be_anything(server: str) -> None:
    done = exchange(event('PROCESS_LOG', 'abc', server) * 2)
    assert (done.status, done.stdout) == (0, answers(2))


@pytest.mark.parametrize('header', [
    'nonsense\n',
    '\n',
    'eventname:TICK_5\n',
    'len:5\n',
    'eventname:TICK_5 len:\n',
    'eventname:TICK_5 len:-5\n',
    'eventname:TICK_5 len:many\n',
])
def test_header_that_cannot_be_read_ends_memmon(header: str) -> None:
    done = exchange(header.encode())
    assert (done.status, done.stdout) == (1, answers(0))
    assert done.stderr.splitlines()[1:] == [
        f'memmon: this is no header of an event: {header!r}']


def test_events_that_are_no_ticks_are_reported_once() -> None:
    done = exchange(event('PROCESS_STATE_FATAL', 'x') + event('PROCESS_STATE_EXITED') * 2)
    assert (done.status, done.stdout) == (0, answers(3))
    assert messages(done.stderr)[1:] == [
        'WARNING memmon: PROCESS_STATE_FATAL is not a TICK event; memmon acts on TICK events only, '
        'such as events=TICK_60']


@pytest.mark.parametrize('name', ['TICK_5', 'TICK_60', 'TICK_3600'])
def test_every_tick_is_one(name: str, start_supervisord: StartSupervisord,
                           start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('big', '--once', 'big'))
    pid, = supervisord.wait_big('big')
    start_listener(supervisord, '-a', LIMIT).send(name)
    supervisord.wait_new_pid('big', pid)


@pytest.mark.skipif(not os.path.exists('/proc/self/fd'), reason='needs the /proc of Linux')
def test_10000_events_leave_nothing_behind(start_supervisord: StartSupervisord,
                                           start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('small', '--mb', '1'))
    supervisord.wait_up('small')
    listener = start_listener(supervisord, '-c', '-p', 'small=1GB', '-a', '1GB')
    odd = ['', '\n', 'a\nb', 'ünï©ødé', 'x' * 65536, '\r\n']
    sizes = []
    for i in range(10000):
        if i % 10:
            listener.send(['PROCESS_LOG_STDERR', 'é', 'x.y-z', 'TICKLISH'][i % 4], odd[i % 6])
        else:
            listener.send()
        if i in (100, 9999):
            sizes.append((rss_kb(listener.pid), open_files(listener.pid)))
    (rss_before, files_before), (rss_after, files_after) = sizes
    assert 0 < rss_after <= rss_before * 1.01
    assert files_after == files_before
    assert children_of(listener.pid) == []


def test_worker_that_has_ended_is_reaped(start_supervisord: StartSupervisord,
                                         start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('big', '--once', 'big'))
    supervisord.wait_big('big')
    listener = start_listener(supervisord, '-a', LIMIT)
    listener.send()
    assert children_of(listener.pid)
    listener.wait_log('restarted big:big: ')
    listener.wait_ready()
    wait_until(lambda: assert_equal(children_of(listener.pid), []))
