"""The file for Prometheus: what is in it, when it is written, and what cannot go wrong with it."""

from __future__ import annotations

import itertools
import math
import os
import re
import shutil
import signal
import stat
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable
from xmlrpc.client import Fault

import pytest
from fake_server import StartFakeServer, reply
from harness import LIMIT, StartListener, StartSupervisord, run, section, sleeper, wait_until
from supervisor.states import ProcessStates

import memmon
from memmon import MB, Monitor, Process, Reading, Server, TooLow

pytest.importorskip('prometheus_client', reason='needs prometheus_client')
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402


def read_samples(file: Path) -> dict[tuple[str, str], float]:
    """Return the samples of a file by name without its prefix, and process."""
    found = [((sample.name[len('memmon_'):].replace('process_', ''),
               sample.labels.get('process', '')), sample.value)
             for family in text_string_to_metric_families(file.read_text())
             for sample in family.samples]
    assert len(found) == len(dict(found)), 'a series is there twice'
    return dict(found)


# The series, of processes that are made up.

def add(monitor: Monitor, namespec: str, pid: int, option: str = '', rss_mb: float | None = 100,
        memory_mb: float | None = 60) -> memmon.History:
    """Add a process that was measured to a monitor; option is that of its limit."""
    group, _, name = namespec.partition(':')
    process = Process(group, name, pid, 1000, 0, 1100, ProcessStates.RUNNING, 'RUNNING', '', 0)
    history = monitor.histories[namespec] = memmon.History(process)
    limit = next((limit for limit in monitor.options.limits if limit.given == option),
                 memmon.NO_LIMIT)
    rss, memory = [None if mb is None else int(mb * MB) for mb in (rss_mb, memory_mb)]
    history.blank = Reading(process, limit, *memmon.sizes_of(limit, 0), memmon.MEASURES['pss'])
    history.reading = history.blank._replace(rss=rss, bound=rss, memory=memory, at=1100)
    return history


@pytest.fixture
def monitor(tmp_path: Path) -> Monitor:
    return Monitor(memmon.parse_args(
        ['-p', 'web=50MB..80MB', '-p', 'free=none', '-t', '1GB', '-k', 'pss',
         '--metrics', str(tmp_path / 'memmon.prom')]), Server('unix:///nonexistent/s'))


def write(monitor: Monitor, interval: int = 60) -> dict[tuple[str, str], float]:
    """Write the file of a monitor; return its samples."""
    memmon.write_metrics(memmon.Tick(monitor, interval, True, 0))
    assert 'cannot write' not in monitor.said
    return read_samples(Path(monitor.options.metrics))


def test_series_of_a_process(monitor: Monitor) -> None:
    add(monitor, 'web:web', 5, '-p web=50MB..80MB')
    text_of = write(monitor)
    assert {name: value for (name, process), value in text_of.items() if process} == {
        'memory_bytes': 60 * MB, 'rss_bytes': 100 * MB, 'limit_bytes': 50 * MB,
        'restarts_total': 0, 'restart_failures_total': 0, 'held': 0, 'limit_too_low': 0,
        'lost': 0, 'unmeasured': 0}
    text = Path(monitor.options.metrics).read_text()
    assert 'memory_bytes{group="web",kind="pss",process="web"}' in text


@pytest.mark.parametrize('option, pid, memory, rss, limit', [
    ('', 5, None, 100 * MB, None),
    ('-p free=none', 5, None, 100 * MB, None),
    ('-p web=50MB..80MB', 0, None, None, 50 * MB),
], ids=['without a limit', 'exempt', 'stopped'])
def test_memory_is_there_where_it_is_compared(option: str, pid: int, memory: float | None,
                                              rss: float | None, limit: float | None,
                                              monitor: Monitor) -> None:
    made = add(monitor, 'a:a', 5, option)
    made.show(made.process._replace(pid=pid))
    samples = write(monitor)
    assert [samples.get((name, 'a')) for name in ('memory_bytes', 'rss_bytes', 'limit_bytes')] == [
        memory, rss, limit]
    assert samples['restarts_total', 'a'] == 0


