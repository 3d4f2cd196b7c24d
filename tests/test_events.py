"""The event protocol, spoken to the real script."""

import os
import subprocess
from typing import Tuple

import pytest
from harness import (LIMIT, MEMMON, StartMemmon, StartSupervisord, children_of, hog, is_running, rss_kb, wait_until)

URL = 'unix:///nonexistent/supervisor.sock'


def exchange(stdin: bytes, **env: str) -> Tuple[int, bytes, str]:
    """Give memmon its whole input at once; return its status, stdout and stderr."""
    done = subprocess.run([MEMMON, '-a', '1GB'], input=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={**os.environ, 'SUPERVISOR_SERVER_URL': URL, **env}, check=False)
    return done.returncode, done.stdout, done.stderr.decode()


def event(name: str, payload: str = '', server: str = 'supervisor') -> bytes:
    """Return an event as supervisord writes it, which counts characters and encodes them then."""
    return (f'ver:3.0 server:{server} serial:21 pool:memmon poolserial:10 eventname:{name} len:{len(payload)}\n'
            f'{payload}').encode()


@pytest.mark.parametrize('stdin, answers', [
    (b'', b'READY\n'),
    (event('PROCESS_LOG')[:-1], b'READY\n'),
    (event('PROCESS_LOG', 'cut off')[:-1], b'READY\n'),
    (event('PROCESS_LOG'), b'READY\nRESULT 2\nOKREADY\n'),
    (event('PROCESS_LOG') * 2, b'READY\nRESULT 2\nOKREADY\nRESULT 2\nOKREADY\n'),
])
def test_end_of_input_ends_memmon(stdin: bytes, answers: bytes) -> None:
    assert exchange(stdin)[:2] == (0, answers)


@pytest.mark.parametrize('payload', [
    '', '\n', 'a\nb\n\nc', 'a\r\nb\rc', 'ünï©ødé \N{SNOWMAN} \N{PILE OF POO}', '\0\x1a', 'ver:3.0 len:5\n', 'x' * 65536,
    'é' * 65536,
], ids=lambda payload: ascii(payload[:30]))
@pytest.mark.parametrize('locale', ['C', 'C.UTF-8', 'en_US.ISO-8859-1'])
def test_payload_is_taken_whole(payload: str, locale: str) -> None:
    stdin = event('PROCESS_LOG_STDOUT', payload) + event('REMOTE_COMMUNICATION')
    status, answers, log = exchange(stdin, LC_ALL=locale)
    assert (status, answers) == (0, b'READY\nRESULT 2\nOKREADY\nRESULT 2\nOKREADY\n')
    assert 'PROCESS_LOG_STDOUT is no TICK event' in log


@pytest.mark.parametrize('server', ['my host', 'host:9001', 'é'])
def test_identifier_may_be_anything(server: str) -> None:
    assert exchange(event('PROCESS_LOG', 'abc', server) * 2)[:2] == (0, b'READY\n' + b'RESULT 2\nOKREADY\n' * 2)


@pytest.mark.parametrize('header', [
    'nonsense\n', '\n', 'eventname:TICK_5\n', 'len:5\n', 'eventname:TICK_5 len:\n', 'eventname:TICK_5 len:-5\n',
    'eventname:TICK_5 len:many\n',
])
def test_header_that_cannot_be_read_ends_memmon(header: str) -> None:
    assert exchange(header.encode()) == (1, b'READY\n', f'memmon: this is no header of an event: {header!r}\n')


def test_other_events_are_told_of_once() -> None:
    status, answers, log = exchange(event('PROCESS_STATE_FATAL', 'x') + event('PROCESS_STATE_EXITED') * 2)
    assert (status, answers) == (0, b'READY\n' + b'RESULT 2\nOKREADY\n' * 3)
    assert log.count('\n') == 1
    assert log.endswith(' WARNING memmon: PROCESS_STATE_FATAL is no TICK event; '
                        'memmon acts on TICK events alone, such as events=TICK_60\n')


@pytest.mark.parametrize('name', ['TICK_5', 'TICK_60', 'TICK_3600'])
def test_every_tick_is_one(name: str, start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(hog('big'))
    pid, = supervisord.wait_big('big')
    start_memmon(supervisord, '-a', LIMIT).send(name)
    supervisord.wait_new_pid('big', pid)


def test_10000_events_leave_nothing_behind(start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(hog('small', '--mb', '1'))
    supervisord.wait_state('small', 'RUNNING')
    memmon = start_memmon(supervisord, '-c', '-p', 'small=1GB', '-a', '1GB')
    odd = ['', '\n', 'a\nb', 'ünï©ødé', 'x' * 65536, '\r\n']
    sizes = []
    for i in range(10000):
        if i % 10:
            memmon.send(['PROCESS_LOG_STDERR', 'é', 'x.y-z', 'TICKLISH'][i % 4], odd[i % 6])
        else:
            memmon.send()
        if i in (100, 9999):
            sizes.append((rss_kb(memmon.pid), len(os.listdir(f'/proc/{memmon.pid}/fd'))))
    (rss_before, files_before), (rss_after, files_after) = sizes
    assert 0 < rss_after <= rss_before * 1.01
    assert files_after == files_before
    assert children_of(memmon.pid) == []


def test_workers_are_reaped_at_the_next_event(start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(hog('big'))
    pid, = supervisord.wait_big('big')
    memmon = start_memmon(supervisord, '-a', LIMIT)
    memmon.send()
    worker, = children_of(memmon.pid)
    wait_until(lambda: not is_running(worker))
    memmon.send('PROCESS_LOG')
    assert children_of(memmon.pid) == []
