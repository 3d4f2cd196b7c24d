"""The user's commands and the mailer: real ones, under a real supervisord where it matters."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import (LIMIT, MEMMON, PASSWORD, TINY, UNIX_SERVER, Listener, Mailbox, StartListener,
                     StartSupervisord, Supervisord, children_of, is_running, rss_mb, run, section,
                     sleeper, wait_until)

import memmon

HASTY = {'COMMAND_TIMEOUT_SECS': 1, 'MAIL_TIMEOUT_SECS': 1}
UNTIL_GO = 'until test -e go; do sleep 0.05; done; '


def resize(supervisord: Supervisord, name: str, megabytes: int) -> None:
    """Have a program with --file NAME.mb use so many MB, and wait until it does."""
    draft = supervisord.path / 'draft'
    draft.write_text(str(megabytes))
    draft.rename(supervisord.path / f'{name}.mb')

    def has_size() -> None:
        seen = rss_mb(supervisord.pid(name))
        assert megabytes < seen < megabytes + 35, f'{name} has {seen} MB'
    wait_until(has_size)


def logged(listener: Listener, level: str) -> list[str]:
    """Return what memmon has logged at a level."""
    return re.findall(rf'^[-\d]+ [\d:,]+ {level} memmon: (.*)', listener.log(), re.M)


def tick_and_finish(listener: Listener) -> None:
    listener.send()
    listener.wait_idle()


# How commands end.

@pytest.mark.parametrize('command, text, printed', [
    ('echo a; echo b >&2', b'', b'a\n'),
    (['printf', '%s', '$HOME "x"'], b'', b'$HOME "x"'),
    ('cat', b'x' * 300_000, b'x' * 300_000),
    ('exec <&-; echo done', b'x' * 300_000, b'done\n'),
], ids=['shell', 'words', 'all is read', 'nothing is read'])
def test_what_a_command_prints_is_returned_where_that_is_wanted(
        command: str | list[str], text: bytes, printed: bytes) -> None:
    assert memmon.run(command, 10, text, output=subprocess.PIPE) == printed


@pytest.mark.parametrize('command, how, status', [
    ('exit 3', 'exit status 3', 3), ('exit 75', 'exit status 75', 75),
    ('kill -9 $$', 'killed by signal 9', 0), ('no-such-command', 'exit status 127', 127),
])
def test_failure_of_a_command_is_told_with_its_status(
        command: str, how: str, status: int) -> None:
    with pytest.raises(memmon.CommandError, match=f'^{how}$') as error:
        memmon.run(command, 10)
    assert error.value.status == status


COMMANDS = {  # and how each fails; nothing if it does not
    'missing': ('no-such-command', 'exit status 127'),
    'hanging': ('sleep 1000', 'killed after 1 seconds'),
    'reading': ('wc -c', ''),
    'closing': ('exec <&- >&- 2>&-', ''),
    'printing': ('head -c 300000 /dev/zero | tr "\\0" "#"; printf end >&2', ''),
}


def test_restart_follows_whatever_the_command_before_it_does(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(''.join(map(sleeper, COMMANDS)))
    pids = dict(zip(COMMANDS, supervisord.wait_up(*COMMANDS)))
    listeners = {name: start_listener(supervisord, '-p', f'{name}={TINY}', '-o',
                                      f'before={command}', constants=HASTY)
                 for name, (command, _) in COMMANDS.items()}
    for listener in listeners.values():
        listener.send()
    for name, listener in listeners.items():
        command, failure = COMMANDS[name]
        supervisord.wait_new_pid(name, pids[name])
        listener.wait_log(f'INFO memmon: restarted {name}:{name}: ')  # at the begin of a line
        listener.wait_idle()
        assert logged(listener, 'ERROR') == [
            f'the command {command!r} of -o before failed: {failure}'] * bool(failure)
        assert len(logged(listener, 'INFO')) == 3
        listener.send()  # finds nothing on stdout but its answer
    assert '\n0\n' in listeners['reading'].log()
    assert 'no-such-command: ' in listeners['missing'].log()
    assert '\n' + '#' * 300_000 + 'end\n' in listeners['printing'].log()


MAILERS = {'hanging': COMMANDS['hanging'], 'closing': ('exec 0<&-', ''),
           'printing': ('cat; echo READY; echo loud >&2', '')}


def test_restart_and_the_next_tick_wait_for_no_mailer(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(''.join(map(sleeper, MAILERS)))
    supervisord.wait_up(*MAILERS)
    listeners = {name: start_listener(supervisord, '-p', f'{name}={TINY}', '-m', 'bob@example.com',
                                      '-s', command, constants=HASTY)
                 for name, (command, _) in MAILERS.items()}
    for listener in listeners.values():
        listener.send()
    for name, listener in listeners.items():
        command, failure = MAILERS[name]
        listener.wait_log(f' restarted {name}:{name}: ')
        listener.send()  # finds nothing on stdout but its answer
        listener.wait_idle()
        # A second mail may say that the limit is too low.
        assert set(logged(listener, 'ERROR')) == {
            f'the command {command!r} of -s failed, and no mail was sent: {failure}'} - {
            f'the command {command!r} of -s failed, and no mail was sent: '}


def test_next_member_of_a_pool_waits_for_no_mailer(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(sleeper('pool', numprocs=2, process_name='%(process_num)d'))
    supervisord.wait_up('pool:0', 'pool:1')
    mailer = f'{UNTIL_GO}cat > $$.new; mv $$.new $$.mail'
    listener = start_listener(supervisord, '-a', TINY, '-m', 'bob@example.com', '-s', mailer,
                              constants={'FIRST_UP_SECS': 1})
    listener.send()
    for name in ('pool:0', 'pool:1'):
        listener.wait_log(f' restarted {name}: ')
    assert not list(tmp_path.glob('*.mail'))
    (tmp_path / 'go').touch()
    wait_until(lambda: len(list(tmp_path.glob('*.mail'))) >= 2)


def test_command_in_the_background_goes_on_and_holds_up_nothing(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(sleeper('big'))
    pid, = supervisord.wait_up('big')
    background = f'({UNTIL_GO}echo printed; echo printed >&2; touch gone) & echo $! > background'
    listener = start_listener(supervisord, '-a', TINY, '-o', f'before={background}')
    listener.send()
    supervisord.wait_new_pid('big', pid)
    listener.wait_idle()
    assert is_running(int((tmp_path / 'background').read_text()))
    (tmp_path / 'go').touch()
    wait_until((tmp_path / 'gone').exists)
    assert logged(listener, 'ERROR') == []


def members(session: int) -> list[int]:
    """Return the processes of a session that are no zombies."""
    ps = subprocess.run(['ps', '-A', '-o', 'pid=', '-o', 'sess=', '-o', 'stat='],
                        stdout=subprocess.PIPE, check=True)
    rows = [line.split() for line in ps.stdout.splitlines()]
    return [int(pid) for pid, sid, state in rows
            if int(sid) == session and not state.startswith(b'Z')]


@pytest.mark.parametrize('command', [
    'sleep 1000 & sleep 1000',
    'trap "" TERM HUP INT; sleep 1000; sleep 1000',
    'sleep 1000 | cat',
])
def test_process_group_of_a_command_ends_when_its_time_is_up(
        command: str, tmp_path: Path) -> None:
    with pytest.raises(memmon.CommandError, match='^killed after 2 seconds$'):
        memmon.run(f'echo $$ > {tmp_path}/session; {command}', 2)
    wait_until(lambda: not members(int((tmp_path / 'session').read_text())))


def test_command_that_has_left_for_another_session_holds_up_nothing(tmp_path: Path) -> None:
    began = time.monotonic()
    (tmp_path / 'leave.py').write_text(
        f'import os\nos.setsid()\nos.execvp("sh", ["sh", "-c", "{UNTIL_GO}"])\n')
    with pytest.raises(memmon.CommandError, match='^killed after 2 seconds$'):
        memmon.run(f'cd {tmp_path}; {sys.executable} leave.py; true', 2, output=2)
    assert time.monotonic() - began < 20
    (tmp_path / 'go').touch()


UNKILLABLE = '''
import memmon
try:
    memmon.run('echo $$; exec setpriv --reuid 54321 --clear-groups sleep 1000', 3, output=1)
except memmon.CommandError as error:
    print(error)
'''


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which('setpriv'),
                    reason='needs root, and setpriv from util-linux, for what may not be killed')
def test_command_that_cannot_be_killed_is_not_waited_for() -> None:
    with subprocess.Popen(['setpriv', '--bounding-set=-kill', sys.executable, '-c', UNKILLABLE],
                          stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        pid, said = int(process.stdout.readline()), process.stdout.readline()
        assert is_running(pid)
        os.kill(pid, signal.SIGKILL)
    assert said == 'killed after 3 seconds\n'


def test_commands_get_back_the_signals_that_python_ignores(tmp_path: Path) -> None:
    """Else `yes | head -n 1` says that its pipe is broken."""
    memmon.run(f'grep SigIgn /proc/self/status > {tmp_path}/ignored || true', 10)
    ignored = (tmp_path / 'ignored').read_text()
    assert not ignored or not int(ignored.split()[1], 16) & 1 << (signal.SIGPIPE - 1)


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
    old, = supervisord.wait_up(NOISE)
    save = 'env -0 > "env.$MEMMON_EVENT"'
    listener = start_listener(
        supervisord, '-a', TINY, '-o', f'before={save}', '-o', f'after={save}',
        FLAVOUR='vanilla', MEMMON_NEW_PID='nonsense')
    tick_and_finish(listener)
    new = supervisord.wait_new_pid(NOISE, old)
    before, after = (read_environment(tmp_path / f'env.{event}') for event in ('before', 'after'))
    memory = int(before['MEMMON_MEMORY'])
    use = f'RSS {memmon.format_size(memory)} is over {TINY} (-a {TINY})'
    line, = [line for line in logged(listener, 'INFO') if line.startswith('restarted ')]
    for event, environment in [('before', before), ('after', after)]:
        said = {name: value for name, value in environment.items() if name.startswith('MEMMON')}
        uptime, reason = said.pop('MEMMON_UPTIME'), said.pop('MEMMON_REASON')
        assert said.pop('MEMMON_MEMORY').isdigit() and 0 <= int(uptime) < 100
        assert said == {
            'MEMMON_EVENT': event, 'MEMMON_PROCESS': f'{NOISE}:{NOISE}', 'MEMMON_GROUP': NOISE,
            'MEMMON_NAME': NOISE, 'MEMMON_PID': str(old),
            'MEMMON_NEW_PID': '' if event == 'before' else str(new),
            'MEMMON_LIMIT': str(100 * 1024), 'MEMMON_TOTAL': '', 'MEMMON_TOTAL_LIMIT': ''}
        assert use in reason and (
            reason == line if event == 'after' else reason.startswith('to be restarted '))
        assert environment['FLAVOUR'] == 'vanilla'
        assert environment['SUPERVISOR_USERNAME'] == 'bob'
        assert 'secret' not in str(environment)
    assert not list(tmp_path.glob('pwned*'))


def reading_of(name: str) -> memmon.Reading:
    process = memmon.Process(name, name, 1, 0, 0, 0, 20, 'RUNNING', '', 0)
    return memmon.Reading(process, memmon.NO_LIMIT, 0, 0, memmon.MEASURES['rss'], 1, 1, 1, 5)


@pytest.mark.parametrize('name', ['two words', "it's", '"', '$(touch pwned)', '`touch pwned`',
                                  '; touch pwned;', 'a\nb', '\udcff', '\0'])
def test_no_name_is_pasted_into_a_command(
        name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = memmon.Report('held', 'why', reading_of(name))
    variables = memmon.variables('held', report)
    assert memmon.deliver(memmon.Delivery('printf %s "$MEMMON_NAME" > name', b'', variables)) == 0
    assert os.listdir() == ['name']
    assert Path('name').read_bytes() == os.fsencode(name.replace('\0', ''))


@pytest.mark.parametrize('event', ['after', 'failed', 'held', 'warn', 'before'])
def test_status_75_is_a_failure_but_of_before(
        event: str, caplog: pytest.LogCaptureFixture) -> None:
    status = memmon.deliver(memmon.Delivery('exit 75', b'', {'MEMMON_EVENT': event}))
    assert status == 75
    assert caplog.messages == [f"the command 'exit 75' of -o {event} failed: exit status 75"] * (
        event != 'before')


# What `before` can do.

def test_before_postpones_for_as_long_as_it_asks_to(
        tmp_path: Path, mailbox: Mailbox, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(sleeper('big'))
    pid, = supervisord.wait_up('big')
    listener = start_listener(supervisord, '-a', TINY, *mailbox.args,
                              '-o', 'before=echo asked >> asked; test -e go || exit 75',
                              '-o', 'before=touch second', '-o', 'after=touch restarted')
    for count in (1, 2, 3):
        tick_and_finish(listener)
        assert (tmp_path / 'asked').read_text() == 'asked\n' * count
    assert supervisord.pid('big') == pid
    said, = [line for line in logged(listener, 'INFO') if line.startswith('postponed ')]
    assert re.fullmatch(
        rf'postponed big:big: RSS \S+ is over {TINY} \(-a {TINY}\), uptime 0:00:\d\d; '
        'a before command asked to wait', said)
    assert logged(listener, 'ERROR') == [] and not mailbox.mails()
    assert not (tmp_path / 'second').exists() and not (tmp_path / 'restarted').exists()
    (tmp_path / 'go').touch()
    tick_and_finish(listener)
    assert supervisord.wait_new_pid('big', pid)
    assert (tmp_path / 'second').exists() and (tmp_path / 'restarted').exists()


def test_before_cannot_postpone_over_the_hard_size(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(sleeper('big'))
    pid, = supervisord.wait_up('big')
    listener = start_listener(supervisord, '-a', f'{TINY}..101KB',
                              '-o', 'before=touch first; exit 75', '-o', 'before=touch second')
    tick_and_finish(listener)
    supervisord.wait_new_pid('big', pid)
    assert (tmp_path / 'first').exists() and (tmp_path / 'second').exists()
    assert logged(listener, 'ERROR') == [] and 'postponed ' not in listener.log()


@pytest.mark.parametrize('autorestart, status, events', [
    ('true', 0, {'after'}), ('false', 0, {'failed'}), ('false', 3, set())])
def test_after_or_failed_follows_a_before_that_went_well_without_a_restart(
        autorestart: str, status: int, events: set[str], start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    """Whatever `before` has drained is let in again, or somebody hears that there is nothing."""
    supervisord = start_supervisord(sleeper('big', autorestart=autorestart))
    pid, = supervisord.wait_up('big')
    until = 'UP' if autorestart == 'true' else 'EXITED'
    wait = f'kill -9 $MEMMON_PID; until test -e go; do sleep 0.05; done; exit {status}'
    listener = start_listener(supervisord, '-a', TINY, '-o', 'after=echo $MEMMON_NEW_PID > after',
                              '-o', 'failed=touch failed', '-o', f'before={wait}')
    listener.send()
    if until == 'UP':
        new = supervisord.wait_new_pid('big', pid)
    else:
        supervisord.wait_state('big', 'EXITED')
    (supervisord.path / 'go').touch()
    listener.wait_log('INFO memmon: not restarted big:big: ')
    listener.wait_idle()
    found = {name for name in ('after', 'failed') if (supervisord.path / name).exists()}
    assert found == events
    if until == 'UP':
        assert (supervisord.path / 'after').read_text() == f'{new}\n'
        assert supervisord.spawned('big') == 2


def test_worker_is_killed_during_a_second_before(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    """What was drained by the first one is let in again."""
    supervisord = start_supervisord(sleeper('big'))
    pid, = supervisord.wait_up('big')
    listener = start_listener(
        supervisord, '-a', TINY, '-o', 'before=echo first >> asked',
        '-o', f'before=echo second >> asked; touch begun; {UNTIL_GO}', '-o', 'after=touch after')
    listener.send()
    wait_until((tmp_path / 'begun').exists)
    worker, = listener.workers()
    os.kill(worker, signal.SIGKILL)
    (tmp_path / 'go').touch()
    listener.wait_log('WARNING memmon: the worker for big:big ended too early: another one goes on')
    supervisord.wait_new_pid('big', pid)
    listener.wait_idle()
    assert (tmp_path / 'asked').read_text() == 'first\nsecond\nsecond\n'
    assert (tmp_path / 'after').exists() and supervisord.spawned('big') == 2


def test_names_reach_a_command_in_any_locale() -> None:
    script = ("import memmon; memmon.run_for_user('printf %s \"$MEMMON_NAME\" >&2', b'', "
              "{'MEMMON_NAME': 'pr\\xfcf\\u20ac'})")
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, check=True, env={
        'PATH': os.environ['PATH'], 'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'})
    assert done.stderr == 'prüf€\n'.encode()


# Commands while memmon is replaced, and while it ticks.

def test_memmon_is_replaced_while_commands_run(
        tmp_path: Path, mailbox: Mailbox, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(sleeper('early') + sleeper('late'))
    early_pid, _ = supervisord.wait_up('early', 'late')
    wait = 'touch "$MEMMON_EVENT.begun"; ' + UNTIL_GO + 'touch "$MEMMON_EVENT.done"; echo done'
    early = start_listener(supervisord, '-p', f'early={TINY}', '-o', f'before={wait}',
                           *mailbox.args, '-o', 'failed=touch wrong')
    late = start_listener(supervisord, '-p', f'late={TINY}', '-o', f'after={wait}', *mailbox.args)
    early.send()
    late.send()
    for event in ('before', 'after'):
        wait_until((tmp_path / f'{event}.begun').exists)
    workers = [worker for listener in (early, late) for worker in listener.workers()]
    for listener in (early, late):
        listener.process.terminate()
        listener.wait_end()
    (tmp_path / 'go').touch()
    for event in ('before', 'after'):
        wait_until((tmp_path / f'{event}.done').exists)
    wait_until(lambda: not any(map(is_running, workers)))
    assert supervisord.pid('early') == early_pid
    assert (supervisord.spawned('early'), supervisord.spawned('late')) == (1, 2)
    assert not (tmp_path / 'wrong').exists()
    assert early.log().rstrip().endswith('; memmon has been stopped')
    mailbox.wait_subject('memmon: process late:late restarted')
    mailbox.assert_mails(1)


def test_commands_run_beside_the_ticks(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    command = tmp_path / 'command'
    command.write_text('#!/bin/sh\nexec sleep 1000\n')
    command.chmod(0o755)
    supervisord = start_supervisord(
        section('broken', command=str(command)) + section('held', '--file', 'held.mb')
        + section('near', '--file', 'near.mb'))
    pids = supervisord.wait_up('broken', 'held', 'near')
    hook = 'echo "$MEMMON_REASON" > "new.$MEMMON_EVENT"; mv "new.$MEMMON_EVENT" "$MEMMON_EVENT"; '
    args = [arg for event in ('failed', 'held', 'warn')
            for arg in ('-o', f'{event}={hook}{UNTIL_GO}touch "$MEMMON_EVENT.done"')]
    resize(supervisord, 'held', 60)
    listener = start_listener(supervisord, '-p', f'broken={TINY}', '-p', 'held=50MB',
                              '-p', 'near=100MB', '-w', '60%%', '-r', '1/1h', *args)
    command.unlink()
    listener.send()
    listener.wait_log(' ERROR memmon: failed to start broken:broken: ')
    supervisord.wait_new_pid('held', pids[1])
    listener.wait_log(' restarted held:held: ')
    supervisord.wait_big('held')
    resize(supervisord, 'near', 60)
    listener.send()
    for event in ('failed', 'held', 'warn'):
        wait_until((tmp_path / event).exists)
    for _ in range(2):
        listener.send()
    assert listener.workers() and not list(tmp_path.glob('*.done'))
    (tmp_path / 'go').touch()
    for event in ('failed', 'held', 'warn'):
        wait_until((tmp_path / f'{event}.done').exists)
        assert (tmp_path / event).read_text().rstrip('\n') in listener.log()
    assert '; memmon has restarted it 1 time within 1:00:00: it is left running' in (
        tmp_path / 'held').read_text()


def test_eight_commands_run_at_once_and_all_in_the_end(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    names = [letter * 3 for letter in 'abcdefghijkl']
    supervisord = start_supervisord(''.join(map(sleeper, names)))
    supervisord.wait_up(*names)
    listener = start_listener(supervisord, '-a', '1TB', '-w', '0.0000001', '-o',
                              f'warn=touch $MEMMON_NAME.begun; {UNTIL_GO}touch $MEMMON_NAME.done')
    listener.send()
    wait_until(lambda: len(list(tmp_path.glob('*.begun'))) == 8)
    listener.send()
    assert len(children_of(listener.pid)) == 8
    assert len(list(tmp_path.glob('*.begun'))) == 8
    (tmp_path / 'go').touch()
    wait_until(lambda: len(list(tmp_path.glob('*.done'))) == 12)


# Warnings.

def test_warning_is_logged_and_mailed_once_and_runs_its_command(
        tmp_path: Path, mailbox: Mailbox, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('big', '--file', 'big.mb'))
    pid, = supervisord.wait_up('big')
    listener = start_listener(supervisord, '-a', '120MB', '-w', '50', *mailbox.args,
                              '-o', 'warn=echo "$MEMMON_PID $MEMMON_LIMIT" >> warned')
    for megabytes, count in [(0, 0), (60, 1), (65, 1), (0, 1), (60, 1)]:
        resize(supervisord, 'big', megabytes)
        tick_and_finish(listener)
        assert len(logged(listener, 'WARNING')) == count
    warning, = logged(listener, 'WARNING')
    size = r'[\d.]+MB'
    assert re.fullmatch(
        rf'near limit big:big: RSS {size} of 120MB \(-a 120MB\), \d\d%; {size} -> {size} in '
        rf'0:00:\d\d, peak {size}, growing [\d.]+[GT]B/h, reaches its limit in 0:00:\d\d', warning)
    assert (tmp_path / 'warned').read_text() == f'{pid} {120 << 20}\n'
    mail, = mailbox.wait()
    assert '\nSubject: memmon: process big:big is near its limit\n' in mail
    assert re.search(r'^course:   \S+  [\d.]+MB -> ', mail, re.M)
    assert f'\npid:      {pid}\n' in mail and mail.endswith(f'\nreason:   {warning}\n')


def test_process_that_is_over_at_once_is_no_warning(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('big'))
    supervisord.wait_big('big')
    listener = start_listener(supervisord, '-a', LIMIT, '-w', '1', '--dry-run',
                              '-o', 'warn=touch warned')
    tick_and_finish(listener)
    assert logged(listener, 'WARNING') == [] and not (supervisord.path / 'warned').exists()
    assert ' would restart big:big: ' in listener.log()


# The mailer.

@pytest.mark.parametrize('command, missing', [
    ('/nonexistent/sendmail -t -i', '/nonexistent/sendmail'),
    (' no-such-mailer', 'no-such-mailer'),
    ('cat > /dev/null', ''),
    ('if true; then cat; fi', ''),
    ('TO=bob no-such-mailer', ''),  # not looked for
    ('"$(touch pwned)"', ''),
])
def test_missing_mailer_is_found(command: str, missing: str, tmp_path: Path,
                                 monkeypatch: pytest.MonkeyPatch,
                                 caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    memmon.warn_of_missing_mailer(command)
    assert caplog.messages == [
        f'no mail can be sent: there is no {missing}; install it, or name another command with '
        '-s'] * bool(missing)
    assert os.listdir() == []


@pytest.mark.parametrize('args, is_needed', [([], False), (['-m', 'bob@example.com'], True)])
def test_missing_mailer_is_reported_at_the_start(args: list[str], is_needed: bool) -> None:
    done = run(MEMMON, '-a', '1GB', '-s', 'no-such-mailer', *args,
               env={'SUPERVISOR_SERVER_URL': 'unix:///nonexistent/s'})
    assert ('WARNING memmon: no mail can be sent: ' in done.stderr) == is_needed


@pytest.mark.skipif(sys.platform != 'linux', reason='needs Linux')
def test_mailer_prints_after_memmon_and_its_stderr_have_gone(
        tmp_path: Path, mailbox: Mailbox, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('slow', '--holds', 'go', '--once', 'once'))
    supervisord.wait_big('slow')
    reader, writer = os.pipe()
    wrapper = ['sh', '-c', f'exec "$0" "$@" 2>/proc/{os.getpid()}/fd/{writer}']
    mailer = f'echo printed; echo printed >&2; {mailbox.mailer}'
    listener = start_listener(supervisord, '-a', LIMIT, '-m', 'bob@example.com', '-s', mailer,
                              wrapper=wrapper)
    listener.send()
    supervisord.wait_state('slow', 'STOPPING')
    listener.process.kill()
    os.close(reader)
    os.close(writer)
    (tmp_path / 'go').touch()
    mail, = mailbox.wait()
    assert 'Subject: memmon: process slow:slow restarted\n' in mail
