"""The file for Prometheus, and the check by it that memmon ticks."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
import threading
import time
from pathlib import Path

import pytest
from harness import (LIMIT, MEMMON, StartListener, StartSupervisord, Supervisord, assert_equal,
                     pool_section, run, section, wait_until)

import memmon

client = pytest.importorskip('prometheus_client', reason='needs prometheus_client')
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

Samples = 'dict[tuple[str, str], float]'


def read_samples(file: Path) -> dict[tuple[str, str], float]:
    """Return the samples of a file by name and process."""
    return {(sample.name, sample.labels.get('process', '')): sample.value
            for family in text_string_to_metric_families(file.read_text())
            for sample in family.samples}


@pytest.fixture
def supervisord(start_supervisord: StartSupervisord) -> Supervisord:
    supervisord = start_supervisord(
        section('big', '--once', 'big') + pool_section('queue', 2, '--mb', '1')
        + section('off', autostart='false'))
    supervisord.wait_big('big')
    supervisord.wait_up('queue:queue_00', 'queue:queue_01')
    return supervisord


def test_metrics_tell_of_processes_and_restarts(supervisord: Supervisord, tmp_path: Path,
                                                start_listener: StartListener) -> None:
    file = tmp_path / 'memmon.prom'
    big = supervisord.pid('big')
    listener = start_listener(supervisord, '-p', f'big={LIMIT}', '-g', 'queue=1GB', '-t', '90%',
                              '--metrics', str(file))
    listener.send('TICK_60')
    first = read_samples(file)
    assert first['memmon_process_memory_bytes', 'big'] > 50 * 2 ** 20
    assert first['memmon_process_limit_bytes', 'big'] == 40 * 2 ** 20
    assert first['memmon_process_limit_bytes', 'queue_01'] == 2 ** 30
    assert ('memmon_process_limit_bytes', 'off') not in first
    assert first['memmon_process_restarts_total', 'big'] == 0
    assert first['memmon_tick_interval_seconds', ''] == 60
    assert time.time() - first['memmon_last_tick_timestamp_seconds', ''] < 30
    assert 0 < first['memmon_tick_duration_seconds', ''] < 30
    assert first['memmon_info', ''] == 1
    assert first['memmon_total_bytes', ''] < first['memmon_total_limit_bytes', '']
    supervisord.wait_new_pid('big', big)
    listener.wait_idle()
    listener.send('TICK_60')
    second = read_samples(file)
    assert second['memmon_process_restarts_total', 'big'] == 1
    assert second['memmon_process_restart_failures_total', 'big'] == 0
    assert second['memmon_process_memory_bytes', 'big'] < 40 * 2 ** 20
    assert sorted(os.listdir(tmp_path)).count('memmon.prom.new') == 0


@pytest.mark.skipif(not shutil.which('promtool'), reason='needs promtool, of Prometheus')
def test_promtool_has_nothing_to_say(supervisord: Supervisord, tmp_path: Path,
                                     start_listener: StartListener) -> None:
    file = tmp_path / 'memmon.prom'
    start_listener(supervisord, '-a', '1GB', '-t', '90%', '--metrics', str(file)).send()
    assert run('promtool', 'check', 'metrics', stdin=file.read_bytes()) == (0, '', '')


def test_metrics_of_what_fails_is_held_or_too_low(start_supervisord: StartSupervisord,
                                                  start_listener: StartListener,
                                                  tmp_path: Path) -> None:
    file, command = tmp_path / 'memmon.prom', tmp_path / 'command'
    command.write_text('#!/bin/sh\nexec sleep 1000\n')
    command.chmod(0o755)
    supervisord = start_supervisord(section('gone', command=str(command)) + section('full'))
    supervisord.wait_up('gone')
    supervisord.wait_big('full')
    pid = supervisord.pid('full')
    listener = start_listener(supervisord, '-a', '100KB', '--metrics', str(file))
    command.unlink()
    listener.send()
    listener.wait_log('failed to start gone:gone: ')
    supervisord.wait_new_pid('full', pid)
    listener.wait_log('the limit is below what the program needs')
    listener.send()
    wait_until(lambda: assert_equal(tick_and_read(listener.send, file, 'gone'), (0.0, 1.0, 0.0)))
    assert tick_and_read(listener.send, file, 'full') == (1.0, 0.0, 1.0)


def tick_and_read(tick: object, file: Path, process: str) -> tuple[float, float, float]:
    """Return the restarts and the failures of a process, and whether its limit is too low."""
    assert callable(tick)
    tick()
    samples = read_samples(file)
    names = ('restarts_total', 'restart_failures_total', 'limit_too_low')
    restarts, failures, too_low = (samples[f'memmon_process_{name}', process] for name in names)
    return restarts, failures, too_low


def test_held_process_shows(start_supervisord: StartSupervisord, start_listener: StartListener,
                            tmp_path: Path) -> None:
    file = tmp_path / 'memmon.prom'
    supervisord = start_supervisord(section('grows', '--when', 'grow'))
    pid, = supervisord.wait_up('grows')
    listener = start_listener(supervisord, '-a', LIMIT, '-r', '1/1h', '--metrics', str(file))
    (supervisord.path / 'grow').touch()
    supervisord.wait_big('grows')
    listener.send()
    pid = supervisord.wait_new_pid('grows', pid)
    listener.wait_idle()
    listener.send()
    assert read_samples(file)['memmon_process_held', 'grows'] == 0
    (supervisord.path / 'grow').touch()
    supervisord.wait_big('grows')
    listener.send()
    assert read_samples(file)['memmon_process_held', 'grows'] == 1


def test_removed_program_leaves_no_series(start_supervisord: StartSupervisord,
                                          start_listener: StartListener, tmp_path: Path) -> None:
    file = tmp_path / 'memmon.prom'
    supervisord = start_supervisord(section('stays', '--mb', '1') + section('goes', '--mb', '1'))
    supervisord.wait_up('stays', 'goes')
    listener = start_listener(supervisord, '-a', '1GB', '--metrics', str(file))
    listener.send()
    assert 'process="goes"' in file.read_text()
    supervisord.configure(section('stays', '--mb', '1'))
    listener.send()
    assert 'process="goes"' not in file.read_text()
    assert 'process="stays"' in file.read_text()


def test_file_that_cannot_be_written_is_told_once_each_time(
        start_supervisord: StartSupervisord, start_listener: StartListener,
        tmp_path: Path) -> None:
    directory = tmp_path / 'metrics'
    file = directory / 'memmon.prom'
    supervisord = start_supervisord(section('small', '--mb', '1'))
    supervisord.wait_up('small')
    listener = start_listener(supervisord, '-a', '1GB', '--metrics', str(file))
    told = f'cannot write {file}: No such file or directory'
    for _ in range(3):
        listener.send()
    assert listener.log().count(told) == 1
    directory.mkdir()
    listener.send()
    assert file.exists()
    file.unlink()
    directory.rmdir()
    for _ in range(3):
        listener.send()
    assert listener.log().count(told) == 2


def test_file_is_readable_by_others_and_never_half_written(tmp_path: Path) -> None:
    file = tmp_path / 'memmon.prom'
    contents = [b'a' * 300_000, b'b' * 300_000]
    memmon.replace_file(str(file), contents[0])
    is_over = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not is_over.is_set():
            seen.add(file.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    umask = os.umask(0o077)
    try:
        for number in range(200):
            memmon.replace_file(str(file), contents[number % 2])
    finally:
        os.umask(umask)
        is_over.set()
        reader.join(20)
    assert seen <= set(contents)
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ['memmon.prom']


def test_file_that_is_a_directory_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / 'memmon.prom').mkdir()
    with pytest.raises(OSError):
        memmon.replace_file(str(tmp_path / 'memmon.prom'), b'x')
    assert os.listdir(tmp_path) == ['memmon.prom']


def test_option_without_prometheus_client_is_one_line(tmp_path: Path) -> None:
    (tmp_path / 'prometheus_client.py').write_text('raise ImportError\n')
    done = run(sys.executable, '-m', 'memmon', '-a', '1GB', '--metrics', 'x',
               env={'PYTHONPATH': str(tmp_path)})
    assert done == (2, '', 'memmon: --metrics: this needs prometheus_client: '
                           "pip install 'memmon[metrics]'\n")


def test_nothing_is_imported_without_the_option() -> None:
    code = ("import sys, memmon; memmon.parse_args(['-a', '1GB']); "
            "print('prometheus_client' in sys.modules)")
    assert run(sys.executable, '-c', code).stdout == 'False\n'


# Who watches the watchdog.

def write_tick(file: Path, age_secs: float) -> None:
    file.write_text(f'memmon_last_tick_timestamp_seconds {time.time() - age_secs}\n'
                    'memmon_tick_interval_seconds 60\n')


@pytest.mark.parametrize('age_secs, status, end', [
    (10, 0, 'last tick: 0:00:10 ago, one is due every 0:01:00\n'),
    (170, 0, 'last tick: 0:02:50 ago, one is due every 0:01:00\n'),
    (200, 2, 'last tick: 0:03:20 ago, one is due every 0:01:00: memmon is not ticking\n'),
])
def test_check_tells_the_last_tick(age_secs: float, status: int, end: str, supervisord: Supervisord,
                                   tmp_path: Path) -> None:
    file = tmp_path / 'memmon.prom'
    write_tick(file, age_secs)
    done = run(MEMMON, '--check', '-a', '1GB', '--metrics', str(file), env=supervisord.env)
    last = re.sub(r'0:0(\d):(\d)\d ago', r'0:0\1:\g<2>0 ago', done.stdout.splitlines()[-1])
    assert (done.status, last + '\n', done.stderr) == (status, end, '')


@pytest.mark.parametrize('content, why', [
    (None, 'No such file or directory'),
    ('x 1\n', 'it has no memmon_last_tick_timestamp_seconds'),
    ('{{{\n', None),
    ('\udcff', None),
])
def test_file_that_does_not_tell_the_last_tick(content: str | None, why: str | None,
                                               tmp_path: Path) -> None:
    file = tmp_path / 'memmon.prom'
    if content is not None:
        file.write_bytes(content.encode(errors='surrogateescape'))
    is_ticking, (line,) = memmon.check_ticks(str(file))
    assert not is_ticking and line.startswith(f'last tick: unknown, since {file} cannot be read: ')
    assert why is None or line.endswith(why)
    assert '\n' not in line
