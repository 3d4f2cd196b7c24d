"""Restarts while somebody or something else has a hand in it, under a real supervisord."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Iterator, List

import pytest
from adversary import (ACTOR, TINY, Proxy, actor, first, lose_answer, lose_request, most_down,
                       sleeper, wait_idle, worker_of)
from harness import (LIMIT, SAVE_MAIL, StartMemmon, StartSupervisord, Supervisord, children_of, hog,
                     is_running, read_mails, wait_until)


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    proxy = Proxy(tmp_path)
    yield proxy
    proxy.end()


def kill_and_wait(supervisord: Supervisord, name: str, state: str) -> None:
    """Kill a process; wait until supervisord shows its end or its successor."""
    pid = supervisord.pid(name)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: supervisord.state(name) == state and supervisord.pid(name) != pid)


def test_whatever_happens_between_the_look_and_the_stop(
        tmp_path: Path, proxy: Proxy, start_supervisord: StartSupervisord,
        start_memmon: StartMemmon) -> None:
    names = ['successor', 'backoff', 'exited', 'no-answer', 'no-request']
    supervisord = start_supervisord(
        sleeper('successor', autorestart='true', stopwaitsecs=2)
        + actor('backoff', '--ends', 'broken', startsecs=1, autorestart='true')
        + sleeper('exited', autorestart='false') + sleeper('no-answer') + sleeper('no-request'))
    pids = {name: supervisord.wait_new_pid(name, 0) for name in names}
    for name, state in [('successor', 'RUNNING'), ('backoff', 'BACKOFF'), ('exited', 'EXITED')]:
        proxy.at('stopProcess', f'{name}:{name}',
                 first(lambda name=name, state=state: (  # type: ignore[misc]
                     kill_and_wait(supervisord, name, state), (tmp_path / 'broken').unlink()
                     if name == 'backoff' else None)))
    proxy.at('stopProcess', 'no-answer:no-answer', lose_answer)
    proxy.at('stopProcess', 'no-request:no-request', lose_request)
    memmon = start_memmon(supervisord, '-a', TINY, **proxy.env)
    (tmp_path / 'broken').touch()  # for the next life
    memmon.send()
    wait_idle(memmon)
    states = {name: supervisord.state(name) for name in names}
    assert states == {**dict.fromkeys(names, 'RUNNING'), 'exited': 'EXITED'}
    assert supervisord.pid('no-request') == pids['no-request']  # left alone: nothing was stopped
    spawned = {name: supervisord.spawned(name) for name in names if name != 'backoff'}
    assert spawned == {'successor': 3, 'exited': 1, 'no-answer': 2, 'no-request': 1}
    for name in ('successor', 'backoff', 'no-answer'):
        assert f' restarted {name}:{name}: ' in memmon.log()
    for name in ('exited', 'no-request'):
        assert f' left alone {name}:{name}: ' in memmon.log()


def test_programs_that_die_young_all_come_back(
        tmp_path: Path, start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    # Until a file says that they may last, so that a stop often hits the next life.
    names = [f'young{number}' for number in range(24)]
    life = "sh -c 'test -e settled && exec sleep 1000; exec sleep 1.1'"
    supervisord = start_supervisord(
        ''.join(hog(name, command=life, autorestart='true', stopwaitsecs=2) for name in names))
    memmon = start_memmon(supervisord, '-a', TINY)
    for _ in range(2):
        memmon.send()
        wait_idle(memmon)
    (tmp_path / 'settled').touch()
    for name in names:
        supervisord.wait_state(name, 'RUNNING')
    assert ' restarted young' in memmon.log()


def replaceable(tmp_path: Path, name: str, *args: str) -> Path:
    """Return a file that runs an actor, for a test to take away and put back."""
    command = tmp_path / name
    command.write_text(f'#!/bin/sh\nexec {sys.executable} {ACTOR} {" ".join(args)}\n')
    command.chmod(0o755)
    return command


def test_refused_start_is_tried_on_without_ticks_and_without_memmon(
        tmp_path: Path, start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    names = ['waits', 'killed', 'ended']  # what becomes of their memmon
    commands = [replaceable(tmp_path, name, '--once', f'{name}.once') for name in names]
    supervisord = start_supervisord(
        ''.join(hog(name, command=str(command)) for name, command in zip(names, commands)))
    supervisord.wait_big(*names)
    memmons = [start_memmon(supervisord, '-p', f'{name}={LIMIT}', *SAVE_MAIL) for name in names]
    for command in commands:
        command.rename(f'{command}.away')
    for memmon in memmons:
        memmon.send()
    for name, memmon in zip(names, memmons):
        memmon.wait_log(f' failed to start {name}:{name}: ')
    memmons[1].process.kill()
    memmons[2].stdin.close()
    assert memmons[2].process.wait() == 0
    assert [supervisord.state(name) for name in names] == ['STOPPED'] * 3
    for command in commands:
        Path(f'{command}.away').rename(command)
    for name in names:
        supervisord.wait_state(name, 'RUNNING')
    wait_until(lambda: len(read_mails(tmp_path)) == 6)
    subjects = [line for mail in read_mails(tmp_path) for line in mail.splitlines()
                if line.startswith('Subject: ')]
    assert sorted(subjects) == sorted(
        f'Subject: memmon: {news}' for name in names
        for news in (f'failed to start process {name}:{name}', f'process {name}:{name} restarted'))


@pytest.mark.parametrize('numbers', [[signal.SIGTERM], [signal.SIGKILL]])
def test_only_what_is_owed_is_started_when_memmon_is_ended(
        numbers: List[int], tmp_path: Path, start_supervisord: StartSupervisord,
        start_memmon: StartMemmon) -> None:
    names = ['pool:a', 'pool:b', 'pool:c', 'single']
    supervisord = start_supervisord(
        ''.join(actor(name, '--holds', 'go') for name in ('a', 'b', 'c', 'single'))
        + '[group:pool]\nprograms=a,b,c\n')
    pids = supervisord.wait_big(*names)
    memmon = start_memmon(supervisord, '-a', LIMIT, *SAVE_MAIL)
    memmon.send()
    supervisord.wait_state('pool:a', 'STOPPING')
    supervisord.wait_state('single', 'STOPPING')
    worker = worker_of(memmon)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(worker, signum)  # as killall does, which ends all that is called memmon
    for signum in numbers:
        os.kill(memmon.pid, signum)
    memmon.process.wait()
    (tmp_path / 'go').touch()
    wait_until(lambda: not is_running(worker))
    assert [supervisord.pid(name) == pid for name, pid in zip(names, pids)] == [
        False, True, True, False]
    assert [supervisord.state(name) for name in names] == ['RUNNING'] * 4
    mails = read_mails(tmp_path)
    assert len(mails) == 2 and all(' restarted\n' in mail for mail in mails)


def test_never_two_members_down_when_memmon_is_replaced(
        tmp_path: Path, start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    members = ['a', 'b', 'c']
    supervisord = start_supervisord(
        ''.join(actor(name, '--once', f'{name}.once', '--holds', 'go', startsecs=1)
                for name in members) + '[group:pool]\nprograms=a,b,c\n',
        settings='loglevel=debug\n')
    supervisord.wait_big(*[f'pool:{name}' for name in members])
    old = start_memmon(supervisord, '-a', LIMIT)
    old.send()
    supervisord.wait_state('pool:a', 'STOPPING')
    old.process.kill()
    new = start_memmon(supervisord, '-a', LIMIT)
    new.send()
    wait_until(new.is_busy)
    (tmp_path / 'go').touch()
    new.wait_log(' restarted pool:b: ')
    new.wait_log(' restarted pool:c: ')
    assert [supervisord.spawned(name) for name in members] == [2, 2, 2]
    assert most_down(supervisord, *members) == 1


def test_group_waits_for_a_member_that_an_operator_restarts(
        start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(
        sleeper('a', startsecs=2) + actor('b', '--once', 'once')
        + '[group:pool]\nprograms=a,b\n', settings='loglevel=debug\n')
    supervisord.wait_big('pool:b')
    supervisord.wait_state('pool:a', 'RUNNING')
    supervisord.call('stopProcess', 'pool:a')
    supervisord.call('startProcess', 'pool:a', False)
    memmon = start_memmon(supervisord, '-a', LIMIT)
    memmon.send()
    memmon.wait_log(' restarted pool:b: ')
    assert most_down(supervisord, 'a', 'b') == 1


def test_slow_stop_keeps_no_other_group(
        tmp_path: Path, start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    names = [f'quick{number}' for number in range(20)]  # more than there are restarts at once
    supervisord = start_supervisord(
        actor('a-slow', '--holds', 'go') + ''.join(sleeper(name) for name in names))
    supervisord.wait_big('a-slow')
    memmon = start_memmon(supervisord, '-a', TINY)
    memmon.send()
    assert memmon.send() < 1
    assert len(children_of(memmon.pid)) == 1
    for name in names:
        memmon.wait_log(f' restarted {name}:{name}: ')
    assert supervisord.state('a-slow') == 'STOPPING'
    assert memmon.send() < 1
    memmon.wait_log('a-slow:a-slow is not down 10 seconds after the stop')
    (tmp_path / 'go').touch()
    memmon.wait_log(' restarted a-slow:a-slow: ')


def test_member_that_has_shrunk_is_left_alone_and_asked_for_anew(
        tmp_path: Path, proxy: Proxy, start_supervisord: StartSupervisord,
        start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(
        actor('a', '--holds', 'go', '--once', 'a.once') + actor('b', '--frees', 'free')
        + actor('c', '--once', 'c.once') + '[group:pool]\nprograms=a,b,c\n')
    _, b, _ = supervisord.wait_big('pool:a', 'pool:b', 'pool:c')
    memmon = start_memmon(supervisord, '-a', LIMIT, **proxy.env)
    memmon.send()
    supervisord.wait_state('pool:a', 'STOPPING')
    (tmp_path / 'free').touch()
    wait_until(lambda: rss_is_below_limit(b))
    (tmp_path / 'go').touch()
    memmon.wait_log(' restarted pool:c: ')
    assert [supervisord.spawned(name) for name in 'abc'] == [2, 1, 2]
    line, = [line for line in memmon.log().splitlines() if ' pool:b: ' in line]
    assert ' left alone pool:b: RSS ' in line and ' over ' in line
    wait_idle(memmon)
    asked = proxy.count('getAllProcessInfo')
    memmon.send('PROCESS_LOG')  # takes in that the worker has ended
    memmon.send()
    memmon.send()
    assert proxy.count('getAllProcessInfo') == asked + 1


def rss_is_below_limit(pid: int) -> bool:
    statm = Path(f'/proc/{pid}/statm').read_text()
    return int(statm.split()[1]) * os.sysconf('SC_PAGE_SIZE') < 25 << 20


@pytest.mark.skipif(not shutil.which('bash'), reason='needs bash')
def test_descendants_that_outlive_the_stop_are_named(
        tmp_path: Path, start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(
        hog('piped', command=f'bash -c "{sys.executable} {ACTOR} --once once | cat"')
        + hog('parent', command=f'{sys.executable} {ACTOR} --child --once once2'))
    shell = supervisord.pid('piped')
    parent = supervisord.pid('parent')
    leak, = wait_until(lambda: [pid for pid in children_of(shell)
                                if (tmp_path / 'once').exists() and not rss_is_below_limit(pid)])
    child, = wait_until(lambda: [pid for pid in children_of(parent)
                                 if (tmp_path / 'once2').exists() and not rss_is_below_limit(pid)])
    try:
        memmon = start_memmon(supervisord, '-c', '-a', LIMIT, *SAVE_MAIL)
        memmon.send()
        for name, pid in (('piped', leak), ('parent', child)):
            memmon.wait_log(f' restarted {name}:{name}: ')
            line, = [line for line in memmon.log().splitlines() if f' {name}:{name}: ' in line]
            mail, = wait_until(lambda: [mail for mail in read_mails(tmp_path)
                                        if f'process {name}:{name} restarted' in mail])
            for text in (line, mail):
                assert f'pid {pid} (' in text
                assert 'stopasgroup=true and killasgroup=true' in text
            assert is_running(pid)
    finally:
        os.kill(leak, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)
