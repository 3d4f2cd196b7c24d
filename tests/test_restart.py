"""Restarts under a real supervisord, by a memmon that gets its events from the test."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from harness import (HOG, LIMIT, PASSWORD, UNIX_SERVER, GroupWatch, Mailbox, StartListener,
                     StartSupervisord, assert_equal, assert_in, group_section, is_running,
                     memmon_section, pool_section, processes_in, section, wait_until)
from rpc import StartFakeServer, lose, silence

SOCKET_AWAY = ('ERROR memmon: nothing checked at this tick: no such socket: {url}; is supervisord '
               'running, with a [unix_http_server] section?')
REFUSED = ('ERROR memmon: nothing checked at this tick: supervisord at {url} refused the user name '
           "or password: set SUPERVISOR_USERNAME and SUPERVISOR_PASSWORD in memmon's environment "
           'to those of its HTTP server')


# Side by side, and one after the other.

def test_slow_stop_holds_up_neither_ticks_nor_others(start_supervisord: StartSupervisord,
                                                     start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('slow', '--stop-secs', '7', '--once', 'slow')
                                    + section('quick', '--once', 'quick'))
    slow, quick = supervisord.wait_big('slow', 'quick')
    listener = start_listener(supervisord, '-a', LIMIT)
    assert listener.send() < 5
    supervisord.wait_new_pid('quick', quick)
    supervisord.assert_state('slow', 'STOPPING')
    assert listener.send() < 5
    supervisord.assert_state('slow', 'STOPPING')
    supervisord.wait_new_pid('slow', slow)
    listener.wait_log('restarted slow:slow: ')
    listener.send()
    listener.wait_idle()
    assert (supervisord.spawned('slow'), supervisord.spawned('quick')) == (2, 2)


def test_group_never_has_two_members_down(start_supervisord: StartSupervisord,
                                          start_listener: StartListener) -> None:
    names = [f'pool:pool_{i:02}' for i in range(3)]
    supervisord = start_supervisord(pool_section('pool', 3, '--stop-secs', '0.5', startsecs=1))
    pids = supervisord.wait_big(*names)
    with GroupWatch(supervisord, 'pool'):
        start_listener(supervisord, '-g', f'pool={LIMIT}').send()
        for name, pid in zip(names, pids):
            supervisord.wait_new_pid(name, pid)


def test_groups_are_down_at_the_same_time(start_supervisord: StartSupervisord,
                                          start_listener: StartListener) -> None:
    names = [f'p{i}' for i in range(8)]
    supervisord = start_supervisord(''.join(
        section(name, '--stop-secs', '4', '--once', name) for name in names))
    pids = supervisord.wait_big(*names)
    start_listener(supervisord, '-a', LIMIT).send()
    wait_until(lambda: assert_equal(set(supervisord.states().values()), {'STOPPING'}))
    for name, pid in zip(names, pids):
        supervisord.wait_new_pid(name, pid)


def test_every_one_of_20_groups_is_restarted_once(start_supervisord: StartSupervisord,
                                                  start_listener: StartListener) -> None:
    names = [f'p{i:02}' for i in range(20)]
    supervisord = start_supervisord(''.join(
        section(name, command='sleep 1000') for name in names))
    pids = supervisord.wait_up(*names)
    listener = start_listener(supervisord, '-a', '100KB')
    listener.send()
    for name, pid in zip(names, pids):
        supervisord.wait_new_pid(name, pid)
    listener.wait_idle()
    assert [supervisord.spawned(name) for name in names] == [2] * 20


# Who stopped it, starts it.

@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGKILL])
def test_worker_outlives_memmon(signum: int, start_supervisord: StartSupervisord,
                                start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('slow', '--stop-secs', '2', '--once', 'slow'))
    pid, = supervisord.wait_big('slow')
    listener = start_listener(supervisord, '-a', LIMIT)
    listener.send()
    supervisord.wait_state('slow', 'STOPPING')
    listener.process.send_signal(signum)
    listener.wait_end()
    supervisord.wait_new_pid('slow', pid)
    listener.wait_log('restarted slow:slow: ')
    assert supervisord.spawned('slow') == 2


def test_listener_starts_what_a_killed_worker_stopped(start_supervisord: StartSupervisord,
                                                      start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('slow', '--stop-secs', '2', '--once', 'slow'))
    pid, = supervisord.wait_big('slow')
    listener = start_listener(supervisord, '-a', LIMIT)
    listener.send()
    supervisord.wait_state('slow', 'STOPPING')
    worker, = listener.workers()
    os.kill(worker, signal.SIGKILL)
    listener.send()
    listener.send()
    supervisord.wait_new_pid('slow', pid)
    listener.wait_log('restarted slow:slow: ')
    assert supervisord.spawned('slow') == 2


# The second waits for its turn while the first takes its time: time for the test to do something.
SLOW_BEFORE_QUICK = (section('a-slow', '--stop-secs', '4') + section('b-quick')
                     + group_section('pool', 'a-slow', 'b-quick'))


def test_killed_worker_owes_nothing_that_it_had_not_stopped(start_supervisord: StartSupervisord,
                                                            start_listener: StartListener) -> None:
    supervisord = start_supervisord(SLOW_BEFORE_QUICK)
    slow, _ = supervisord.wait_big('pool:a-slow', 'pool:b-quick')
    listener = start_listener(supervisord, '-a', LIMIT)
    listener.send()
    supervisord.wait_state('pool:a-slow', 'STOPPING')
    worker, = listener.workers()
    os.kill(worker, signal.SIGKILL)
    supervisord.call('stopProcess', 'pool:b-quick')
    listener.send()
    supervisord.wait_new_pid('pool:a-slow', slow)
    listener.wait_log('restarted pool:a-slow: ')
    listener.wait_idle()
    listener.send()
    listener.wait_idle()
    supervisord.assert_state('pool:b-quick', 'STOPPED')


def test_program_whose_command_comes_back_is_started(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener,
        mailbox: Mailbox) -> None:
    command = tmp_path / 'command'
    command.write_text(f'#!/bin/sh\nexec {sys.executable} {HOG} "$@"\n')
    command.chmod(0o755)
    supervisord = start_supervisord(section('gone', command=f'{command} --once gone')
                                    + section('next', '--once', 'next'))
    gone, _ = supervisord.wait_big('gone', 'next')
    listener = start_listener(supervisord, '-p', f'gone={LIMIT}', *mailbox.args)
    command.rename(tmp_path / 'elsewhere')
    listener.send()
    listener.wait_log('failed to start gone:gone: ')
    assert 'NO_FILE' in listener.log()
    mailbox.wait_subject('memmon: failed to start process gone:gone')
    listener.send()
    supervisord.assert_state('gone', 'STOPPED')
    (tmp_path / 'elsewhere').rename(command)
    listener.send()
    supervisord.wait_new_pid('gone', gone)
    mailbox.wait_subject('memmon: process gone:gone restarted')
    listener.wait_idle()
    listener.send()
    mailbox.assert_mails(2)
    assert supervisord.spawned('gone') == 2


def test_failed_start_keeps_the_rest_of_its_group_up(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    command = tmp_path / 'command'
    command.write_text(f'#!{sys.executable}\n{Path(HOG).read_text()}')
    command.chmod(0o755)
    supervisord = start_supervisord(section('gone', command=str(command))
                                    + pool_section('pool', 2, command=str(command))
                                    + section('next', '--once', 'next'))
    pid = supervisord.wait_big('gone', 'pool:pool_00', 'pool:pool_01', 'next')[-1]
    command.unlink()
    listener = start_listener(supervisord, '-a', LIMIT)
    listener.send()
    supervisord.wait_new_pid('next', pid)
    listener.wait_log('failed to start gone:gone: ')
    listener.wait_log('; another process of its group failed to start; memmon tries again at '
                      'the next tick')
    assert sorted(supervisord.states('pool').values()) == ['RUNNING', 'STOPPED']


def test_program_that_exits_at_once_is_left_to_supervisord(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener,
        mailbox: Mailbox) -> None:
    once = tmp_path / 'once'
    supervisord = start_supervisord(section(
        'broken', command=f"sh -c 'test ! -e {once} && exec {sys.executable} {HOG} --once {once}'",
        startsecs=1, startretries=1, stopasgroup='true'))
    supervisord.wait_big('broken')
    listener = start_listener(supervisord, '-a', LIMIT, *mailbox.args)
    listener.send()
    supervisord.wait_state('broken', 'FATAL')
    listener.wait_log('failed to start broken:broken: ')
    assert listener.log().endswith(
        '; it is FATAL: Exited too quickly (process log may have details)\n')
    spawned = supervisord.spawned('broken')
    mailbox.wait_subject('memmon: failed to start process broken:broken')
    listener.wait_idle()
    for _ in range(3):
        listener.send()
    assert listener.workers() == []
    mailbox.assert_mails(1)
    supervisord.assert_state('broken', 'FATAL')
    assert supervisord.spawned('broken') == spawned


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which('setpriv'), reason=(
    'needs root, and setpriv from util-linux, for a supervisord that may not kill'))
def test_refused_stop_is_reported_and_the_next_process_follows(
        start_supervisord: StartSupervisord, start_listener: StartListener,
        mailbox: Mailbox) -> None:
    supervisord = start_supervisord(
        section('a', command='sleep 1000', user='nobody') + section('b', command='sleep 1000')
        + group_section('pool', 'a', 'b'), wrapper=['setpriv', '--bounding-set=-kill'])
    a, b = supervisord.wait_up('pool:a', 'pool:b')
    listener = start_listener(supervisord, '-a', '100KB', *mailbox.args)
    listener.send()
    supervisord.wait_new_pid('pool:b', b)
    listener.wait_log('failed to stop pool:a: ')
    failure, = [line for line in listener.messages() if 'failed to stop' in line]
    assert failure.startswith('ERROR memmon: failed to stop pool:a: RSS ')
    assert failure.endswith(' ... PermissionError: [Errno 1] Operation not permitted')
    mailbox.wait_subject('memmon: failed to stop process pool:a')
    mailbox.wait_subject('memmon: process pool:b restarted')
    assert is_running(a)


def test_lost_answer_to_a_stop_does_not_lose_the_start(
        start_supervisord: StartSupervisord, start_listener: StartListener,
        start_fake_server: StartFakeServer) -> None:
    supervisord = start_supervisord(section('big', '--once', 'big'))
    pid, = supervisord.wait_big('big')
    server = start_fake_server(behind=supervisord.env, answers={'system.multicall': lose})
    listener = start_listener(server, '-a', LIMIT)
    listener.send()
    supervisord.wait_new_pid('big', pid)
    listener.wait_log('restarted big:big: ')
    assert supervisord.spawned('big') == 2


# What others do meanwhile.

@pytest.mark.parametrize('restart', [False, True])
def test_operator_is_quicker(restart: bool, start_supervisord: StartSupervisord,
                             start_listener: StartListener) -> None:
    supervisord = start_supervisord(SLOW_BEFORE_QUICK)
    slow, quick = supervisord.wait_big('pool:a-slow', 'pool:b-quick')
    listener = start_listener(supervisord, '-a', LIMIT)
    listener.send()
    supervisord.wait_state('pool:a-slow', 'STOPPING')
    supervisord.call('stopProcess', 'pool:b-quick')
    if restart:
        supervisord.call('startProcess', 'pool:b-quick')
    state, pid = supervisord.state('pool:b-quick'), supervisord.pid('pool:b-quick')
    assert state == ('RUNNING' if restart else 'STOPPED') and pid != quick
    supervisord.wait_new_pid('pool:a-slow', slow)
    listener.wait_log('left alone pool:b-quick: ')
    line, = [line for line in listener.messages() if 'left alone' in line]
    assert line.endswith(f'; it is {state} with pid {pid}')
    assert (supervisord.state('pool:b-quick'), supervisord.pid('pool:b-quick')) == (state, pid)


def test_program_that_the_operator_stops_stays_stopped(start_supervisord: StartSupervisord,
                                                       start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('big', '--once', 'big'))
    pid, = supervisord.wait_big('big')
    listener = start_listener(supervisord, '-a', LIMIT)
    listener.send()
    supervisord.wait_new_pid('big', pid)
    listener.wait_log('restarted big:big: ')
    supervisord.call('stopProcess', 'big')
    for _ in range(3):
        listener.send()
    listener.wait_idle()
    supervisord.assert_state('big', 'STOPPED')


def test_process_in_stopping_is_left_alone(start_supervisord: StartSupervisord,
                                           start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('slow', '--stop-secs', '4')
                                    + section('big', '--once', 'big'))
    slow, big = supervisord.wait_big('slow', 'big')
    listener = start_listener(supervisord, '-a', LIMIT)
    supervisord.call('stopProcess', 'slow', False)
    listener.send()
    supervisord.wait_new_pid('big', big)
    listener.wait_log('left alone slow:slow: ')
    assert f'; it is STOPPING with pid {slow}\n' in listener.log()
    supervisord.wait_state('slow', 'STOPPED')
    listener.send()
    listener.wait_idle()
    supervisord.assert_state('slow', 'STOPPED')
    assert supervisord.spawned('slow') == 1


# When supervisord cannot be asked.

def test_tick_without_a_socket_is_lost_and_the_next_one_is_not(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('big', '--once', 'big'))
    pid, = supervisord.wait_big('big')
    listener = start_listener(supervisord, '-a', LIMIT)
    supervisord.hide_socket()
    listener.send()
    assert listener.messages()[-1] == SOCKET_AWAY.format(url=supervisord.env[
        'SUPERVISOR_SERVER_URL'])
    supervisord.show_socket()
    listener.send()
    supervisord.wait_new_pid('big', pid)


def test_restart_without_a_socket_is_finished_when_it_is_back(
        start_supervisord: StartSupervisord, start_listener: StartListener,
        mailbox: Mailbox) -> None:
    supervisord = start_supervisord(section('slow', '--stop-secs', '2', '--once', 'slow'))
    pid, = supervisord.wait_big('slow')
    listener = start_listener(supervisord, '-a', LIMIT, *mailbox.args)
    listener.send()
    supervisord.wait_state('slow', 'STOPPING')
    supervisord.hide_socket()
    wait_until(lambda: assert_in('stopped: slow', supervisord.log.read_text()))
    listener.send()
    supervisord.show_socket()
    supervisord.wait_new_pid('slow', pid)
    mailbox.wait_subject('memmon: process slow:slow restarted')
    assert supervisord.spawned('slow') == 2


def test_server_that_does_not_answer_loses_the_tick_and_no_more(
        start_supervisord: StartSupervisord, start_listener: StartListener,
        start_fake_server: StartFakeServer) -> None:
    supervisord = start_supervisord(section('big', '--once', 'big'))
    pid, = supervisord.wait_big('big')
    server = start_fake_server(behind=supervisord.env,
                               answers={'supervisor.getAllProcessInfo': silence})
    listener = start_listener(server, '-a', LIMIT)
    assert 9 < listener.send() < 20
    assert listener.messages()[-1] == (
        'ERROR memmon: nothing checked at this tick: no answer from supervisord at '
        f'{server.url} within 10 seconds')
    server.answers.clear()
    listener.send()
    supervisord.wait_new_pid('big', pid)


def test_wrong_password_is_reported_with_the_variables_to_set(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(server=UNIX_SERVER + PASSWORD)
    listener = start_listener(supervisord, '-a', LIMIT, SUPERVISOR_USERNAME='bob',
                              SUPERVISOR_PASSWORD='guess')
    listener.send()
    assert listener.messages()[1:] == [REFUSED.format(url=supervisord.env[
        'SUPERVISOR_SERVER_URL'])]


def test_right_password_is_accepted(start_supervisord: StartSupervisord,
                                    start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('big', '--once', 'big'), server=UNIX_SERVER + PASSWORD)
    supervisord.env.update(SUPERVISOR_USERNAME='bob', SUPERVISOR_PASSWORD='secret')
    pid, = supervisord.wait_big('big')
    start_listener(supervisord, '-a', LIMIT).send()
    supervisord.wait_new_pid('big', pid)


def test_listener_restarts_by_itself_where_every_fork_fails(
        start_supervisord: StartSupervisord, start_listener: StartListener,
        mailbox: Mailbox, no_fork: dict[str, str]) -> None:
    supervisord = start_supervisord(section('big', '--once', 'big'))
    pid, = supervisord.wait_big('big')
    listener = start_listener(supervisord, '-v', '-a', LIMIT, *mailbox.args, **no_fork)
    listener.send()
    supervisord.wait_new_pid('big', pid)
    for line in (
            'cannot fork a worker ([Errno 12] Cannot allocate memory): ',
            'no process table from ps ([Errno 12] Cannot allocate memory): reading /proc',
            'restarted big:big: ',
            'no mail to bob@example.com: the command ',
            ' failed: [Errno 12] Cannot allocate memory'):
        listener.wait_log(line)


# memmon's own end.

@pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc')
def test_nothing_is_left_of_a_restart_when_supervisord_shuts_down(
        tmp_path: Path, start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord(section('slow', '--stop-secs', '2')
                                    + memmon_section('-a', LIMIT))
    supervisord.start_memmon()
    supervisord.wait_state('slow', 'STOPPING')
    assert any('memmon' in command for command in processes_in(tmp_path).values())
    supervisord.process.send_signal(signal.SIGTERM)
    assert supervisord.process.wait(20) == 0
    wait_until(lambda: assert_equal(processes_in(tmp_path), {}))


@pytest.mark.parametrize('how, asgroup', [
    ('ctl', 'false'), ('ctl', 'true'), ('TERM', 'false'), ('KILL', 'false'),
])
def test_restart_goes_on_when_memmon_is_restarted(
        how: str, asgroup: str, start_supervisord: StartSupervisord, mailbox: Mailbox) -> None:
    supervisord = start_supervisord(
        section('slow', '--stop-secs', '3', '--once', 'slow')
        + memmon_section('-a', LIMIT, *mailbox.args, stopasgroup=asgroup, killasgroup=asgroup))
    pid, = supervisord.wait_big('slow')
    memmon_pid = supervisord.start_memmon()
    supervisord.wait_state('slow', 'STOPPING')
    if how == 'ctl':
        assert 'memmon: started' in supervisord.ctl('restart', 'memmon')
    else:
        os.kill(memmon_pid, getattr(signal, f'SIG{how}'))
    supervisord.wait_new_pid('memmon', memmon_pid)
    supervisord.wait_new_pid('slow', pid)
    mailbox.wait_subject('memmon: process slow:slow restarted')
    assert supervisord.spawned('slow') == 2


def test_memmon_never_restarts_itself(start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord(
        section('other', '--mb', '1') + memmon_section('-a', '5MB', '-p', 'memmon=5MB'))
    other, = supervisord.wait_up('other')
    memmon_pid = supervisord.start_memmon()
    supervisord.wait_new_pid('other', other)
    wait_until(lambda: assert_in('restarted other:other: ', supervisord.memmon_log()))
    assert supervisord.pid('memmon') == memmon_pid
    assert supervisord.spawned('memmon') == 1


# Mail.

@pytest.mark.parametrize('command, failure', [
    ('/nonexistent/sendmail', 'exit status 127'),
    ('echo wrong; exit 75', 'exit status 75'),
    ('kill -9 $$', 'killed by signal 9'),
    ('sleep 1000', 'not done after 30 seconds, so killed'),
    ('cat; echo READY; echo loud >&2', ''),
    ('tee', ''),
    ('exec 0<&-', ''),
])
def test_mailer_holds_up_nothing(command: str, failure: str, start_supervisord: StartSupervisord,
                                 start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('big', '--once', 'big'))
    pid, = supervisord.wait_big('big')
    listener = start_listener(supervisord, '-a', LIMIT, '-m', 'bob@example.com', '-s', command)
    assert listener.send() < 5
    supervisord.wait_new_pid('big', pid)
    listener.wait_log('restarted big:big: ')
    assert listener.send() < 5
    listener.wait_idle(secs=60)
    complaints = [line for line in listener.messages() if 'no mail to ' in line]
    assert complaints == [
        f'ERROR memmon: no mail to bob@example.com: the command {command!r} failed: {failure}'
    ] * bool(failure)


def test_restart_takes_no_longer_than_the_mailer_of_another(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(pool_section('pool', 2, startsecs=0))
    pids = supervisord.wait_big('pool:pool_00', 'pool:pool_01')
    began = time.monotonic()
    start_listener(supervisord, '-a', LIMIT, '-m', 'bob@example.com', '-s', 'sleep 1000').send()
    for name, pid in zip(['pool:pool_00', 'pool:pool_01'], pids):
        supervisord.wait_new_pid(name, pid, secs=25)
    assert time.monotonic() - began < 25  # a mailer has 30 seconds
