"""The user's commands, warnings and blind ticks: real commands under a real supervisord."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator

import pytest
from adversary import TINY, sleeper
from harness import (PASSWORD, UNIX_SERVER, Listener, Mailbox, StartListener, StartSupervisord,
                     Supervisord, is_running, rss_mb, section, wait_for)

import memmon

OBEDIENT = str(Path(__file__).parent / 'obedient.py')
HASTY = f'''#!{sys.executable}
import sys
import memmon
memmon.COMMAND_TIMEOUT_SECS = 1
sys.exit(memmon.main())
'''
UNTIL_GO = 'until test -e go; do sleep 0.05; done; '
PUT_OFF = 'INFO memmon: put off {0}:{0}: '


@pytest.fixture
def start_hasty(tmp_path: Path) -> Iterator[StartListener]:
    """Yield what starts a memmon whose commands have one second."""
    started: list[Listener] = []
    script = tmp_path / 'hasty-memmon'
    script.write_text(HASTY)
    script.chmod(0o755)

    def start(supervisord: Supervisord, *args: str, **env: str) -> Listener:
        started.append(
            Listener(tmp_path, *args, env={**supervisord.env, **env}, command=str(script)))
        return started[-1]

    yield start
    for listener in started:
        listener.end()


def obedient(name: str) -> str:
    """Return a section of supervisord.conf for a program that is as large as NAME.mb says."""
    return section(name, command=f'{sys.executable} {OBEDIENT} {name}.mb')


def resize(supervisord: Supervisord, name: str, megabytes: int) -> None:
    """Have a program use so many MB besides its own 10, and wait until it does."""
    draft = supervisord.path / 'draft'
    draft.write_text(str(megabytes))
    draft.rename(supervisord.path / f'{name}.mb')
    wait_for(lambda: megabytes < rss_mb(supervisord.pid(name)) < megabytes + 25)


def run_all(supervisord: Supervisord, *names: str) -> dict[str, int]:
    """Wait until programs run; return their pids."""
    return dict(zip(names, supervisord.wait_up(*names)))


def messages(listener: Listener, level: str) -> list[str]:
    """Return what memmon has logged at a level."""
    return re.findall(rf'^[-\d]+ [\d:,]+ {level} memmon: (.*)', listener.log(), re.M)


def tick_and_finish(listener: Listener) -> None:
    listener.send()
    listener.wait_idle()


def go(path: Path) -> None:
    """Let commands go on that wait for it."""
    (path / 'go').touch()


def members(session: int) -> list[int]:
    """Return the processes of a session that are no zombies."""
    ps = subprocess.run(['ps', '-A', '-o', 'pid=', '-o', 'sess=', '-o', 'stat='],
                        stdout=subprocess.PIPE, check=True)
    rows = [line.split() for line in ps.stdout.splitlines()]
    return [int(pid) for pid, sid, stat in rows
            if int(sid) == session and not stat.startswith(b'Z')]


# What commands do.

FAILURES = {  # how each command fails; nothing if it does not
    'fine': ('echo fine', ''),
    'failing': ('exit 3', 'exit status 3'),
    'suicidal': ('kill -9 $$', 'killed by signal 9'),
    'missing': ('no-such-command', 'exit status 127'),
    'hanging': ('sleep 1000', 'not done after 1 seconds, so killed'),
    'limited': ('timeout 0.1 sleep 1000', 'exit status 124'),
    'reading': ('wc -c', ''),
    'closing': ('exec <&- >&- 2>&-', ''),
    'printing': ('head -c 3000000 /dev/zero | tr "\\0" "#"; echo >&2 end', ''),
}


def test_restart_follows_whatever_the_command_before_it_does(
        start_supervisord: StartSupervisord, start_hasty: StartListener) -> None:
    supervisord = start_supervisord(''.join(map(sleeper, FAILURES)))
    pids = run_all(supervisord, *FAILURES)
    listeners = {name: start_hasty(supervisord, '-p', f'{name}={TINY}', '-o', f'before={command}')
                 for name, (command, _) in FAILURES.items()}
    for listener in listeners.values():
        listener.send()
    for name, listener in listeners.items():
        command, failure = FAILURES[name]
        supervisord.wait_new_pid(name, pids[name])
        listener.wait_log(f' restarted {name}:{name}: ')
        listener.wait_idle()
        listener.send('PROCESS_LOG')  # finds nothing on stdout but its answer
        told = f'{name}:{name}: the command {command!r} of -o before failed: {failure}'
        assert messages(listener, 'ERROR') == [told] * bool(failure)
    assert '\nfine\n' in listeners['fine'].log()
    assert '\n0\n' in listeners['reading'].log()
    assert 'no-such-command: ' in listeners['missing'].log()
    assert '\n' + '#' * 3_000_000 + 'end\n' in listeners['printing'].log()


def test_command_in_the_background_holds_up_nothing(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(sleeper('big'))
    pid = run_all(supervisord, 'big')['big']
    listener = start_listener(supervisord, '-a', TINY, '-o',
                              f'before=({UNTIL_GO} touch gone) & echo $! > background')
    listener.send()
    supervisord.wait_new_pid('big', pid)
    listener.wait_idle()
    assert is_running(int((tmp_path / 'background').read_text()))
    go(tmp_path)
    wait_for((tmp_path / 'gone').exists)
    assert messages(listener, 'ERROR') == []


@pytest.mark.skipif(not shutil.which('bash') or not shutil.which('timeout'),
                    reason='needs bash, and timeout from the coreutils')
@pytest.mark.parametrize('command', [
    'sleep 1000 & sleep 1000',
    'trap "" TERM HUP INT; sleep 1000; sleep 1000',
    'timeout 1000 sleep 1000',
    'exec bash -c "set -m; sleep 1000 & sleep 1000 | sleep 1000"',
])
def test_session_of_a_command_ends_when_its_time_is_up(command: str, tmp_path: Path) -> None:
    with pytest.raises(memmon.CommandError, match='^not done after 1 seconds, so killed$'):
        memmon.run(f'echo $$ > {tmp_path}/session; {command}', 1)
    wait_for(lambda: not members(int((tmp_path / 'session').read_text())))


def test_command_that_has_left_for_another_session_holds_up_nothing(tmp_path: Path) -> None:
    began = time.monotonic()
    (tmp_path / 'leave.py').write_text(
        f'import os\nos.setsid()\nos.execvp("sh", ["sh", "-c", "{UNTIL_GO}"])\n')
    with pytest.raises(memmon.CommandError, match='^not done after 1 seconds, so killed$'):
        memmon.run(f'cd {tmp_path}; {sys.executable} leave.py; true', 1)
    assert time.monotonic() - began < 10
    go(tmp_path)


# What commands are told.

NOISE = ('it\'s-"quoted"-$(touch${IFS}pwned)`touch${IFS}pwned`;touch${IFS}pwned;|touch${IFS}pwned&'
         '-%s%%-~!@^*?[+=,.<>{}()\\n\\-\t-ü→-=?utf-8?q?x=0A?=')


def read_environment(file: Path) -> dict[str, str]:
    """Return what env -0 has printed into a file."""
    pairs = [item.partition(b'=') for item in file.read_bytes().split(b'\0') if item]
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def test_environment_of_a_command_is_complete_and_without_the_password(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(sleeper(NOISE), server=UNIX_SERVER + PASSWORD)
    supervisord.env.update(SUPERVISOR_USERNAME='bob', SUPERVISOR_PASSWORD='secret')
    namespec = f'{NOISE}:{NOISE}'
    old = run_all(supervisord, NOISE)[NOISE]
    save = 'env -0 > "env.$MEMMON_EVENT"'
    listener = start_listener(
        supervisord, '-a', TINY, '-o', f'before={save}', '-o', f'after={save}',
        FLAVOUR='vanilla', MEMMON_NEW_PID='nonsense')
    tick_and_finish(listener)
    new = supervisord.wait_new_pid(NOISE, old)
    before, after = (read_environment(tmp_path / f'env.{event}') for event in ('before', 'after'))
    memory, uptime = int(before['MEMMON_MEMORY']), int(before['MEMMON_UPTIME'])
    assert 100 * 1024 < memory < 20 * 2 ** 20 and 0 <= uptime < 60
    use = f'RSS {memmon.format_size(memory)} is over {TINY} (-a {TINY})'
    line, = [line for line in messages(listener, 'WARNING') if line.startswith('restarted ')]
    for event, environment, reason in [('before', before, use), ('after', after, line)]:
        told = {name: value for name, value in environment.items() if name.startswith('MEMMON')}
        assert told == {
            'MEMMON_EVENT': event, 'MEMMON_PROCESS': namespec, 'MEMMON_GROUP': NOISE,
            'MEMMON_NAME': NOISE, 'MEMMON_PID': str(old),
            'MEMMON_NEW_PID': '' if event == 'before' else str(new), 'MEMMON_MEMORY': str(memory),
            'MEMMON_LIMIT': str(100 * 1024), 'MEMMON_UPTIME': str(uptime), 'MEMMON_REASON': reason}
        assert environment['FLAVOUR'] == 'vanilla'
        assert environment['SUPERVISOR_USERNAME'] == 'bob'
        assert 'secret' not in str(environment)
    assert line.startswith(f'restarted {namespec}: {use}, uptime 0:00:')
    assert not list(tmp_path.glob('pwned*'))


@pytest.mark.parametrize('name', ['two words', "it's", '"', '$(touch pwned)', '`touch pwned`',
                                  '; touch pwned;', 'a\nb', '\udcff'])
def test_no_name_is_pasted_into_a_command(
        name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = memmon.parse_args(['-a', '1KB', '-o', 'held=printf %s "$MEMMON_NAME" > name'])
    process = memmon.Process(name, name, 1, 0, 0, 0, 20, 'RUNNING', '')
    memmon.run_commands(options, 'held', memmon.Reading(process, 0, False), 'why')
    assert os.listdir() == ['name'] and Path('name').read_bytes() == os.fsencode(name)


# What before can do.

def test_before_puts_off_as_long_as_it_asks_to(
        mailbox: Mailbox, tmp_path: Path, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(sleeper('big'))
    pid = run_all(supervisord, 'big')['big']
    listener = start_listener(supervisord, '-v', '-a', TINY, *mailbox.args,
                              '-o', 'before=echo asked >> asked; test -e go || exit 75',
                              '-o', 'before=touch second', '-o', 'after=touch restarted')
    for count in (1, 2, 3):
        tick_and_finish(listener)
        assert (tmp_path / 'asked').read_text() == 'asked\n' * count
    assert supervisord.pid('big') == pid
    told, = [line for line in messages(listener, 'INFO') if line.startswith('put off ')]
    assert re.fullmatch(
        rf'put off big:big: RSS \S+ is over {TINY} \(-a {TINY}\), uptime 0:00:\d\d; '
        'a before command asked to wait', told)
    assert len([line for line in messages(listener, 'DEBUG') if line.startswith('put off ')]) == 2
    assert messages(listener, 'ERROR') == [] and not mailbox.mails()
    assert not (tmp_path / 'second').exists()
    go(tmp_path)
    listener.send()
    supervisord.wait_new_pid('big', pid)
    listener.wait_idle()
    assert (tmp_path / 'second').exists() and (tmp_path / 'restarted').exists()


def test_before_cannot_put_off_over_the_second_size(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(sleeper('big'))
    pid = run_all(supervisord, 'big')['big']
    listener = start_listener(supervisord, '-a', f'{TINY}..101KB',
                              '-o', 'before=touch first; exit 75',
                              '-o', 'before=touch second')
    tick_and_finish(listener)
    supervisord.wait_new_pid('big', pid)
    assert (tmp_path / 'first').exists() and (tmp_path / 'second').exists()
    assert messages(listener, 'ERROR') == []
    assert ' restarted big:big: ' in listener.log() and ' put off ' not in listener.log()


@pytest.mark.parametrize('event', ['after', 'failed', 'held', 'warn'])
def test_status_75_of_another_event_is_a_failure(
        event: str, caplog: pytest.LogCaptureFixture) -> None:
    options = memmon.parse_args(['-a', '1KB', '-o', f'{event}=exit 75', '-o', f'{event}=exit 7'])
    process = memmon.Process('a', 'b', 1, 0, 0, 0, 20, 'RUNNING', '')
    memmon.run_commands(options, event, memmon.Reading(process, 0, False), 'why')
    assert caplog.messages == [f"a:b: the command 'exit {status}' of -o {event} failed: "
                               f'exit status {status}' for status in (75, 7)]


@pytest.mark.parametrize('autorestart', ['true', 'false'])
def test_process_that_has_gone_meanwhile_is_left_alone(
        autorestart: str, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(sleeper('big', autorestart=autorestart))
    pid = run_all(supervisord, 'big')['big']
    listener = start_listener(supervisord, '-a', TINY, '-o', 'after=touch after', '-o', 'before='
                              'kill -9 $MEMMON_PID; while kill -0 $MEMMON_PID; do sleep 0.05; done')
    tick_and_finish(listener)
    listener.wait_log('INFO memmon: left alone big:big: ')
    if autorestart == 'true':
        supervisord.wait_new_pid('big', pid)
        assert supervisord.spawned('big') == 2
    else:
        assert supervisord.state('big') == 'EXITED' and supervisord.spawned('big') == 1
    assert not (supervisord.path / 'after').exists()


# Commands while memmon is replaced, and while it ticks.

def replace(listener: Listener, how: str) -> None:
    """End memmon as supervisord ends it, or kill it."""
    if how == 'KILL':
        listener.process.kill()
    else:
        listener.process.terminate()
    listener.process.wait()


@pytest.mark.parametrize('how', ['TERM', 'KILL'])
def test_memmon_is_replaced_while_commands_run(
        mailbox: Mailbox, how: str, tmp_path: Path, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(sleeper('early') + sleeper('late'))
    pids = run_all(supervisord, 'early', 'late')
    wait = 'touch "$MEMMON_EVENT.begun"; ' + UNTIL_GO + 'touch "$MEMMON_EVENT.done"; echo done'
    early = start_listener(supervisord, '-p', f'early={TINY}', '-o', f'before={wait}',
                           *mailbox.args,
                           '-o', 'after=touch wrong')
    late = start_listener(supervisord, '-p', f'late={TINY}', '-o', f'after={wait}', *mailbox.args)
    early.send()
    late.send()
    for event in ('before', 'after'):
        wait_for((tmp_path / f'{event}.begun').exists)
    workers = [worker for listener in (early, late) for worker in listener.workers()]
    assert len(workers) == 2
    replace(early, how)
    replace(late, how)
    successor = start_listener(supervisord, '-p', f'early={TINY}', '-o', 'before=exit 75')
    successor.send()
    go(tmp_path)
    for event in ('before', 'after'):
        wait_for((tmp_path / f'{event}.done').exists)
    wait_for(lambda: not any(map(is_running, workers)))
    assert supervisord.pid('early') == pids['early']
    assert supervisord.spawned('early') == 1 and supervisord.spawned('late') == 2
    assert not (tmp_path / 'wrong').exists()
    assert early.log().endswith('; memmon has been stopped\n')
    mail, = mailbox.mails()
    assert 'process late:late restarted' in mail


def test_events_run_in_a_worker_while_ticks_are_answered(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    command = tmp_path / 'command'
    command.write_text('#!/bin/sh\nexec sleep 1000\n')
    command.chmod(0o755)
    supervisord = start_supervisord(
        section('broken', command=str(command)) + obedient('held') + obedient('near'))
    pids = run_all(supervisord, 'broken', 'held', 'near')
    hook = 'echo "$MEMMON_REASON" > "new.$MEMMON_EVENT"; mv "new.$MEMMON_EVENT" "$MEMMON_EVENT"; '
    args = [arg for event in ('failed', 'held', 'warn')
            for arg in ('-o', f'{event}={hook}{UNTIL_GO}touch "$MEMMON_EVENT.done"')]
    resize(supervisord, 'held', 60)
    listener = start_listener(supervisord, '-p', f'broken={TINY}', '-p', 'held=50MB',
                              '-p', 'near=100MB', '-w', '50%%', '-r', '1/1h', *args,
                              '-o', 'before=test "$MEMMON_NAME" != held || echo 0 > held.mb')
    command.unlink()
    listener.send()
    listener.wait_log(' ERROR memmon: failed to start broken:broken: ')
    supervisord.wait_new_pid('held', pids['held'])
    listener.wait_log(' restarted held:held: ')
    resize(supervisord, 'held', 60)
    resize(supervisord, 'near', 60)
    assert listener.send() < 1
    for event in ('failed', 'held', 'warn'):
        wait_for((tmp_path / event).exists)
    for _ in range(2):
        assert listener.send() < 1
    assert listener.workers() and not list(tmp_path.glob('*.done'))
    go(tmp_path)
    for event in ('failed', 'held', 'warn'):
        wait_for((tmp_path / f'{event}.done').exists)
        assert (tmp_path / event).read_text().rstrip('\n') in listener.log()
    assert (tmp_path / 'held').read_text().endswith(
        '; memmon has restarted it once within 1:00:00, and leaves it running\n')


# Warnings.

def test_warning_comes_once_for_each_pid_that_gets_near_without_being_over(
        mailbox: Mailbox, tmp_path: Path, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(obedient('big'))
    pid = run_all(supervisord, 'big')['big']
    listener = start_listener(supervisord, '-a', '100MB', '-w', '50', *mailbox.args,
                              '-o', 'warn=echo "$MEMMON_PID $MEMMON_MEMORY $MEMMON_LIMIT" '
                              '>> warned',
                              '-o', 'before=echo 0 > big.mb')
    warnings = []
    for megabytes, count in [(0, 0), (60, 1), (65, 1), (0, 1), (60, 1), (120, 1)]:
        resize(supervisord, 'big', megabytes)
        tick_and_finish(listener)
        warnings = messages(listener, 'WARNING')
        assert len(warnings) == count
    supervisord.wait_new_pid('big', pid)
    listener.wait_log(' restarted big:big: ')
    size = r'([\d.]+MB)'
    assert re.fullmatch(
        rf'process big:big uses \d\d% of its limit: RSS {size} of 100MB \(-a 100MB\), uptime '
        rf'0:00:\d\d; {size} -> \1 in 0:00:0\d, peak \1, [\d.]+[GT]B an hour; if that goes on, '
        r'it is at its limit in 0:00:\d\d', warnings[0]), warnings
    resize(supervisord, 'big', 60)
    tick_and_finish(listener)
    assert len(messages(listener, 'WARNING')) == 2
    rows = [line.split() for line in (tmp_path / 'warned').read_text().splitlines()]
    assert [int(row[0]) for row in rows] == [pid, supervisord.pid('big')]
    assert [row[2] for row in rows] == [str(100 << 20)] * 2
    mails = mailbox.wait(3)
    mail = next(mail for mail in mails if warnings[0] in mail)
    assert re.search(r'^Subject: memmon: process big:big uses \d\d% of its limit$', mail, re.M)
    assert re.search(r'^course:   ▂█  [\d.]+MB -> [\d.]+MB in 0:00:0\d, peak [\d.]+MB$', mail, re.M)
    assert f'\npid:      {pid}\n' in mail and mail.endswith(f'\nreason:   {warnings[0]}\n')


def test_process_that_is_over_at_once_is_no_warning(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(sleeper('big'))
    run_all(supervisord, 'big')
    listener = start_listener(supervisord, '-a', TINY, '-w', '1', '--dry-run',
                              '-o', 'warn=touch warned')
    tick_and_finish(listener)
    assert messages(listener, 'WARNING') == [] and not (supervisord.path / 'warned').exists()
    assert ' would restart big:big: ' in listener.log()


# When memmon itself cannot work.

def test_two_blind_ticks_are_mailed_once_and_so_is_their_end(
        mailbox: Mailbox, tmp_path: Path, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord('')
    listener = start_listener(supervisord, '-a', '1TB', *mailbox.args)
    supervisord.hide_socket()
    for mails in (0, 1, 1, 1):
        tick_and_finish(listener)
        assert len(mailbox.mails()) == mails
    failure = (f'nothing checked at this tick: no such socket: unix://{tmp_path}/s; is supervisord '
               'running, with a [unix_http_server] section?')
    assert messages(listener, 'ERROR') == [failure] * 4
    mail, = mailbox.mails()
    assert 'Subject: memmon: nothing could be checked at two ticks in a row\n' in mail
    assert mail.endswith(f'\nreason:   {failure}\n')
    supervisord.show_socket()
    for _ in range(2):
        tick_and_finish(listener)
    news = [line for line in messages(listener, 'INFO') if 'again' in line]
    assert news == ['processes are checked again, after 4 ticks']
    second, = [other for other in mailbox.mails() if other != mail]
    assert 'Subject: memmon: processes are checked again\n' in second
    assert second.endswith('\nreason:   processes are checked again, after 4 ticks\n')


@pytest.mark.parametrize('ticks, subjects', [
    ('-', []),
    ('x', ['']),
    ('x-x-', ['', '']),
    ('xx', ['', 'nothing could be checked at two ticks in a row']),
    ('xxxx', ['', 'nothing could be checked at two ticks in a row', '', '']),
    ('xx--', ['', 'nothing could be checked at two ticks in a row', 'processes are checked again']),
    ('xx-x-', ['', 'nothing could be checked at two ticks in a row', 'processes are checked again',
               '']),
])
def test_ticks_at_which_nothing_could_be_checked(ticks: str, subjects: list[str]) -> None:
    listener = memmon.Listener(memmon.parse_args(['-a', '1MB']), memmon.Server('unix:///none'))
    news = [item for tick in ticks for item in listener.news_of_failure('why' * (tick == 'x'))]
    assert [item.subject for item in news] == subjects


def test_failure_is_an_error_though_a_process_was_hidden_before() -> None:
    listener = memmon.Listener(memmon.parse_args(['-a', '1MB']), memmon.Server('unix:///none'))
    listener.watch.hidden = [('big:big', 1)]
    news = [item for _ in range(4) for item in listener.news_of_failure('why')]
    assert [(item.level, item.line) for item in news] == [
        (logging.ERROR, 'nothing checked at this tick: why')] * 4


def can_unshare() -> bool:
    """Tell whether this user may have a PID namespace, and the tool for it is there."""
    return bool(shutil.which('unshare')) and not subprocess.call(
        ['unshare', '--pid', '--fork', 'true'], stderr=subprocess.DEVNULL)


@pytest.mark.skipif(not can_unshare(), reason='needs a PID namespace')
def test_blindness_counts_as_nothing_checked(
        mailbox: Mailbox, tmp_path: Path, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    enter = 'echo 30000 > /proc/sys/kernel/ns_last_pid; exec "$0" "$@"'
    supervisord = start_supervisord(
        sleeper('big'), wrapper=['unshare', '--pid', '--fork', '--kill-child', 'sh', '-c', enter])
    run_all(supervisord, 'big')
    listener = start_listener(supervisord, '-v', '-a', TINY, *mailbox.args)
    for mails in (0, 1, 1):
        tick_and_finish(listener)
        assert len(mailbox.mails()) == mails
    failure = f'nothing checked at this tick: no process can be measured: {memmon.HIDDEN}'
    # The first tick names what is hidden, so that only the one with the mail is an error.
    assert messages(listener, 'ERROR') == [failure]
    assert messages(listener, 'DEBUG').count(failure) == 2
    mail, = mailbox.mails()
    assert 'Subject: memmon: nothing could be checked at two ticks in a row\n' in mail


@pytest.mark.parametrize('args, missing', [
    (['-m', 'bob@example.com', '-s', '/nonexistent/sendmail -t -i'], '/nonexistent/sendmail'),
    (['-m', 'bob@example.com', '-s', ' no-such-mailer'], 'no-such-mailer'),
    (['-m', 'bob@example.com', '-s', 'cat > /dev/null'], ''),
    (['-m', 'bob@example.com', '-s', 'if true; then cat; fi'], ''),
    (['-m', 'bob@example.com', '-s', 'TO=bob no-such-mailer'], ''),  # not looked for
    (['-m', 'bob@example.com', '-s', '"$(touch pwned)"'], ''),
    (['-s', '/nonexistent/sendmail'], ''),
])
def test_missing_mailer_is_told_at_the_start(args: list[str], missing: str, tmp_path: Path) -> None:
    listener = Listener(tmp_path, '-a', '1GB', *args,
                        env={'SUPERVISOR_SERVER_URL': f'unix://{tmp_path}/none'})
    try:
        listener.wait_ready()
        assert messages(listener, 'WARNING') == [
            f'no mail can be sent: there is no {missing}; install it, or name another command with '
            '-s'] * bool(missing)
    finally:
        listener.end()
    assert not (tmp_path / 'pwned').exists()


UNKILLABLE = '''
import memmon
try:
    memmon.run('echo $$; exec setpriv --reuid 54321 --clear-groups sleep 1000', 1, output=1)
except memmon.CommandError as error:
    print(error)
'''


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which('setpriv'),
                    reason='needs root, and setpriv from util-linux, for what may not be killed')
def test_command_that_cannot_be_killed_is_not_waited_for() -> None:
    with subprocess.Popen(['setpriv', '--bounding-set=-kill', sys.executable, '-c', UNKILLABLE],
                          stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        pid, told = int(process.stdout.readline()), process.stdout.readline()
        assert is_running(pid)
        os.kill(pid, signal.SIGKILL)
    assert told == 'not done after 1 seconds, and cannot be killed\n'
