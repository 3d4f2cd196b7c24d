"""The event listener: the protocol, the ticks, the looks between them, and what it survives."""

from __future__ import annotations

import io
import logging
import math
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_server import StartFakeServer
from harness import (ANOTHER_USER, LIMIT, MEMMON, TINY, Done, Listener, Mailbox, StartListener,
                     StartSupervisord, children_of, in_pid_namespace, messages, open_files,
                     rss_mb, run, section, sleeper, wait_until)

import memmon

linux = pytest.mark.skipif(sys.platform != 'linux', reason='needs Linux')
URL = 'unix:///nonexistent/supervisor.sock'


# The protocol.

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
def test_event_is_read_with_its_payload(text: str, event: str | None, rest: str) -> None:
    stdin = io.StringIO(text, newline='\n')
    assert (memmon.read_event(stdin), stdin.read()) == (event, rest)


@pytest.mark.parametrize('header', [
    '\n', 'nonsense\n', 'eventname:TICK_5\n', 'len:5\n', 'eventname:TICK_5 len:\n',
    'eventname:TICK_5 len:-5\n', 'eventname:TICK_5 len:1.5\n', 'eventname:TICK_5 len:٣\n',
    'eventname:TICK_5 len:' + '9' * 16 + '\n', 'eventname:TICK_5 len:1_0\n', '\x1b[31m\n',
])
def test_header_that_cannot_be_read_is_an_error(header: str) -> None:
    with pytest.raises(memmon.HeaderError) as error:
        memmon.read_event(io.StringIO(header))
    assert str(error.value).startswith('this is no header of an event: ')
    assert str(error.value).isprintable()


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
    (event('PROCESS_LOG') * 2, 2),
    (event('PROCESS_LOG', 'abc', 'my host:9001 é') * 2, 2),
])
def test_end_of_stdin_ends_memmon(stdin: bytes, count: int) -> None:
    done = exchange(stdin)
    assert (done.status, done.stdout) == (0, answers(count))


@pytest.mark.parametrize('locale', ['C', 'C.UTF-8', 'en_US.ISO-8859-1'])
def test_payload_is_read_whole_in_any_locale(locale: str) -> None:
    payloads = ['', '\n', 'a\r\nb\rc', 'ünï©ødé \N{SNOWMAN} \N{PILE OF POO}', '\0\x1a',
                'ver:3.0 len:5\n', 'é' * 65536]
    done = exchange(b''.join(event('PROCESS_LOG_STDOUT', payload) for payload in payloads),
                    LC_ALL=locale)
    assert (done.status, done.stdout) == (0, answers(len(payloads)))
    assert messages(done.stderr)[1:] == [
        'WARNING memmon: PROCESS_LOG_STDOUT is not a TICK event; memmon acts on TICK events only, '
        'such as events=TICK_60']


def test_header_that_cannot_be_read_ends_memmon_with_status_1() -> None:
    done = exchange(b'nonsense\n')
    assert (done.status, done.stdout) == (1, answers(0))
    assert done.stderr.splitlines()[1:] == [
        'memmon: this is no header of an event: nonsense']


def test_supervisord_that_has_ended_is_no_traceback(tmp_path: Path) -> None:
    listener = Listener(tmp_path, '-a', '1GB', env={'SUPERVISOR_SERVER_URL': URL})
    try:
        listener.wait_ready()
        listener.stdout.close()
        listener.write(event('TICK_5'))
        assert listener.wait_end() == 0
        assert 'Traceback' not in listener.log() and 'Broken' not in listener.log()
    finally:
        listener.end()


# What is left behind.

@linux
def test_thousand_events_leave_nothing_behind(start_supervisord: StartSupervisord,
                                              start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('small', '--mb', '1'))
    supervisord.wait_up('small')
    listener = start_listener(supervisord, '-c', '-p', 'small=1GB', '-a', '1GB')
    odd = ['', '\n', 'a\nb', 'ünï©ødé', 'x' * 65536, '\r\n']
    sizes = []
    for number in range(1100):
        if number % 5:
            listener.send(['PROCESS_LOG_STDERR', 'é', 'x.y-z', 'TICKLISH'][number % 4],
                          odd[number % 6])
        else:
            listener.send()
        if number in (100, 1099):
            # Not statm, which is inaccurate by some pages for each CPU: see proc(5).
            sizes.append((memmon.read_fields(listener.pid, ['Rss']), open_files(listener.pid)))
    (rss_before, files_before), (rss_after, files_after) = sizes
    assert 0 < rss_after <= rss_before * 1.02
    assert files_after == files_before
    assert children_of(listener.pid) == []


