"""When a process is restarted, and when not: the rules under a real supervisord."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Iterator

import pytest
from harness import (LIMIT, MEMMON, Done, Listener, Mailbox, StartListener, StartSupervisord,
                     Supervisord, assert_equal, rss_mb, run, section, wait_until)

import memmon

DIAL = str(Path(__file__).parent / 'dial.py')
MB = 2 ** 20
SLACK_MB = 25  # Python itself


def dial_section(name: str, *args: str, **settings: Any) -> str:
    """Return the section of a program that uses as many MB as set_mb says."""
    return section(name, command=' '.join([sys.executable, '-S', DIAL, f'{name}.mb', *args]),
                   **settings)


def set_mb(supervisord: Supervisord, **mb: int) -> None:
    """Have programs use so much, and wait until they do."""
    for name, figure in mb.items():
        draft = supervisord.path / f'{name}.new'
        draft.write_text(str(figure))
        draft.rename(supervisord.path / f'{name}.mb')
    for name, figure in mb.items():
        wait_until(lambda: assert_mb(supervisord, name, figure))


def assert_mb(supervisord: Supervisord, name: str, mb: int) -> None:
    seen = rss_mb(supervisord.assert_new_pid(name, 0))
    assert mb <= seen <= mb + SLACK_MB, f'{name} uses {seen} MB, not about {mb}'


def start_dials(start_supervisord: StartSupervisord, **mb: int) -> Supervisord:
    supervisord: Supervisord = start_supervisord(''.join(map(dial_section, mb)))
    set_mb(supervisord, **mb)
    return supervisord


def tick_until_restarted(listener: Listener, supervisord: Supervisord, name: str, pid: int) -> int:
    """Tick until memmon has restarted a process, and knows it; return its new pid."""
    def attempt() -> int:
        listener.send()
        return supervisord.assert_new_pid(name, pid)

    count = listener.log().count(' memmon: restarted ')
    new_pid = wait_until(attempt)
    listener.wait_log(' memmon: restarted ', count + 1)
    listener.wait_idle()
    return new_pid


def assert_left_alone(listener: Listener, supervisord: Supervisord, **pids: int) -> None:
    """Tick, and assert that processes are still the same."""
    listener.send()
    listener.wait_idle()
    assert {name: supervisord.pid(name) for name in pids} == pids, listener.log()


def lines(listener: Listener, text: str) -> list[str]:
    """Return the lines of memmon's log that contain a text."""
    return [line for line in listener.messages() if text in line]


# What a limit can say.

@pytest.fixture
def memory_group() -> Iterator[tuple[Path, str]]:
    """A control group in which memory can be limited, and the name of the file that does it."""
    here = Path('/proc/self/cgroup')
    paths = dict(line.split(':', 2)[1:] for line in here.read_text().splitlines()
                 ) if here.exists() else {}
    if 'memory' in paths:
        group, file = Path(f'/sys/fs/cgroup/memory{paths["memory"]}'), 'memory.limit_in_bytes'
    else:
        group, file = Path(f'/sys/fs/cgroup{paths.get("", "/")}'), 'memory.max'
    group = group / f'memmon-test-{os.getpid()}'
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f'no control group can be made: {error}')
    try:
        if not (group / file).exists():
            pytest.skip('the memory of the own control group cannot be divided')
        (group / 'leaf').mkdir()  # which has no limit of its own
        yield group, file
    finally:
        for directory in (group / 'leaf', group):
            if directory.exists():
                wait_until(lambda: remove_group(directory))


def remove_group(group: Path) -> None:
    try:
        group.rmdir()
    except OSError as error:
        raise AssertionError(f'{group} cannot be removed: {error}') from None