def test_process_that_cannot_be_measured_has_no_size(monitor: Monitor) -> None:
    add(monitor, 'a:a', 5, '-p web=50MB..80MB', None, None).is_hidden = True
    samples = write(monitor)
    assert samples['unmeasured', 'a'] == 1
    assert ('memory_bytes', 'a') not in samples and ('rss_bytes', 'a') not in samples


def set_held(history: memmon.History) -> None:
    history.said['held'], history.over_since = 1, 5


def set_held_for_total(history: memmon.History) -> None:
    history.total_said['held'] = 1


def set_too_low(history: memmon.History) -> None:
    history.too_low['soft'] = TooLow(1, 100)


def set_lost(history: memmon.History) -> None:
    history.lost = memmon.Lost(1, math.inf)


def set_restarts(history: memmon.History) -> None:
    history.restarts_total, history.failures_total = 3, 0


def set_failures(history: memmon.History) -> None:
    history.restarts_total, history.failures_total = 0, 4


@pytest.mark.parametrize('change, name, value', [
    (set_held, 'held', 1), (set_held_for_total, 'held', 1), (set_too_low, 'limit_too_low', 1),
    (set_lost, 'lost', 1), (set_restarts, 'restarts_total', 3),
    (set_failures, 'restart_failures_total', 4),
])
def test_what_is_known_of_a_process_shows_in_one_series(
        change: Callable[[memmon.History], None], name: str, value: float, monitor: Monitor
        ) -> None:
    change(add(monitor, 'web:web', 5, '-p web=50MB..80MB'))
    add(monitor, 'other:other', 6, '-p web=50MB..80MB')
    samples = write(monitor)
    names = ('held', 'limit_too_low', 'lost', 'restarts_total', 'restart_failures_total')
    expected = {**dict.fromkeys(names, 0), name: value}
    assert {each: samples[each, 'web'] for each in names} == expected
    assert {samples[each, 'other'] for each in names} == {0}


def test_series_of_memmon_itself(monitor: Monitor) -> None:
    monitor.looks = 7
    samples = write(monitor, interval=5)
    assert abs(samples.pop(('last_tick_timestamp_seconds', '')) - time.time()) < 60
    assert samples == {
        ('info', ''): 1, ('check_success', ''): 1, ('tick_interval_seconds', ''): 5,
        ('tick_duration_seconds', ''): 0, ('looks_between_ticks_total', ''): 7}
    assert f'memmon_info{{version="{memmon.__version__}"}} 1.0' in (
        Path(monitor.options.metrics).read_text())


