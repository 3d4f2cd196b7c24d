"""What memmon does when what it relies on is missing, wrong, slow or used up; with real processes."""

from __future__ import annotations

import email
import email.policy
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Iterator, List

import pytest
from adversary import (TINY, Proxy, Request, actor, build_preloaded, dribble, first, instead,
                       lose_answer, lose_request, sleeper, wait_idle, worker_of)
from harness import (LIMIT, MEMMON, SAVE_MAIL, Memmon, StartMemmon, StartSupervisord, Supervisord,
                     children_of, hog, is_running, read_mails, wait_until)

needs_cc = pytest.mark.skipif(not shutil.which('cc') or sys.platform != 'linux',
                              reason='needs a C compiler, and LD_PRELOAD')
needs_linux = pytest.mark.skipif(sys.platform != 'linux', reason='needs prlimit(2)')


def can_unshare() -> bool:
    """Tell whether this user may have a PID namespace, and the tools for it are there."""
    return bool(shutil.which('unshare') and shutil.which('setpriv')) and subprocess.run(
        ['unshare', '--pid', '--fork', '--mount', 'mount', '-t', 'proc', 'proc', '/proc'],
        stderr=subprocess.DEVNULL, check=False).returncode == 0


needs_namespaces = pytest.mark.skipif(not can_unshare(), reason='needs namespaces, and setpriv')


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    proxy = Proxy(tmp_path)
    yield proxy
    proxy.end()


def check(supervisord: Supervisord, *args: str, **env: str) -> 'subprocess.CompletedProcess[str]':
    return subprocess.run([MEMMON, '--check', *args], env={**os.environ, **supervisord.env, **env},
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)


def lines_with(memmon: Memmon, text: str) -> List[str]:
    return [line for line in memmon.log().splitlines() if text in line]


# Mail.

