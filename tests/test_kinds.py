"""Each measure with real programs: what is shared, what is mapped, what is swapped out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator, Sequence

import pytest
from harness import (ANOTHER_USER, MEMMON, Listener, StartListener, StartSupervisord, Supervisord,
                     descendants_of, rss_mb, run, section, wait_until)

import memmon
from memmon import MB, Reading

pytestmark = pytest.mark.skipif(
    not Path('/proc/self/smaps_rollup').exists(), reason='needs smaps_rollup, of Linux')

FIELDS = {'rss': ('Rss',), 'pss': ('Pss',), 'private': ('Pss_Anon', 'Pss_Shmem', 'SwapPss')}


def look(supervisord: Supervisord, args: str) -> dict[str, Reading]:
    """Return what a memmon with these options measures: each process, and the total."""
    monitor = memmon.Monitor(memmon.parse_args(args.split()),
                             memmon.Server(supervisord.env['SUPERVISOR_SERVER_URL']))
    monitor.look(time.monotonic())
    readings = {history.process.name: history.reading
                for history in monitor.running if history.reading}
    total = monitor.total.reading
    return {**readings, 'total': total} if total else readings


def assert_left_alone(listener: Listener, supervisord: Supervisord, name: str, pid: int) -> None:
    """Assert that three ticks restart nothing."""
    for _ in range(3):
        listener.send()
        listener.wait_idle()
    assert supervisord.pid(name) == pid
    assert 'restart' not in listener.log()


# What is shared by a server and the four workers that it has forked, and what is a mapped file.

@pytest.fixture
def shared(start_supervisord: StartSupervisord) -> Supervisord:
    """300 MB of RSS of which 60 are shared by five, and 100 MB of a file."""
    supervisord = start_supervisord(
        section('fork', '--children', '4', stopasgroup='true', killasgroup='true')
        + section('maps', '--map', '100', '--mb', '1') + section('calm', '--mb', '1'))
    supervisord.wait_up('fork', 'maps', 'calm')
    wait_until(lambda: assert_shared(supervisord))
    return supervisord


def assert_shared(supervisord: Supervisord) -> None:
    below = descendants_of(supervisord.pid('fork'))
    assert len(below) == 4 and min(map(rss_mb, below)) > 55
    pid = supervisord.pid('maps')
    # What was written into the file was private until then.
    assert rss_mb(pid) > 100 and memmon.read_fields(pid, FIELDS['private']) < 40 * MB


def test_measures_of_shared_memory_and_of_a_mapped_file(shared: Supervisord) -> None:
    for args, over in [
            ('-a 90MB', {'maps'}), ('-a 90MB -k pss', {'maps'}), ('-a 90MB -k private', set()),
            ('-a 200MB -c', {'fork'}), ('-a 200MB -c -k pss', set()),
            ('-a 200MB -c -k private', set()), ('-a 55MB -c -k pss', {'fork', 'maps'}),
            ('-a 55MB -c -k private', {'fork'}),
            ('-t 280MB', set()), ('-t 130MB', {'total'}),
            ('-t 130MB -k private', set()), ('-t 60MB -k private', {'total'})]:
        readings = look(shared, args)
        assert {name for name, reading in readings.items() if reading.level} == over, (
            args, readings)
    pid = shared.pid('fork')
    for kind, fields in FIELDS.items():
        exact = sum(memmon.read_fields(each, fields) for each in (pid, *descendants_of(pid)))
        for limit in ('-a 1MB', '-p maps=1MB --check'):  # which shows what has no limit as well
            reading = look(shared, f'-c -k {kind} {limit}')['fork']
            assert reading.memory == pytest.approx(exact, rel=0.1), (kind, limit)


def readings_of(monitor: memmon.Monitor) -> list[Reading]:
    histories = [*monitor.histories.values(), monitor.total]
    return [history.reading for history in histories if history.reading]


@pytest.mark.parametrize('args', ['-c -k private -a 55MB', '-t 130MB'])
def test_what_there_is_no_time_to_read_keeps_its_last_value(
        args: str, shared: Supervisord, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = memmon.Monitor(memmon.parse_args(args.split()),
                             memmon.Server(shared.env['SUPERVISOR_SERVER_URL']))
    monkeypatch.setattr(memmon, 'DEAR_SECS', 60)
    monitor.look(1)
    first = [reading.memory for reading in readings_of(monitor)]
    monkeypatch.setattr(memmon, 'DEAR_SECS', 0)
    works = memmon.read_fields
    monkeypatch.setattr(memmon, 'read_fields', lambda pid, names, file='': (
        works(pid, names, file) if file else pytest.fail('it was read')))
    monitor.look(2)
    assert [reading.memory for reading in readings_of(monitor)] == first


def test_what_there_was_no_time_to_read_is_unknown_and_comes_first_at_the_next_look(
        shared: Supervisord, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = memmon.Monitor(memmon.parse_args('-c -k private -a 1MB'.split()),
                             memmon.Server(shared.env['SUPERVISOR_SERVER_URL']))
    read: list[int] = []
    works = memmon.read_fields

    def read_fields(pid: int, names: Sequence[str], file: str = 'smaps_rollup') -> int:
        if file == 'smaps_rollup':  # the other is read where there is swap
            read.append(pid)
        return works(pid, names, file)
    monkeypatch.setattr(memmon, 'read_fields', read_fields)
    monkeypatch.setattr(memmon, 'DEAR_SECS', 0)
    monitor.look(1)
    fork, maps = (monitor.histories[name] for name in ('fork:fork', 'maps:maps'))
    assert not read and fork.reading and fork.reading.memory is None
    fork.reading = fork.reading._replace(memory=10 * memmon.MB)
    monkeypatch.setattr(memmon, 'DEAR_SECS', 60)
    monitor.look(2)
    assert read.index(maps.process.pid) < read.index(fork.process.pid)


def test_what_is_private_is_restarted_and_a_mapped_file_is_not(
        shared: Supervisord, start_listener: StartListener) -> None:
    fork, maps = shared.pid('fork'), shared.pid('maps')
    listener = start_listener(shared, '-c', '-k', 'private', '-a', '55MB')
    listener.send()
    shared.wait_new_pid('fork', fork)
    listener.wait_log('restarted fork:fork: private memory with descendants: ')
    assert shared.pid('maps') == maps


# What may not be read.

@pytest.mark.skipif(os.getuid() != 0 or not shutil.which('setpriv'), reason=(
    'needs root, and setpriv from util-linux, for a memmon that may not read what is private'))
def test_what_another_user_may_not_read_counts_with_its_rss_and_is_named_once(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('big') + section('other'))
    pids = supervisord.wait_big('big', 'other')
    listener = start_listener(supervisord, '--dry-run', '-k', 'private', '-a', '40MB',
                              wrapper=ANOTHER_USER)
    for _ in range(3):
        listener.send()
    warning, = [line for line in listener.messages() if line.startswith('WARNING')]
    assert warning in [
        f'WARNING memmon: the private memory of {name}:{name} cannot be read (pid {pid}): the RSS '
        'counts there' for name, pid in zip(('big', 'other'), pids)]
    for name in ('big', 'other'):
        assert listener.log().count(f' would restart {name}:{name}: private memory ') == 1


# What is swapped out.

SWAPPED = '''
import ctypes, mmap, os, time
memory = mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.write(os.urandom(1 << 20) * 64)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
libc = ctypes.CDLL(None, use_errno=True)
# PAGEOUT skips what is just being looked at, so again until it is out.
while True:
    libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(64 << 20), 21)
    time.sleep(0.2)
'''


@pytest.fixture
def swap() -> Iterator[None]:
    """A file that serves as swap while the test runs, where that is allowed."""
    if os.getuid() or not all(map(shutil.which, ('mkswap', 'swapon', 'swapoff'))):
        pytest.skip('needs root, mkswap and swapon')
    path = Path(f'/var/tmp/memmon-test-swap.{os.getpid()}')
    try:
        with path.open('wb') as file:
            path.chmod(0o600)
            for _ in range(160):  # a file with holes is no swap
                file.write(b'\0' * MB)
        if run('mkswap', path).status or run('swapon', path).status:
            pytest.skip('swapon is not allowed here')
        try:
            yield
        finally:
            subprocess.run(['swapoff', path], check=True)
    finally:
        path.unlink()


def test_what_is_swapped_out_counts_as_private_only(
        swap: None, start_supervisord: StartSupervisord, start_listener: StartListener,
        tmp_path: Path) -> None:
    (tmp_path / 'swapped.py').write_text(SWAPPED)
    supervisord = start_supervisord(section(
        'out', command=f'{sys.executable} -S {tmp_path}/swapped.py'))
    pid, = supervisord.wait_up('out')
    wait_until(lambda: assert_swapped(pid))
    listener = start_listener(supervisord, '-a', '50MB', '-v')
    assert_left_alone(listener, supervisord, 'out', pid)
    assert (look(supervisord, '-a 50MB')['out'].memory or 0) < 40 * MB
    total = start_listener(supervisord, '-k', 'private', '-t', '50MB')
    assert_left_alone(total, supervisord, 'out', pid)
    done = run(MEMMON, '--check', '-k', 'private', env=supervisord.env)
    limit = float(re.findall(r'-p out=([\d.]+)MB', done.stdout)[0])
    assert 96 <= limit < 250
    listener = start_listener(supervisord, '-k', 'private', '-a', '50MB')
    listener.send()
    listener.wait_log('restarted out:out: private memory ')


def assert_swapped(pid: int) -> None:
    assert memmon.read_status([pid], 'VmSwap') > 55 * MB and rss_mb(pid) < 35
