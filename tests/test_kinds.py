"""Each measure with real programs: what is shared, what is mapped, what is swapped out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest
from harness import (MEMMON, Listener, StartListener, StartSupervisord, Supervisord,
                     descendants_of, rss_mb, run, section, wait_until)

import memmon
from memmon import MB

pytestmark = pytest.mark.skipif(
    not Path('/proc/self/smaps_rollup').exists(), reason='needs smaps_rollup, of Linux')

FIELDS = {'pss': ('Pss',), 'private': ('Pss_Anon', 'Pss_Shmem', 'SwapPss')}


def shown(listener: Listener, name: str) -> tuple[str, float]:
    """Have a listener with -v look once more; return what it says that a process uses, in MB."""
    listener.send()
    line = [line for line in listener.messages() if f' memmon: {name}: ' in f' {line}'][-1]
    found = re.search(r': ([a-zA-Z ]+):? ([\d.]+)MB of ', line)
    assert found, line
    return found.group(1), float(found.group(2))


def assert_left_alone(listener: Listener, supervisord: Supervisord, name: str, pid: int) -> None:
    """Assert that three ticks restart nothing."""
    for _ in range(3):
        listener.send()
        listener.wait_idle()
    assert supervisord.pid(name) == pid
    assert 'restart' not in listener.log()


# Shared memory: a server that has forked four workers.

@pytest.fixture
def prefork(start_supervisord: StartSupervisord) -> Supervisord:
    """A server of 60 MB, and four children that share them: 300 MB of RSS and more."""
    supervisord = start_supervisord(
        section('fork', '--children', '4', stopasgroup='true', killasgroup='true'))

    def assert_forked() -> None:
        below = descendants_of(supervisord.pid('fork'))
        assert len(below) == 4 and min(map(rss_mb, below)) > 55

    supervisord.wait_big('fork')
    wait_until(assert_forked)
    return supervisord


@pytest.mark.parametrize('kind', FIELDS)
def test_shared_memory_counts_once(kind: str, prefork: Supervisord, start_listener: StartListener
                                   ) -> None:
    pid = prefork.pid('fork')
    listener = start_listener(prefork, '-c', '-k', kind, '-a', '200MB', '-v')
    assert_left_alone(listener, prefork, 'fork', pid)
    measure, size = shown(listener, 'fork:fork')
    assert measure == {'pss': 'PSS with descendants',
                       'private': 'private memory with descendants'}[kind]
    exact = sum(memmon.read_rollup(each, FIELDS[kind]) or 0
                for each in (pid, *descendants_of(pid))) / MB
    assert 60 <= size < 150 and size == pytest.approx(exact, abs=5)


@pytest.mark.parametrize('kind', ['rss', *FIELDS])
def test_prefork_server_over_its_limit_is_restarted(kind: str, prefork: Supervisord,
                                                    start_listener: StartListener) -> None:
    pid = prefork.pid('fork')
    limit = '200MB' if kind == 'rss' else '50MB'
    listener = start_listener(prefork, '-c', '-k', kind, '-a', limit)
    listener.send()
    listener.wait_log('restarted fork:fork')
    assert prefork.pid('fork') != pid


def test_total_counts_shared_memory_once(prefork: Supervisord, start_listener: StartListener
                                         ) -> None:
    listener = start_listener(prefork, '-t', '200MB', '-v')
    assert_left_alone(listener, prefork, 'fork', prefork.pid('fork'))
    done = run(MEMMON, '--check', '-t', '200MB', env=prefork.env)
    found = re.search(r'^total: PSS ([\d.]+)MB of 200MB \(-t 200MB\), ', done.stdout, re.M)
    assert done.status == 0 and found and 60 <= float(found.group(1)) < 150


def test_total_over_its_limit_restarts_the_largest(start_supervisord: StartSupervisord,
                                                   start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('large', '--mb', '80') + section('small', '--mb', '30'))
    large, = supervisord.wait_big('large', mb=80)
    small, = supervisord.wait_big('small', mb=30)
    listener = start_listener(supervisord, '-t', '100MB')
    listener.send()
    listener.wait_log('restarted large:large: total PSS ')
    assert (supervisord.pid('large') != large, supervisord.pid('small')) == (True, small)


def test_dry_run_judges_the_total_beside_each_limit(start_supervisord: StartSupervisord,
                                                    start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('large', '--mb', '80') + section('small', '--mb', '60'))
    pids = supervisord.wait_big('large', 'small')
    listener = start_listener(supervisord, '--dry-run', '-a', '40MB', '-t', '100MB')
    for _ in range(2):
        listener.send()
    lines = [line for line in listener.messages() if 'would restart' in line]
    assert sorted(re.sub(r'.*would restart (\w+):\w+: (RSS|total).*', r'\1 \2', line)
                  for line in lines) == ['large RSS', 'large total', 'small RSS'], lines
    assert [supervisord.pid(name) for name in ('large', 'small')] == pids


# A mapped file.

def test_mapped_file_is_left_alone_as_private_and_restarted_as_rss(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('maps', '--map', '100', '--mb', '1'))
    pid = supervisord.pid('maps')
    wait_until(lambda: assert_mapped(pid))
    listener = start_listener(supervisord, '-k', 'private', '-a', '60MB', '-v')
    assert_left_alone(listener, supervisord, 'maps', pid)
    measure, size = shown(listener, 'maps:maps')
    assert measure == 'private memory' and size < 40
    start_listener(supervisord, '-a', '60MB').send()
    supervisord.wait_new_pid('maps', pid)


def assert_mapped(pid: int) -> None:
    # What was written into the file was private until then.
    assert rss_mb(pid) > 100 and (memmon.read_rollup(pid, FIELDS['private']) or 0) < 40 * MB


# A program that loads.

def test_slow_loader_is_restarted_once(start_supervisord: StartSupervisord,
                                       start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('loads', '--after', '1'))
    pid, = supervisord.wait_big('loads')
    listener = start_listener(supervisord, '-a', '40MB')
    listener.send()
    pid = supervisord.wait_new_pid('loads', pid)
    listener.wait_log('restarted loads:loads')
    supervisord.wait_big('loads')

    def assert_noticed() -> None:
        listener.send()
        assert 'limit too low' in listener.log()

    wait_until(assert_noticed)
    for _ in range(3):
        listener.send()
        listener.wait_idle()
    assert (supervisord.pid('loads'), listener.log().count('limit too low')) == (pid, 1)
    assert supervisord.spawned('loads') == 2


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
    assert shown(listener, 'out:out')[1] < 40
    total = start_listener(supervisord, '-k', 'private', '-t', '50MB')
    assert_left_alone(total, supervisord, 'out', pid)
    done = run(MEMMON, '--check', '-k', 'private', env=supervisord.env)
    limit = float(re.findall(r'-p out=([\d.]+)MB', done.stdout)[0])
    assert 96 <= limit < 250
    listener = start_listener(supervisord, '-k', 'private', '-a', '50MB')
    listener.send()
    listener.wait_log('restarted out:out: private memory ')


def assert_swapped(pid: int) -> None:
    assert memmon.read_swap(pid) > 55 * MB and rss_mb(pid) < 35
