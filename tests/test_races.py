"""Restarts while somebody or something else has a hand in it, under a real supervisord."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from adversary import ACTOR, TINY, Rules, actor, first, outdated_by, sleeper
from harness import (BIG_MB, LIMIT, MEMMON, GroupWatch, Mailbox, StartListener,
                     StartSupervisord, Supervisord, assert_equal, children_of, group_section,
                     is_running, kill, rss_mb, run, section, wait_until)
from rpc import StartFakeServer, lose, raw


def kill_and_wait(supervisord: Supervisord, name: str, state: str) -> None:
    """Kill a process; wait until supervisord shows its end, or its successor."""
    pid = supervisord.pid(name)
    os.kill(pid, signal.SIGKILL)

    def assert_replaced() -> None:
        info = supervisord.info(name)
        assert info['statename'] == state and info['pid'] != pid, info
    wait_until(assert_replaced)


def test_whatever_happens_between_the_look_and_the_stop(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener,
        start_fake_server: StartFakeServer) -> None:
    names = ['successor', 'backoff', 'exited', 'no-answer', 'no-request']
    broken = tmp_path / 'broken'
    supervisord = start_supervisord(
        # A SIGTERM between supervisord's fork and the exec of the program is lost.
        sleeper('successor', autorestart='true', stopwaitsecs=2)
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
    memmon = start_listener(server, '-a', TINY)
    broken.touch()  # for the next life
    memmon.send()
    memmon.wait_idle()
    assert supervisord.states() == {**dict.fromkeys(names, 'RUNNING'), 'exited': 'EXITED'}
    assert supervisord.pid('no-request') == pids['no-request']
    assert [supervisord.spawned(name) for name in ('successor', 'exited', 'no-answer')] == [3, 1, 2]
    for name in ('successor', 'backoff', 'no-answer'):
        memmon.assert_log(f' restarted {name}:{name}: ')
    for name in ('exited', 'no-request'):
        memmon.assert_log(f' left alone {name}:{name}: ')


def test_programs_that_die_young_all_come_back(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    # Until a file says that they may last, so that a stop often hits the next life.
    names = [f'young{number}' for number in range(24)]
    life = "sh -c 'test -e settled && exec sleep 1000; exec sleep 1.1'"
    supervisord = start_supervisord(''.join(
        section(name, command=life, autorestart='true', stopwaitsecs=2) for name in names))
    memmon = start_listener(supervisord, '-a', TINY)
    for _ in range(2):
        memmon.send()
        memmon.wait_idle(90)  # each call takes its time while supervisord starts one after another
    (tmp_path / 'settled').touch()
    wait_until(lambda: assert_equal(supervisord.states(), dict.fromkeys(names, 'RUNNING')))
    assert 'cannot measure ' not in memmon.log()  # what has just ended is not hidden


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
    memmon = start_listener(server, '-a', '1GB')
    memmon.send()
    assert rules.count('getAllProcessInfo') == 2
    end_at_next_looks('a', 'b')
    done = run(MEMMON, '--check', '-a', '1GB', env=server.env)
    assert (done.status, done.stderr) == (0, '') and 'unknown' not in done.stdout
    assert 'cannot measure ' not in memmon.log()


def replaceable(path: Path, *args: str) -> str:
    """Make a file that runs an actor, and that a test can take away; return its section."""
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -S {ACTOR} {" ".join(args)}\n')
    path.chmod(0o755)
    return section(path.name, command=str(path))


def test_refused_start_is_tried_on_without_ticks_and_without_memmon(
        tmp_path: Path, mailbox: Mailbox, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    names = ['waits', 'killed', 'ended']  # what becomes of their memmon
    supervisord = start_supervisord(''.join(
        replaceable(tmp_path / name, '--once', f'{name}.once') for name in names))
    supervisord.wait_big(*names)
    memmons = [start_listener(supervisord, '-p', f'{name}={LIMIT}', *mailbox.args)
               for name in names]
    for name in names:
        (tmp_path / name).rename(tmp_path / f'{name}.away')
    for memmon in memmons:
        memmon.send()  # the last tick that it ever gets
    for name, memmon in zip(names, memmons):
        memmon.wait_log(f' failed to start {name}:{name}: ')
    memmons[1].process.kill()
    memmons[2].stdin.close()
    assert memmons[2].wait_end() == 0
    assert supervisord.states() == dict.fromkeys(names, 'STOPPED')
    for name in names:
        (tmp_path / f'{name}.away').rename(tmp_path / name)
    supervisord.wait_up(*names)
    subjects = [line for mail in mailbox.wait(6) for line in mail.splitlines()
                if line.startswith('Subject: ')]
    assert sorted(subjects) == sorted(
        f'Subject: memmon: {news}' for name in names
        for news in (f'failed to start process {name}:{name}', f'process {name}:{name} restarted'))


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGKILL])
def test_only_what_is_owed_is_started_when_memmon_is_ended(
        signum: int, tmp_path: Path, mailbox: Mailbox, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    names = ['pool:a', 'pool:b', 'pool:c', 'single']
    supervisord = start_supervisord(
        ''.join(actor(name, '--holds', 'go') for name in ('a', 'b', 'c', 'single'))
        + group_section('pool', 'a', 'b', 'c'))
    pids = supervisord.wait_big(*names)
    memmon = start_listener(supervisord, '-a', LIMIT, *mailbox.args)
    memmon.send()
    supervisord.wait_state('pool:a', 'STOPPING')
    supervisord.wait_state('single', 'STOPPING')
    worker, = memmon.workers()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(worker, number)  # as killall does, to all that is called memmon
    os.kill(memmon.pid, signum)
    memmon.wait_end()
    (tmp_path / 'go').touch()
    wait_until(lambda: assert_equal(is_running(worker), False))
    assert set(supervisord.states().values()) == {'RUNNING'}
    is_same = [supervisord.pid(name) == pid for name, pid in zip(names, pids)]
    assert is_same == [False, True, True, False]
    assert all(' restarted\n' in mail for mail in mailbox.wait(2))


def test_never_two_members_down_when_memmon_is_replaced(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    members = ['a', 'b', 'c']
    supervisord = start_supervisord(
        ''.join(actor(name, '--once', f'{name}.once', '--holds', 'go', startsecs=1)
                for name in members) + group_section('pool', *members))
    supervisord.wait_big(*[f'pool:{name}' for name in members])
    with GroupWatch(supervisord, 'pool'):
        old = start_listener(supervisord, '-a', LIMIT)
        old.send()
        supervisord.wait_state('pool:a', 'STOPPING')
        old.process.kill()
        new = start_listener(supervisord, '-a', LIMIT)
        new.send()
        wait_until(lambda: assert_equal(len(new.workers()), 1))
        (tmp_path / 'go').touch()
        new.wait_log(' restarted pool:b: ')
        new.wait_log(' restarted pool:c: ')
    assert [supervisord.spawned(name) for name in members] == [2, 2, 2]


def test_group_waits_for_a_member_that_an_operator_restarts(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(sleeper('a', startsecs=2) + actor('b', '--once', 'once')
                                    + group_section('pool', 'a', 'b'))
    supervisord.wait_big('pool:b')
    supervisord.wait_up('pool:a')
    memmon = start_listener(supervisord, '-a', LIMIT)
    with GroupWatch(supervisord, 'pool'):
        supervisord.call('stopProcess', 'pool:a')
        supervisord.call('startProcess', 'pool:a', False)
        memmon.send()
        memmon.wait_log(' restarted pool:b: ')


def test_slow_stop_keeps_no_other_group_and_is_told(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    names = [f'quick{number}' for number in range(20)]  # more than there are restarts at once
    supervisord = start_supervisord(
        actor('a-slow', '--holds', 'go') + ''.join(map(sleeper, names)))
    supervisord.wait_big('a-slow')
    memmon = start_listener(supervisord, '-a', TINY)
    memmon.send()
    assert memmon.send() < 1
    assert len(memmon.workers()) == 1
    for name in names:
        memmon.wait_log(f' restarted {name}:{name}: ')
    assert supervisord.state('a-slow') == 'STOPPING'
    memmon.wait_log(' a-slow:a-slow is not down 10 seconds after the stop')
    assert memmon.send() < 1
    (tmp_path / 'go').touch()
    memmon.wait_log(' restarted a-slow:a-slow: ')


def assert_small(pid: int) -> None:
    assert rss_mb(pid) < 30


def test_member_that_has_shrunk_is_left_alone_and_named_anew(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener,
        start_fake_server: StartFakeServer) -> None:
    supervisord = start_supervisord(
        actor('a', '--holds', 'go', '--once', 'a.once') + actor('b', '--frees', 'free')
        + actor('c', '--once', 'c.once') + group_section('pool', 'a', 'b', 'c'))
    _, b, _ = supervisord.wait_big('pool:a', 'pool:b', 'pool:c')
    rules = Rules()
    memmon = start_listener(start_fake_server(rules, supervisord.env), '-a', LIMIT)
    memmon.send()
    supervisord.wait_state('pool:a', 'STOPPING')
    (tmp_path / 'free').touch()
    wait_until(lambda: assert_small(b))
    (tmp_path / 'go').touch()
    memmon.wait_log(' restarted pool:c: ')
    memmon.assert_log(' left alone pool:b: RSS ')
    assert [supervisord.spawned(name) for name in 'abc'] == [2, 1, 2]
    memmon.wait_idle()
    memmon.send('PROCESS_LOG')  # by when it knows that the worker has ended
    asked = rules.count('getAllProcessInfo')
    memmon.send()
    memmon.send()
    assert rules.count('getAllProcessInfo') == asked + 1


def assert_big_child(pid: int) -> int:
    """Return the pid of the child that has taken its memory."""
    big = [child for child in children_of(pid) if rss_mb(child) > BIG_MB]
    assert big, f'no child of {pid} has taken its memory'
    return big[0]


@pytest.mark.skipif(not shutil.which('bash'), reason='needs bash')
def test_descendants_that_outlive_the_stop_are_named(
        mailbox: Mailbox, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(
        section('piped', command=f'bash -c "{sys.executable} -S {ACTOR} --once piped.once | cat"')
        + actor('parent', '--child', '--once', 'parent.once'))
    names = ['piped', 'parent']
    leaks = wait_until(lambda: [assert_big_child(supervisord.pid(name)) for name in names])
    try:
        memmon = start_listener(supervisord, '-c', '-a', LIMIT, *mailbox.args)
        memmon.send()
        mails = mailbox.wait(2)
        for name, pid in zip(names, leaks):
            line, = [line for line in memmon.messages() if f' restarted {name}:{name}: ' in line]
            mail, = [mail for mail in mails if f' {name}:{name} restarted\n' in mail]
            for text in (line, mail):
                assert f'pid {pid} (' in text
                assert 'stopasgroup=true and killasgroup=true' in text
            assert is_running(pid)  # memmon itself kills nothing
    finally:
        kill(*leaks)
