"""Which processes are restarted, and what is told of it: the options under a real supervisord."""

import re
import time
from pathlib import Path

import pytest
from harness import (LIMIT, SAVE_MAIL, StartMemmon, StartSupervisord, children_of, hog, memmon_section, read_mails,
                     rss_mb, wait_until)

PROGRAMS = (hog('foo', '--once', 'foo') + hog('bar', '--once', 'bar') + hog('baz', '--once', 'baz')
            + hog('queue', numprocs=2, process_name='%(program_name)s_%(process_num)02d')
            + '[group:g]\nprograms=bar,baz\n')
NAMES = ['foo', 'g:bar', 'g:baz', 'queue:queue_00', 'queue:queue_01']


@pytest.mark.parametrize('args, restarted', [
    (['-p', f'foo={LIMIT}'], ['foo']),
    (['-p', f'bar={LIMIT}'], ['g:bar']),
    (['-p', f'g:baz={LIMIT}'], ['g:baz']),
    (['-p', f'queue={LIMIT}'], ['queue:queue_00', 'queue:queue_01']),
    (['-p', f'queue_0[1-9]={LIMIT}'], ['queue:queue_01']),
    (['-g', f'g={LIMIT}'], ['g:bar', 'g:baz']),
    (['-a', LIMIT], NAMES),
    (['-p', 'foo=1GB', '-g', 'queue=1GB', '-a', LIMIT], ['g:bar', 'g:baz']),
    (['-p', f'foo={LIMIT}', '-p', f'g:bar={LIMIT}', '-m', 'bob@example.com', '-s', 'true'], ['foo', 'g:bar']),
])
def test_options_restart_what_they_cover(args: 'list[str]', restarted: 'list[str]',
                                         start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(PROGRAMS)
    pids = dict(zip(NAMES, supervisord.wait_big(*NAMES)))
    memmon = start_memmon(supervisord, *args)
    memmon.send()
    for name in restarted:
        supervisord.wait_new_pid(name, pids[name])
    memmon.wait_log('INFO memmon: restarted ', len(restarted))
    assert [name for name in NAMES if supervisord.pid(name) != pids[name]] == restarted


@pytest.mark.parametrize('args', ['-a 200MB -m bob@example.com', '-p foo=200MB -m bob@example.com',
                                  '-g bar=200MB -m bob@example.com'])
def test_configurations_of_the_manual(args: str, tmp_path: Path, start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord(
        hog('foo', '--mb', '210', '--once', 'foo') + '[group:bar]\nprograms=foo\n' * ('bar' in args)
        + memmon_section(*args.split(), *SAVE_MAIL[2:]))
    name = 'bar:foo' if 'bar' in args else 'foo:foo'
    wait_until(lambda: rss_mb(supervisord.pid(name)) > 210)
    supervisord.start_memmon()
    mail, = wait_until(lambda: read_mails(tmp_path))
    assert f'To: bob@example.com\nSubject: memmon: process {name} restarted\n' in mail
    assert supervisord.spawned('foo') == 2


@pytest.mark.parametrize('args, is_over', [(['-a', LIMIT], False), (['-c', '-a', LIMIT], True)])
def test_cumulative_counts_the_tree(args: 'list[str]', is_over: bool, start_supervisord: StartSupervisord,
                                    start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(hog('parent', '--child', startsecs=1, stopasgroup='true'))
    supervisord.wait_state('parent', 'RUNNING')
    pid = supervisord.pid('parent')
    wait_until(lambda: any(rss_mb(child) > 35 for child in children_of(pid)))
    memmon = start_memmon(supervisord, *args)
    memmon.send()
    if is_over:
        supervisord.wait_new_pid('parent', pid)
        memmon.wait_log('restarted parent:parent: ')
    else:
        assert not memmon.is_busy()
        assert supervisord.pid('parent') == pid


def test_process_matched_by_all_three_options_is_restarted_once(tmp_path: Path, start_supervisord: StartSupervisord,
                                                                start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(hog('big', '--once', 'big'))
    pid, = supervisord.wait_big('big')
    memmon = start_memmon(supervisord, '-a', LIMIT, '-g', f'big={LIMIT}', '-p', f'big={LIMIT}', *SAVE_MAIL)
    memmon.send()
    supervisord.wait_new_pid('big', pid)
    wait_until(lambda: read_mails(tmp_path))
    memmon.send()
    assert len(read_mails(tmp_path)) == 1
    assert supervisord.spawned('big') == 2


@pytest.mark.parametrize('args, subject', [
    ([], 'memmon: process big:big restarted'),
    (['-n', 'shop', '-p', f'big={LIMIT}'], 'memmon [shop]: process big:big restarted'),
    (['-p', f'big={LIMIT}', '-n', 'shop'], 'memmon [shop]: process big:big restarted'),
    (['-g', f'big={LIMIT}', '--name=my shop'], 'memmon [my shop]: process big:big restarted'),
])
def test_name_is_in_the_subject(args: 'list[str]', subject: str, tmp_path: Path, start_supervisord: StartSupervisord,
                                start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(hog('big', '--once', 'big'))
    supervisord.wait_big('big')
    start_memmon(supervisord, '-a', LIMIT, *args, *SAVE_MAIL).send()
    mail, = wait_until(lambda: read_mails(tmp_path))
    assert f'\nSubject: {subject}\n' in mail


@pytest.mark.parametrize('uptime, is_mailed', [('1h', True), ('1', False)])
def test_uptime_decides_about_the_mail(uptime: str, is_mailed: bool, tmp_path: Path,
                                       start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(hog('big', '--once', 'big'))
    pid, = supervisord.wait_big('big')
    wait_until(lambda: time.time() - supervisord.info('big')['start'] > 2.5)
    memmon = start_memmon(supervisord, '-a', LIMIT, '-u', uptime, *SAVE_MAIL)
    memmon.send()
    supervisord.wait_new_pid('big', pid)
    memmon.wait_log('restarted big:big: ')
    if is_mailed:
        wait_until(lambda: read_mails(tmp_path))
    else:
        wait_until(lambda: not memmon.is_busy())
        assert not read_mails(tmp_path)


def test_mail_and_log_tell_all(tmp_path: Path, start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(hog('big', '--once', 'big'))
    pid, = supervisord.wait_big('big')
    memmon = start_memmon(supervisord, '-c', '-p', f'big={LIMIT}', '-m', 'a@example.com,b@example.com', '-m',
                          'Jürgen <c@example.com>', *SAVE_MAIL[2:])
    memmon.send()
    mail, = wait_until(lambda: read_mails(tmp_path))
    new_pid = supervisord.pid('big')
    assert re.fullmatch(rf'''To: a@example.com, b@example.com, =\?utf-8\?q\?J=C3=BCrgen\?= <c@example.com>
Subject: memmon: process big:big restarted
Content-Type: text/plain; charset="utf-8"
Content-Transfer-Encoding: 8bit
MIME-Version: 1.0

memmon: process big:big restarted

host:     \S+
time:     \d\d\d\d-\d\d-\d\d \d\d:\d\d:\d\d [-+]\d\d\d\d
uptime:   0:00:\d\d
old pid:  {pid}
new pid:  {new_pid}
RSS:      [\d.]+MB with its descendants
limit:    {LIMIT}
set by:   -p big={LIMIT}
''', mail), mail
    assert re.search(r'^\d\d\d\d-\d\d-\d\d \d\d:\d\d:\d\d,\d\d\d INFO memmon: restarted big:big: RSS [\d.]+MB is over '
                     rf'{LIMIT} \(-p big={LIMIT}\), uptime 0:00:\d\d; pid {pid} -> {new_pid}\n', memmon.log(), re.M)
