"""Restarts under a real supervisord, by a memmon that gets its events from the test."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, NoReturn, Sequence
from xmlrpc.client import Fault

import pytest
from fake_server import StartFakeServer, lose
from harness import (BIG_MB, LIMIT, MEMMON, TINY, Listener, Mailbox, StartListener,
                     StartSupervisord, Supervisord, children_of, group_section, is_running, kill,
                     memmon_section, pool_section, processes_in, program, rss_mb, section, sleeper,
                     wait_until)
from supervisor.states import ProcessStates
from supervisor.xmlrpc import Faults

import memmon

needs_proc = pytest.mark.skipif(not os.path.exists('/proc/self/stat'),
                                reason='needs the /proc of Linux')


# One process.

def test_restart_is_logged_and_mailed_with_pids_and_memory(
        mailbox: Mailbox, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('big', '--once', 'big'))
    old, = supervisord.wait_big('big')
    listener = start_listener(supervisord, '-a', LIMIT, *mailbox.args)
    listener.send()
    new = supervisord.wait_new_pid('big', old)
    mail = mailbox.wait_subject('memmon: process big:big restarted')
    line, = [line for line in listener.messages() if ' restarted big:big: ' in line]
    assert line.startswith('INFO memmon: restarted big:big: RSS ')
    assert 'MB is over 40MB (-a 40MB), uptime 0:00:' in line
    assert f'; pid {old} -> {new}, RSS ' in line
    for row in (f'old pid:  {old}', f'new pid:  {new}', 'limit:    40MB', 'set by:   -a 40MB'):
        assert f'\n{row}\n' in mail
    assert mail.endswith(f'\nreason:   {line[len("INFO memmon: "):]}\n')
    listener.wait_idle()
    listener.send()
    listener.wait_idle()
    mailbox.assert_mails(1)
    assert supervisord.spawned('big') == 2


def test_slow_stop_holds_up_neither_ticks_nor_others_and_is_reported(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    names = [f'{letter}-quick' for letter in 'bcdefghij']  # more than there are workers
    supervisord = start_supervisord(
        section('a-slow', '--mb', '0', '--holds', 'go') + ''.join(map(sleeper, names)))
    supervisord.wait_up('a-slow', *names)
    listener = start_listener(supervisord, '-a', TINY, constants={'SLOW_STOP_SECS': 2})
    listener.send()
    for name in names:
        listener.wait_log(f' restarted {name}:{name}: ')
    listener.send()
    assert supervisord.state('a-slow') == 'STOPPING'
    listener.wait_log('WARNING memmon: a-slow:a-slow is not down 2 seconds after the stop; see '
                      'stopwaitsecs in its section')
    (tmp_path / 'go').touch()
    listener.wait_log(' restarted a-slow:a-slow: ')
    listener.wait_idle()
    assert {supervisord.spawned(name) for name in [*names, 'a-slow']} == {2}


def test_eight_pools_are_down_at_the_same_time(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    names = [f'{letter}' * 3 for letter in 'abcdefgh']
    supervisord = start_supervisord(''.join(
        section(name, '--mb', '0', '--holds', 'go') for name in names))
    supervisord.wait_up(*names)
    listener = start_listener(supervisord, '-a', TINY)
    listener.send()
    wait_until(lambda: all_are(supervisord, 'STOPPING'))
    (tmp_path / 'go').touch()
    listener.wait_idle()
    all_are(supervisord, 'RUNNING')
    assert [supervisord.spawned(name) for name in names] == [2] * 8


def all_are(supervisord: Supervisord, state: str) -> None:
    states = supervisord.states()
    assert set(states.values()) == {state}, states


def test_stop_that_ends_in_sigkill_is_told(
        mailbox: Mailbox, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('deaf', '--ignore-term', stopwaitsecs=2))
    supervisord.wait_big('deaf')
    listener = start_listener(supervisord, '-a', LIMIT, *mailbox.args)
    listener.send()
    listener.wait_log('; killed after stopwaitsecs=2')
    assert 'killed after stopwaitsecs=2' in mailbox.wait_subject(
        'memmon: process deaf:deaf restarted')


def test_successor_that_ends_with_an_expected_status_is_no_failure(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    """As a queue worker that has nothing to do."""
    supervisord = start_supervisord(section(
        'queue', command=f'sh -c "test ! -e once || exit 0; touch once; exec {program()}"',
        autorestart='unexpected'))
    supervisord.wait_big('queue')
    listener = start_listener(supervisord, '-a', LIMIT)
    listener.send()
    listener.wait_log(' restarted queue:queue: ')
    listener.wait_idle()
    assert [line for line in listener.messages() if line.startswith(('ERROR', 'WARN'))] == []


def test_restart_in_vain_is_said_once_and_repeated_at_the_hard_size_only(
        tmp_path: Path, mailbox: Mailbox, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    """A program that loads: a second after its start it is still small."""
    (tmp_path / 'mb').write_text('60')
    supervisord = start_supervisord(section('big', '--file', 'mb', '--after', '2'))
    supervisord.wait_big('big')
    listener = start_listener(supervisord, '-a', f'{LIMIT}..100MB', *mailbox.args)
    listener.send()
    mailbox.wait_subject('memmon: process big:big restarted')
    supervisord.wait_big('big')
    for _ in range(3):
        listener.send()
        listener.wait_idle()
    line, = [line for line in listener.messages() if ' limit too low big:big: ' in line]
    assert line.startswith('WARNING memmon: ')
    mailbox.wait_subject('memmon: limit of process big:big is too low')
    assert supervisord.spawned('big') == 2
    (tmp_path / 'mb').write_text('110')
    supervisord.wait_big('big', mb=105)
    listener.send()
    listener.wait_log(' restarted big:big: ', 2)
    assert f'is over 100MB (-a {LIMIT}..100MB)' in listener.log()


# Whole trees.

def big_child(pid: int) -> int:
    """Return the child that has taken its memory."""
    big = [child for child in children_of(pid) if rss_mb(child) > BIG_MB]
    assert big, f'no child of {pid} has taken its memory'
    return big[0]


# Arguments of the program, settings of its section, and what becomes of its child.
STOPS: dict[str, tuple[list[str], dict[str, Any], str]] = {
    'wrapper': ([], {}, 'ended'),
    'deaf': (['--ignore-term'], {'stopwaitsecs': 2}, 'ended'),
    'leader': (['--own-group'], {}, 'left alone'),
    'group': ([], {'stopasgroup': 'true', 'killasgroup': 'true'}, 'stopped'),
    'half': ([], {'stopasgroup': 'true'}, 'stopped'),
    'shell': ([], {'command': f'sh -c "{program("--once", "shell")}; true"'}, 'ended'),
}


@needs_proc
def test_child_that_outlives_the_stop(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(''.join(
        section(name, '--child', '--once', name, *args, **settings)
        for name, (args, settings, _) in STOPS.items()))
    pids = dict(zip(STOPS, supervisord.wait_up(*STOPS)))
    children = {name: wait_until(lambda: big_child(pids[name])) for name in STOPS}
    try:
        listener = start_listener(supervisord, '-c', '-a', LIMIT)
        listener.send()
        for name, (*_, outcome) in STOPS.items():
            pid, child = pids[name], children[name]
            new = supervisord.wait_new_pid(name, pid)
            assert is_running(child) == (outcome == 'left alone'), name
            listener.wait_log(f' restarted {name}:{name}: RSS with descendants: ')
            line, = [line for line in listener.messages() if f' restarted {name}:' in line]
            assert f'; pid {pid} -> {new}, ' in line
            assert (f'still alive after the stop: pid {child}' in line) == (
                outcome == 'left alone')
            warning = (
                f'WARNING memmon: {name}:{name}: pid {child} outlived its stop and is ended by '
                f'memmon; {memmon.WHOLE_TREES}')
            assert (warning in listener.messages()) == (outcome == 'ended'), name
        assert sum(line.startswith('WARNING') for line in listener.messages()) == 3
    finally:
        kill(*children.values())


# When the start or the stop fails.

def test_program_whose_command_is_missing_comes_back_without_a_tick(
        tmp_path: Path, mailbox: Mailbox, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    command = tmp_path / 'command'
    command.write_text(f'#!/bin/sh\nexec {program("--once", "once")}\n')
    command.chmod(0o755)
    supervisord = start_supervisord(section('gone', command=str(command)))
    old, = supervisord.wait_big('gone')
    listener = start_listener(supervisord, '-a', LIMIT, *mailbox.args,
                              constants={'PAUSES': {'start': [0, 1], 'down': [10]}})
    command.rename(tmp_path / 'away')
    listener.send()
    listener.wait_log('ERROR memmon: failed to start gone:gone: ')
    assert 'NO_FILE' in listener.log() and '; memmon keeps trying' in listener.log()
    mailbox.wait_subject('memmon: failed to start process gone:gone')
    (tmp_path / 'away').rename(command)
    supervisord.wait_new_pid('gone', old, secs=60)
    mailbox.wait_subject('memmon: process gone:gone restarted')
    listener.wait_idle()
    mailbox.assert_mails(2)
    assert supervisord.spawned('gone') == 2


def test_program_that_is_fatal_after_the_stop_is_tried_again(
        tmp_path: Path, mailbox: Mailbox, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('broken', '--fails-while', 'broken', '--once', 'once',
                                            startsecs=1, startretries=0))
    old, = supervisord.wait_big('broken')
    (tmp_path / 'broken').touch()
    listener = start_listener(supervisord, '-a', LIMIT, *mailbox.args,
                              constants={'PAUSES': {'start': [0, 1], 'down': [2] * 9}})
    listener.send()
    listener.wait_log('ERROR memmon: failed to start broken:broken: ')
    assert '; it is FATAL: Exited too quickly' in listener.log()
    mailbox.wait_subject('memmon: failed to start process broken:broken')
    (tmp_path / 'broken').unlink()
    supervisord.wait_new_pid('broken', old)
    mailbox.wait_subject('memmon: process broken:broken restarted')
    mailbox.assert_mails(2)


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which('setpriv'), reason=(
    'needs root, and setpriv from util-linux, for a supervisord that may not kill'))
def test_refused_stop_is_reported_and_costs_the_process_nothing(
        mailbox: Mailbox, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(sleeper('protected', user='nobody') + sleeper('next'),
                                    wrapper=['setpriv', '--bounding-set=-kill'])
    protected, other = supervisord.wait_up('protected', 'next')
    listener = start_listener(supervisord, '-a', TINY, *mailbox.args)
    listener.send()
    supervisord.wait_new_pid('next', other)
    mailbox.wait_subject('memmon: failed to stop process protected:protected')
    failure, = [line for line in listener.messages() if 'failed to stop' in line]
    assert failure.startswith('ERROR memmon: failed to stop protected:protected: RSS ')
    assert 'Operation not permitted' in failure
    assert is_running(protected)


def test_lost_answer_to_a_stop_does_not_lose_the_start(
        start_supervisord: StartSupervisord, start_listener: StartListener,
        start_fake_server: StartFakeServer) -> None:
    supervisord = start_supervisord(section('big', '--once', 'big'))
    pid, = supervisord.wait_big('big')
    server = start_fake_server(behind=supervisord.env, answers={'system.multicall': lose})
    listener = start_listener(server, '-a', LIMIT)
    listener.send()
    supervisord.wait_new_pid('big', pid)
    listener.wait_log(' restarted big:big: ')
    assert supervisord.spawned('big') == 2


def test_restart_without_a_socket_is_finished_when_it_is_back(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('slow', '--holds', 'go', '--once', 'slow'))
    pid, = supervisord.wait_big('slow')
    listener = start_listener(supervisord, '-a', LIMIT)
    listener.send()
    supervisord.wait_state('slow', 'STOPPING')
    supervisord.hide_socket()
    (tmp_path / 'go').touch()
    wait_until(lambda: 'stopped: slow' in supervisord.log.read_text())
    listener.send()
    supervisord.show_socket()
    supervisord.wait_new_pid('slow', pid)
    listener.wait_log(' restarted slow:slow: ')
    assert supervisord.spawned('slow') == 2


def test_listener_restarts_by_itself_where_every_fork_fails(
        tmp_path: Path, no_fork: dict[str, str], start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('slow', '--holds', 'go', '--once', 'slow')
                                    + section('big', '--once', 'big'))
    big, slow = supervisord.wait_big('big', 'slow')
    listener = start_listener(supervisord, '-v', '-a', LIMIT, **no_fork)
    listener.send()
    supervisord.wait_state('slow', 'STOPPING')
    (tmp_path / 'go').touch()
    for text in ('WARNING memmon: cannot fork ([Errno 12] Cannot allocate memory): memmon restarts '
                 'one process at a time by itself', ' restarted big:big: ',
                 ' restarted slow:slow: '):
        listener.wait_log(text)
    listener.send()
    assert listener.log().count(' cannot fork (') == 1
    assert (supervisord.spawned('big'), supervisord.spawned('slow')) == (2, 2)


def test_events_are_answered_while_a_slow_stop_has_no_worker(
        tmp_path: Path, no_fork: dict[str, str], start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('slow', '--holds', 'go', '--once', 'slow'))
    supervisord.wait_big('slow')
    listener = start_listener(supervisord, '-a', LIMIT, **no_fork,
                              constants={'LISTENER_PATIENCE_SECS': 2})
    listener.send()
    supervisord.wait_state('slow', 'STOPPING')
    listener.send()  # when its patience is over
    supervisord.assert_state('slow', 'STOPPING')
    (tmp_path / 'go').touch()
    listener.wait_log(' restarted slow:slow: ')


def test_listener_that_is_ended_during_its_own_restart_brings_the_process_back(
        tmp_path: Path, no_fork: dict[str, str], start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('slow', '--holds', 'go', '--once', 'slow'))
    supervisord.wait_big('slow')
    listener = start_listener(supervisord, '-a', LIMIT, **no_fork)
    listener.send()
    supervisord.wait_state('slow', 'STOPPING')
    os.kill(listener.pid, signal.SIGTERM)
    (tmp_path / 'go').touch()
    supervisord.wait_state('slow', 'RUNNING')
    listener.wait_log(' restarted slow:slow: ')
    assert ' INFO memmon: SIGTERM ends memmon\n' in listener.log()


# Others have a hand in it.

@pytest.mark.parametrize('starts', [False, True])
def test_what_the_operator_restarts_or_stops_first_is_left_to_him(
        starts: bool, tmp_path: Path, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('big'))
    old, = supervisord.wait_big('big')
    wait = 'touch begun; until test -e go; do sleep 0.05; done'
    listener = start_listener(supervisord, '-a', LIMIT, '-o', f'before={wait}')
    listener.send()
    wait_until((tmp_path / 'begun').exists)
    supervisord.call('stopProcess', 'big')
    if starts:
        supervisord.call('startProcess', 'big')
    state, pid = supervisord.state('big'), supervisord.pid('big')
    assert state == ('RUNNING' if starts else 'STOPPED') and pid != old
    (tmp_path / 'go').touch()
    listener.wait_log('INFO memmon: not restarted big:big: ')
    assert f'; it is now {state}' in listener.log()
    listener.wait_idle()
    assert (supervisord.state('big'), supervisord.pid('big')) == (state, pid)


def test_what_the_operator_stops_after_a_restart_stays_stopped(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('big', '--once', 'big'))
    pid, = supervisord.wait_big('big')
    listener = start_listener(supervisord, '-a', LIMIT)
    listener.send()
    supervisord.wait_new_pid('big', pid)
    listener.wait_idle()
    supervisord.call('stopProcess', 'big')
    for _ in range(3):
        listener.send()
        listener.wait_idle()
    supervisord.assert_state('big', 'STOPPED')


def test_process_that_supervisord_is_stopping_is_left_alone(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('slow', '--holds', 'go'))
    slow, = supervisord.wait_big('slow')
    listener = start_listener(supervisord, '-a', LIMIT)
    supervisord.call('stopProcess', 'slow', False)
    listener.send()
    listener.wait_idle()
    (tmp_path / 'go').touch()
    supervisord.wait_state('slow', 'STOPPED')
    listener.send()
    listener.wait_idle()
    supervisord.assert_state('slow', 'STOPPED')
    assert supervisord.spawned('slow') == 1


def test_process_that_has_shrunk_before_the_stop_is_left_alone(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('big', '--frees', 'free'))
    pid, = supervisord.wait_big('big')
    free = 'touch free; until test $(ps -o rss= -p $MEMMON_PID) -lt 40000; do sleep 0.05; done'
    listener = start_listener(supervisord, '-a', LIMIT, '-o', f'before={free}',
                              '-o', 'after=echo $MEMMON_NEW_PID > after')
    listener.send()
    listener.wait_log('INFO memmon: not restarted big:big: RSS ')
    assert '; it is now RSS ' in listener.log()
    listener.wait_idle()
    assert supervisord.pid('big') == pid
    assert (tmp_path / 'after').read_text() == f'{pid}\n'  # what `before` drained is let in again


# memmon itself.

@needs_proc
def test_nothing_is_left_of_a_restart_when_supervisord_shuts_down(
        tmp_path: Path, start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord(section('slow', '--stop-secs', '2')
                                    + memmon_section('-a', LIMIT))
    supervisord.wait_big('slow')
    supervisord.start_memmon()
    supervisord.wait_state('slow', 'STOPPING')
    assert any('memmon' in command for command in processes_in(tmp_path).values())
    supervisord.process.send_signal(signal.SIGTERM)
    assert supervisord.process.wait(30) == 0
    wait_until(lambda: assert_nothing_runs(tmp_path))


def assert_nothing_runs(path: Path) -> None:
    running = processes_in(path)
    assert not running, running


@pytest.mark.parametrize('how, asgroup', [('ctl', 'true'), ('KILL', 'false')])
def test_restart_goes_on_when_memmon_is_restarted(
        how: str, asgroup: str, tmp_path: Path, start_supervisord: StartSupervisord,
        mailbox: Mailbox) -> None:
    supervisord = start_supervisord(
        section('slow', '--holds', 'go', '--once', 'slow')
        + memmon_section('-a', LIMIT, *mailbox.args, stopasgroup=asgroup, killasgroup=asgroup))
    pid, = supervisord.wait_big('slow')
    old = supervisord.start_memmon()
    supervisord.wait_state('slow', 'STOPPING')
    if how == 'ctl':
        assert 'memmon: started' in supervisord.ctl('restart', 'memmon')
    else:
        os.kill(old, signal.SIGKILL)
    supervisord.wait_new_pid('memmon', old)
    (tmp_path / 'go').touch()
    supervisord.wait_new_pid('slow', pid)
    mailbox.wait_subject('memmon: process slow:slow restarted')
    assert supervisord.spawned('slow') == 2


def test_memmon_restarts_neither_itself_nor_what_started_it_nor_its_pool(
        tmp_path: Path, start_supervisord: StartSupervisord) -> None:
    url, path = f'unix://{tmp_path}/s', shlex.quote(os.environ['PATH'])
    commands = {
        'plain': f'{MEMMON} %s',
        'bare': f'env -i PATH={path} SUPERVISOR_SERVER_URL={url} {MEMMON} %s',
        'shell': f'sh -c "{MEMMON} %s; true"',
        'twins': f'{MEMMON} %s',
    }
    sections = ''
    for name, command in commands.items():
        limits = f'-g {name}={TINY} -p {name}:*={TINY} -p small-{name}={TINY}'
        pool = {'numprocs': 2, 'process_name': '%(program_name)s_%(process_num)d'}
        sections += sleeper(f'small-{name}') + section(
            name, kind='eventlistener', command=command % limits, events='TICK_5',
            **(pool if name == 'twins' else {}))
    supervisord = start_supervisord(sections)
    for name in commands:
        wait_until(lambda: supervisord.spawned(f'small-{name}') == 2)
    for name in ('plain', 'bare', 'shell', 'twins_0', 'twins_1'):
        assert supervisord.spawned(name) == 1
    wait_until(lambda: all_are(supervisord, 'RUNNING'))


def test_members_without_a_group_whose_programs_differ_are_two_pools(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(
        section('web1', '--mb', '0', '--holds', 'go') + section('web2', '--mb', '0'))
    supervisord.wait_up('web1', 'web2')
    listener = start_listener(supervisord, '-a', TINY)
    listener.send()
    supervisord.wait_state('web1', 'STOPPING')
    listener.wait_log(' restarted web2:web2: ')
    supervisord.assert_state('web1', 'STOPPING')
    (tmp_path / 'go').touch()
    listener.wait_log(' restarted web1:web1: ')


# Which processes, and when: the options.

PROGRAMS = (section('web') + pool_section('queue', 2) + section('chat')
            + group_section('site', 'chat'))
WEB, CHAT = 'web:web', 'site:chat'
QUEUE = ['queue:queue_00', 'queue:queue_01']


def test_options_choose_what_is_restarted(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(PROGRAMS)
    supervisord.wait_big(WEB, CHAT, *QUEUE)
    for args, expected in [
            ('-p web=none -p queue=40MB -g site=1GB -a 20MB', QUEUE),
            # A command line found in a public repository.
            ('-c -p web=50MB -g site=10kB --any 1GB -s true -m me@example.com -u 1d -n mine',
             [WEB, CHAT])]:
        listener = start_listener(supervisord, '--dry-run', *args.split())
        listener.send()
        found = [line.split()[4].rstrip(':') for line in listener.messages()
                 if line.startswith('INFO memmon: would restart ')]
        assert sorted(found) == sorted(expected), args


def test_process_that_all_options_match_is_restarted_once(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('web', '--once', 'once'))
    supervisord.wait_big('web')
    listener = start_listener(supervisord, '-p', f'web={LIMIT}', '-g', f'web={LIMIT}', '-a', LIMIT)
    listener.send()
    listener.wait_idle()
    assert supervisord.spawned('web') == 2


def test_patience_is_for_what_is_over_at_every_look(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    (tmp_path / 'mb').write_text('60')
    supervisord = start_supervisord(section('up', '--once', 'once')
                                    + section('moves', '--file', 'mb'))
    up, moves = supervisord.wait_big('up', 'moves')
    alone = start_listener(supervisord, '-p', f'moves={LIMIT}', '-f', '1s')
    for megabytes in ('60', '0') * 3:
        (tmp_path / 'mb').write_text(megabytes)
        wait_until(lambda: assert_size(moves, int(megabytes)))
        alone.send()
    listener = start_listener(supervisord, '-p', f'up={LIMIT}', '-f', '3s')
    wait_until(lambda: send_and_see(listener, supervisord, 'up', up))
    assert supervisord.pid('moves') == moves


def assert_size(pid: int, megabytes: int) -> None:
    seen = rss_mb(pid)
    assert megabytes < seen < megabytes + 35, f'{seen} MB'


def send_and_see(listener: Listener, supervisord: Supervisord, name: str, old: int) -> None:
    listener.send()
    supervisord.assert_new_pid(name, old)


def test_cap_holds_and_says_so_once(
        mailbox: Mailbox, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('big'))
    supervisord.wait_big('big')
    listener = start_listener(supervisord, '-a', LIMIT, '-r', '1/1h', *mailbox.args)
    listener.send()
    listener.wait_log(' restarted big:big: ')
    pid, = supervisord.wait_big('big')
    os.kill(pid, signal.SIGKILL)  # a crash voids nothing
    supervisord.wait_new_pid('big', pid)
    supervisord.wait_big('big')
    for _ in range(3):
        listener.send()
        listener.wait_idle()
    mailbox.wait_subject('memmon: process big:big held')
    assert listener.log().count(' held big:big: ') == 1
    assert supervisord.spawned('big') == 3


def test_total_restarts_the_largest_and_no_other(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('small', '--mb', '30')
                                    + section('large', '--mb', '90', '--once', 'once'))
    supervisord.wait_big('small', mb=28)
    large, = supervisord.wait_big('large', mb=85)
    listener = start_listener(supervisord, '-t', '100MB',
                              '-o', 'after=echo "$MEMMON_TOTAL_LIMIT $MEMMON_LIMIT." > after')
    listener.send()
    supervisord.wait_new_pid('large', large)
    listener.wait_log(' restarted large:large: total PSS ')
    listener.wait_idle()
    listener.send()
    listener.wait_idle()
    assert (supervisord.spawned('small'), supervisord.spawned('large')) == (1, 2)
    assert (supervisord.path / 'after').read_text() == f'{100 << 20} .\n'


def test_total_costs_no_process_that_has_made_itself_small(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    """The total is over its limit still, because of another one."""
    supervisord = start_supervisord(section('web', '--mb', '90', '--frees', 'free')
                                    + section('other', '--file', 'mb'))
    web, = supervisord.wait_big('web', mb=85)
    supervisord.wait_up('other')
    free = ('touch free; echo 130 > mb; '
            'until test $(ps -o rss= -p $MEMMON_PID) -lt 30000; do sleep 0.05; done; sleep 1')
    listener = start_listener(supervisord, '-t', '80MB', '-p', 'other=none',
                              '-o', f'before={free}')
    listener.send()
    listener.wait_log('INFO memmon: not restarted web:web: total PSS ')
    assert '; it is now total PSS ' in listener.log()
    assert supervisord.pid('web') == web


# What is next for a stopped process, and what waits for what: without any process.

OLD = memmon.Process('web', 'web', 7, 1000, 0, 1100, ProcessStates.RUNNING, 'RUNNING', '', 0)


def seen(state: str, **fields: Any) -> memmon.Process:
    return OLD._replace(state=getattr(ProcessStates, state), statename=state, **{
        'pid': 8 if state in ('RUNNING', 'STARTING') else 0, 'now': 1110, **fields})


@pytest.mark.parametrize('process, stopped, step', [
    (seen('STOPPING', pid=7), OLD, memmon.WAIT),
    (seen('STOPPED', stop=1105), OLD, memmon.START),
    (seen('STOPPED', stop=1105), None, memmon.START),               # it is not known which run
    (seen('STOPPED', stop=1105, start=1107), OLD, memmon.NOTHING),  # somebody else's stop
    (seen('STOPPED', start=0), OLD, memmon.NOTHING),                # reloaded
    (seen('STOPPED', start=0), None, memmon.NOTHING),
    (seen('RUNNING', pid=7), OLD, memmon.WAIT),                     # the stop may have been lost
    (seen('EXITED', stop=1105), OLD, memmon.NOTHING),               # the old run
    (seen('FATAL'), OLD, memmon.NOTHING),
    (seen('STARTING', start=1107), OLD, memmon.COMING),
    (seen('RUNNING', start=1107), OLD, memmon.COMING),
    (seen('BACKOFF', start=1107, stop=1109), OLD, memmon.COMING),
    (seen('EXITED', start=1107, stop=1109), OLD, memmon.UP),        # with status 0
    (seen('EXITED', start=1107, stop=1109, exitstatus=2), OLD, memmon.UP),  # exitcodes=0,2
    (seen('EXITED', start=1107, stop=1109, exitstatus=1), OLD, memmon.COMING),
    (seen('EXITED', start=1101, stop=1102, exitstatus=1), OLD, memmon.DOWN),
    (seen('FATAL', start=1107), OLD, memmon.DOWN),
])
def test_next_step_for_a_stopped_process(
        process: memmon.Process, stopped: memmon.Process | None, step: str) -> None:
    assert memmon.next_step(process, OLD.start, stopped, [0, 2])[0] == step


@pytest.mark.parametrize('process, moves', [
    (seen('RUNNING'), False), (seen('STARTING'), True), (seen('STOPPING', pid=7), True),
    (seen('STOPPED', stop=1109), True),    # perhaps by a worker that is about to start it
    (seen('STOPPED', stop=1105), False), (seen('STOPPED', stop=1200), False),
    (seen('STOPPED', stop=memmon.LAST_SECOND, now=memmon.LAST_SECOND), False),  # after 2038
    (seen('BACKOFF'), False), (seen('FATAL'), False), (seen('EXITED'), False),
])
def test_sibling_that_is_on_its_way_is_waited_for(process: memmon.Process, moves: bool) -> None:
    """One in BACKOFF may be so for ever."""
    assert memmon.is_moving(process, False) == moves


@pytest.mark.parametrize('process, moves', [
    (seen('BACKOFF', stop=1109), True), (seen('FATAL', stop=1109), True),
    (seen('FATAL', stop=500), False), (seen('FATAL', stop=1200), False),  # the clock was set back
    (seen('EXITED', stop=1109), False), (seen('RUNNING'), False),
    (seen('FATAL', stop=memmon.LAST_SECOND, now=memmon.LAST_SECOND), False),  # after 2038
])
def test_sibling_that_a_worker_of_the_memmon_before_may_bring_back_is_waited_for(
        process: memmon.Process, moves: bool) -> None:
    assert memmon.is_moving(process, True) == moves


def job(namespec: str, *pool: str, **fields: Any) -> memmon.Job:
    group, _, name = namespec.partition(':')
    process = OLD._replace(group=group, name=name)
    history = memmon.History(process)
    history.pool = pool or (group,)
    reading = memmon.Reading(process, memmon.NO_LIMIT, 1, 2, memmon.MEASURES['rss'], 3, 3, 3, 5)
    made = memmon.Job(history, reading, None, fields.pop('siblings', ()))
    for field, value in {'config': {}, **fields}.items():
        setattr(made, field, value)
    return made


class ShowsOneAfterTheOther:
    """A server of which each look shows another state; the last remains."""

    def __init__(self, *processes: memmon.Process) -> None:
        self.states = list(processes)

    def process(self, namespec: str) -> memmon.Process:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def processes(self) -> list[memmon.Process]:
        return [self.process('')]

    def start(self, namespec: str) -> None:
        """Show the next state."""


def site(server: Any, began: float) -> memmon.Site:
    return memmon.Site(memmon.parse_args(['-a', '1MB']), server, os.getpid(), os.getppid(), began)


@pytest.mark.parametrize('secs, ends', [(599, True), (601, False)])
def test_sibling_that_is_fatal_is_waited_for_while_memmon_is_young(
        secs: int, ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memmon, 'SIBLINGS_PATIENCE_SECS', 0)
    server = ShowsOneAfterTheOther(seen('FATAL', stop=1105))
    work = job('web:one', siblings=('web:web',), site=site(server, time.monotonic() - secs))
    with pytest.raises(memmon.Done, match='web:web is FATAL') if ends else nullcontext():
        work.await_siblings()


def test_run_that_starts_in_the_second_of_the_old_one_is_not_taken_for_it() -> None:
    server = ShowsOneAfterTheOther(
        seen('STOPPED', stop=1000, now=1000), seen('STARTING', now=1000), seen('FATAL', now=1001))
    work = job('web:web', stop_requested=True)
    report = next(work.steps(site(server, 0), {}))
    assert (report.event, work.tried) == ('failed to start', 1000)


# A restart in virtual time.

class Supervisor:
    """A supervisord that stops the process at once, and shows it as a test says."""

    def __init__(self, show: Callable[[Supervisor], memmon.Process], sibling: str = 'RUNNING'
                 ) -> None:
        self.show = show
        self.sibling = sibling
        self.secs = 0.0
        self.starts: list[float] = []
        self.refuses = False

    def sleep(self, secs: float) -> None:
        self.secs += secs
        assert self.secs < 5000, 'it does not end'

    def process(self, namespec: str) -> memmon.Process:
        shown = self.show(self) if self.starts else seen('STOPPED', stop=1100)
        return shown._replace(now=1100 + int(self.secs))

    def processes(self) -> list[memmon.Process]:
        return [seen(self.sibling)._replace(group='web', name='other')]

    def start(self, namespec: str) -> None:
        self.starts.append(self.secs)
        if self.refuses:
            raise Fault(Faults.NO_FILE, 'NO_FILE: web')


def shows(*states: tuple[float, str]) -> Callable[[Supervisor], memmon.Process]:
    """Return what shows each state from so many seconds after the last start on."""
    def show(server: Supervisor) -> memmon.Process:
        secs = server.secs - server.starts[-1]
        state = [state for since, state in states if since <= secs][-1]
        pid = 7 + len(server.starts) if state in ('STARTING', 'RUNNING') else 0
        return seen(state, pid=pid, start=1100 + int(server.starts[-1]))
    return show


def keep_time(monkeypatch: pytest.MonkeyPatch, server: Any) -> None:
    """Have memmon live in the time of a supervisord, where each process has memory."""
    monkeypatch.setattr(memmon, 'time', SimpleNamespace(
        monotonic=lambda: server.secs, sleep=server.sleep, time=lambda: server.secs))
    monkeypatch.setattr(memmon.PROC_FILES, 'rss', lambda pid: 1)


PAUSED = 'paused'


def timed(server: Any, site: memmon.Site, up_secs: float = memmon.UP_SECS, **fields: Any
          ) -> list[tuple[int, str]]:
    """Restart a process; return the events with their seconds, and when the listener paused."""
    work, found = job('web:web', **fields, up_secs=up_secs), []
    while not work.is_done:
        found += [(int(server.secs), report.event) for report in work.steps(site, {})]
        found += [] if work.is_done else [(int(server.secs), PAUSED)]
    return found


def restart_in_time(monkeypatch: pytest.MonkeyPatch, server: Any, listener_pid: int = os.getppid(),
                    in_listener: bool = False, **fields: Any) -> list[tuple[int, str]]:
    """Restart a process in virtual time."""
    keep_time(monkeypatch, server)
    site = memmon.Site(memmon.parse_args(['-a', '1MB']), server, os.getpid(), listener_pid, 0,
                       in_listener)
    return timed(server, site, **fields)


STARTED = (0, 'STARTING')
FAILED = 'failed to start'


@pytest.mark.parametrize('states, lines, starts', [
    ([(0, 'RUNNING')], [(1, 'restarted')], [0]),  # not before it has been up for a second
    ([STARTED, (200, 'RUNNING')], [(201, 'restarted')], [0]),  # startsecs=200 is no failure
    ([(0, 'BACKOFF'), (9, 'RUNNING')], [(10, 'restarted')], [0]),
    ([(0, 'BACKOFF'), (90, 'RUNNING')], [(60, FAILED), (91, 'restarted')], [0]),
    ([(0, 'BACKOFF')], [(60, FAILED), (600, 'gave up starting')], [0]),
    ([(0, 'FATAL')], [(0, FAILED), (600, 'gave up starting')], [0, 10, 60, 180, 600]),
    ([STARTED, (1, 'STOPPED')], [(1, 'not restarted')], [0]),  # by an operator, after the start
])
def test_process_that_memmon_has_stopped_comes_back(
        states: Sequence[tuple[float, str]], lines: list[tuple[int, str]], starts: list[int],
        monkeypatch: pytest.MonkeyPatch) -> None:
    server = Supervisor(shows(*states))
    found = restart_in_time(monkeypatch, server, stop_requested=True)
    assert [event for _, event in found] == [event for _, event in lines]
    assert [secs for secs, _ in found] == pytest.approx([secs for secs, _ in lines], rel=.05)
    assert server.starts == pytest.approx(starts, rel=.1, abs=2)


@pytest.mark.parametrize('show, lines, starts', [
    (shows((0, 'FATAL')), [(0, 'gave up starting')], 1),
    (lambda server: seen('STOPPED', stop=1100), [(3, FAILED), (600, 'gave up starting')], 15),
])
def test_worker_whose_listener_has_gone_gives_up(
        show: Callable[[Supervisor], memmon.Process], lines: list[tuple[int, str]], starts: int,
        monkeypatch: pytest.MonkeyPatch) -> None:
    server = Supervisor(show)
    server.refuses = starts > 1
    found = restart_in_time(monkeypatch, server, listener_pid=1, stop_requested=True)
    assert [event for _, event in found] == [event for _, event in lines]
    assert [secs for secs, _ in found] == pytest.approx([secs for secs, _ in lines], rel=.05, abs=2)
    assert len(server.starts) == pytest.approx(starts, abs=1)


def test_run_without_memory_is_not_up_though_supervisord_shows_it_so(
        monkeypatch: pytest.MonkeyPatch) -> None:
    keep_time(monkeypatch, server := Supervisor(shows((0, 'RUNNING'))))
    monkeypatch.setattr(memmon.PROC_FILES, 'rss', lambda pid: int(server.secs >= 5))
    assert timed(server, site(server, 0), stop_requested=True) == [(5, 'restarted')]


def test_program_that_ends_after_some_seconds_each_time_has_failed_to_start(
        monkeypatch: pytest.MonkeyPatch) -> None:
    def show(server: Supervisor) -> memmon.Process:
        run = int(server.secs - server.starts[-1]) // 4  # which supervisord starts anew
        return seen('RUNNING' if run < 5 else 'STOPPED', pid=100 + run, start=1101 + 4 * run)
    keep_time(monkeypatch, server := Supervisor(show))
    lines = timed(server, site(server, 0), 10, stop_requested=True)
    assert [event for _, event in lines] == [FAILED, 'not restarted']
    assert lines[0][0] == pytest.approx(12, abs=2)  # as the fourth run has begun


def test_listener_pauses_every_ten_seconds_and_gives_up_like_a_worker(
        monkeypatch: pytest.MonkeyPatch) -> None:
    server = Supervisor(shows((0, 'BACKOFF')))
    found = restart_in_time(monkeypatch, server, in_listener=True, stop_requested=True)
    pauses = [secs for secs, event in found if event == PAUSED]
    assert 10 <= pauses[0] < 12
    assert all(10 <= later - earlier < 16 for earlier, later in zip(pauses, pauses[1:]))
    assert [event for _, event in found if event != PAUSED] == [FAILED, 'gave up starting']


@pytest.mark.parametrize('in_listener', [False, True])
def test_supervisord_that_does_not_answer_for_a_minute_is_a_failure_to_start(
        in_listener: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def show(server: Supervisor) -> memmon.Process:
        if server.secs - server.starts[-1] < 100:
            raise memmon.SupervisordError('no answer') if server.secs < 50 else OSError(24, 'full')
        return seen('RUNNING', pid=9, start=1200)
    found = restart_in_time(monkeypatch, Supervisor(show), in_listener=in_listener,
                            stop_requested=True)
    assert [event for _, event in found if event != PAUSED] == [FAILED, 'restarted']
    assert [secs for secs, event in found if event == FAILED] == [pytest.approx(62, abs=5)]


@pytest.mark.parametrize('was_run, event, pid, state, command, new_pid', [
    (True, 'not restarted', None, 'RUNNING', 'after', 7),
    (True, 'not restarted', None, 'STOPPED', 'failed', 0),
    (True, 'not restarted', 0, 'RUNNING', 'failed', 0),
    (True, 'postponed', None, 'RUNNING', 'after', 7),
    (False, 'not restarted', None, 'RUNNING', '', None),
    (True, 'restarted', 9, 'RUNNING', 'after', 9), (False, 'restarted', 9, 'RUNNING', 'after', 9),
    (True, 'gave up starting', 0, 'FATAL', '', 0),  # its event has commands of its own
])
def test_what_follows_a_before_command(was_run: bool, event: str, pid: int | None, state: str,
                                       command: str, new_pid: int | None) -> None:
    server = ShowsOneAfterTheOther(seen(state, pid=7 * (state == 'RUNNING')))
    work = job('web:web', site=site(server, 0), was_run=was_run)
    report = work.last_report(event, 'why', pid)
    assert (report.command, report.new_pid, work.is_done) == (command, new_pid, True)


def test_start_that_is_refused_is_tried_again_for_as_long_as_it_takes(
        monkeypatch: pytest.MonkeyPatch) -> None:
    server = Supervisor(shows((0, 'RUNNING')))

    def show(server: Supervisor) -> memmon.Process:
        server.refuses = server.secs < 1000
        return seen('STOPPED', stop=1100)
    server.refuses, server.show = True, show
    with pytest.raises(AssertionError, match='it does not end'):
        restart_in_time(monkeypatch, server, stop_requested=True)
    assert server.starts[:4] == pytest.approx([0, 1, 3, 7], abs=2)
    pauses = [later - earlier for earlier, later in zip(server.starts, server.starts[1:])]
    assert 55 < max(pauses) < 70


@pytest.mark.parametrize('sibling, secs', [('STARTING', 10), ('BACKOFF', 0), ('RUNNING', 0)])
def test_sibling_is_waited_for_with_an_end(sibling: str, secs: int,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memmon, 'find_children',
                        lambda pid: (memmon.ProcessTable({}), frozenset()))
    server = Supervisor(shows((0, 'RUNNING')), sibling)
    server.starts = [0]
    (waited, event), = restart_in_time(monkeypatch, server, siblings=('web:other',))
    assert waited == pytest.approx(secs, abs=1) and event == 'not restarted'


class Pool(Supervisor):
    """A supervisord with two stopped processes; the first to be started comes to a state."""

    def __init__(self, first: str) -> None:
        super().__init__(lambda server: shows((0, 'RUNNING'))(server))
        self.first, self.started = first, ['']

    def configs(self) -> dict[str, Any]:
        return {}

    def process(self, namespec: str) -> memmon.Process:
        if namespec not in self.started:
            return seen('STOPPED', stop=1100)
        self.show = shows((0, self.first if namespec == self.started[1] else 'RUNNING'))
        return super().process(namespec)._replace(exitstatus=0)

    def start(self, namespec: str) -> None:
        self.started.append(namespec)
        super().start(namespec)


@pytest.mark.parametrize('first, lines, secs', [
    # What has ended says nothing of the next.
    ('EXITED', [(0, 'restarted'), (1, 'restarted')], 10),
    ('RUNNING', [(0, 'restarted'), (1, 'restarted')], 11),
    ('FATAL', [(0, FAILED), (0, 'gave up starting')], 600),  # it loses no other
])
def test_what_became_of_one_member_of_a_pool_tells_for_the_next(
        first: str, lines: list[tuple[int, str]], secs: int,
        monkeypatch: pytest.MonkeyPatch) -> None:
    server: Any = Pool(first)
    keep_time(monkeypatch, server)
    found: list[tuple[int, str]] = []
    monkeypatch.setattr(memmon, 'send_step', lambda writer, number, job, report:
                        found.append((number, report.event)))
    jobs = [job(f'web:{name}', siblings=('web:other',), stop_requested=True) for name in '12']
    site = memmon.Site(memmon.parse_args(['-a', '1MB']), server, os.getpid(), os.getppid(), 0)
    memmon.work_on_pool(jobs, site, 0)
    assert found == lines
    assert server.secs == pytest.approx(secs, rel=.05, abs=1)


# Workers.


class FailsAgain(ShowsOneAfterTheOther):
    """A server whose supervisord goes on with a start that fails, and gives up in the end."""

    def start(self, namespec: str) -> None:
        self.states = [seen('BACKOFF', start=1800, stop=1801, now=1801),
                       seen('FATAL', start=1807, stop=1808, now=1810)]


def test_last_try_is_waited_for_and_tries_of_supervisord_are_none_of_an_operator(
        monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(memmon, 'time', SimpleNamespace(
        monotonic=lambda: now[0], sleep=lambda secs: now.append(now.pop() + secs)))
    monkeypatch.setitem(memmon.PAUSES, memmon.DOWN, (memmon.ORPHAN_PATIENCE_SECS + 60,))
    server: Any = FailsAgain(seen('FATAL', start=1107))
    site = memmon.Site(memmon.parse_args(['-a', '1MB']), server, os.getpid(), os.getppid(), 0)
    work = job('web:web', stop_requested=True)
    *_, report = work.steps(site, {})
    assert (report.event, work.tried) == ('gave up starting', 1810)
    assert '; it is FATAL: ' in report.line


NOWHERE = memmon.Site(memmon.parse_args(['-a', '1MB']), memmon.Server('unix:///none'), 1, 1, 0)


def test_descendants_are_ended_and_time_begins_anew_whoever_starts_the_process(
        monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[memmon.Process] = []
    monkeypatch.setattr(memmon.Job, 'end_descendants', lambda work, seen: ended.append(seen))
    work = job('web:web', site=NOWHERE, stopped=OLD, since=-1000)
    for process, count in [(seen('STOPPING', pid=7), 0), (seen('BACKOFF', start=1105), 1),
                           (seen('STARTING', start=1109), 1)]:
        assert not work.take_step(process, time.monotonic())
        assert len(ended) == count


def test_mail_shows_the_course_of_the_run_that_was_stopped() -> None:
    work = job('web:web')
    course = work.history.course
    work.history.begin_run(OLD._replace(pid=8))
    assert work.report('restarted').course is course


def test_total_is_judged_as_it_is_right_before_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of 560 MB, 210 were being stopped when this process was chosen: what it has is enough.
    table = memmon.ProcessTable({7: (1, 100 * memmon.MB), 8: (1, 460 * memmon.MB)})
    monkeypatch.setattr(memmon, 'find_children', lambda pid: (table, frozenset([7, 8])))
    monkeypatch.setattr(memmon.Server, 'process', lambda server, namespec: OLD)
    work = job('web:web', site=NOWHERE._replace(in_listener=True), total_memory=350 * memmon.MB)
    work.total = work.reading._replace(soft=300 * memmon.MB, hard=500 * memmon.MB,
                                       memory=350 * memmon.MB)
    work.look_again()
    assert work.total.level == memmon.HARD and work.total.memory == 560 * memmon.MB


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> memmon.Workers:
    """Workers that do nothing."""
    monkeypatch.setattr(memmon, 'fork', lambda *_: 2 ** 22 + 1)
    monkeypatch.setattr(os, 'waitpid', lambda pid, options: (pid, 0))
    return memmon.Workers(set())


def test_jobs_of_a_pool_go_to_one_worker(workers: memmon.Workers) -> None:
    workers.add([job('a:1'), job('b:1'), job('a:2')])
    assert [len(jobs) for jobs in workers.queue] == [2, 1]


def test_eight_young_workers_at_once_and_those_that_fail_or_grow_old_do_not_count(
        workers: memmon.Workers) -> None:
    workers.add([job(f'{letter}:1') for letter in 'abcdefghijklm'])
    workers.start_some(NOWHERE)
    assert (len(workers.workers), len(workers.queue)) == (8, 5)
    workers.workers[0].jobs[0] = job('a:1', is_reported=True)
    workers.workers[1].began -= 61
    workers.start_some(NOWHERE)
    assert (len(workers.workers), len(workers.queue)) == (10, 3)


@pytest.mark.parametrize('last, left', [
    ('restarted', ['a:2', 'b:1']), ('not restarted', ['a:2', 'b:1']),
    ('gave up starting', ['b:1'])])
def test_listener_goes_on_with_its_own_restart_where_it_has_paused(
        last: str, left: list[str], workers: memmon.Workers, monkeypatch: pytest.MonkeyPatch
        ) -> None:
    def no_fork(*_: object) -> None:
        raise OSError(12, 'Cannot allocate memory')

    begun: list[tuple[str, float]] = []
    script = [[memmon.UNDER_WAY], [FAILED], [], [last]]  # what is told before each pause

    def steps(work: memmon.Job, site: memmon.Site, config: object) -> Any:
        assert site.in_listener
        begun.append((work.old.namespec, work.up_secs))
        left = vars(work).setdefault('script', list(script))
        for event in left.pop(0):
            work.is_reported = work.is_reported or event == FAILED
            work.is_done = event == last
            yield work.report(event, command='after')

    monkeypatch.setattr(memmon, 'fork', no_fork)
    monkeypatch.setattr(memmon.Job, 'steps', steps)
    workers.add([job('a:1', siblings=('a:2',)), job('a:2', siblings=('a:1',)), job('b:1')])
    found = [workers.start_some(NOWHERE) for _ in range(6)]
    assert [[report.event for _, report in steps] for steps in found] == [
        [memmon.UNDER_WAY], [FAILED], [memmon.UNDER_WAY], [FAILED], [], []]
    a, b = ('a:1', memmon.FIRST_UP_SECS), ('b:1', memmon.UP_SECS)
    assert begun == [a, a, b, b, a, b]  # what fails lets the others go first
    assert [report.event for _, report in workers.start_some(NOWHERE)] == [last]
    assert not any(report.command for steps in found for _, report in steps)
    assert [each.reading.process.namespec for jobs in workers.queue for each in jobs] == left


def test_all_that_has_been_stopped_gets_a_worker_at_once(workers: memmon.Workers) -> None:
    workers.queue = [[job(f'{letter}:1', stop_requested=True)] for letter in 'abcdefghijklm']
    workers.start_some(NOWHERE)
    assert (len(workers.workers), workers.queue) == (13, [])


def write_steps(workers: memmon.Workers, *steps: memmon.Step) -> tuple[memmon.Worker, int]:
    """Return a worker for two processes that has written so much and was killed, and its pipe."""
    reader, writer = os.pipe()
    worker = memmon.Worker(2 ** 22 + 1, reader, [job('a:1'), job('a:2')])
    workers.workers.append(worker)
    for step in steps:
        memmon.send_step(writer, 0, *step)
    os.close(writer)
    return worker, reader


def test_next_worker_knows_what_the_killed_one_had_reported_and_measured(
        workers: memmon.Workers) -> None:
    far = job('a:1', stop_requested=True, is_reported=True, stopped=OLD, was_run=True,
              descendants={8: memmon.Stat(start=500, group=7)})
    worker, reader = write_steps(workers, (far, memmon.Report(FAILED, '', far.reading)))
    history = worker.jobs[0].history
    workers.collect([reader])
    assert worker.is_failing and not worker.jobs[0].is_done
    workers.collect([reader])
    [[left]] = workers.queue
    assert left.history is history  # not the worker's copy
    assert left.course.points == far.course.points
    assert {**vars(left), 'history': far.history, 'course': far.course, 'deaths': 0} == vars(far)
    left.is_done = True
    assert not worker.is_failing


@pytest.mark.parametrize('kind, memory', [('rss', '40MB'), ('pss', '30MB'), ('private', '90MB')])
def test_new_run_is_measured_and_not_the_old_one(kind: str, memory: str,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    def read_fields(pid: int, fields: Sequence[str], file: str = 'smaps_rollup') -> int:
        if pid != 9 or file != 'smaps_rollup':
            raise FileNotFoundError
        return len(fields) * 30 << 20
    table = memmon.ProcessTable({9: (1, 40 << 20)})
    monkeypatch.setattr(memmon, 'find_children', lambda pid: (table, frozenset([9])))
    monkeypatch.setattr(memmon, 'read_fields', read_fields)
    work = job('web:web', site=NOWHERE)
    work.reading = memmon.take_reading(memmon.ProcessTable({7: (1, 50)}), work.reading._replace(
        measure=memmon.MEASURES[kind]), False)
    assert work.describe_new(seen('RUNNING', pid=9)).endswith(f' -> {memory}')


def test_step_is_written_whole_though_a_signal_ends_a_write_halfway(
        workers: memmon.Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, 'write', lambda descriptor, data: write(descriptor, data[:1000]))
    one = job('a:1', stop_requested=True)
    worker, reader = write_steps(workers, (one, memmon.Report(FAILED, '', one.reading)))
    [(_, report)] = workers.collect([reader])
    assert (report.event, worker.unread) == (FAILED, b'')


@pytest.mark.parametrize('what', ['a fork', 'the end of a killed worker'])
def test_sigterm_finds_what_was_stopped_in_one_place(
        what: str, workers: memmon.Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    def come(*_: int) -> int:
        """Let SIGTERM come in the middle."""
        # To this thread: a test has others, which do not block it.
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        return 0

    def end(*_: object) -> NoReturn:
        raise SystemExit

    if what == 'a fork':
        workers.queue = [[job('a:1', stop_requested=True)]]
        monkeypatch.setattr(memmon, 'fork', come)
    else:
        one = job('a:1', stop_requested=True)
        _, reader = write_steps(workers, (one, memmon.Report(memmon.UNDER_WAY, '', one.reading)))
        workers.collect([reader])
        monkeypatch.setattr(os, 'waitpid', come)
    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(SystemExit):
            if what == 'a fork':
                workers.start_some(NOWHERE)
            else:
                workers.collect([reader])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [each.old.namespec for each in workers.jobs() if each.stop_requested] == ['a:1']
    assert len(workers.queue) == (what != 'a fork')


@needs_proc
def test_what_was_not_counted_is_named_if_it_is_in_the_process_group_that_was_stopped() -> None:
    with subprocess.Popen(['sleep', '60'], start_new_session=True) as left:
        try:
            work = job('web:web', site=NOWHERE)
            work.reading = work.reading._replace(measure=memmon.Measure('RSS', (), with_tree=True))
            work.old = work.old._replace(pid=left.pid)
            work.end_descendants(seen('STOPPED'))
            assert work.remarks == [f'still alive after the stop: pid {left.pid}']
            # The group of the run that was stopped counts, which may be a successor.
            work.remarks, work.old = [], work.old._replace(pid=1)
            work.stopped = work.old._replace(pid=left.pid)
            work.end_descendants(seen('STOPPED'))
        finally:
            left.kill()
    assert work.remarks == [f'still alive after the stop: pid {left.pid}']


def test_nothing_is_named_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, 'listdir', lambda path: os.stat('/nonexistent/proc'))
    assert memmon.find_group(os.getpgrp()) == {}


@pytest.mark.parametrize('stop_requested, command, logged', [
    (True, 'after', 1),   # before what the command prints
    (True, '', 0),
    (False, 'after', 0),  # a refusal, which the listener logs, once only
])
def test_worker_logs_what_commands_follow(stop_requested: bool, command: str, logged: int,
                                          caplog: pytest.LogCaptureFixture,
                                          workers: memmon.Workers) -> None:
    caplog.set_level('INFO')
    one = job('a:1', stop_requested=stop_requested)
    worker, reader = write_steps(workers, (one, memmon.Report('not restarted', '', one.reading,
                                                              command=command)))
    assert len(caplog.messages) == logged
    [(_, report)] = workers.collect([reader])
    assert bool(report.command) == logged  # else the listener logs it


def test_what_ends_each_worker_is_not_tried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    server: Any = Pool('RUNNING')
    keep_time(monkeypatch, server)
    site = memmon.Site(memmon.parse_args(['-a', '1MB']), server, os.getpid(), os.getppid(), 0)
    took = []
    for deaths in (0, 3, 99):
        began = server.secs
        next(job(f'web:{deaths}', deaths=deaths, stop_requested=True).steps(site, {}))
        took.append(server.secs - began)
    assert [secs - took[0] for secs in took] == pytest.approx([0, 3, 10], abs=1)


GOING = {'stop_requested': True}


@pytest.mark.parametrize('steps, left', [
    ([], []),                                       # killed before it asked for the stop
    ([(memmon.UNDER_WAY, {'was_run': True})], ['a:1']),  # `after` or `failed` is to follow
    ([(memmon.UNDER_WAY, GOING)], ['a:1']),
    ([(memmon.UNDER_WAY, GOING), (FAILED, {**GOING, 'is_reported': True})], ['a:1']),
    ([(memmon.UNDER_WAY, GOING), ('restarted', {**GOING, 'is_done': True})], []),
])
def test_killed_worker_leaves_what_it_had_announced_to_the_next(
        steps: list[tuple[str, dict[str, bool]]], left: list[str], workers: memmon.Workers,
        caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level('WARNING')
    worker, reader = write_steps(workers, *(
        (job('a:1', **fields), memmon.Report(event, '', job('a:1').reading))
        for event, fields in steps))
    found = []
    while worker in workers.workers:
        found += workers.collect([reader])
    assert [report.event for _, report in found] == [event for event, _ in steps]
    assert [each.reading.process.namespec for jobs in workers.queue for each in jobs] == left
    assert all(jobs[0].has_begun and jobs[0].deaths == 1 for jobs in workers.queue)
    assert len(caplog.messages) == len(left)
    assert [each.is_reported for jobs in workers.queue for each in jobs] == [
        FAILED in dict(steps)] * len(left)
