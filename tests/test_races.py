"""Restarts while somebody or something else has a hand in it, under a real supervisord."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Callable, Mapping

import pytest
from fake_server import (Answer, Exchange, Rules, StartFakeServer, first, forward, lose,
                         outdated_by, raw)
from harness import (LIMIT, MEMMON, TINY, GroupWatch, Listener, Mailbox, StartListener,
                     StartSupervisord, Supervisord, children_of, group_section, is_running, kill,
                     memmon_section, pool_section, rss_mb, run, section, sleeper, wait_until)


def kill_and_wait(supervisord: Supervisord, name: str, state: str) -> None:
    """Kill a process; wait until supervisord shows its end, or its successor."""
    pid = supervisord.pid(name)
    os.kill(pid, signal.SIGKILL)

    def assert_replaced() -> None:
        info = supervisord.info(name)
        assert info['statename'] == state and info['pid'] != pid, info
    wait_until(assert_replaced)


def all_run(supervisord: Supervisord, group: str = '') -> None:
    states = supervisord.states(group)
    assert set(states.values()) == {'RUNNING'}, states


def all_older(supervisord: Supervisord, secs: int) -> None:
    uptimes = [info['now'] - info['start'] for info in supervisord.call('getAllProcessInfo')]
    assert min(uptimes) > secs, uptimes


# kill -9, at ten stages of a restart.

class Stages:
    """Ten programs, in whose restart something is done, for each at another stage."""

    calls = {
        'configs': ('supervisor.getAllConfigInfo', ''),
        'look': ('supervisor.getProcessInfo', ''),
        'before': ('', ''),  # in a command of -o before
        'stop-asked': ('supervisor.stopProcess', ''),
        'stop-done': ('supervisor.stopProcess', 'after'),
        'stopping': ('supervisor.getProcessInfo', 'after the stop'),
        'start-asked': ('supervisor.startProcess', ''),
        'start-done': ('supervisor.startProcess', 'after'),
        'coming': ('supervisor.getProcessInfo', 'after the start'),
        'after': ('', ''),   # in a command of -o after
    }

    def __init__(self, act: Callable[[str], None]) -> None:
        self.act = act
        self.done: set[str] = set()
        self.asked: dict[str, set[str]] = {name: set() for name in self.calls}

    def answer(self, name: str) -> Answer:
        """Return the answer of the server of a program: forward, but act at its stage."""
        return lambda exchange: self.pass_on(name, exchange)

    def pass_on(self, name: str, exchange: Exchange) -> None:
        methods = [exchange.method]
        if exchange.method == 'system.multicall':
            methods = [call['methodName'] for call in exchange.params[0]]
        asked, (method, when) = self.asked[name], self.calls[name]
        is_time = method in methods and {
            '': True, 'after': True,
            'after the stop': 'supervisor.stopProcess' in asked,
            'after the start': 'supervisor.startProcess' in asked}[when]
        asked.update(methods)
        if is_time and when != 'after':
            self.act_once(name)
        if is_time and when == 'after':
            answer = exchange.server.ask_behind(exchange.request)
            self.act_once(name)
            exchange.send(answer)
        else:
            forward(exchange)

    def act_once(self, name: str) -> None:
        if name not in self.done:
            self.done.add(name)
            self.act(name)


UNANNOUNCED = ('configs', 'look', 'before')  # the stages before the stop is announced


def pass_stages(stages: Stages, listeners: Mapping[str, Listener], tmp_path: Path) -> None:
    """Have each listener restart its program, past the stage at which something happens."""
    for listener in listeners.values():
        listener.send()
    for name in ('before', 'after'):
        wait_until((tmp_path / f'{name}.{name}').exists)
        stages.act_once(name)
    (tmp_path / 'go').touch()


def start_ten(stages: Stages, path: Path, supervisord: Supervisord,
              start_listener: StartListener, start_fake_server: StartFakeServer
              ) -> dict[str, Listener]:
    """Start a memmon for each program."""
    listeners = {}
    for name in stages.calls:
        server = start_fake_server(stages.answer(name), supervisord.env)
        hold = [f'{event}=touch $MEMMON_NAME.{event}; test $MEMMON_NAME != {event} || '
                'until test -e go; do sleep 0.05; done' for event in ('before', 'after')]
        listeners[name] = start_listener(server, '-p', f'{name}={TINY}', '-o', hold[0],
                                         '-o', hold[1])
    return listeners


@pytest.mark.skipif(not os.path.exists('/proc/self/stat'), reason='needs the /proc of Linux')
def test_worker_is_killed_at_any_stage(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener,
        start_fake_server: StartFakeServer) -> None:
    supervisord = start_supervisord(''.join(map(sleeper, Stages.calls)))
    supervisord.wait_up(*Stages.calls)
    listeners: dict[str, Listener] = {}

    def kill_worker(name: str) -> None:
        worker, = listeners[name].workers()
        kill(worker)

    stages = Stages(kill_worker)
    listeners.update(start_ten(stages, tmp_path, supervisord, start_listener, start_fake_server))
    pass_stages(stages, listeners, tmp_path)
    wait_until(lambda: stages.done == set(stages.calls))
    for name, listener in listeners.items():
        listener.wait_idle()
        # What was announced comes back; what was not is due again, and only that.
        listener.wait_log(f' restarted {name}:{name}: ')
        listener.send()
        listener.wait_idle()
    all_run(supervisord)
    assert {name: supervisord.spawned(name) for name in listeners} == dict.fromkeys(listeners, 2)


@pytest.mark.skipif(not os.path.exists('/proc/self/stat'), reason='needs the /proc of Linux')
@pytest.mark.parametrize('signum', [signal.SIGKILL, signal.SIGTERM])
def test_listener_is_ended_at_any_stage(
        signum: int, tmp_path: Path, start_supervisord: StartSupervisord,
        start_listener: StartListener, start_fake_server: StartFakeServer) -> None:
    supervisord = start_supervisord(''.join(map(sleeper, Stages.calls)))
    supervisord.wait_up(*Stages.calls)
    listeners: dict[str, Listener] = {}
    workers: dict[str, int] = {}

    def end_listener(name: str) -> None:
        workers[name], = listeners[name].workers()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            os.kill(workers[name], number)  # as killall does, to all that is called memmon
        os.kill(listeners[name].pid, signum)
        listeners[name].wait_end()

    stages = Stages(end_listener)
    listeners.update(start_ten(stages, tmp_path, supervisord, start_listener, start_fake_server))
    pass_stages(stages, listeners, tmp_path)
    wait_until(lambda: len(workers) == len(stages.calls))
    wait_until(lambda: not any(map(is_running, workers.values())))
    all_run(supervisord)
    begun = {name: supervisord.spawned(name) for name in listeners}
    # What was not asked to stop is not restarted: nobody would be there to see to it.
    assert begun == {name: 1 if name in UNANNOUNCED else 2 for name in listeners}


def test_kill_of_the_whole_process_group_of_memmon_leaves_the_worker(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('slow', '--holds', 'go', '--once', 'once'))
    pid, = supervisord.wait_big('slow')
    lead = 'import os, sys; os.setsid(); os.execv(sys.argv[1], sys.argv[1:])'
    listener = start_listener(supervisord, '-a', LIMIT, wrapper=[sys.executable, '-c', lead])
    listener.send()
    supervisord.wait_state('slow', 'STOPPING')
    os.killpg(listener.pid, signal.SIGKILL)
    listener.wait_end()
    (tmp_path / 'go').touch()
    supervisord.wait_new_pid('slow', pid)


# A pool rolls.

def test_pool_loses_one_member_at_a_time_and_waits_for_the_command_after(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    names = [f'pool:pool_{number:02}' for number in range(3)]
    supervisord = start_supervisord(
        pool_section('pool', 3, '--mb', '0', '--stop-secs', '0.5', startsecs=1))
    pids = supervisord.wait_up(*names)
    warm = 'echo warms >&2; echo begin >> warm; sleep 1; echo end >> warm'
    check = 'tail -n 1 warm >> seen 2>/dev/null; true'
    listener = start_listener(supervisord, '-g', f'pool={TINY}', '-o', f'after={warm}',
                              '-o', f'before={check}')
    with GroupWatch(supervisord, 'pool'):
        listener.send()
        for name, pid in zip(names, pids):
            supervisord.wait_new_pid(name, pid, secs=60)
        listener.wait_idle()
    assert (tmp_path / 'warm').read_text() == 'begin\nend\n' * 3
    assert set((tmp_path / 'seen').read_text().split()) == {'end'}
    # What the command prints comes after the line of the restart.
    assert re.findall(r'^warms$| restarted ', listener.log(), re.M) == [' restarted ', 'warms'] * 3


def test_pools_of_one_group_do_not_wait_for_each_other(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(
        section('slow', '--mb', '0', '--holds', 'go') + section('quick', '--mb', '0')
        + group_section('site', 'slow', 'quick'))
    supervisord.wait_up('site:slow', 'site:quick')
    listener = start_listener(supervisord, '-a', TINY)
    listener.send()
    listener.wait_log(' restarted site:quick: ')
    supervisord.assert_state('site:slow', 'STOPPING')
    (tmp_path / 'go').touch()
    listener.wait_log(' restarted site:slow: ')


@pytest.mark.parametrize('settings', [
    {'startsecs': 1, 'startretries': 0},             # FATAL
    {'startsecs': 0},                                # started again and again by supervisord
    {'startsecs': 0, 'autorestart': 'false'},        # EXITED
], ids=['fatal', 'flapping', 'exited'])
def test_broken_deploy_costs_a_pool_one_member(
        settings: dict[str, object], tmp_path: Path, mailbox: Mailbox,
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    names = [f'pool:pool_{number:02}' for number in range(4)]
    supervisord = start_supervisord(
        pool_section('pool', 4, '--mb', '40', '--fails-while', 'broken', **settings))
    pids = supervisord.wait_big(*names, mb=38)  # so that they have begun
    wait_until(lambda: all_older(supervisord, 1))  # supervisord's times are in whole seconds
    (tmp_path / 'broken').touch()
    listener = start_listener(supervisord, '-a', f'{TINY}..101KB', *mailbox.args)
    listener.send()
    wait_until(lambda: supervisord.spawned('pool_00') > 1)
    if settings != {'startsecs': 0}:  # else after a minute
        listener.wait_log('ERROR memmon: failed to start pool:pool_00: ')
        assert '; until it is up, no other process of its pool is touched' in listener.log()
        mailbox.wait_subject('memmon: failed to start process pool:pool_00')
    for _ in range(3):
        listener.send()
    assert [supervisord.pid(name) for name in names[1:]] == pids[1:]
    assert ' restarted pool:' not in listener.log()
    (tmp_path / 'broken').unlink()
    listener.wait_log(' restarted pool:pool_00: ', secs=60)
    listener.wait_idle(secs=90)
    listener.send()
    listener.wait_idle(secs=90)
    all_run(supervisord)
    assert [supervisord.spawned(name.split(':')[1]) for name in names[1:]] == [2] * 3
    assert len([mail for mail in mailbox.mails() if 'failed to start' in mail]) <= 1


def test_never_two_members_down_when_memmon_is_replaced(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    names = [f'pool:pool_{number}' for number in range(3)]
    supervisord = start_supervisord(section(
        'pool', '--mb', '0', '--holds', 'go', startsecs=1, numprocs=3,
        process_name='%(program_name)s_%(process_num)d'))
    supervisord.wait_up(*names)
    with GroupWatch(supervisord, 'pool'):
        old = start_listener(supervisord, '-a', TINY)
        old.send()
        supervisord.wait_state(names[0], 'STOPPING')
        old.process.kill()
        new = start_listener(supervisord, '-a', TINY)
        new.send()
        (tmp_path / 'go').touch()
        old.wait_log(f' restarted {names[0]}: ')
        new.wait_idle(secs=90)
        new.send()
        new.wait_idle(secs=90)
    for name in names[1:]:
        new.assert_log(f' restarted {name}: ')
    all_run(supervisord)


def test_pool_waits_for_a_member_that_an_operator_restarts(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(pool_section('pool', 2, '--mb', '0', startsecs=2))
    supervisord.wait_up('pool:pool_00', 'pool:pool_01')
    listener = start_listener(supervisord, '-p', f'pool:pool_01={TINY}')
    with GroupWatch(supervisord, 'pool'):
        supervisord.call('stopProcess', 'pool:pool_00')
        supervisord.call('startProcess', 'pool:pool_00', False)
        listener.send()
        listener.wait_log(' restarted pool:pool_01: ')


# supervisord shuts down or reloads.

@pytest.mark.parametrize('how', ['shutdown', 'reload'])
def test_nothing_planned_is_an_alarm(
        how: str, tmp_path: Path, mailbox: Mailbox, start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord(
        section('slow', '--stop-secs', '4', '--once', 'once')
        + section('big', '--mb', '0')
        + memmon_section('-p', f'slow={LIMIT}', *mailbox.args, autorestart='true'))
    supervisord.wait_big('slow')
    supervisord.start_memmon()
    supervisord.wait_state('slow', 'STOPPING')
    supervisord.ctl(how)
    if how == 'shutdown':
        assert supervisord.process.wait(60) == 0
    else:
        wait_until(lambda: supervisord.log.read_text().count('supervisord started') == 2)
        supervisord.wait_up('slow', 'big')
    wait_until(lambda: 'not restarted slow:slow: ' in supervisord.memmon_log())
    alarms = [line for line in supervisord.memmon_log().splitlines()
              if ' INFO ' not in line]
    assert alarms == []
    mailbox.assert_mails(0)


def test_removal_of_the_program_in_the_middle_is_no_alarm(
        mailbox: Mailbox, start_supervisord: StartSupervisord, start_listener: StartListener,
        start_fake_server: StartFakeServer) -> None:
    supervisord = start_supervisord(sleeper('gone') + sleeper('other'))
    supervisord.wait_up('gone')
    rules = Rules()
    rules.at('startProcess', 'gone:gone',
             first(lambda: supervisord.call('removeProcessGroup', 'gone')))
    listener = start_listener(start_fake_server(rules, supervisord.env), '-p', f'gone={TINY}',
                              *mailbox.args)
    listener.send()
    listener.wait_log('INFO memmon: not restarted gone:gone: ')
    assert '; supervisord no longer knows it' in listener.log()
    listener.wait_idle()
    assert 'ERROR' not in listener.log()
    mailbox.assert_mails(0)
    assert supervisord.states() == {'other': 'RUNNING'}


# Between the look and the stop, and between the answer and the look.

def test_whatever_happens_between_the_look_and_the_stop(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener,
        start_fake_server: StartFakeServer) -> None:
    names = ['successor', 'backoff', 'exited', 'no-answer', 'no-request']
    broken = tmp_path / 'broken'
    supervisord = start_supervisord(
        sleeper('successor', autorestart='true')
        + section('backoff', command="sh -c 'test -e broken && exit 1; exec sleep 1000'",
                  startsecs=1, autorestart='true', stopwaitsecs=2)
        + sleeper('exited', autorestart='false') + sleeper('no-answer') + sleeper('no-request'))
    pids = dict(zip(names, supervisord.wait_up(*names)))

    def break_down() -> None:
        kill_and_wait(supervisord, 'backoff', 'BACKOFF')
        broken.unlink()  # the start by memmon is to succeed

    rules = Rules()
    rules.at('stopProcess', 'successor:successor',
             first(lambda: kill_and_wait(supervisord, 'successor', 'RUNNING')))
    rules.at('stopProcess', 'backoff:backoff', first(break_down))
    rules.at('stopProcess', 'exited:exited',
             first(lambda: kill_and_wait(supervisord, 'exited', 'EXITED')))
    rules.at('stopProcess', 'no-answer:no-answer', lose)
    rules.at('stopProcess', 'no-request:no-request', raw(b''))
    server = start_fake_server(rules, supervisord.env)
    listener = start_listener(server, '-a', TINY)
    broken.touch()  # for the next life
    listener.send()
    listener.wait_idle()
    assert supervisord.states() == {**dict.fromkeys(names, 'RUNNING'), 'exited': 'EXITED'}
    assert supervisord.pid('no-request') == pids['no-request']
    assert [supervisord.spawned(name) for name in ('successor', 'exited', 'no-answer')] == [3, 1, 2]
    for name in ('successor', 'no-answer'):
        listener.assert_log(f' restarted {name}:{name}: ')
    assert '; it had ended just before; its successor, pid ' in listener.log()
    assert '; it had ended just before\n' in listener.log()  # backoff has no successor
    for name in ('exited', 'no-request'):
        listener.assert_log(f' not restarted {name}:{name}: ')


def test_programs_that_die_young_all_come_back(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    # Until a file says that they may last, so that a stop often hits the next life.
    names = [letter * 3 for letter in 'abcdefghijkl']
    life = "sh -c 'test -e settled && exec sleep 1000; exec sleep 1.1'"
    supervisord = start_supervisord(''.join(
        section(name, command=life, autorestart='true', stopwaitsecs=2) for name in names))
    listener = start_listener(supervisord, '-a', TINY)
    for _ in range(2):
        listener.send()
        listener.wait_idle(90)
    (tmp_path / 'settled').touch()
    wait_until(lambda: all_run(supervisord))
    assert 'cannot measure ' not in listener.log()  # what has just ended is not hidden


def test_process_that_ends_at_each_look_is_not_taken_for_hidden(
        start_supervisord: StartSupervisord, start_listener: StartListener,
        start_fake_server: StartFakeServer) -> None:
    supervisord = start_supervisord(sleeper('a', autorestart='true')
                                    + sleeper('b', autorestart='true'))
    supervisord.wait_up('a', 'b')
    rules = Rules()
    server = start_fake_server(rules, supervisord.env)

    def end_at_next_looks(*names: str) -> None:
        """Let the first process end after the next look, the second after the one that follows."""
        def end() -> None:
            kill_and_wait(supervisord, names[0], 'RUNNING')
            end_at_next_looks(*names[1:])
        if names:
            rules.at('getAllProcessInfo', '', outdated_by(end))

    end_at_next_looks('a', 'b')
    listener = start_listener(server, '-a', '1GB')
    listener.send()
    assert rules.count('getAllProcessInfo') == 2
    end_at_next_looks('a', 'b')
    done = run(MEMMON, '--check', '-a', '1GB', env=server.env)
    assert (done.status, done.stderr) == (0, '') and 'cannot measure ' not in done.stdout
    assert 'cannot measure ' not in listener.log()


def test_process_that_starts_between_the_answer_and_the_look_is_seen_at_the_next(
        start_supervisord: StartSupervisord, start_listener: StartListener,
        start_fake_server: StartFakeServer) -> None:
    supervisord = start_supervisord(sleeper('other') + sleeper('late', autostart='false'))
    supervisord.wait_up('other')
    rules = Rules()
    rules.at('getAllProcessInfo', '',
             outdated_by(lambda: supervisord.call('startProcess', 'late')))
    listener = start_listener(start_fake_server(rules, supervisord.env), '-p', f'late={TINY}')
    listener.send()
    pid, = supervisord.wait_up('late')
    wait_until(lambda: rss_mb(pid) > 0.5)  # at first, before it runs its own program, it has none
    listener.send()
    supervisord.wait_new_pid('late', pid)


def test_refused_start_is_tried_on_without_ticks_and_without_memmon(
        tmp_path: Path, mailbox: Mailbox, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    names = ['waits', 'killed', 'ended']  # what becomes of their memmon
    for name in names:
        (tmp_path / name).write_text('#!/bin/sh\nexec sleep 1000\n')
        (tmp_path / name).chmod(0o755)
    supervisord = start_supervisord(''.join(
        section(name, command=str(tmp_path / name), stopwaitsecs=2) for name in names))
    supervisord.wait_up(*names)
    listeners = [start_listener(supervisord, '-p', f'{name}={TINY}', *mailbox.args)
                 for name in names]
    for name in names:
        (tmp_path / name).rename(tmp_path / f'{name}.away')
    for listener in listeners:
        listener.send()  # the last tick that it ever gets
    for name, listener in zip(names, listeners):
        listener.wait_log(f' failed to start {name}:{name}: ')
        mailbox.wait_subject(f'memmon: failed to start process {name}:{name}')
    listeners[1].process.kill()
    listeners[2].stdin.close()
    assert listeners[2].wait_end() == 0
    assert supervisord.states() == dict.fromkeys(names, 'STOPPED')
    for name in names:
        (tmp_path / f'{name}.away').rename(tmp_path / name)
    supervisord.wait_up(*names)
    for name in names:
        mailbox.wait_subject(f'memmon: process {name}:{name} restarted')
    mailbox.assert_mails(6)


def test_stdin_closes_and_a_worker_is_killed_in_the_same_moment(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('slow', '--holds', 'go', '--once', 'once'))
    pid, = supervisord.wait_big('slow')
    listener = start_listener(supervisord, '-a', LIMIT)
    listener.send()
    supervisord.wait_state('slow', 'STOPPING')
    worker, = children_of(listener.pid)
    os.kill(listener.pid, signal.SIGSTOP)
    kill(worker)
    wait_until(lambda: not is_running(worker))
    listener.stdin.close()
    os.kill(listener.pid, signal.SIGCONT)
    listener.wait_end()
    (tmp_path / 'go').touch()
    supervisord.wait_new_pid('slow', pid)