def test_mailer_that_hangs_holds_up_no_restart(
        tmp_path: Path, start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(sleeper('pool', numprocs=3, process_name='%(process_num)d'))
    memmon = start_memmon(supervisord, '-a', TINY, '-m', 'bob@example.com',
                          '-s', 'while ! test -e go; do sleep 0.1; done; cat > new.$$; '
                                'mv new.$$ mail.$$')
    memmon.send()
    for number in range(3):
        memmon.wait_log(f' restarted pool:{number}: ')
    assert not read_mails(tmp_path) and memmon.is_busy()
    assert memmon.send() < 1
    (tmp_path / 'go').touch()
    wait_until(lambda: len(read_mails(tmp_path)) >= 3)


def test_mailer_that_prints_after_memmon_has_gone(
        tmp_path: Path, start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(actor('slow', '--holds', 'go'))
    supervisord.wait_big('slow')
    reader, writer = os.pipe()
    printing = 'cat > new.$$; echo printed; echo printed >&2; mv new.$$ mail.$$'
    command = shlex.join([MEMMON, '-a', LIMIT, '-m', 'bob@example.com', '-s', printing])
    script = tmp_path / 'memmon-with-pipe'
    script.write_text(f'#!/bin/sh\nexec {command} 2>/proc/{os.getpid()}/fd/{writer}\n')
    script.chmod(0o755)
    memmon = Memmon(tmp_path, env=supervisord.env, command=str(script))
    memmon.send()
    supervisord.wait_state('slow', 'STOPPING')
    os.close(reader)
    os.close(writer)
    memmon.end()
    (tmp_path / 'go').touch()
    mail, = wait_until(lambda: read_mails(tmp_path))
    assert 'Subject: memmon: process slow:slow restarted\n' in mail


ENCODED = '=?utf-8?q?x=0ABcc=3A_evil=40example.com?='


def test_no_name_becomes_a_header(
        tmp_path: Path, start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    long_name = 'a-long-name-in-ascii-' * 5 + 'end'
    supervisord = start_supervisord(sleeper(ENCODED) + sleeper(long_name))
    for name in (ENCODED, long_name):
        supervisord.wait_state(name, 'RUNNING')
    memmon = start_memmon(supervisord, '-a', TINY, '-n', ENCODED, *SAVE_MAIL)
    memmon.send()
    mails = [email.message_from_string(mail, policy=email.policy.default)
             for mail in wait_until(lambda: read_mails(tmp_path) if len(read_mails(tmp_path)) == 2
                                    else [])]
    for mail in mails:
        assert sorted(map(str.lower, mail.keys())) == [
            'content-transfer-encoding', 'content-type', 'mime-version', 'subject', 'to']
    assert sorted(str(mail['Subject']) for mail in mails) == sorted(
        f'memmon [{ENCODED}]: process {name}:{name} restarted' for name in (ENCODED, long_name))
    wait_idle(memmon)
    plain = start_memmon(supervisord, '-p', f'{long_name}={TINY}', *SAVE_MAIL)
    plain.send()
    mail, = wait_until(lambda: [mail for mail in read_mails(tmp_path) if 'Subject: memmon: ' in mail
                                and long_name in mail])
    assert long_name in mail.partition('\n\n')[0]  # readable, not encoded


def test_address_with_a_space_is_refused() -> None:
    done = subprocess.run([MEMMON, '-a', '1GB', '-m', 'bob example.com'], stdin=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count('\n') == 1 and "'bob example.com'" in done.stderr


# No process, no memory, no descriptor.

@needs_cc
def test_slow_stop_where_every_fork_fails(
        tmp_path: Path, start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    command = tmp_path / 'gone'
    command.write_text(f'#!/bin/sh\nexec {sys.executable} {actor_file()} --once gone.once\n')
    command.chmod(0o755)
    supervisord = start_supervisord(
        actor('slow', '--holds', 'go', '--once', 'once') + hog('gone', command=str(command)))
    slow, gone = supervisord.wait_big('slow', 'gone')
    memmon = start_memmon(supervisord, '-a', LIMIT, LD_PRELOAD=build_preloaded(tmp_path),
                          HIDDEN='fork')
    command.rename(tmp_path / 'away')
    memmon.send()
    supervisord.wait_state('slow', 'STOPPING')
    assert memmon.send() < 1
    memmon.wait_log(' failed to start gone:gone: ')
    assert memmon.send() < 1
    assert len(lines_with(memmon, 'no worker process (')) == 1
    memmon.process.terminate()
    (tmp_path / 'away').rename(command)
    (tmp_path / 'go').touch()
    assert memmon.process.wait() == 0
    assert supervisord.state('slow') == supervisord.state('gone') == 'RUNNING'
    assert (supervisord.spawned('slow'), supervisord.spawned('gone')) == (2, 2)
    assert 'Traceback' not in memmon.log() and 'a worker failed' not in memmon.log()


def actor_file() -> str:
    from adversary import ACTOR
    return ACTOR


def restrict(memmon: Memmon, kind: int, soft: int) -> None:
    resource.prlimit(memmon.pid, kind, (soft, resource.prlimit(memmon.pid, kind)[1]))


@needs_linux
@pytest.mark.parametrize('kind', ['RLIMIT_AS', 'RLIMIT_DATA', 'RLIMIT_NOFILE'])
def test_shortage_ends_no_memmon(
        kind: str, start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(sleeper('big') + sleeper('other', stopwaitsecs=1))
    big = supervisord.wait_new_pid('big', 0)
    supervisord.wait_state('other', 'RUNNING')
    limit = getattr(resource, kind)
    # From nothing at all to what is enough for a look, but not for a thread or a pipe.
    sizes = range(3, 9) if kind == 'RLIMIT_NOFILE' else [0, 64 << 10, 1 << 20]
    for size in sizes:
        memmon = start_memmon(supervisord, '-p', f'big={TINY}')
        before = resource.prlimit(memmon.pid, limit)[0]
        memmon.wait_ready()
        if kind != 'RLIMIT_NOFILE':
            status = Path(f'/proc/{memmon.pid}/status').read_text()
            field = {'RLIMIT_AS': 'VmSize:', 'RLIMIT_DATA': 'VmData:'}[kind]
            size += int(status.partition(field)[2].split()[0]) << 10
        restrict(memmon, limit, size)
        for _ in range(3):
            memmon.send()
            supervisord.call('stopProcess', 'other')  # so that there is something new to ask
            supervisord.call('startProcess', 'other')
        restrict(memmon, limit, before)
        wait_idle(memmon)
        if supervisord.pid('big') == big:
            memmon.send()
        big = supervisord.wait_new_pid('big', big)
        wait_idle(memmon)
        assert 'Traceback' not in memmon.log()
        memmon.end()


@needs_linux
@pytest.mark.skipif(os.getuid() != 0 or not shutil.which('setpriv') or not shutil.which('prlimit'),
                    reason='needs root, and setpriv, as the limit of processes does not hold root')
def test_no_process_and_no_thread_left(
        tmp_path: Path, start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    names = ['a', 'b', 'c']
    supervisord = start_supervisord(''.join(map(sleeper, names)))
    pids = [supervisord.wait_new_pid(name, 0) for name in names]
    script = tmp_path / 'memmon-as-other'
    caps = '+dac_override,+dac_read_search'
    script.write_text(f'#!/bin/sh\nexec setpriv --reuid 54321 --regid 54321 --clear-groups '
                      f'--inh-caps {caps} --ambient-caps {caps} \\\n'
                      f'prlimit --nproc="$NPROC" {MEMMON} "$@"\n')
    script.chmod(0o755)
    alone = Memmon(tmp_path, '-a', TINY, env={**supervisord.env, 'NPROC': '1'},
                   command=str(script))
    with_a_worker = Memmon(tmp_path, '-a', TINY, env={**supervisord.env, 'NPROC': '2'},
                           command=str(script))
    try:
        alone.send()
        count = len(os.listdir(f'/proc/{alone.pid}/fd'))
        for _ in range(5):
            alone.send()
        assert len(os.listdir(f'/proc/{alone.pid}/fd')) == count  # nothing is left open
        assert len(lines_with(alone, 'no restarts before the next tick: ')) == 6
        alone.end()  # it counts as well
        with_a_worker.send()
        for name, pid in zip(names, pids):
            supervisord.wait_new_pid(name, pid)
        wait_idle(with_a_worker)
        log = with_a_worker.log()
        assert 'Traceback' not in log and 'a worker failed' not in log
    finally:
        alone.end()
        with_a_worker.end()


def test_two_hundred_restarts_leave_nothing_behind(
        start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    names = [f'p{number}' for number in range(40)]
    supervisord = start_supervisord(''.join(map(sleeper, names)))
    for name in names:
        supervisord.wait_state(name, 'RUNNING')
    memmon = start_memmon(supervisord, '-a', TINY)
    memmon.send()
    wait_idle(memmon)
    memmon.send('PROCESS_LOG')
    if sys.platform == 'linux':
        assert len(os.listdir(f'/proc/{memmon.pid}/fd')) == 3
        assert len(os.listdir(f'/proc/{memmon.pid}/task')) == 1
    assert not children_of(memmon.pid)  # not even a zombie
    assert memmon.log().count(' restarted p') == len(names)


# Answers that make no sense.

def fault(code: int, text: str) -> Any:
    def rule(request: Request) -> None:
        request.send(('<methodResponse><fault><value><struct>'
                      f'<member><name>faultCode</name><value><int>{code}</int></value></member>'
                      f'<member><name>faultString</name><value>{text}</value></member>'
                      '</struct></value></fault></methodResponse>').encode())
    return rule


def raw(body: bytes) -> Any:
    return lambda request: request.send(body)


BAD_NAME = fault(10, 'BAD_NAME')
WRONG_ANSWERS = [
    instead(None), instead('text'), instead([7]), instead([None, None]),
    instead([{}]), instead({'faultCode': 'x', 'faultString': 7}),
    instead([{'name': 'a', 'group': 'a', 'pid': 'one'}]),
    BAD_NAME, fault(1, 'UNKNOWN_METHOD'), fault(6, 'SHUTDOWN_STATE'),
    fault(30, 'FAILED\nline 2\nline 3'), lose_request,
    raw(b''), raw(b'<html>\n<body>it works</body>\n</html>'), raw(b'\xff\xfe\x00' * 1000),
    raw(b'<methodResponse><params></params></methodResponse>'),
]
NO_PID = [instead([]), *WRONG_ANSWERS]
NO_LIST = [instead(7), instead(''), instead({}), *WRONG_ANSWERS]
NO_PROCESS = [instead(7), instead([]), *WRONG_ANSWERS]


def test_wrong_answer_to_the_look_is_one_line_and_the_next_tick(
        proxy: Proxy, start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(actor('big', '--once', 'once'))
    pid, = supervisord.wait_big('big')
    memmon = start_memmon(supervisord, '-a', LIMIT, **proxy.env)
    proxy.at('getPID', '', NO_PID[0])  # to the first try, before any tick
    memmon.wait_ready()
    wait_until(lambda: proxy.count('getPID') == 1)
    for method, rules in (('getPID', NO_PID), ('getAllProcessInfo', NO_LIST)):
        for number, rule in enumerate(rules):
            lines = memmon.log().count('\n')
            proxy.at(method, '', rule)
            assert memmon.send() < 2
            told = memmon.log().splitlines()[lines:]
            assert len(told) == 1 and 'nothing checked at this tick: ' in told[0], (number, told)
    memmon.send()
    supervisord.wait_new_pid('big', pid)


@pytest.mark.parametrize('method', ['getProcessInfo', 'stopProcess', 'startProcess'])
def test_wrong_answer_in_a_restart_loses_no_program(
        method: str, proxy: Proxy, start_supervisord: StartSupervisord,
        start_memmon: StartMemmon) -> None:
    rules = [*NO_PROCESS, lose_answer]
    names = [f'p{number}' for number in range(len(rules))]
    supervisord = start_supervisord(''.join(map(sleeper, names)))
    for name in names:
        supervisord.wait_state(name, 'RUNNING')
    memmon = start_memmon(supervisord, '-a', TINY, **proxy.env)
    for name, rule in zip(names, rules):
        namespec = f'{name}:{name}'
        if method == 'getProcessInfo':  # one that comes after the stop
            proxy.at('startProcess', namespec, first(
                lambda namespec=namespec, rule=rule:  # type: ignore[misc]
                proxy.at('getProcessInfo', namespec, rule)))
        else:
            proxy.at(method, namespec, rule)
    memmon.send()
    wait_idle(memmon, secs=40)
    states = {name: supervisord.state(name) for name in names}
    if method == 'startProcess':  # BAD_NAME: supervisord does not know it any more
        states[names[rules.index(BAD_NAME)]] = 'RUNNING'
    assert states == dict.fromkeys(names, 'RUNNING')
    assert 'Traceback' not in memmon.log() and 'a worker failed' not in memmon.log()
    for name in names:
        assert lines_with(memmon, f' {name}:{name}: ')


@pytest.mark.parametrize('method', ['getAllProcessInfo', 'stopProcess'])
def test_answer_that_dribbles_has_ten_seconds(
        method: str, proxy: Proxy, start_supervisord: StartSupervisord,
        start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(sleeper('big'))
    pid = supervisord.wait_new_pid('big', 0)
    memmon = start_memmon(supervisord, '-a', TINY, **proxy.env)
    memmon.wait_ready()
    if method == 'getAllProcessInfo':
        proxy.at(method, '', dribble)
        assert 9 < memmon.send() < 13
        line, = lines_with(memmon, 'nothing checked at this tick: ')
        assert ' within 10 seconds' in line
        memmon.send()
        supervisord.wait_new_pid('big', pid)
    else:
        proxy.at(method, 'big:big', dribble)
        memmon.send()
        wait_idle(memmon)
        assert lines_with(memmon, ' left alone big:big: ') and supervisord.pid('big') == pid


def test_spawnerr_of_several_lines_is_one_line(
        tmp_path: Path, proxy: Proxy, start_supervisord: StartSupervisord,
        start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(
        actor('broken', '--ends', 'broken', startsecs=1, startretries=0))
    supervisord.wait_big('broken')

    def fail() -> None:
        (tmp_path / 'broken').touch()
        info = supervisord.info('broken')
        proxy.at('startProcess', 'broken:broken', first(lambda: proxy.at(
            'getProcessInfo', 'broken:broken', instead(
                {**info, 'state': 200, 'statename': 'FATAL', 'pid': 0,
                 'spawnerr': 'first line\nERROR memmon: second line\rthird line'}))))
    proxy.at('stopProcess', 'broken:broken', first(fail))
    memmon = start_memmon(supervisord, '-a', LIMIT, *SAVE_MAIL, **proxy.env)
    memmon.send()
    wait_idle(memmon)
    line, = lines_with(memmon, ' failed to start broken:broken: ')
    assert 'first line' in line and 'third line' in line
    assert memmon.log().count('\n') == 3


# Who is who.

def warns_once_of_hidden(memmon: Memmon) -> bool:
    for _ in range(3):
        memmon.send()
    return len(lines_with(memmon, 'cannot measure ')) == 1


@needs_namespaces
def test_supervisord_in_another_pid_namespace(
        start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    # Pids of which there is hardly a stranger here.
    enter = 'echo 30000 > /proc/sys/kernel/ns_last_pid; exec "$0" "$@"'
    supervisord = start_supervisord(
        sleeper('big') + sleeper('also'),
        wrapper=['unshare', '--pid', '--fork', '--kill-child', 'sh', '-c', enter])
    for name in ('big', 'also'):
        supervisord.wait_state(name, 'RUNNING')
    memmon = start_memmon(supervisord, '-a', TINY)
    assert warns_once_of_hidden(memmon)
    line, = lines_with(memmon, 'cannot measure ')
    assert f'big:big (pid {supervisord.pid("big")})' in line and 'also:also (pid ' in line
    done = check(supervisord, '-a', TINY)
    assert done.returncode == 2 and done.stdout.count(' unknown ') == 2
    assert 'cannot measure ' in done.stdout
    assert supervisord.spawned('big') == 1


@needs_namespaces
def test_process_hidden_by_hidepid(
        tmp_path: Path, start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord(
        sleeper('big'), server='[unix_http_server]\nfile=%(here)s/s\nchmod=0777\n')
    supervisord.wait_state('big', 'RUNNING')
    script = tmp_path / 'memmon-that-sees-nothing'
    caps = '+dac_override,+dac_read_search'
    script.write_text(
        '#!/bin/sh\nexec unshare --mount sh -c \'mount -t proc -o hidepid=2 proc /proc; exec setpriv '
        '--reuid 54321 --regid 54321 --clear-groups --bounding-set=-sys_ptrace '
        f'--inh-caps {caps} --ambient-caps {caps} {MEMMON} "$@"\' memmon "$@"\n')
    script.chmod(0o755)
    memmon = Memmon(tmp_path, '-a', TINY, env=supervisord.env, command=str(script))
    try:
        assert warns_once_of_hidden(memmon)
    finally:
        memmon.end()
    done = subprocess.run([script, '--check', '-a', TINY], env={**os.environ, **supervisord.env},
                          stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2 and ' unknown ' in done.stdout


def test_memmon_restarts_neither_itself_nor_its_pool(
        tmp_path: Path, start_supervisord: StartSupervisord) -> None:
    path = os.environ['PATH']
    commands = {
        'plain': f'{MEMMON} %s',
        'bare': f'env -i PATH={path} SUPERVISOR_SERVER_URL=unix://{tmp_path}/s {MEMMON} %s',
        'shell': f'sh -c "{MEMMON} %s; true"',
        'twins': f'{MEMMON} %s',
    }
    sections = []
    for name, command in commands.items():
        limits = f'-g {name}={TINY} -p {name}:*={TINY} -p small-{name}={TINY}'
        settings = {'numprocs': 2, 'process_name': '%(process_num)d'} if name == 'twins' else {}
        sections.append(hog(name, command=command % limits, section='eventlistener',
                            events='TICK_5', **settings) + sleeper(f'small-{name}'))
    supervisord = start_supervisord(''.join(sections))
    for name in commands:
        wait_until(lambda: supervisord.spawned(f'small-{name}') > 1)
    for name in ('plain', 'bare', 'shell'):
        assert supervisord.spawned(name) == 1
    assert (supervisord.spawned('0'), supervisord.spawned('1')) == (1, 1)
    for name in commands:
        wait_until(lambda: supervisord.state(f'small-{name}') == 'RUNNING')


# The rest.

def cpu_secs(pid: int) -> float:
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


@pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc')
def test_thousand_names_that_match_nothing(
        start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(hog('queue', command='sleep 1000', numprocs=300,
                                        process_name='worker%(process_num)03d', autostart='false')
                                    + sleeper('one'))
    limits = [f'-pqueue:workr{number}={TINY}' for number in range(1000)]
    memmon = start_memmon(supervisord, *limits)
    memmon.wait_ready()
    before = cpu_secs(memmon.pid)
    memmon.send()
    assert cpu_secs(memmon.pid) - before < 1
    assert memmon.log().count(' covers no process') == 1000


@pytest.mark.parametrize('closed', ['0<&-', '1>&-', '2>&-', '0<&- 1>&- 2>&-'])
def test_closed_standard_streams(
        closed: str, tmp_path: Path, start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord(actor('big', '--once', 'once'))
    pid, = supervisord.wait_big('big')
    command = ['sh', '-c', f'exec "$0" "$@" {closed}', MEMMON, '-a', LIMIT]
    done = subprocess.run([*command, '--check'], env={**os.environ, **supervisord.env},
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, check=False)
    assert (done.returncode, done.stderr) == (1, '')
    if closed == '2>&-':
        script = tmp_path / 'memmon-without-stderr'
        script.write_text(f'#!/bin/sh\nexec {MEMMON} "$@" 2>&-\n')
        script.chmod(0o755)
        memmon = Memmon(tmp_path, '-a', LIMIT, *SAVE_MAIL, env=supervisord.env, command=str(script))
        try:
            memmon.send()
            supervisord.wait_new_pid('big', pid)
            wait_until(lambda: read_mails(tmp_path))
            wait_idle(memmon)
            assert memmon.send() < 1
        finally:
            memmon.end()
    else:
        done = subprocess.run(command, env={**os.environ, **supervisord.env},
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 0 and 'Traceback' not in done.stderr


# The sources of memory.

SOURCES = {'proc': '', 'ps': 'children', 'neither': 'children'}


def source_env(source: str, path: Path) -> Any:
    """Return the environment in which memmon has one source of memory alone."""
    env = {} if source == 'proc' else {'LD_PRELOAD': build_preloaded(path), 'HIDDEN': 'children'}
    if source == 'neither':
        (path / 'empty').mkdir()
        env['PATH'] = str(path / 'empty')
    return env


@needs_cc
@pytest.mark.parametrize('source', SOURCES)
def test_restart_with_each_source(
        source: str, tmp_path: Path, start_supervisord: StartSupervisord,
        start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(
        actor('big', '--once', 'big.once') + actor('small', '--mb', '1')
        + actor('parent', '--child', '--once', 'parent.once', stopasgroup='true'))
    big, = supervisord.wait_big('big')
    supervisord.wait_state('small', 'RUNNING')
    parent = supervisord.pid('parent')
    wait_until(lambda: (tmp_path / 'parent.once').exists() and any(
        int(Path(f'/proc/{child}/statm').read_text().split()[1]) > 10000
        for child in children_of(parent)))
    env = source_env(source, tmp_path)
    alone = start_memmon(supervisord, '-v', '-a', LIMIT, **env)
    alone.send()
    supervisord.wait_new_pid('big', big)
    alone.wait_log(' restarted big:big: RSS ')
    assert 'RSS 5' in lines_with(alone, ' restarted big:big: ')[0]
    wait_idle(alone)
    done = check(supervisord, '-c', '-a', LIMIT, **env)
    assert done.returncode == 1 and ' unknown ' not in done.stdout
    together = start_memmon(supervisord, '-c', '-a', LIMIT, **env)
    together.send()
    supervisord.wait_new_pid('parent', parent)
    together.wait_log(' restarted parent:parent: RSS ')
    wait_idle(together)
    assert [supervisord.spawned(name) for name in ('big', 'small', 'parent')] == [2, 1, 2]
    assert ('no process table from ps' in alone.log()) == (source == 'neither')


@needs_cc
def test_tick_without_any_source_is_lost_and_said(
        tmp_path: Path, start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(sleeper('big'))
    supervisord.wait_state('big', 'RUNNING')
    (tmp_path / 'empty').mkdir()
    memmon = start_memmon(supervisord, '-a', TINY, LD_PRELOAD=build_preloaded(tmp_path),
                          HIDDEN='proc', PATH=str(tmp_path / 'empty'))
    memmon.send()
    memmon.send()
    assert len(lines_with(memmon, 'nothing checked at this tick: ')) == 2
    assert memmon.log().count('\n') == 3
    assert supervisord.spawned('big') == 1


def test_ps_has_the_last_word_and_a_steady_tick_none(
        tmp_path: Path, proxy: Proxy, start_supervisord: StartSupervisord,
        start_memmon: StartMemmon) -> None:
    # A ps that takes the RSS of all processes from a file, where there is one, and counts its calls.
    (tmp_path / 'bin').mkdir()
    ps = tmp_path / 'bin/ps'
    ps.write_text(f'#!/bin/sh\ncd {tmp_path}\necho >> called\n'
                  f'test -e rss || exec {shutil.which("ps")} "$@"\n'
                  f'{shutil.which("ps")} "$@" | while read pid ppid rss; do '
                  'echo $pid $ppid $(cat rss); done\n')
    ps.chmod(0o755)
    supervisord = start_supervisord(sleeper('big') + sleeper('small'))
    supervisord.wait_state('big', 'RUNNING')
    supervisord.wait_state('small', 'RUNNING')
    memmon = start_memmon(supervisord, '-p', f'big={TINY}', '-p', 'small=1GB',
                          PATH=f'{tmp_path}/bin:{os.environ["PATH"]}', **proxy.env)
    (tmp_path / 'rss').write_text('77')
    memmon.send()
    memmon.wait_log(' left alone big:big: ')
    assert ' 77KB' in lines_with(memmon, ' left alone big:big: ')[0]
    wait_idle(memmon)
    (tmp_path / 'rss').write_text('123')
    memmon.send()
    memmon.wait_log(' restarted big:big: RSS 123KB is over 100KB')
    wait_idle(memmon)
    memmon.end()
    steady = start_memmon(supervisord, '-a', '1GB', PATH=f'{tmp_path}/bin:{os.environ["PATH"]}',
                          **proxy.env)
    steady.send()
    called, asked = (tmp_path / 'called').read_text(), list(proxy.calls)
    for _ in range(10):
        steady.send()
    assert (tmp_path / 'called').read_text() == called and proxy.calls == asked
