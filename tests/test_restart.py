"""Restarts under a real supervisord, by a memmon that gets its events from the test."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict

import pytest
from harness import (HOG, LIMIT, SAVE_MAIL, StartMemmon, StartSupervisord, children_of, hog, is_running,
                     memmon_section, read_mails, wait_until)


def test_slow_stop_holds_up_neither_ticks_nor_others(start_supervisord: StartSupervisord,
                                                     start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(hog('slow', '--stop-secs', '9', '--once', 'slow') + hog('quick', '--once', 'quick'))
    slow, quick = supervisord.wait_big('slow', 'quick')
    memmon = start_memmon(supervisord, '-a', LIMIT)
    assert memmon.send() < 1
    supervisord.wait_new_pid('quick', quick, secs=5)
    while supervisord.state('slow') != 'RUNNING' or supervisord.pid('slow') == slow:
        assert memmon.send() < 1
        time.sleep(0.5)
    assert memmon.send() < 1
    memmon.wait_log('restarted slow:slow: ')
    assert (supervisord.spawned('slow'), supervisord.spawned('quick')) == (2, 2)


def test_one_member_of_a_group_at_a_time(start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    names = ['pool:pool_0', 'pool:pool_1', 'pool:pool_2']
    supervisord = start_supervisord(hog('pool', '--stop-secs', '0.5', numprocs=3, startsecs=1,
                                        process_name='%(program_name)s_%(process_num)d'))
    pids = supervisord.wait_big(*names)
    start_memmon(supervisord, '-g', f'pool={LIMIT}').send()

    def all_are_back() -> bool:
        infos = supervisord.call('getAllProcessInfo')
        assert sum(info['statename'] != 'RUNNING' for info in infos) <= 1
        return all(info['pid'] not in (0, *pids) and info['statename'] == 'RUNNING' for info in infos)

    wait_until(all_are_back)


def test_groups_side_by_side(start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    names = [f'p{i}' for i in range(8)]
    supervisord = start_supervisord(''.join(hog(name, '--stop-secs', '1.5', startsecs=1) for name in names))
    pids = supervisord.wait_big(*names)
    began = time.monotonic()
    start_memmon(supervisord, '-a', LIMIT).send()
    for name, pid in zip(names, pids):
        supervisord.wait_new_pid(name, pid)
    one_after_the_other = 8 * (1.5 + 1)
    assert time.monotonic() - began < one_after_the_other / 4


def test_more_groups_than_workers_are_dealt_out(start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    names = [f'p{i:02}' for i in range(10)]
    supervisord = start_supervisord(''.join(hog(name, '--stop-secs', '1', '--mb', '20') for name in names))
    pids = [supervisord.wait_new_pid(name, 0) for name in names]
    memmon = start_memmon(supervisord, '-a', '1MB')
    memmon.send()
    assert len(children_of(memmon.pid)) == 8
    for name, pid in zip(names, pids):
        supervisord.wait_new_pid(name, pid)
    assert [supervisord.spawned(name) for name in names] == [2] * 10


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGKILL])
def test_worker_outlives_memmon(signum: int, start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(hog('slow', '--stop-secs', '2', '--once', 'slow'))
    pid, = supervisord.wait_big('slow')
    memmon = start_memmon(supervisord, '-a', LIMIT)
    memmon.send()
    supervisord.wait_state('slow', 'STOPPING')
    memmon.process.send_signal(signum)
    memmon.process.wait()
    supervisord.wait_new_pid('slow', pid)
    memmon.wait_log('restarted slow:slow: ')
    assert supervisord.spawned('slow') == 2


def test_listener_starts_what_a_killed_worker_stopped(start_supervisord: StartSupervisord,
                                                      start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(hog('slow', '--stop-secs', '2', '--once', 'slow'))
    pid, = supervisord.wait_big('slow')
    memmon = start_memmon(supervisord, '-a', LIMIT)
    memmon.send()
    supervisord.wait_state('slow', 'STOPPING')
    worker, = children_of(memmon.pid)
    os.kill(worker, signal.SIGKILL)
    supervisord.wait_state('slow', 'STOPPED')
    memmon.send()
    memmon.send()
    supervisord.wait_new_pid('slow', pid)
    memmon.send()
    memmon.wait_log('restarted slow:slow: ')
    assert supervisord.spawned('slow') == 2


# The second waits for its turn while the first takes its time: time for the test to do something.
SLOW_BEFORE_QUICK = hog('a-slow', '--stop-secs', '3') + hog('b-quick') + '[group:pool]\nprograms=a-slow,b-quick\n'


def test_killed_worker_owes_nothing_that_it_had_not_stopped(start_supervisord: StartSupervisord,
                                                            start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(SLOW_BEFORE_QUICK)
    slow, _ = supervisord.wait_big('pool:a-slow', 'pool:b-quick')
    memmon = start_memmon(supervisord, '-a', LIMIT)
    memmon.send()
    supervisord.wait_state('pool:a-slow', 'STOPPING')
    worker, = children_of(memmon.pid)
    os.kill(worker, signal.SIGKILL)
    supervisord.call('stopProcess', 'pool:b-quick')
    supervisord.wait_state('pool:a-slow', 'STOPPED')
    memmon.send()
    supervisord.wait_new_pid('pool:a-slow', slow)
    memmon.send()
    assert supervisord.state('pool:b-quick') == 'STOPPED'


def test_vanished_command_is_owed_a_start(tmp_path: Path, start_supervisord: StartSupervisord,
                                          start_memmon: StartMemmon) -> None:
    command = tmp_path / 'command'
    command.write_text(f'#!/bin/sh\nexec {sys.executable} {HOG} "$@"\n')
    command.chmod(0o755)
    supervisord = start_supervisord(hog('gone', command=f'{command} --once gone') + hog('next', '--once', 'next'))
    gone, _ = supervisord.wait_big('gone', 'next')
    memmon = start_memmon(supervisord, '-p', f'gone={LIMIT}', *SAVE_MAIL)
    command.rename(tmp_path / 'elsewhere')
    memmon.send()
    memmon.wait_log('failed to start gone:gone: ')
    assert 'NO_FILE' in memmon.log()
    for count in (2, 3):
        wait_until(lambda: not memmon.is_busy())
        memmon.send()
        memmon.wait_log('failed to start gone:gone: ', count)
    mail, = read_mails(tmp_path)
    assert 'Subject: memmon: failed to start process gone:gone\n' in mail
    assert supervisord.state('gone') == 'STOPPED'
    (tmp_path / 'elsewhere').rename(command)
    wait_until(lambda: not memmon.is_busy())
    memmon.send()
    supervisord.wait_new_pid('gone', gone)
    wait_until(lambda: len(read_mails(tmp_path)) == 2)
    assert any('Subject: memmon: process gone:gone restarted\n' in mail for mail in read_mails(tmp_path))
    memmon.send()
    assert supervisord.spawned('gone') == 2


def test_failed_start_does_not_keep_other_groups(tmp_path: Path, start_supervisord: StartSupervisord,
                                                 start_memmon: StartMemmon) -> None:
    command = tmp_path / 'command'
    shutil.copy(HOG, command)
    command.write_text(f'#!{sys.executable}\n{command.read_text()}')
    command.chmod(0o755)
    supervisord = start_supervisord(hog('gone', command=str(command)) + hog('pool', command=str(command), numprocs=2,
                                    process_name='%(process_num)d') + hog('next', '--once', 'next'))
    _, _, _, pid = supervisord.wait_big('gone', 'pool:0', 'pool:1', 'next')
    command.unlink()
    memmon = start_memmon(supervisord, '-a', LIMIT)
    memmon.send()
    supervisord.wait_new_pid('next', pid)
    memmon.wait_log('failed to start gone:gone: ')
    memmon.wait_log('; another process of its group failed to start, so it waits for the next tick')
    states = sorted(supervisord.state(f'pool:{i}') for i in range(2))
    assert states == ['RUNNING', 'STOPPED']  # the pool does not go down as a whole


def test_program_that_exits_at_once_is_left_to_supervisord(tmp_path: Path, start_supervisord: StartSupervisord,
                                                           start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(hog(
        'broken', command=f"sh -c 'test ! -e {tmp_path}/once && exec {sys.executable} {HOG} --once {tmp_path}/once'",
        startsecs=1, startretries=1, stopasgroup='true'))
    supervisord.wait_big('broken')
    memmon = start_memmon(supervisord, '-a', LIMIT, *SAVE_MAIL)
    memmon.send()
    supervisord.wait_state('broken', 'FATAL')
    memmon.wait_log('failed to start broken:broken: ')
    assert memmon.log().endswith('; it is FATAL: Exited too quickly (process log may have details)\n')
    spawned = supervisord.spawned('broken')
    wait_until(lambda: read_mails(tmp_path))
    wait_until(lambda: not memmon.is_busy())
    for _ in range(3):
        memmon.send()
    assert not memmon.is_busy()
    mail, = read_mails(tmp_path)
    assert 'Subject: memmon: failed to start process broken:broken\n' in mail
    assert (supervisord.state('broken'), supervisord.spawned('broken')) == ('FATAL', spawned)


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which('setpriv'),
                    reason='needs root, and setpriv from util-linux, for a supervisord that may not kill')
def test_refused_stop_is_told_and_the_next_one_follows(tmp_path: Path, start_supervisord: StartSupervisord,
                                                       start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(
        hog('a', command='sleep 1000', user='nobody') + hog('b', command='sleep 1000') + '[group:pool]\nprograms=a,b\n',
        wrapper=['setpriv', '--bounding-set=-kill'])
    a, b = supervisord.wait_new_pid('pool:a', 0), supervisord.wait_new_pid('pool:b', 0)
    memmon = start_memmon(supervisord, '-a', '100KB', *SAVE_MAIL)
    memmon.send()
    supervisord.wait_new_pid('pool:b', b)
    memmon.wait_log('failed to stop pool:a: ')
    failure, = [line for line in memmon.log().splitlines() if 'failed to stop' in line]
    assert ' ERROR memmon: failed to stop pool:a: RSS ' in failure
    assert failure.endswith(' ... PermissionError: [Errno 1] Operation not permitted')
    wait_until(lambda: len(read_mails(tmp_path)) == 2)
    assert any('Subject: memmon: failed to stop process pool:a\n' in mail for mail in read_mails(tmp_path))
    assert is_running(a)


@pytest.mark.parametrize('restart', [False, True])
def test_operator_is_quicker(restart: bool, start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(SLOW_BEFORE_QUICK)
    slow, quick = supervisord.wait_big('pool:a-slow', 'pool:b-quick')
    memmon = start_memmon(supervisord, '-a', LIMIT)
    memmon.send()
    supervisord.wait_state('pool:a-slow', 'STOPPING')
    supervisord.call('stopProcess', 'pool:b-quick')
    if restart:
        supervisord.call('startProcess', 'pool:b-quick')
    state, pid = supervisord.state('pool:b-quick'), supervisord.pid('pool:b-quick')
    assert state == ('RUNNING' if restart else 'STOPPED') and pid != quick
    supervisord.wait_new_pid('pool:a-slow', slow)
    memmon.wait_log('left alone pool:b-quick: ')
    assert memmon.log().endswith(f'; it is {state} with pid {pid}\n')
    assert (supervisord.state('pool:b-quick'), supervisord.pid('pool:b-quick')) == (state, pid)


def test_program_that_the_operator_stops_stays_stopped(start_supervisord: StartSupervisord,
                                                       start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(hog('big'))
    pid, = supervisord.wait_big('big')
    memmon = start_memmon(supervisord, '-a', LIMIT)
    memmon.send()
    supervisord.wait_new_pid('big', pid)
    memmon.wait_log('restarted big:big: ')
    supervisord.call('stopProcess', 'big')
    for _ in range(3):
        memmon.send()
    assert not memmon.is_busy()
    assert supervisord.state('big') == 'STOPPED'


def test_process_in_stopping_is_left_alone(start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(hog('slow', '--stop-secs', '3') + hog('big', '--once', 'big'))
    slow, big = supervisord.wait_big('slow', 'big')
    memmon = start_memmon(supervisord, '-a', LIMIT)
    supervisord.call('stopProcess', 'slow', False)
    memmon.send()
    supervisord.wait_new_pid('big', big)
    memmon.wait_log('left alone slow:slow: ')
    assert f'; it is STOPPING with pid {slow}\n' in memmon.log()
    supervisord.wait_state('slow', 'STOPPED')
    memmon.send()
    assert (supervisord.state('slow'), supervisord.spawned('slow')) == ('STOPPED', 1)


def test_socket_away_for_a_tick(tmp_path: Path, start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(hog('big', '--once', 'big'))
    pid, = supervisord.wait_big('big')
    memmon = start_memmon(supervisord, '-a', LIMIT)
    (tmp_path / 's').rename(tmp_path / 'away')
    memmon.send()
    assert memmon.log().endswith(
        f' ERROR memmon: nothing checked at this tick: no such socket: unix://{tmp_path}/s; '
        'does supervisord run, with a [unix_http_server] section?\n')
    (tmp_path / 'away').rename(tmp_path / 's')
    memmon.send()
    supervisord.wait_new_pid('big', pid)


def test_socket_away_in_the_middle_of_a_restart(tmp_path: Path, start_supervisord: StartSupervisord,
                                                start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(hog('slow', '--stop-secs', '2', '--once', 'slow'))
    pid, = supervisord.wait_big('slow')
    memmon = start_memmon(supervisord, '-a', LIMIT, *SAVE_MAIL)
    memmon.send()
    supervisord.wait_state('slow', 'STOPPING')
    (tmp_path / 's').rename(tmp_path / 'away')
    memmon.wait_log('no restart of slow:slow before the next tick: no such socket: ')
    (tmp_path / 'away').rename(tmp_path / 's')
    assert supervisord.state('slow') == 'STOPPED'
    wait_until(lambda: not memmon.is_busy())
    memmon.send()
    supervisord.wait_new_pid('slow', pid)
    mail, = wait_until(lambda: read_mails(tmp_path))
    assert 'restarted' in mail


AUTHENTICATION = '[unix_http_server]\nfile=%(here)s/s\nusername=bob\npassword=secret\n'


def test_wrong_password_is_told_with_the_variables_to_set(start_supervisord: StartSupervisord,
                                                          start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord('', server=AUTHENTICATION)
    memmon = start_memmon(supervisord, '-a', LIMIT, SUPERVISOR_USERNAME='bob', SUPERVISOR_PASSWORD='guess')
    memmon.send()
    assert memmon.log().count('\n') == 1
    url = supervisord.env['SUPERVISOR_SERVER_URL']
    assert memmon.log().endswith(
        f' ERROR memmon: nothing checked at this tick: supervisord at {url} refused the user name or password: '
        "set SUPERVISOR_USERNAME and SUPERVISOR_PASSWORD in memmon's environment to those of its HTTP server\n")


def test_right_password(start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(hog('big', '--once', 'big'), server=AUTHENTICATION)
    supervisord.env.update(SUPERVISOR_USERNAME='bob', SUPERVISOR_PASSWORD='secret')
    pid, = supervisord.wait_big('big')
    start_memmon(supervisord, '-a', LIMIT).send()
    supervisord.wait_new_pid('big', pid)


NO_FORK = r'''
#include <errno.h>
#include <sys/types.h>
pid_t fork(void) { errno = ENOMEM; return -1; }
pid_t vfork(void) { errno = ENOMEM; return -1; }
'''


@pytest.mark.skipif(not shutil.which('cc') or sys.platform != 'linux', reason='needs a C compiler, and LD_PRELOAD')
def test_restart_where_every_fork_fails(tmp_path: Path, start_supervisord: StartSupervisord,
                                        start_memmon: StartMemmon) -> None:
    (tmp_path / 'nofork.c').write_text(NO_FORK)
    subprocess.run(['cc', '-shared', '-fPIC', '-o', 'nofork.so', 'nofork.c'], cwd=tmp_path, check=True)
    supervisord = start_supervisord(hog('big', '--once', 'big'))
    pid, = supervisord.wait_big('big')
    memmon = start_memmon(supervisord, '-v', '-a', LIMIT, *SAVE_MAIL, LD_PRELOAD=str(tmp_path / 'nofork.so'))
    memmon.send()
    supervisord.wait_new_pid('big', pid)
    memmon.send()
    for line in ('no process table from ps ([Errno 12] Cannot allocate memory): reading /proc',
                 'no worker process ([Errno 12] Cannot allocate memory): the listener does its work',
                 'restarted big:big: ',
                 'no mail to bob@example.com: the command ',
                 ' failed: [Errno 12] Cannot allocate memory'):
        assert line in memmon.log()


def processes_of(path: Path) -> Dict[int, str]:
    """Return the running processes whose command names a path, or that run in it."""
    found = {}
    for entry in Path('/proc').iterdir():
        try:
            command = (entry / 'cmdline').read_bytes().decode(errors='replace')
            if entry.name.isdigit() and (str(path) in command or os.readlink(entry / 'cwd') == str(path)):
                found[int(entry.name)] = command
        except OSError:
            pass
    return found


@pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc')
def test_supervisord_shuts_down_in_the_middle_of_a_restart(tmp_path: Path,
                                                           start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord(
        hog('slow', '--stop-secs', '2') + memmon_section('-a', LIMIT))
    supervisord.start_memmon()
    supervisord.wait_state('slow', 'STOPPING')
    assert any('memmon' in command for command in processes_of(tmp_path).values())
    supervisord.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    supervisord.process.wait()
    assert time.monotonic() - began < 5
    wait_until(lambda: not processes_of(tmp_path), secs=5)


@pytest.mark.parametrize('asgroup', ['false', 'true'])
@pytest.mark.parametrize('how', ['ctl', 'TERM', 'KILL'])
def test_memmon_ends_in_the_middle_of_a_restart(how: str, asgroup: str, tmp_path: Path,
                                                start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord(
        hog('slow', '--stop-secs', '3', '--once', 'slow')
        + memmon_section('-a', LIMIT, *SAVE_MAIL, stopasgroup=asgroup, killasgroup=asgroup))
    pid, = supervisord.wait_big('slow')
    memmon = supervisord.start_memmon()
    supervisord.wait_state('slow', 'STOPPING')
    if how == 'ctl':
        assert 'memmon: started' in supervisord.ctl('restart', 'memmon')
    else:
        os.kill(memmon, getattr(signal, f'SIG{how}'))
    supervisord.wait_new_pid('memmon', memmon)
    supervisord.wait_new_pid('slow', pid)
    mail, = wait_until(lambda: read_mails(tmp_path))
    assert 'Subject: memmon: process slow:slow restarted\n' in mail
    assert supervisord.spawned('slow') == 2


def test_memmon_never_restarts_itself(start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord(hog('small', '--mb', '1') + memmon_section('-a', '5MB', '-p', 'memmon=5MB'))
    memmon = supervisord.start_memmon()
    wait_until(lambda: supervisord.spawned('small') == 3)
    assert supervisord.pid('memmon') == memmon
    assert supervisord.spawned('memmon') == 1


@pytest.mark.parametrize('command, failure', [
    ('/nonexistent/sendmail', 'exit status 127'),
    ('echo wrong; exit 75', 'exit status 75'),
    ('kill -9 $$', 'killed by signal 9'),
    ('sleep 1000', 'not done after 30 seconds, so killed'),
    ('cat; echo READY; echo loud >&2', ''),
    ('tee', ''),
    ('exec 0<&-', ''),
])
def test_mailer(command: str, failure: str, start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(hog('big', '--once', 'big'))
    pid, = supervisord.wait_big('big')
    memmon = start_memmon(supervisord, '-a', LIMIT, '-m', 'bob@example.com', '-s', command)
    assert memmon.send() < 1
    supervisord.wait_new_pid('big', pid)
    worker, = children_of(memmon.pid)
    assert memmon.send('PROCESS_LOG') < 1
    wait_until(lambda: not is_running(worker), secs=40)
    memmon.send()
    if failure:
        assert f' ERROR memmon: no mail to bob@example.com: the command {command!r} failed: {failure}\n' in memmon.log()
    else:
        assert 'no mail' not in memmon.log()
    assert 'restarted big:big: ' in memmon.log()