def test_duration_is_that_of_the_tick_before_with_its_writing(
        monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = memmon.Listener(monitor.options, Server('unix:///nonexistent/s'))
    secs = itertools.count(1000, 30)
    monkeypatch.setattr(memmon, 'time', SimpleNamespace(
        monotonic=lambda: next(secs), process_time=time.process_time, time=time.time))
    for _ in range(2):
        monkeypatch.setattr(listener.monitor, 'look', lambda now: [])
        listener.look(is_tick=True)
        listener.look(is_tick=False)
    samples = read_samples(Path(monitor.options.metrics))
    assert samples['tick_duration_seconds', ''] == listener.tick_secs == 60


def test_total_is_there_where_it_has_a_limit(monitor: Monitor) -> None:
    limit = monitor.options.total
    assert limit
    monitor.total.reading = Reading(memmon.ALL, limit, 2 ** 30, math.inf, memmon.MEASURES['pss'],
                                    300, 300, 200)
    samples = write(monitor)
    assert (samples['total_bytes', ''], samples['total_limit_bytes', '']) == (200, 2 ** 30)
    monitor.total.reading = None
    assert ('total_bytes', '') not in write(monitor)


@pytest.mark.parametrize('name', ['quo"te', 'back\\slash', 'brace}', 'esc\x1b', 'sep\u2028x',
                                  '\udcff', 'nel\x85x', 'ünï'])
def test_any_name_leaves_the_file_readable(name: str, monitor: Monitor) -> None:
    add(monitor, f'{name}:{name}', 5)
    samples = write(monitor)
    assert samples['rss_bytes', memmon.one_line(name)] == 100 * MB
    file = Path(monitor.options.metrics)
    assert '\x1b' not in file.read_text() and len(file.read_text().splitlines()) == (
        file.read_bytes().count(b'\n'))


@pytest.mark.skipif(not shutil.which('promtool'), reason='needs promtool, of Prometheus')
def test_promtool_has_nothing_to_say(monitor: Monitor) -> None:
    add(monitor, 'web:web', 5, '-p web=50MB..80MB')
    test_total_is_there_where_it_has_a_limit(monitor)
    content = Path(monitor.options.metrics).read_bytes()
    assert run('promtool', 'check', 'metrics', stdin=content) == (0, '', '')


# The file.

def test_file_is_readable_by_others_and_never_half_written(tmp_path: Path) -> None:
    file = tmp_path / 'memmon.prom'
    contents = [b'a' * 300_000, b'b' * 300_000]
    memmon.replace_file(str(file), contents[0])
    is_over = threading.Event()
    seen: set[bytes] = set()
    modes: set[int] = set()

    def read() -> None:
        while not is_over.is_set():
            seen.add(file.read_bytes())
            modes.add(stat.S_IMODE(file.stat().st_mode))

    reader = threading.Thread(target=read)
    reader.start()
    umask = os.umask(0o077)
    try:
        for number in range(100):
            memmon.replace_file(str(file), contents[number % 2])
    finally:
        os.umask(umask)
        is_over.set()
        reader.join(20)
    assert (seen <= set(contents), modes) == (True, {0o644})
    assert os.listdir(tmp_path) == ['memmon.prom']


def test_draft_is_for_nobody_else_until_it_is_whole(tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    drafts: list[tuple[str, int, bytes]] = []
    fchmod = os.fchmod

    def look(descriptor: int, mode: int) -> None:
        drafts.extend((path.name, stat.S_IMODE(path.stat().st_mode), path.read_bytes())
                      for path in tmp_path.iterdir())
        fchmod(descriptor, mode)

    monkeypatch.setattr(os, 'fchmod', look)
    memmon.replace_file(str(tmp_path / 'memmon.prom'), b'x')
    [(name, mode, content)] = drafts
    assert (mode, content) == (0o600, b'x') and not name.endswith('.prom')


PLANTS: dict[str, Callable[[Path, Path], None]] = {
    'symlink': lambda path, victim: path.symlink_to(victim),
    'hard link': lambda path, victim: os.link(victim, path),
    'fifo': lambda path, victim: os.mkfifo(path),
    'directory': lambda path, victim: path.mkdir(),
}


@pytest.mark.parametrize('plant', PLANTS.values(), ids=PLANTS)
def test_what_is_planted_beside_the_file_is_left_alone(plant: Callable[[Path, Path], None],
                                                       tmp_path: Path) -> None:
    victim = tmp_path / 'victim'
    victim.write_bytes(b'precious')
    victim.chmod(0o600)
    metrics = tmp_path / 'metrics'
    metrics.mkdir()
    plant(metrics / 'memmon.prom.new', victim)
    memmon.replace_file(str(metrics / 'memmon.prom'), b'x')
    assert (metrics / 'memmon.prom').read_bytes() == b'x'
    assert (victim.read_bytes(), stat.S_IMODE(victim.stat().st_mode)) == (b'precious', 0o600)


@pytest.mark.parametrize('plant', [PLANTS[name] for name in ('symlink', 'hard link', 'fifo')])
def test_what_is_planted_in_place_of_the_file_is_replaced(plant: Callable[[Path, Path], None],
                                                          tmp_path: Path) -> None:
    victim = tmp_path / 'victim'
    victim.write_bytes(b'precious')
    plant(tmp_path / 'memmon.prom', victim)
    memmon.replace_file(str(tmp_path / 'memmon.prom'), b'x')
    assert victim.read_bytes() == b'precious'
    assert stat.S_ISREG((tmp_path / 'memmon.prom').lstat().st_mode)


def fail(*_: Any) -> None:
    raise OSError(28, 'No space left on device')


@pytest.mark.parametrize('at', ['replace', 'fchmod'])
def test_failure_leaves_the_old_file_and_no_draft(at: str, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'memmon.prom').write_bytes(b'old')
    monkeypatch.setattr(os, at, fail)
    with pytest.raises(OSError):
        memmon.replace_file(str(tmp_path / 'memmon.prom'), b'x')
    assert os.listdir(tmp_path) == ['memmon.prom']
    assert (tmp_path / 'memmon.prom').read_bytes() == b'old'


@pytest.mark.parametrize('path', ['/dev/null', '/dev/./null', '/dev/stdout'])
def test_device_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match='is in /dev: it would be replaced by a file$'):
        memmon.parse_metrics(path)
    assert memmon.parse_metrics('/dev/shm/memmon.prom')


def test_sigterm_leaves_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def come(file: int, mode: int) -> None:
        # To this thread: a test has others, which do not block it.
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    def end(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(os, 'fchmod', come)
    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(SystemExit):
            memmon.replace_file(str(tmp_path / 'memmon.prom'), b'x')
    finally:
        signal.signal(signal.SIGTERM, before)
    assert os.listdir(tmp_path) == ['memmon.prom']


@pytest.mark.parametrize('error, why', [
    (OSError(28, 'No space left on device'), 'No space left on device'),
    (ValueError('a\nb\nc'), 'a ... c'), (MemoryError(), 'MemoryError'),
])
def test_failure_is_said_once_each_time(error: Exception, why: str, monitor: Monitor,
                                        monkeypatch: pytest.MonkeyPatch,
                                        caplog: pytest.LogCaptureFixture) -> None:
    works = memmon.replace_file

    def refuse(path: str, content: bytes) -> None:
        raise error

    for broken in (True, True, False, True):
        monkeypatch.setattr(memmon, 'replace_file', refuse if broken else works)
        memmon.write_metrics(memmon.Tick(monitor, 60, True, 0))
    assert caplog.messages == [f'cannot write {monitor.options.metrics}: {why}'] * 2
    caplog.clear()
    caplog.set_level('DEBUG')
    memmon.write_metrics(memmon.Tick(monitor, 60, True, 0))
    assert [record.exc_info and record.exc_info[1] for record in caplog.records] == [error]


# What the option costs.

def test_option_without_prometheus_client_is_one_line(tmp_path: Path) -> None:
    (tmp_path / 'prometheus_client.py').write_text('raise ImportError\n')
    done = run(sys.executable, '-m', 'memmon', '-a', '1GB', '--metrics', 'x',
               env={'PYTHONPATH': str(tmp_path)})
    assert done == (2, '', 'memmon: --metrics: this needs prometheus_client: '
                           f'{sys.executable} -m pip install prometheus_client\n')


def test_nothing_is_imported_without_the_option() -> None:
    code = ("import sys, memmon; memmon.parse_args(['-a', '1GB']); "
            "print('prometheus_client' in sys.modules)")
    assert run(sys.executable, '-c', code).stdout == 'False\n'


# A listener with real programs.

def test_restart_counts_once_and_a_removed_program_leaves_no_series(
        start_supervisord: StartSupervisord, start_listener: StartListener, tmp_path: Path) -> None:
    file = tmp_path / 'memmon.prom'
    sections = section('big', '--once', 'big') + sleeper('small')
    supervisord = start_supervisord(sections)
    big, = supervisord.wait_big('big')
    listener = start_listener(supervisord, '-p', f'big={LIMIT}', '-t', '90%', '--metrics',
                              str(file))
    listener.send('TICK_60')
    first = read_samples(file)
    assert first['memory_bytes', 'big'] == first['rss_bytes', 'big'] > 50 * MB
    assert (first['limit_bytes', 'big'], first['tick_interval_seconds', '']) == (40 * MB, 60)
    assert 0 < first['total_bytes', ''] < first['total_limit_bytes', '']
    assert first['restarts_total', 'big'] == 0 and ('memory_bytes', 'small') not in first
    supervisord.wait_new_pid('big', big)
    listener.wait_log('restarted big:big')
    listener.wait_idle()
    supervisord.configure(section('big', '--once', 'big'))
    for _ in range(2):
        listener.send('TICK_60')
        then = read_samples(file)
        assert (then['restarts_total', 'big'], then['restart_failures_total', 'big']) == (1, 0)
    assert then['memory_bytes', 'big'] < 40 * MB and ('rss_bytes', 'small') not in then
    assert then['tick_duration_seconds', ''] > 0


def test_failed_start_counts_once_however_often_it_is_tried(
        start_supervisord: StartSupervisord, start_listener: StartListener, tmp_path: Path) -> None:
    file, command = tmp_path / 'memmon.prom', tmp_path / 'command'
    command.write_text('#!/bin/sh\nexec sleep 1000\n')
    command.chmod(0o755)
    supervisord = start_supervisord(section('gone', command=str(command)))
    supervisord.wait_up('gone')
    listener = start_listener(supervisord, '-a', '100KB', '--metrics', str(file))
    command.rename(tmp_path / 'away')
    listener.send()
    listener.wait_log('failed to start gone:gone: ')
    for _ in range(3):
        listener.send()
        samples = read_samples(file)
        assert [samples[name, 'gone'] for name in (
            'restarts_total', 'restart_failures_total', 'lost')] == [0, 1, 1]
    (tmp_path / 'away').rename(command)

    def assert_found() -> None:
        listener.send()
        assert read_samples(file)['lost', 'gone'] == 0

    with suppress(Fault):  # memmon may just have started it
        supervisord.call('startProcess', 'gone')
    wait_until(assert_found)


def test_blind_tick_writes_the_file_and_the_next_that_sees_again(
        start_supervisord: StartSupervisord, start_listener: StartListener, tmp_path: Path) -> None:
    file = tmp_path / 'memmon.prom'
    supervisord = start_supervisord(sleeper('small'))
    supervisord.wait_up('small')
    listener = start_listener(supervisord, '-a', '1GB', '--metrics', str(file))
    supervisord.hide_socket()
    listener.send()
    blind = read_samples(file)
    assert blind['check_success', ''] == 0 and blind['last_tick_timestamp_seconds', ''] > 0
    assert memmon.check_ticks(str(file))[1].endswith('could check nothing: see its log')
    supervisord.show_socket()
    listener.send()
    assert read_samples(file)['check_success', ''] == 1
    assert memmon.check_ticks(str(file))[0]


def test_directory_of_another_can_neither_stop_a_tick_nor_lose_a_file(
        start_fake_server: StartFakeServer, start_listener: StartListener, tmp_path: Path) -> None:
    server = start_fake_server(reply([]), answers={'supervisor.getPID': reply(os.getpid())})
    directory = tmp_path / 'metrics'
    file = directory / 'memmon.prom'
    listener: Any = start_listener(server, '-a', '1GB', '--metrics', str(file))
    listener.send()
    listener.send()
    told = f'cannot write {file}: No such file or directory'
    assert len([line for line in listener.messages() if told in line]) == 1
    directory.mkdir()
    os.mkfifo(directory / 'memmon.prom.new')
    os.mkfifo(file)
    listener.send()
    assert stat.S_ISREG(file.stat().st_mode)
    assert re.search('^memmon_check_success ', file.read_text(), re.M)
    shutil.rmtree(directory)
    directory.mkdir()
    file.mkdir()
    (file / 'x').touch()
    listener.send()
    assert f'cannot write {file}: Is a directory' in listener.log()
    assert os.listdir(directory) == ['memmon.prom']
