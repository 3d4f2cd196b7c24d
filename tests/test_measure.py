"""Measuring below a real supervisord: ps, what takes its place, and when supervisord is asked."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from harness import (LIMIT, MEMMON, StartListener, StartSupervisord, in_pid_namespace,
                     memmon_section, run, section)
from rpc import StartFakeServer

needs_proc = pytest.mark.skipif(not os.path.exists('/proc/self/stat'),
                                reason='needs the /proc of Linux')
needs_busybox = pytest.mark.skipif(
    not shutil.which('busybox'), reason="needs BusyBox, from Debian's package of this name")


def fake_ps(path: Path, script: str) -> dict[str, str]:
    """Return a PATH on which ps is a shell script; without a script there is no ps."""
    path = path / 'bin'
    path.mkdir()
    for tool in ('sh', 'sleep', 'busybox'):
        if shutil.which(tool):
            (path / tool).symlink_to(shutil.which(tool) or '')
    if script:
        (path / 'ps').write_text(f'#!/bin/sh\n{script}\n')
        (path / 'ps').chmod(0o755)
    return {'PATH': str(path)}


@needs_proc
@pytest.mark.parametrize('script, why', [
    ('', 'ps is not in PATH'),
    ('echo usage: ps >&2; exit 1', 'exit status 1'),
    ('echo what is this', "ps printed b'what is this'"),
    ('echo 1 2 3; kill -9 $$', 'killed by signal 9'),
    ('echo 1 2 3', 'the output of ps is incomplete'),
    ('sleep 1000', 'not done after 10 seconds, so killed'),
    pytest.param('exec busybox ps "$@"', '', marks=needs_busybox),
])
def test_proc_takes_the_place_of_ps(
        script: str, why: str, tmp_path: Path, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('big', '--once', 'big') + section('small', '--mb', '1'))
    big, = supervisord.wait_big('big')
    small, = supervisord.wait_up('small')
    listener = start_listener(supervisord, '-v', '-a', LIMIT, **fake_ps(tmp_path, script))
    listener.send()
    supervisord.wait_new_pid('big', big)
    assert f'DEBUG memmon: no process table from ps ({why}' in listener.log()
    assert 'usage: ps' not in listener.log()
    assert supervisord.pid('small') == small


def test_memmon_may_be_started_through_a_shell(start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord(
        section('big', '--once', 'big')
        + memmon_section(command=f'sh -c "{MEMMON} -a {LIMIT}; exit 1"', stopasgroup='true'))
    pid, = supervisord.wait_big('big')
    supervisord.start_memmon()
    supervisord.wait_new_pid('big', pid)
    assert supervisord.spawned('big') == 2


def test_program_started_after_the_first_tick_is_watched(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('small', '--mb', '1')
                                    + section('late', '--once', 'late', autostart='false'))
    supervisord.wait_up('small')
    listener = start_listener(supervisord, '-a', LIMIT)
    listener.send()
    supervisord.call('startProcess', 'late')
    pid, = supervisord.wait_big('late')
    listener.send()
    supervisord.wait_new_pid('late', pid)


def test_program_restarted_between_two_ticks_is_watched(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('big', '--when', 'grow', autorestart='true'))
    first, = supervisord.wait_up('big')
    listener = start_listener(supervisord, '-a', LIMIT)
    listener.send()
    os.kill(first, signal.SIGKILL)
    second = supervisord.wait_new_pid('big', first)
    (tmp_path / 'grow').touch()
    supervisord.wait_big('big')
    listener.send()
    supervisord.wait_new_pid('big', second)


def test_steady_tick_asks_supervisord_nothing(
        start_supervisord: StartSupervisord, start_listener: StartListener,
        start_fake_server: StartFakeServer) -> None:
    supervisord = start_supervisord(section('a', '--mb', '1') + section('b', '--mb', '1'))
    supervisord.wait_up('a', 'b')
    server = start_fake_server(behind=supervisord.env)
    listener = start_listener(server, '-v', '-a', LIMIT)
    listener.send()
    calls = len(server.calls)
    for _ in range(5):
        listener.send()
    assert server.methods()[calls:] == []
    assert listener.log().count('DEBUG memmon: a:a: RSS ') == 6
    supervisord.call('stopProcess', 'b')
    listener.send()
    assert server.methods()[calls:] == ['supervisor.getAllProcessInfo']


@pytest.mark.skipif(not shutil.which('prlimit'), reason='needs prlimit, from util-linux')
def test_neither_ps_nor_proc_loses_the_tick(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    """A limit of open files keeps memmon from both."""
    supervisord = start_supervisord(section('big', '--once', 'big'))
    pid, = supervisord.wait_big('big')
    listener = start_listener(supervisord, '-a', LIMIT)
    listener.send('PROCESS_LOG')
    assert run('prlimit', '--pid', str(listener.pid), '--nofile=3:4096').status == 0
    listener.send()
    assert listener.messages()[-1].startswith(
        'ERROR memmon: nothing checked at this tick: no process table from ps ')
    assert supervisord.pid('big') == pid
    assert run('prlimit', '--pid', str(listener.pid), '--nofile=4096:4096').status == 0
    listener.send()
    supervisord.wait_new_pid('big', pid)


def test_processes_of_another_pid_namespace_are_reported_and_never_measured(
        start_supervisord: StartSupervisord, start_listener: StartListener,
        pid_namespaces: None) -> None:
    supervisord = start_supervisord(section('big'))
    pid, = supervisord.wait_big('big')
    listener = start_listener(supervisord, '-a', LIMIT, wrapper=in_pid_namespace())
    for _ in range(3):
        listener.send()
    warnings = [line for line in listener.messages() if 'WARNING' in line]
    assert len(warnings) == 1 and warnings[0].startswith(
        f'WARNING memmon: cannot measure big:big (pid {pid}): ')
    assert supervisord.spawned('big') == 1