@linux
def test_many_restarts_leave_nothing_behind(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    names = [letter * 3 for letter in 'abcdefghijkl']  # more than there are workers
    supervisord = start_supervisord(''.join(map(sleeper, names)))
    supervisord.wait_up(*names)
    listener = start_listener(supervisord, '-a', TINY)
    listener.wait_ready()
    before = open_files(listener.pid)
    listener.send('TICK_3600')
    listener.wait_log(' restarted ', len(names))
    listener.wait_idle()  # not even a zombie
    assert open_files(listener.pid) == before
    assert len(os.listdir(f'/proc/{listener.pid}/task')) == 1
    assert [supervisord.spawned(name) for name in names] == [2] * len(names)


# What a tick costs, and what is seen at it.

def test_steady_tick_asks_nobody(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener,
        start_fake_server: StartFakeServer) -> None:
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin/ps').write_text(f'#!/bin/sh\ntouch {tmp_path}/called\n')
    (tmp_path / 'bin/ps').chmod(0o755)
    supervisord = start_supervisord(sleeper('a') + sleeper('b'))
    supervisord.wait_up('a', 'b')
    server = start_fake_server(behind=supervisord.env)
    listener = start_listener(server, '-v', '-a', '1GB',
                              PATH=f'{tmp_path}/bin:{os.environ["PATH"]}')
    listener.send()
    calls = len(server.calls)
    for _ in range(5):
        listener.send()
    assert server.methods()[calls:] == [] and not (tmp_path / 'called').exists()
    assert listener.log().count('DEBUG memmon: a:a: RSS ') == 6
    supervisord.call('stopProcess', 'b')
    listener.send()
    assert server.methods()[calls:] == ['supervisor.getAllProcessInfo']


def test_program_that_starts_or_is_replaced_after_the_first_tick_is_watched(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(
        section('late', '--once', 'late', autostart='false')
        + section('other', '--when', 'grow', autorestart='true'))
    first, = supervisord.wait_up('other')
    listener = start_listener(supervisord, '-a', LIMIT)
    listener.send()
    supervisord.call('startProcess', 'late')
    late, = supervisord.wait_big('late')
    os.kill(first, signal.SIGKILL)
    second = supervisord.wait_new_pid('other', first)
    (tmp_path / 'grow').touch()
    supervisord.wait_big('other')
    listener.send()
    supervisord.wait_new_pid('late', late)
    supervisord.wait_new_pid('other', second)


def test_tick_survives_a_mistake_and_shows_its_traceback_with_v(
        caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = memmon.Listener(memmon.parse_args(['-a', '1MB']), memmon.Server(URL))

    def fail(*_: object) -> None:
        raise ZeroDivisionError('a mistake\nof two lines')
    monkeypatch.setattr(listener.monitor, 'look', fail)
    listener.look(is_tick=True)
    why = 'ZeroDivisionError: a mistake ... of two lines'
    assert caplog.messages == [f'tick skipped: {why}']
    assert not caplog.records[0].exc_info
    caplog.set_level(logging.DEBUG)
    listener.look(is_tick=True)
    assert any(record.exc_info for record in caplog.records)


def test_first_tick_says_what_is_watched_and_names_what_matches_nothing_once(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(sleeper('web') + sleeper('queue'))
    supervisord.wait_up('web', 'queue')
    args = ['-p', 'web=1GB', '-p', 'quue=1GB', '-g', 'late=1GB', '-r', '3/1h', '-c']
    listener = start_listener(supervisord, *args)
    listener.send()
    listener.send()
    missing = ['WARNING memmon: -p quue=1GB matches no process; similar: queue',
               'WARNING memmon: -g late=1GB matches no process']
    shown = '-p web=1GB -p quue=1GB -g late=1GB -r 3/1h -c'
    assert listener.messages() == [
        f'INFO memmon: memmon {memmon.__version__} waits for TICK events: {shown}',
        f"INFO memmon: watching 1 of supervisord's 2 processes: {shown}", *missing]
    supervisord.configure(sleeper('web') + sleeper('late'))
    supervisord.wait_up('late')
    listener.send()
    assert len(listener.messages()) == 4
    supervisord.configure(sleeper('web'))
    listener.send()
    assert listener.messages()[4:] == missing[1:]


# Ticks that can check nothing.

BLIND, AGAIN = 'blind', 'seen again'


@pytest.mark.parametrize('ticks, events', [
    ('-', []),
    ('x', ['tick skipped']),
    ('x-x-', ['tick skipped'] * 2),
    ('xx', ['tick skipped', BLIND]),
    ('xxxx', ['tick skipped', BLIND, 'tick skipped', 'tick skipped']),
    ('xx--', ['tick skipped', BLIND, AGAIN]),
    ('xx-x-', ['tick skipped', BLIND, AGAIN, 'tick skipped']),
    ('pppp-', []),                      # a planned shutdown or reload
    ('xpx', ['tick skipped', BLIND]),
])
def test_blindness_is_mailed_at_the_second_tick_and_at_its_end(
        ticks: str, events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    listener = memmon.Listener(memmon.parse_args(['-a', '1MB']), memmon.Server(URL))
    reports: list[str] = []
    monkeypatch.setattr(listener, 'report', lambda report: reports.append(report.event))
    failures = {'x': memmon.MeasureError('why'), 'p': memmon.ShuttingDown(), '-': None}
    for tick in ticks:
        listener.say_blind(failures[tick])
    assert reports == events
    assert {event: bool(memmon.EVENTS[event].subject) for event in
            (BLIND, AGAIN, 'tick skipped')} == {BLIND: True, AGAIN: True, 'tick skipped': False}


def test_two_blind_ticks_are_mailed_once_and_so_is_their_end(
        mailbox: Mailbox, tmp_path: Path, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord('')
    listener = start_listener(supervisord, '-a', '1TB', *mailbox.args)
    supervisord.hide_socket()
    for mails in (0, 1, 1, 1):
        listener.send()
        listener.wait_idle()
        mailbox.assert_mails(mails)
    supervisord.show_socket()
    for _ in range(2):
        listener.send()
        listener.wait_idle()
    mailbox.wait_subject('memmon: nothing could be checked at two ticks in a row')
    mailbox.wait_subject('memmon: processes are checked again')
    mailbox.assert_mails(2)
    why = f'no such socket: unix://{tmp_path}/s; is supervisord running, '
    skipped = [line for line in listener.messages() if why in line]
    assert len(skipped) == 4 and all(line.startswith('ERROR memmon: ') for line in skipped)
    assert 'INFO memmon: seen again: after 4 ticks' in listener.messages()


@pytest.mark.usefixtures('pid_namespaces')
def test_processes_of_another_pid_namespace_are_named_once_and_never_measured(
        mailbox: Mailbox, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(sleeper('big'))
    pid, = supervisord.wait_up('big')
    listener = start_listener(supervisord, '-a', TINY, *mailbox.args, wrapper=in_pid_namespace())
    for _ in range(3):
        listener.send()
    mailbox.wait_subject('memmon: nothing could be checked at two ticks in a row')
    line, = [line for line in listener.messages() if ' cannot measure ' in line]
    assert line.startswith(f'WARNING memmon: cannot measure big:big (pid {pid}): ')
    assert supervisord.spawned('big') == 1


@pytest.mark.parametrize('secs, said', [
    (119, []), (120, ['INFO']), (3659, ['INFO']), (3660, ['INFO', 'WARNING'])])
def test_absence_of_ticks_is_an_info_and_then_a_warning(
        secs: int, said: list[str], caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO)
    now = [1000.0]
    monkeypatch.setattr(memmon, 'time', SimpleNamespace(monotonic=lambda: now[0]))
    listener = memmon.Listener(memmon.parse_args(['-a', '1MB']), memmon.Server(URL))

    def wait(descriptors: object, wait_secs: float | None) -> list[int]:
        """Let so much time pass that the event comes after its seconds."""
        event_at = 1000.0 + secs
        is_event = wait_secs is None or now[0] + wait_secs > event_at
        now[0] = event_at if is_event else now[0] + (wait_secs or 0)
        return [0] * is_event

    monkeypatch.setattr(memmon, 'wait_readable', wait)
    listener.wait(0)
    assert [record.levelname for record in caplog.records] == said
    assert all('[eventlistener:x]' in message for message in caplog.messages)


def test_any_event_shows_that_the_section_is_an_event_listener(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = memmon.Listener(memmon.parse_args(['-a', '1MB']), memmon.Server(URL))
    monkeypatch.setattr(listener, 'wait', lambda stdin: None)
    (tmp_path / 'stdin').write_text('eventname:PROCESS_STATE len:0\n')
    with open(tmp_path / 'stdin', encoding='utf-8') as stdin:
        listener.serve(stdin, io.StringIO())
    assert listener.no_event == []


# Between two ticks.

def test_leak_is_stopped_long_before_the_next_tick(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('leak', '--mb', '300', '--rate', '10', '--once', 'x'))
    pid, = supervisord.wait_up('leak')
    listener = start_listener(supervisord, '-v', '-a', '60MB')
    listener.send('TICK_60')
    supervisord.wait_new_pid('leak', pid)
    listener.wait_log(' restarted leak:leak: ')
    listener.wait_log('DEBUG memmon: a look between two ticks')


@linux
def test_calm_program_wakes_memmon_up_at_no_time(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(sleeper('calm') + section('clock', command=(
        "sh -c 'until test -e go; do sleep 0.1; done; sleep 3; touch done; sleep 1000'")))
    supervisord.wait_up('calm')
    listener = start_listener(supervisord, '-v', '-p', 'calm=1GB')
    listener.send('TICK_60')
    listener.send('TICK_60')
    listener.wait_idle()
    before = switches(listener.pid)
    (supervisord.path / 'go').touch()
    wait_until((supervisord.path / 'done').exists)
    assert switches(listener.pid) == before
    assert ' a look between ' not in listener.log()


def switches(pid: int) -> int:
    """Return how often a process has gone to sleep."""
    status = Path(f'/proc/{pid}/status').read_text()
    return int(status.partition('\nvoluntary_ctxt_switches:')[2].split()[0])


def growing(args: str, interval: int, memory: int, rate: float) -> memmon.Listener:
    """Return a listener, just after a tick, that watches a process that grows."""
    listener = memmon.Listener(memmon.parse_args(args.split()), memmon.Server(URL))
    limit = listener.options.limits[0]
    process = memmon.Process('a', 'a', 7, 1000, 0, 1000, 20, 'RUNNING', '', 0)
    history = memmon.History(process)
    history.reading = memmon.Reading(process, limit, *memmon.sizes_of(limit, 1 << 40),
                                     memmon.MEASURES['rss'], memory, memory, memory, 1099)
    history.rate = rate
    listener.monitor.running = [history]
    listener.interval, listener.last_tick, listener.no_event = interval, 1000.0, []
    return listener


MB = 1 << 20


@pytest.mark.parametrize('args, interval, memory, rate, took, secs', [
    ('-a 100MB', 60, 50, 5, 0, 5),            # half of the ten seconds to the limit
    ('-a 100MB', 60, 94, 5, 0, 1),            # not sooner than after a second,
    ('-a 100MB', 60, 99, 5, 0, 1),
    ('-a 100MB', 60, 99, 5, 0.05, 5),         # nor than 100 times the CPU time of a look
    ('-a 100MB', 60, 50, 0.5, 0, None),       # at the limit after the next tick
    ('-a 100MB', 5, 50, 5, 0, None),
    ('-a 100MB', 0, 50, 5, 0, None),          # no tick has come
    ('-a 100MB', 60, 50, 0, 0, None),
    ('-a 100MB', 60, 50, -5, 0, None),
    ('-a 100MB --dry-run', 60, 50, 5, 0, None),
    ('-a none -p b=1MB', 60, 50, 5, 0, None),
    ('-a 100MB..200MB -f 5m', 60, 50, 5, 0, 15),  # only the hard size leads to a restart
    ('-a 100MB -f 5m', 60, 50, 5, 0, None),
])
def test_look_before_the_next_tick(args: str, interval: int, memory: int, rate: float,
                                   took: float, secs: float | None) -> None:
    listener = growing(args, interval, memory * MB, rate * MB)
    if args.startswith('-a none'):
        listener = growing('-a none --check', interval, memory * MB, rate * MB)
    listener.plan_look(1000.0, took)
    assert listener.look_at == (math.inf if secs is None else pytest.approx(1000 + secs))


@pytest.mark.parametrize('seen_at, secs', [(1000.0, 50), (1050.0, None)])
def test_peak_is_known_after_a_minute(seen_at: float, secs: float | None) -> None:
    listener = growing('-a 100MB', 3600, 110 * MB, 0)
    history = listener.monitor.running[0]
    history.too_low, history.seen_at = {'soft': memmon.TooLow(990.0, 110 * MB)}, seen_at
    listener.plan_look(1000.0, 0)
    assert listener.look_at == (math.inf if secs is None else 1000 + secs)


def test_restart_brings_a_look_in_a_second_and_puts_none_off(
        monkeypatch: pytest.MonkeyPatch) -> None:
    listener = growing('-a 100MB', 60, 110 * MB, 0)
    history = listener.monitor.running[0]
    assert history.reading
    monkeypatch.setattr(memmon, 'time', SimpleNamespace(monotonic=lambda: 1000.0))
    for planned, look_at in ((math.inf, 1001), (1030.0, 1001), (1000.2, 1000.2)):
        listener.look_at = planned
        listener.take([(memmon.Job(history, history.reading, None),
                        memmon.Report('restarted', '', history.reading))])
        assert listener.look_at == look_at


def test_end_of_a_worker_brings_a_look_as_its_pool_is_free(
        monkeypatch: pytest.MonkeyPatch) -> None:
    listener = growing('-a 100MB', 60, 110 * MB, 0)
    history = listener.monitor.running[0]
    assert history.reading
    reader, writer = os.pipe()
    os.close(writer)
    listener.workers.workers = [
        memmon.Worker(1, reader, [memmon.Job(history, history.reading, None)])]
    ready = iter([[reader], [0]])
    monkeypatch.setattr(memmon, 'wait_readable', lambda *_: next(ready))
    monkeypatch.setattr(os, 'waitpid', lambda *_: None)
    monkeypatch.setattr(memmon, 'time', SimpleNamespace(monotonic=lambda: 1000.0))
    listener.wait(0)
    assert listener.look_at == 1001


def test_mails_do_not_wait_for_commands_that_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[memmon.Delivery] = []

    def fork(pipes: object, work: object, delivery: memmon.Delivery) -> int:
        started.append(delivery)
        return 2 ** 22 + 1
    monkeypatch.setattr(memmon, 'fork', fork)
    site = memmon.Site(memmon.parse_args(['-a', '1MB']), memmon.Server(URL), 1, 1, 0)
    workers = memmon.Workers(set())
    command, mail = memmon.Delivery('hang', b'', {}), memmon.Delivery('mail', b'x', {})
    workers.deliveries = [command] * 12
    workers.start_some(site)
    workers.deliveries += [mail] * 9
    workers.start_some(site)
    assert started == [command] * 8 + [mail] * 8
    assert workers.deliveries == [mail] + [command] * 4


@pytest.mark.parametrize('can_fork', [True, False])
def test_what_waits_for_delivery_is_delivered_after_the_end(
        can_fork: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_fork(*_: object) -> int:
        raise OSError(12, 'Cannot allocate memory')
    listener = memmon.Listener(memmon.parse_args(['-a', '1MB']), memmon.Server(URL))
    go = tmp_path / 'go'
    if not can_fork:
        monkeypatch.setattr(memmon, 'fork', no_fork)
        go.touch()
    wait = f'until test -e {go}; do sleep 0.05; done; cat >> {tmp_path}/mails'
    listener.workers.deliveries = [memmon.Delivery(wait, b'%d ' % number, {})
                                   for number in range(20)]
    listener.end()
    mails = tmp_path / 'mails'
    assert mails.exists() != can_fork
    go.touch()
    wait_until(lambda: mails.exists() and len(mails.read_text().split()) == 20)
    for worker in listener.workers.workers:
        os.waitpid(worker.pid, 0)


def test_total_over_its_hard_size_is_looked_at_while_a_stop_is_under_way() -> None:
    listener = growing('-a 100MB -t 1GB..2GB', 60, 50 * MB, 0)
    history, total = listener.monitor.running[0], listener.options.total
    assert history.reading and total
    listener.monitor.total.reading = history.reading._replace(
        memory=3 << 30, bound=3 << 30, soft=1 << 30, hard=2 << 30, limit=total)
    listener.plan_look(1000.0, 0)
    assert listener.look_at == math.inf
    listener.workers.queue = [[memmon.Job(history, history.reading, None)]]
    listener.plan_look(1000.0, 0)
    assert listener.look_at == 1001


def test_blindness_is_counted_and_reported_at_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = growing('-a 100MB', 60, 50 * MB, 0)
    monkeypatch.setattr(listener.monitor, 'look', lambda now: [])
    listener.blind_ticks = 2
    listener.look(is_tick=False)
    assert listener.blind_ticks == 2
    listener.look(is_tick=True)
    assert listener.blind_ticks == 0


@pytest.mark.parametrize('args, memory, rate, took, secs', [
    ('-t 100MB', 50, 5, 0, 5),
    ('-t 100MB', 99, 5, 0, 0.5),              # half a second: at its limit the kernel may kill
    ('-t 100MB', 99, 5, 0.05, 2.5),
    ('-t 100MB', 100, 5, 0, 0.5),             # it is not over yet
    ('-t 100MB', 101, 5, 0, None),            # it is over, and judged at each look
    ('-t 100MB..200MB', 101, 5, 0, 9.9),
    ('-t 100MB..200MB -f 5m', 50, 5, 0, 15),
    ('-t 100MB', 50, 0, 0, None),
    ('-t 100MB --dry-run', 50, 5, 0, None),
])
def test_look_at_the_total_before_the_next_tick(args: str, memory: int, rate: float, took: float,
                                                secs: float | None) -> None:
    listener = memmon.Listener(memmon.parse_args(args.split()), memmon.Server(URL))
    total = listener.options.total
    assert total
    listener.monitor.total.reading = memmon.Reading(
        memmon.ALL, total, *memmon.sizes_of(total, 1 << 40), memmon.MEASURES['pss'], memory * MB,
        memory * MB, memory * MB)
    listener.monitor.total.rate = rate * MB
    listener.interval, listener.last_tick = 60, 1000.0
    listener.plan_look(1000.0, took)
    assert listener.look_at == (math.inf if secs is None else pytest.approx(1000 + secs))


def test_what_waits_for_a_place_or_a_fork_is_tried_again_in_a_second() -> None:
    listener = growing('-a 100MB', 3600, 50, 0)
    assert listener.secs_to_wait() is None
    listener.workers.queue = [[]]
    assert listener.secs_to_wait() == pytest.approx(1, abs=0.5)
    listener.workers.queue, listener.workers.deliveries = [], [memmon.Delivery('true', b'', {})]
    assert listener.secs_to_wait() == pytest.approx(1, abs=0.5)


# Streams, descriptors, signals, tools.

@pytest.mark.parametrize('closed', ['0<&-', '1>&-', '2>&-', '0<&- 1>&- 2>&-'])
def test_closed_standard_streams_are_no_traceback(closed: str) -> None:
    shell = ['sh', '-c', f'exec "$0" "$@" {closed}', MEMMON, '-a', TINY]
    done = run(*shell, '--check', env={'SUPERVISOR_SERVER_URL': URL})
    assert done.status == 2 and (done.stderr.count('\n') == 1) == ('2>' not in closed)
    done = run(*shell, env={'SUPERVISOR_SERVER_URL': URL})  # it gets no event
    assert done.status == 0 and 'Traceback' not in done.stderr


@linux
def test_restart_and_mail_without_a_stderr_that_somebody_reads(
        tmp_path: Path, mailbox: Mailbox, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    reader, writer = os.pipe()
    places = {'closed': '&-', 'full': '/dev/full', 'gone': f'/proc/{os.getpid()}/fd/{writer}'}
    supervisord = start_supervisord(''.join(map(sleeper, places)))
    pids = supervisord.wait_up(*places)
    listeners = [start_listener(supervisord, '-p', f'{name}={TINY}', *mailbox.args,
                                '-o', 'before=echo text >&2; touch $MEMMON_NAME',
                                wrapper=['sh', '-c', f'exec "$0" "$@" 2>{place}'])
                 for name, place in places.items()]
    for listener in listeners:
        listener.wait_ready()
    os.close(reader)
    os.close(writer)
    for listener in listeners:
        listener.send()
    for name, pid in zip(places, pids):
        supervisord.wait_new_pid(name, pid)
        mailbox.wait_subject(f'memmon: process {name}:{name} restarted')
        assert (tmp_path / name).exists()
    for listener in listeners:
        listener.send()


def test_sigchld_ignored_by_whoever_started_memmon_hides_no_exit_status(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(sleeper('big'))
    pid, = supervisord.wait_up('big')
    ignore = ('import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); '
              'os.execv(sys.argv[1], sys.argv[1:])')
    listener = start_listener(supervisord, '-a', TINY, '-o', 'before=exit 75',
                              wrapper=[sys.executable, '-c', ignore])
    listener.send()
    listener.wait_log(' postponed big:big: ')
    assert supervisord.pid('big') == pid


@linux
def test_more_than_1024_inherited_descriptors_are_no_limit(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1300:
        pytest.skip('needs a hard limit of 1,300 open files')
    supervisord = start_supervisord(sleeper('big'))
    pid, = supervisord.wait_up('big')
    inherit = ('import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, '
               f'(1300, {hard})); [os.set_inheritable(os.dup(2), True) for _ in range(1100)]; '
               'os.execv(sys.argv[1], sys.argv[1:])')
    listener = start_listener(supervisord, '-a', TINY, wrapper=[sys.executable, '-c', inherit])
    listener.send()
    supervisord.wait_new_pid('big', pid)
    listener.wait_log(' restarted big:big: ')
    listener.send()


@pytest.mark.skipif(not shutil.which('prlimit'), reason='needs prlimit, from util-linux')
def test_shortage_of_descriptors_loses_the_tick_and_no_more(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(sleeper('big'))
    pid, = supervisord.wait_up('big')
    listener = start_listener(supervisord, '-a', TINY)
    listener.send('PROCESS_LOG')
    assert run('prlimit', '--pid', str(listener.pid), '--nofile=3:4096').status == 0
    listener.send()
    assert listener.messages()[-1].startswith('ERROR memmon: tick skipped: ')
    assert supervisord.pid('big') == pid
    assert run('prlimit', '--pid', str(listener.pid), '--nofile=4096:4096').status == 0
    listener.send()
    supervisord.wait_new_pid('big', pid)


@linux
@pytest.mark.skipif(os.getuid() != 0 or not shutil.which('setpriv'),
                    reason='needs root, and setpriv and prlimit from util-linux')
def test_shortage_of_processes_leaves_the_listener_to_do_it(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(sleeper('a') + sleeper('b'))
    pids = supervisord.wait_up('a', 'b')
    listener = start_listener(supervisord, '-a', TINY,
                              wrapper=[*ANOTHER_USER, 'prlimit', '--nproc=1'])
    listener.send()
    for name, pid in zip('ab', pids):
        supervisord.wait_new_pid(name, pid)
    listener.wait_log(' cannot fork (')


def test_ps_has_the_last_word_before_a_stop(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    # A ps that shows the listener 123 KB for each process, and its worker what is in a file.
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin/ps').write_text(
        f'#!/bin/sh\n{shutil.which("ps")} "$@" | '
        f'awk -v rss=$(cat {tmp_path}/$PPID || cat {tmp_path}/rss) \'{{ print $1, $2, rss }}\'\n')
    (tmp_path / 'bin/ps').chmod(0o755)
    supervisord = start_supervisord(sleeper('big'))
    supervisord.wait_up('big')
    listener = start_listener(supervisord, '-a', TINY, constants={'TASKS': '/nonexistent/%d'},
                              PATH=f'{tmp_path}/bin:{os.environ["PATH"]}')
    (tmp_path / str(listener.process.pid)).write_text('123')
    (tmp_path / 'rss').write_text('77')
    listener.send()
    listener.wait_log(' not restarted big:big: ')
    assert '; it is now RSS 77KB' in listener.log()
    listener.wait_idle()
    (tmp_path / 'rss').write_text('150')
    listener.send()
    listener.wait_log(' restarted big:big: RSS 150KB is over 100KB')


@linux
def test_children_of_threads_that_come_and_go_are_counted(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    churn = ('import subprocess, threading, time; '
             'subprocess.Popen([\\"sleep\\", \\"1000\\"]); '
             '[([thread.start() for thread in threads], time.sleep(0.001)) for threads in '
             'iter(lambda: [threading.Timer(0.002, int) for _ in range(8)], 0)]')
    supervisord = start_supervisord(section(
        'churn', command=f'{sys.executable} -c "{churn}"', stopasgroup='true'))
    pid, = supervisord.wait_up('churn')
    child, = wait_until(lambda: children_of(pid))
    listener = start_listener(supervisord, '-c', '-v', '-a', '1GB')
    for _ in range(50):
        listener.send()
    own, below = rss_mb(pid), rss_mb(child)
    figures = [line.partition('descendants: ')[2].partition('MB')[0]
               for line in listener.messages() if 'churn:churn: ' in line]
    assert len(figures) == 50
    assert min(map(float, figures[25:])) > own - 0.5 + below / 2
