"""Measuring under a real supervisord: ps and what takes its place, and when supervisord is asked."""

import os
import shutil
import signal
from pathlib import Path
from typing import Dict, Optional

import pytest
from harness import LIMIT, MEMMON, StartMemmon, StartSupervisord, hog, memmon_section

NO_OPTION = 'echo usage: ps >&2; exit 1'
RUBBISH = 'echo what is this'
THREE_NUMBERS = 'echo 1 2 3; kill -9 $$'
THREE_NUMBERS_IN_PEACE = 'echo 1 2 3'
NO_ANSWER = 'sleep 1000'


def fake_ps(path: Path, script: Optional[str]) -> Dict[str, str]:
    """Return a PATH on which ps is a shell script, or missing."""
    path = path / 'bin'
    path.mkdir()
    for tool in ('sh', 'sleep'):
        (path / tool).symlink_to(shutil.which(tool) or '')
    if script is not None:
        (path / 'ps').write_text(f'#!/bin/sh\n{script}\n')
        (path / 'ps').chmod(0o755)
    return {'PATH': str(path)}


@pytest.mark.skipif(not os.path.exists('/proc/self/stat'), reason='needs the /proc of Linux')
@pytest.mark.parametrize('script, why', [
    (None, 'there is none'),
    (NO_OPTION, 'exit status 1'),
    (RUBBISH, "it printed b'what is this'"),
    (THREE_NUMBERS, 'killed by signal 9'),
    (THREE_NUMBERS_IN_PEACE, 'its table is not whole'),
    (NO_ANSWER, 'not done after 10 seconds, so killed'),
    pytest.param('exec busybox ps "$@"', '', marks=pytest.mark.skipif(
        not shutil.which('busybox'), reason="needs BusyBox, from Debian's package of this name")),
])
def test_proc_takes_the_place_of_ps(script: Optional[str], why: str, tmp_path: Path,
                                    start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    path = fake_ps(tmp_path, script)
    if shutil.which('busybox'):
        (tmp_path / 'bin' / 'busybox').symlink_to(shutil.which('busybox') or '')
    supervisord = start_supervisord(hog('big', '--once', 'big') + hog('small', '--mb', '1'))
    big, = supervisord.wait_big('big')
    small = supervisord.wait_new_pid('small', 0)
    memmon = start_memmon(supervisord, '-v', '-a', LIMIT, **path)
    memmon.send()
    supervisord.wait_new_pid('big', big)
    assert f'DEBUG memmon: no process table from ps ({why}' in memmon.log()
    assert 'usage: ps' not in memmon.log()
    assert supervisord.pid('small') == small


@pytest.mark.parametrize('through_a_shell', [False, True])
def test_memmon_as_a_listener(through_a_shell: bool, start_supervisord: StartSupervisord) -> None:
    section = memmon_section('-a', LIMIT)
    if through_a_shell:
        section = hog('memmon', command=f'sh -c "{MEMMON} -a {LIMIT}; exit 1"', section='eventlistener',
                      events='TICK_5', stopasgroup='true', autostart='false')
    supervisord = start_supervisord(hog('big', '--once', 'big') + section)
    pid, = supervisord.wait_big('big')
    supervisord.start_memmon()
    supervisord.wait_new_pid('big', pid)
    assert supervisord.spawned('big') == 2


def test_program_started_after_the_first_tick(start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(hog('small', '--mb', '1') + hog('late', '--once', 'late', autostart='false'))
    supervisord.wait_state('small', 'RUNNING')
    memmon = start_memmon(supervisord, '-a', LIMIT)
    memmon.send()
    supervisord.call('startProcess', 'late')
    pid, = supervisord.wait_big('late')
    memmon.send()
    supervisord.wait_new_pid('late', pid)


def test_program_restarted_by_supervisord_between_two_ticks(tmp_path: Path, start_supervisord: StartSupervisord,
                                                            start_memmon: StartMemmon) -> None:
    (tmp_path / 'once').touch()
    supervisord = start_supervisord(hog('big', '--once', 'once', autorestart='true'))
    first = supervisord.wait_new_pid('big', 0)
    memmon = start_memmon(supervisord, '-a', LIMIT)
    memmon.send()
    (tmp_path / 'once').unlink()
    os.kill(first, signal.SIGKILL)
    second, = supervisord.wait_big('big')
    memmon.send()
    supervisord.wait_new_pid('big', second)
    assert second != first


def test_steady_tick_asks_supervisord_nothing(tmp_path: Path, start_supervisord: StartSupervisord,
                                              start_memmon: StartMemmon) -> None:
    """Where the socket is away, each request would be told of as an error."""
    supervisord = start_supervisord(hog('a', '--mb', '1') + hog('b', '--mb', '1'))
    supervisord.wait_state('b', 'RUNNING')
    memmon = start_memmon(supervisord, '-v', '-a', LIMIT)
    memmon.send()
    (tmp_path / 's').rename(tmp_path / 'away')
    for _ in range(5):
        memmon.send()
    assert 'ERROR' not in memmon.log()
    assert memmon.log().count('DEBUG memmon: a:a: RSS ') == 6
    (tmp_path / 'away').rename(tmp_path / 's')
    supervisord.call('stopProcess', 'b')
    (tmp_path / 's').rename(tmp_path / 'away')
    memmon.send()
    assert 'ERROR memmon: nothing checked at this tick: no such socket' in memmon.log()


def test_neither_ps_nor_proc_loses_the_tick(start_supervisord: StartSupervisord, start_memmon: StartMemmon,
                                            tmp_path: Path) -> None:
    """A limit on open files keeps memmon from both."""
    if not shutil.which('prlimit'):
        pytest.skip('needs prlimit, from util-linux')
    supervisord = start_supervisord(hog('big', '--once', 'big'))
    pid, = supervisord.wait_big('big')
    memmon = start_memmon(supervisord, '-a', LIMIT)
    memmon.send('PROCESS_LOG')
    os.system(f'prlimit --pid {memmon.pid} --nofile=3:4096')
    memmon.send()
    assert ' ERROR memmon: nothing checked at this tick: no process table from ps ' in memmon.log()
    assert supervisord.pid('big') == pid
    os.system(f'prlimit --pid {memmon.pid} --nofile=4096:4096')
    memmon.send()
    supervisord.wait_new_pid('big', pid)