def test_percentage_of_a_container_that_is_resized(
        memory_group: tuple[Path, str], start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    group, file = memory_group
    supervisord = start_supervisord(section('big', '--once', 'big'))
    pid, = supervisord.wait_big('big')
    (group / file).write_text(str(800 * MB))
    listener = start_listener(supervisord, '-a', '25%', '-v', wrapper=[
        'sh', '-c', f'echo $$ > {group}/leaf/cgroup.procs && exec "$@"', 'sh'])
    assert_left_alone(listener, supervisord, big=pid)
    assert lines(listener, 'MB of 200MB (-a 25%)')
    (group / file).write_text(str(200 * MB))
    tick_until_restarted(listener, supervisord, 'big', pid)
    assert lines(listener, 'MB is over 50MB (-a 25%), ')
    listener.end()


def test_percentage_of_the_machine_as_in_a_configuration(start_supervisord: StartSupervisord,
                                                         start_listener: StartListener) -> None:
    percent = f'{100 * 40 * MB / memmon.read_machine_memory():.6f}%%'
    supervisord = start_supervisord(section('big', '--once', 'big'))
    pid, = supervisord.wait_big('big')
    listener = start_listener(supervisord, '-a', percent)
    tick_until_restarted(listener, supervisord, 'big', pid)
    assert lines(listener, f'MB is over 40MB (-a {percent}), ')


def test_none_exempts(start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('db') + section('web', '--once', 'web'))
    db, web = supervisord.wait_big('db', 'web')
    listener = start_listener(supervisord, '-a', LIMIT, '-p', 'db=none')
    tick_until_restarted(listener, supervisord, 'web', web)
    assert_left_alone(listener, supervisord, db=db)
    assert lines(listener, "watching 1 of supervisord's 2 processes: -p db=none, -a 40MB")


def test_second_size_does_not_wait(start_supervisord: StartSupervisord,
                                   start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('a') + section('b', '--mb', '90', '--once', 'b'))
    a, b = supervisord.wait_big('a', 'b')
    listener = start_listener(supervisord, '-a', '40MB..80MB', '-f', '1h')
    tick_until_restarted(listener, supervisord, 'b', b)
    assert lines(listener, 'MB is over 80MB (-a 40MB..80MB), ')
    assert_left_alone(listener, supervisord, a=a)


# When it suits.

@pytest.mark.parametrize('interruption', ['none', 'below', 'pid'])
def test_patience_is_for_what_is_over_at_every_look(
        interruption: str, start_supervisord: StartSupervisord, start_listener: StartListener
        ) -> None:
    supervisord = start_dials(start_supervisord, a=60)
    listener = start_listener(supervisord, '-a', LIMIT, '-f', '2')
    began = time.monotonic()
    assert_left_alone(listener, supervisord, a=supervisord.pid('a'))
    if interruption == 'below':
        set_mb(supervisord, a=0)
        listener.send()
        set_mb(supervisord, a=60)
        began = time.monotonic()
    elif interruption == 'pid':
        supervisord.call('stopProcess', 'a')
        supervisord.call('startProcess', 'a')
        set_mb(supervisord, a=60)
        began = time.monotonic()
    tick_until_restarted(listener, supervisord, 'a', supervisord.pid('a'))
    assert time.monotonic() - began >= 2


# How often at most.

def grow(supervisord: Supervisord, name: str) -> int:
    """Have a hog take its memory that waits for a file called grow; return its pid."""
    (supervisord.path / 'grow').touch()
    return supervisord.wait_big(name)[0]


LEAK = section('leak', '--when', 'grow')  # starts small


def test_cap_holds_once_and_moves_on(start_supervisord: StartSupervisord,
                                     start_listener: StartListener, mailbox: Mailbox) -> None:
    supervisord = start_supervisord(LEAK)
    pid = grow(supervisord, 'leak')
    listener = start_listener(supervisord, '-a', LIMIT, '-r', '1/6s', *mailbox.args)
    tick_until_restarted(listener, supervisord, 'leak', pid)
    restarted = time.monotonic()
    pid = grow(supervisord, 'leak')
    assert_left_alone(listener, supervisord, leak=pid)
    assert_left_alone(listener, supervisord, leak=pid)
    held, = lines(listener, 'held leak:leak')
    assert re.fullmatch(r'WARNING memmon: held leak:leak: RSS [\d.]+MB is over 40MB \(-a 40MB\), '
                        r'uptime 0:00:\d\d; memmon has restarted it once within 0:00:06, and '
                        r'leaves it running', held)
    mailbox.wait_subject('memmon: process leak:leak held')
    mailbox.assert_mails(2)
    tick_until_restarted(listener, supervisord, 'leak', pid)
    assert time.monotonic() - restarted > 3
    assert lines(listener, 'restarted leak:leak')[-1].endswith(', restart 2 within the hour')
    assert len(lines(listener, 'held leak:leak')) == 1


def test_restart_by_somebody_else_ends_a_hold(start_supervisord: StartSupervisord,
                                              start_listener: StartListener) -> None:
    supervisord = start_supervisord(LEAK)
    listener = start_listener(supervisord, '-a', LIMIT, '-r', '1/1d')
    tick_until_restarted(listener, supervisord, 'leak', grow(supervisord, 'leak'))
    assert_left_alone(listener, supervisord, leak=grow(supervisord, 'leak'))
    listener.assert_log('held leak:leak')
    supervisord.call('stopProcess', 'leak')
    supervisord.call('startProcess', 'leak')
    tick_until_restarted(listener, supervisord, 'leak', grow(supervisord, 'leak'))
    assert not lines(listener, 'within the hour')


# Never for nothing.

def test_limit_below_what_a_program_needs(start_supervisord: StartSupervisord,
                                          start_listener: StartListener, mailbox: Mailbox) -> None:
    supervisord = start_dials(start_supervisord, a=60)
    listener = start_listener(supervisord, '-a', LIMIT, '-u', '1', *mailbox.args)
    pid = supervisord.pid('a')
    wait_until(lambda: assert_equal(time.time() - supervisord.info('a')['start'] > 2, True))
    listener.send()
    pid = supervisord.wait_new_pid('a', pid)
    warning = (r'restarted a:a: RSS ([\d.]+MB) is over 40MB \(-a 40MB\), uptime 0:00:\d\d; '
               rf'pid \d+ -> {pid}, RSS \1 -> ([\d.]+MB); the limit is below what the program '
               r'needs: RSS \2 when it is fresh, 40MB allowed \(-a 40MB\); memmon leaves it alone '
               r'until it uses [\d.]+MB, or has been below its limit')
    mail = mailbox.wait_subject('memmon: process a:a restarted')  # whatever -u says
    assert re.search(f'^reason:   {warning}$', mail, re.M), mail
    listener.wait_idle()
    assert re.fullmatch(f'WARNING memmon: {warning}', listener.messages()[-1])
    seen = listener.log()
    for mb in (60, 60, 80):
        set_mb(supervisord, a=mb)
        assert_left_alone(listener, supervisord, a=pid)
    assert listener.log() == seen
    set_mb(supervisord, a=120)
    listener.send()
    pid = supervisord.wait_new_pid('a', pid)
    listener.wait_log('WARNING memmon: restarted a:a', 2)
    listener.wait_idle()
    set_mb(supervisord, a=0)
    assert_left_alone(listener, supervisord, a=pid)
    set_mb(supervisord, a=60)  # far below half as much again as when it was fresh
    listener.send()
    supervisord.wait_new_pid('a', pid)
    listener.wait_log('restarted a:a', 3)


def test_program_that_starts_small_is_restarted_as_ever(start_supervisord: StartSupervisord,
                                                        start_listener: StartListener) -> None:
    supervisord = start_supervisord(LEAK)
    listener = start_listener(supervisord, '-a', LIMIT)
    for _ in range(2):
        tick_until_restarted(listener, supervisord, 'leak', grow(supervisord, 'leak'))
    first, second = lines(listener, 'restarted leak:leak')
    assert re.search(r'; pid \d+ -> \d+, RSS [67][\d.]+MB -> [12]?\d(\.\d)?MB$', first)
    assert re.search(r' -> [12]?\d(\.\d)?MB, restart 2 within the hour$', second)


# What is counted.

def check(supervisord: Supervisord, *args: str) -> Done:
    return run(MEMMON, '--check', *args, env={**supervisord.env, 'COLUMNS': '80'},
               cwd=supervisord.path)


needs_pss = pytest.mark.skipif(not os.path.exists('/proc/self/smaps_rollup'),
                               reason='needs the PSS that Linux tells')


@needs_pss
def test_pss_counts_the_memory_of_a_prefork_tree_once(start_supervisord: StartSupervisord,
                                                      start_listener: StartListener,
                                                      mailbox: Mailbox) -> None:
    (mailbox.path.parent / 'web.mb').write_text('100')
    supervisord = start_supervisord(dial_section('web', '--children', '8', stopasgroup='true',
                                                 killasgroup='true'))
    pid, = supervisord.wait_up('web')
    wait_until(lambda: assert_equal(check(supervisord, '-c', '-a', '850MB').status, 1))
    done = check(supervisord, '-c', '-k', 'pss', '-a', '150MB')
    assert done.status == 0
    assert re.match(r'PROCESS +PID +UPTIME +PSS +PEAK +LIMIT +SET BY +USED *\n'
                    r'web:web +\d+ +0:00:\d\d +1[0-3]\d(\.\d)?MB ', done.stdout), done.stdout
    assert check(supervisord, '-k', 'pss', '-a', '50MB').status == 0  # the parent alone
    patient = start_listener(supervisord, '-c', '-k', 'pss', '-a', '150MB')
    assert_left_alone(patient, supervisord, web=pid)
    listener = start_listener(supervisord, '-c', '-k', 'pss', '-a', '80MB', *mailbox.args)
    listener.send()
    supervisord.wait_new_pid('web', pid)
    mail = mailbox.wait_subject('memmon: process web:web restarted')
    assert re.search(r'^PSS:      1[0-3]\d(\.\d)?MB with its descendants$', mail, re.M)
    line, = lines(listener, 'restarted web:web')
    assert re.search(r': PSS (1[\d.]+MB) with its descendants is over 80MB \(-a 80MB\), .*, '
                     r'PSS \1 -> (1[\d.]+MB); .*: PSS \2 when it is fresh, 80MB allowed ', line)


@needs_pss
@pytest.mark.skipif(os.getuid() != 0 or not shutil.which('setpriv'), reason=(
    'needs root, and setpriv from util-linux, for a memmon that may not look into others'))
def test_pss_that_cannot_be_read_is_said_once(start_supervisord: StartSupervisord,
                                              start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('a', command='sleep 1000', user='nobody')
                                    + section('b', command='sleep 1000', user='nobody'))
    a, b = supervisord.wait_up('a', 'b')
    listener = start_listener(supervisord, '-a', '100KB', '-k', 'pss', '--dry-run',
                              wrapper=['setpriv', '--bounding-set=-all'])
    assert_left_alone(listener, supervisord, a=a, b=b)
    assert_left_alone(listener, supervisord, a=a, b=b)
    warning, = lines(listener, 'WARNING')
    assert warning in [f'WARNING memmon: the PSS of {name}:{name} cannot be read (pid {pid}): its '
                       'RSS counts' for name, pid in [('a', a), ('b', b)]]
    assert len(lines(listener, 'would restart')) == len(lines(listener, ': RSS ')) == 2


# All together.

def test_total_restarts_the_largest_one_at_a_time(start_supervisord: StartSupervisord,
                                                  start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('db', '--mb', '70') + section('a', '--once', 'a')
                                    + section('b', '--mb', '65', '--once', 'b'))
    db, a, b = supervisord.wait_big('db', 'a', 'b')
    listener = start_listener(supervisord, '-p', 'db=none', '-t', '150MB')
    tick_until_restarted(listener, supervisord, 'b', b)
    assert supervisord.pid('a') == a
    assert re.search(r'^INFO memmon: restarted b:b: total 2[\d.]+MB is over 150MB \(-t 150MB\), '
                     r'and b:b is the largest with [67][\d.]+MB, uptime 0:00:\d\d; pid \d+ -> '
                     r'\d+, RSS [67][\d.]+MB -> [12]?\d(\.\d)?MB$', listener.messages()[-1])
    tick_until_restarted(listener, supervisord, 'a', a)
    assert 'and a:a is the largest with ' in listener.messages()[-1]
    assert_left_alone(listener, supervisord, db=db)
    assert not lines(listener, 'no process left')
    assert [supervisord.spawned(name) for name in ('db', 'a', 'b')] == [1, 2, 2]


def test_total_does_not_restart_fresh_programs_for_ever(start_supervisord: StartSupervisord,
                                                        start_listener: StartListener) -> None:
    supervisord = start_dials(start_supervisord, db=60, a=40, b=20)
    listener = start_listener(supervisord, '-t', '100MB', '-p', 'db=none', '-p', 'a=30MB')
    for restarts in (1, 2, 3):  # for its own limit, for the total, and the other one
        listener.send()
        listener.wait_log('WARNING memmon: restarted ', restarts)
        listener.wait_idle()
    pids = {name: supervisord.pid(name) for name in ('db', 'a', 'b')}
    for _ in range(4):
        assert_left_alone(listener, supervisord, **pids)
    assert re.fullmatch(
        r'WARNING memmon: total 1[\d.]+MB is over the limit \(-t 100MB\), but there is no process '
        'left whose restart would help', listener.messages()[-1])
    assert len(lines(listener, 'no process left')) == 1
    assert [supervisord.spawned(name) for name in ('db', 'a', 'b')] == [1, 3, 2]
    assert len(lines(listener, 'a restart does not help: the program needs RSS ')) == 2


# Dry run, and check.

def test_dry_run_reports_once_and_stops_nothing(start_supervisord: StartSupervisord,
                                                start_listener: StartListener,
                                                mailbox: Mailbox) -> None:
    supervisord = start_dials(start_supervisord, a=60)
    listener = start_listener(supervisord, '-a', LIMIT, '--dry-run', *mailbox.args)
    pid = supervisord.pid('a')
    for mb in (60, 60, 0, 60):
        set_mb(supervisord, a=mb)
        assert_left_alone(listener, supervisord, a=pid)
    supervisord.call('stopProcess', 'a')
    supervisord.call('startProcess', 'a')
    set_mb(supervisord, a=60)
    assert_left_alone(listener, supervisord, a=supervisord.pid('a'))
    told = lines(listener, 'would restart')
    assert len(told) == 3
    assert re.fullmatch(r'INFO memmon: would restart a:a: RSS [\d.]+MB is over 40MB \(-a 40MB\), '
                        r'uptime 0:00:\d\d', told[0])
    mailbox.assert_mails(3)
    mailbox.assert_subject('memmon: would restart process a:a')
    assert supervisord.spawned('a') == 2


def test_check_shows_what_the_options_would_mean_now(start_supervisord: StartSupervisord) -> None:
    supervisord = start_dials(start_supervisord, db=20, web=60)
    done = check(supervisord, '-a', '1GB..2GB', '-p', 'db=none', '-f', '10m', '-r', '3/1h', '-t',
                 '1GB', '--dry-run')
    heads, web, db, total = done.stdout.splitlines()
    assert (done.status, done.stderr) == (0, '')
    assert re.search(r' +1GB\.\.2GB +-a 1GB\.\.2GB +[67]%', web)
    assert re.search(r'^db:db .* +none +-p db=none +-$', db)
    assert re.fullmatch(r'total: RSS \d\d(\.\d)?MB of 1GB \(-t 1GB\), (9|1\d)%', total) or (
        re.fullmatch(r'total: RSS 1[\d.]+MB of 1GB \(-t 1GB\), (9|1\d)%', total)), total
    assert check(supervisord, '-p', 'web=40MB..1GB').status == 1
    assert check(supervisord, '-a', '1GB', '-t', '50MB').status == 1
    assert check(supervisord, '-t', '50MB..1GB').stdout.splitlines()[-1].startswith('total: RSS ')
    percent = check(supervisord, '-t', '100%').stdout.splitlines()[-1]
    assert f' of {memmon.format_size(memmon.read_machine_memory())} (-t 100%), ' in percent
