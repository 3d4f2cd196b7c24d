"""Which processes are restarted, and what is reported: the options with a real supervisord."""

from __future__ import annotations

import re
import time

import pytest
from harness import (BIG_MB, LIMIT, Mailbox, StartListener, StartSupervisord, children_of,
                     group_section, pool_section, rss_mb, section, wait_until)

PROGRAMS = (section('foo', '--once', 'foo') + section('bar', '--once', 'bar')
            + section('baz', '--once', 'baz') + pool_section('queue', 2)
            + group_section('g', 'bar', 'baz'))
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
    (['-p', f'foo={LIMIT}', '-p', f'g:bar={LIMIT}', '-m', 'bob@example.com', '-s', 'true'],
     ['foo', 'g:bar']),
])
def test_options_restart_what_they_cover(
        args: list[str], restarted: list[str], start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(PROGRAMS)
    pids = dict(zip(NAMES, supervisord.wait_big(*NAMES)))
    listener = start_listener(supervisord, *args)
    listener.send()
    for name in restarted:
        supervisord.wait_new_pid(name, pids[name])
    listener.wait_log(' memmon: restarted ', len(restarted))
    listener.wait_idle()
    assert [name for name in NAMES if supervisord.pid(name) != pids[name]] == restarted


@pytest.mark.parametrize('args, name', [
    ('-a 200MB -m bob@example.com', 'foo:foo'),
    ('-p foo=200MB -m bob@example.com', 'foo:foo'),
    ('-g bar=200MB -m bob@example.com', 'bar:foo'),
])
def test_command_lines_of_the_manual_restart_and_mail(
        args: str, name: str, start_supervisord: StartSupervisord, start_listener: StartListener,
        mailbox: Mailbox) -> None:
    supervisord = start_supervisord(section('foo', '--mb', '210', '--once', 'foo')
                                    + group_section('bar', 'foo') * name.startswith('bar'))
    supervisord.wait_big(name, mb=210)
    start_listener(supervisord, *args.split(), '-s', mailbox.mailer).send()
    mail = mailbox.wait_subject(f'memmon: process {name} restarted')
    assert mail.startswith('To: bob@example.com\n')
    assert supervisord.spawned('foo') == 2


@pytest.mark.parametrize('args, is_over', [(['-a', LIMIT], False), (['-c', '-a', LIMIT], True)])
def test_cumulative_counts_the_tree(
        args: list[str], is_over: bool, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(
        section('parent', '--child', '--once', 'once', stopasgroup='true'))
    pid, = supervisord.wait_up('parent')
    wait_until(lambda: assert_big_child(pid))
    listener = start_listener(supervisord, *args)
    listener.send()
    if is_over:
        supervisord.wait_new_pid('parent', pid)
        listener.wait_log('restarted parent:parent: ')
    else:
        assert listener.workers() == []
        assert supervisord.pid('parent') == pid


def assert_big_child(pid: int) -> None:
    sizes = [rss_mb(child) for child in children_of(pid)]
    assert any(mb > BIG_MB for mb in sizes), f'no child of {pid} is big: {sizes}'


def test_process_matched_by_all_three_options_is_restarted_once(
        start_supervisord: StartSupervisord, start_listener: StartListener,
        mailbox: Mailbox) -> None:
    supervisord = start_supervisord(section('big', '--once', 'big'))
    pid, = supervisord.wait_big('big')
    listener = start_listener(supervisord, '-a', LIMIT, '-g', f'big={LIMIT}', '-p', f'big={LIMIT}',
                              *mailbox.args)
    listener.send()
    supervisord.wait_new_pid('big', pid)
    mailbox.wait(1)
    listener.wait_idle()
    listener.send()
    listener.wait_idle()
    mailbox.assert_mails(1)
    assert supervisord.spawned('big') == 2


@pytest.mark.parametrize('args, subject', [
    ([], 'memmon: process big:big restarted'),
    (['-n', 'shop', '-p', f'big={LIMIT}'], 'memmon [shop]: process big:big restarted'),
    (['-p', f'big={LIMIT}', '-n', 'shop'], 'memmon [shop]: process big:big restarted'),
    (['-g', f'big={LIMIT}', '--name=my shop'], 'memmon [my shop]: process big:big restarted'),
])
def test_name_is_in_the_subject(
        args: list[str], subject: str, start_supervisord: StartSupervisord,
        start_listener: StartListener, mailbox: Mailbox) -> None:
    supervisord = start_supervisord(section('big', '--once', 'big'))
    supervisord.wait_big('big')
    start_listener(supervisord, '-a', LIMIT, *args, *mailbox.args).send()
    mailbox.wait_subject(subject)


@pytest.mark.parametrize('uptime, count', [('1h', 1), ('1', 0)])
def test_uptime_decides_about_the_mail(
        uptime: str, count: int, start_supervisord: StartSupervisord,
        start_listener: StartListener, mailbox: Mailbox) -> None:
    supervisord = start_supervisord(section('big', '--once', 'big'))
    supervisord.wait_big('big')
    start = supervisord.info('big')['start']
    if not count:
        wait_until(lambda: assert_uptime(start, 2.5))
    listener = start_listener(supervisord, '-a', LIMIT, '-u', uptime, *mailbox.args)
    listener.send()
    listener.wait_log('restarted big:big: ')
    listener.wait_idle()
    mailbox.assert_mails(count)


def assert_uptime(start: int, secs: float) -> None:
    uptime = time.time() - start
    assert uptime > secs, f'up for {uptime} seconds'


STORY = (r'RSS [\d.]+MB with its descendants is over {limit} \(-p big={limit}\), uptime 0:00:\d\d; '
         r'pid {pid} -> {new_pid}, RSS [\d.]+MB -> [\d.]+MB')


def test_mail_and_log_tell_all(start_supervisord: StartSupervisord, start_listener: StartListener,
                               mailbox: Mailbox) -> None:
    supervisord = start_supervisord(section('big', '--once', 'big'))
    pid, = supervisord.wait_big('big')
    listener = start_listener(supervisord, '-c', '-p', f'big={LIMIT}', '-m',
                              'a@example.com,b@example.com', '-m', 'Jürgen <c@example.com>',
                              '-s', mailbox.mailer)
    listener.send()
    mail, = mailbox.wait(1)
    facts = {'pid': pid, 'new_pid': supervisord.pid('big'), 'limit': LIMIT}
    story = STORY.format(**facts)
    assert mail.startswith(
        'To: a@example.com, b@example.com, =?utf-8?q?J=C3=BCrgen?= <c@example.com>\n'
        'Subject: memmon: process big:big restarted\n')
    headline, *lines = mail.partition('\n\n')[2].splitlines()
    assert headline == 'memmon: process big:big restarted'
    fields = dict(re.split(': +', line, maxsplit=1) for line in lines if line)
    for name, pattern in {
            'host': r'\S+',
            'time': r'\d\d\d\d-\d\d-\d\d \d\d:\d\d:\d\d [-+]\d\d\d\d',
            'uptime': r'0:00:\d\d',
            'old pid': str(pid),
            'new pid': str(facts['new_pid']),
            'RSS': r'[\d.]+MB with its descendants',
            'limit': LIMIT,
            'set by': f'-p big={LIMIT}',
            'reason': f'restarted big:big: {story}'}.items():
        assert re.fullmatch(pattern, fields.get(name, 'missing')), (name, mail)
    assert re.fullmatch(f'INFO memmon: restarted big:big: {story}', listener.messages()[-1])
