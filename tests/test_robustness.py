"""What memmon does when what it relies on is missing, wrong, slow or used up."""

from __future__ import annotations

import contextlib
import email
import email.policy
import os
import resource
import shutil
import sys
import xmlrpc.client
from pathlib import Path
from typing import Any, Callable

import pytest
from adversary import HIDE, TINY, Rules, actor, first, sleeper
from harness import (BIG_MB, LIMIT, MEMMON, BuildPreload, Done, Listener, Mailbox, StartListener,
                     StartSupervisord, Supervisord, assert_equal, children_of,
                     open_files, pool_section, rss_mb, run, section, wait_until)
from rpc import StartFakeServer, dribble, edit, lose, raw, reply

linux = pytest.mark.skipif(sys.platform != 'linux', reason='needs Linux')
root = pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which('setpriv') or not shutil.which('prlimit'),
    reason='needs root, and setpriv and prlimit from util-linux')


def check(supervisord: Supervisord, *args: str, **env: str) -> Done:
    return run(MEMMON, '--check', *args, env={**supervisord.env, **env})


def lines_with(memmon: Listener, text: str) -> list[str]:
    return [line for line in memmon.messages() if text in line]


def write_script(path: Path, text: str) -> str:
    path.write_text(f'#!/bin/sh\n{text}\n')
    path.chmod(0o755)
    return str(path)


def as_other_user(uid: int) -> list[str]:
    """Return a command that runs another one without any right over other users' processes.

    It is able to read the files of this Python.
    """
    return ['setpriv', '--reuid', str(uid), '--regid', str(uid), '--clear-groups',
            '--inh-caps', '+dac_override', '--ambient-caps', '+dac_override',
            '--bounding-set', '-all,+dac_override']


# Mail.

def test_mailer_that_hangs_holds_up_no_restart(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(pool_section('pool', 3, command='sleep 1000'))
    supervisord.wait_up('pool:pool_00', 'pool:pool_01', 'pool:pool_02')
    mailer = 'while ! test -e go; do sleep 0.1; done; cat > $$.new; mv $$.new $$.mail'
    memmon = start_listener(supervisord, '-a', TINY, '-m', 'bob@example.com', '-s', mailer)
    memmon.send()
    for number in range(3):
        memmon.wait_log(f' restarted pool:pool_0{number}: ')
    assert memmon.workers() and not list(tmp_path.glob('*.mail'))
    assert memmon.send() < 1
    (tmp_path / 'go').touch()
    wait_until(lambda: assert_equal(len(list(tmp_path.glob('*.mail'))), 3))


@linux
def test_mailer_that_prints_after_memmon_has_gone(
        tmp_path: Path, mailbox: Mailbox, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(actor('slow', '--holds', 'go'))
    supervisord.wait_big('slow')
    reader, writer = os.pipe()
    wrapper = write_script(tmp_path / 'wrapper',
                           f'exec "$@" 2>/proc/{os.getpid()}/fd/{writer}')
    mailer = f'echo printed; echo printed >&2; {mailbox.mailer}'
    memmon = start_listener(supervisord, '-a', LIMIT, '-m', 'bob@example.com', '-s', mailer,
                            wrapper=[wrapper])
    memmon.send()
    supervisord.wait_state('slow', 'STOPPING')
    memmon.process.kill()
    os.close(reader)
    os.close(writer)
    (tmp_path / 'go').touch()
    mail, = mailbox.wait()
    assert 'Subject: memmon: process slow:slow restarted\n' in mail


ENCODED = '=?utf-8?q?x=0ABcc=3A_evil=40example.com?='


def test_no_name_becomes_a_header(
        mailbox: Mailbox, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    names = [ENCODED, 'a-long-name-in-ascii-' * 5 + 'end']
    supervisord = start_supervisord(''.join(map(sleeper, names)))
    supervisord.wait_up(*names)
    memmon = start_listener(supervisord, '-a', TINY, '-n', ENCODED, *mailbox.args)
    memmon.send()
    mails = [email.message_from_string(text, policy=email.policy.default)
             for text in mailbox.wait(2)]
    for mail in mails:
        assert sorted(map(str.lower, mail.keys())) == [
            'content-transfer-encoding', 'content-type', 'mime-version', 'subject', 'to']
    assert sorted(str(mail['Subject']) for mail in mails) == sorted(
        f'memmon [{ENCODED}]: process {name}:{name} restarted' for name in names)
    plain = start_listener(supervisord, '-p', f'{names[1]}={TINY}', *mailbox.args)
    plain.send()
    head = mailbox.wait(3)[-1].partition('\n\n')[0]
    assert f' {names[1]}:{names[1]}' in head  # folded, but not encoded


def test_address_with_a_space_is_refused() -> None:
    done = run(MEMMON, '-a', '1GB', '-m', 'bob example.com')
    assert done.status == 2
    assert done.stderr.count('\n') == 1 and "'bob example.com'" in done.stderr


# No process, no memory, no descriptor.

def test_slow_stop_where_every_fork_fails(
        tmp_path: Path, no_fork: dict[str, str], start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    gone = tmp_path / 'gone'
    write_script(gone, 'exec sleep 1000')
    supervisord = start_supervisord(
        actor('slow', '--holds', 'go') + section('gone', command=str(gone)))
    supervisord.wait_big('slow')
    supervisord.wait_up('gone')
    memmon = start_listener(supervisord, '-a', TINY, **no_fork)
    gone.rename(tmp_path / 'away')
    memmon.send()
    supervisord.wait_state('slow', 'STOPPING')
    assert memmon.send() < 1
    memmon.wait_log(' failed to start gone:gone: ')
    assert memmon.send() < 1
    assert len(lines_with(memmon, 'cannot fork a worker (')) == 1
    memmon.process.terminate()
    (tmp_path / 'away').rename(gone)
    (tmp_path / 'go').touch()
    assert memmon.wait_end() == 0  # only when it owes nothing any more
    assert supervisord.states() == {'slow': 'RUNNING', 'gone': 'RUNNING'}
    assert (supervisord.spawned('slow'), supervisord.spawned('gone')) == (2, 2)
    assert 'Traceback' not in memmon.log() and 'a worker failed' not in memmon.log()


def size_of(pid: int, field: str) -> int:
    """Return the bytes of a field of /proc/PID/status."""
    status = Path(f'/proc/{pid}/status').read_text()
    return int(status.partition(f'{field}:')[2].split()[0]) << 10


# From nothing at all to what is enough for a look, but not for a pipe or a thread.
SHORTAGES = [('RLIMIT_AS', 'VmSize', [0, 1 << 16, 1 << 20]),
             ('RLIMIT_DATA', 'VmData', [0, 1 << 16, 1 << 20]),
             ('RLIMIT_NOFILE', '', [3, 4, 5, 6, 7])]


@linux
@pytest.mark.parametrize('kind, field, sizes', SHORTAGES)
def test_shortage_ends_no_memmon(
        kind: str, field: str, sizes: list[int], start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    # A short time to stop: a SIGTERM between supervisord's fork and its exec is lost.
    supervisord = start_supervisord(
        ''.join(sleeper(f'big{number}') for number in range(len(sizes)))
        + sleeper('other', stopwaitsecs=1))
    supervisord.wait_up('other')
    limit = getattr(resource, kind)
    for number, size in enumerate(sizes):
        big, = supervisord.wait_up(f'big{number}')
        memmon = start_listener(supervisord, '-p', f'big{number}={TINY}')
        memmon.wait_ready()
        size += size_of(memmon.pid, field) if field else 0
        soft, hard = resource.prlimit(memmon.pid, limit)
        resource.prlimit(memmon.pid, limit, (size, hard))
        for _ in range(3):
            memmon.send()
            supervisord.call('stopProcess', 'other')  # so that there is something new to ask
            supervisord.call('startProcess', 'other')
        for pid in [memmon.pid, *memmon.workers()]:  # which have inherited it
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, limit, (soft, hard))
        memmon.wait_idle()
        memmon.send()
        supervisord.wait_new_pid(f'big{number}', big)
        assert 'Traceback' not in memmon.log()


@linux
@root
def test_no_process_and_no_thread_left(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    names = ['a', 'b', 'c']
    uid = 100000 + os.getpid()  # of nobody else: a user's processes are counted together
    supervisord = start_supervisord(''.join(map(sleeper, names)))
    pids = supervisord.wait_up(*names)
    alone = start_listener(supervisord, '-a', TINY,
                           wrapper=[*as_other_user(uid), 'prlimit', '--nproc=1'])
    alone.send()
    count = len(open_files(alone.pid))
    for _ in range(5):
        alone.send()
    assert len(open_files(alone.pid)) == count
    alone.assert_log('no restarts before the next tick: ', 6)
    alone.end()  # it counts as well
    with_worker = start_listener(supervisord, '-a', TINY,
                                 wrapper=[*as_other_user(uid), 'prlimit', '--nproc=2'])
    with_worker.send()
    for name, pid in zip(names, pids):
        supervisord.wait_new_pid(name, pid)
    with_worker.wait_idle()
    assert 'Traceback' not in with_worker.log() and 'a worker failed' not in with_worker.log()


@linux
def test_many_restarts_leave_nothing_behind(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    names = [f'p{number}' for number in range(20)]
    supervisord = start_supervisord(''.join(map(sleeper, names)))
    supervisord.wait_up(*names)
    memmon = start_listener(supervisord, '-a', TINY)
    memmon.wait_ready()
    before = open_files(memmon.pid)
    memmon.send()
    memmon.wait_log(' restarted p', len(names))
    memmon.wait_idle()
    memmon.send('PROCESS_LOG')
    memmon.wait_ready()
    assert open_files(memmon.pid) == before
    assert len(os.listdir(f'/proc/{memmon.pid}/task')) == 1
    assert not children_of(memmon.pid)  # not even a zombie


# Answers that make no sense.

def http(body: bytes) -> Any:
    """Answer with the body of a response."""
    return raw(b'HTTP/1.0 200 OK\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n%b'
               % (len(body), body))


def fault(code: int, text: str) -> Any:
    return reply(xmlrpc.client.Fault(code, text))


BAD_NAME = fault(10, 'BAD_NAME')
WRONG_ANSWERS = [
    reply(None), reply('text'), reply(''), reply([7]), reply([None, None]), reply([{}]), reply({}),
    reply({'faultCode': 'x', 'faultString': 7}),
    reply([{'name': 'a', 'group': 'a', 'pid': 'one'}]),
    BAD_NAME, fault(1, 'UNKNOWN_METHOD'), fault(6, 'SHUTDOWN_STATE'),
    fault(30, 'FAILED\nline 2\nline 3'), raw(b''), raw(b'nothing like HTTP\r\n\r\n'),
    raw(b'HTTP/1.0 500 Internal Server Error\r\n\r\n'),
    http(b''), http(b'<html>\n<body>it works</body>\n</html>'), http(b'\xff\xfe\x00' * 1000),
    http(b'<methodResponse><params></params></methodResponse>'),
]
NO_PID = [reply([]), *WRONG_ANSWERS]
NO_LIST = [reply(7), *WRONG_ANSWERS]
NO_PROCESS = [reply(7), reply([]), *WRONG_ANSWERS, lose]


def test_wrong_answer_to_the_look_is_one_line_and_the_next_tick(
        start_supervisord: StartSupervisord, start_listener: StartListener,
        start_fake_server: StartFakeServer) -> None:
    supervisord = start_supervisord(sleeper('big'))
    pid, = supervisord.wait_up('big')
    rules = Rules()
    rules.at('getPID', '', NO_PID[0])  # to the first try, before any tick
    memmon = start_listener(start_fake_server(rules, supervisord.env), '-a', TINY)
    memmon.wait_ready()
    for method, wrong in (('getPID', NO_PID), ('getAllProcessInfo', NO_LIST)):
        for number, rule in enumerate(wrong):
            count = len(memmon.messages())
            rules.at(method, '', rule)
            assert memmon.send() < 2
            told = memmon.messages()[count:]
            assert len(told) == 1 and 'nothing checked at this tick: ' in told[0], (number, told)
    memmon.send()
    supervisord.wait_new_pid('big', pid)


@pytest.mark.parametrize('method', ['getProcessInfo', 'stopProcess', 'startProcess'])
def test_wrong_answer_in_a_restart_loses_no_program(
        method: str, start_supervisord: StartSupervisord, start_listener: StartListener,
        start_fake_server: StartFakeServer) -> None:
    names = [f'p{number}' for number in range(len(NO_PROCESS))]
    supervisord = start_supervisord(''.join(map(sleeper, names)))
    supervisord.wait_up(*names)
    rules = Rules()

    def later(name: str, rule: Any) -> Callable[[], None]:
        return lambda: rules.at('getProcessInfo', name, rule)

    for name, rule in zip(names, NO_PROCESS):
        namespec = f'{name}:{name}'
        if method == 'getProcessInfo':
            rules.at('startProcess', namespec, first(later(namespec, rule)))
        else:
            rules.at(method, namespec, rule)
    memmon = start_listener(start_fake_server(rules, supervisord.env), '-a', TINY)
    memmon.send()
    memmon.wait_idle()
    states = supervisord.states()
    if method == 'startProcess':  # it does not know the process any more, it says
        states[names[NO_PROCESS.index(BAD_NAME)]] = 'RUNNING'
    assert states == dict.fromkeys(names, 'RUNNING')
    assert 'Traceback' not in memmon.log() and 'a worker failed' not in memmon.log()
    for name in names:
        memmon.assert_log(f' {name}:{name}: ')


def test_answer_that_dribbles_has_ten_seconds(
        start_supervisord: StartSupervisord, start_listener: StartListener,
        start_fake_server: StartFakeServer) -> None:
    supervisord = start_supervisord(sleeper('big'))
    pid, = supervisord.wait_up('big')
    rules = Rules()
    slow = dribble(b'HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n' + b' ' * 1000)
    rules.at('getAllProcessInfo', '', slow)
    server = start_fake_server(rules, supervisord.env)
    at_tick, at_stop = start_listener(server, '-a', TINY), start_listener(server, '-a', TINY)
    at_tick.begin()
    wait_until(lambda: assert_equal(rules.count('getAllProcessInfo'), 1))
    rules.at('stopProcess', 'big:big', slow)
    at_stop.send()
    at_tick.expect(b'RESULT 2\nOK')
    at_tick.is_ready = False
    line, = lines_with(at_tick, 'nothing checked at this tick: ')
    assert ' within 10 seconds' in line
    at_stop.wait_log(' left alone big:big: ')
    assert supervisord.pid('big') == pid
    at_stop.wait_idle()
    at_tick.send()
    supervisord.wait_new_pid('big', pid)


def test_spawnerr_of_several_lines_is_one_line(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener,
        start_fake_server: StartFakeServer) -> None:
    supervisord = start_supervisord(
        actor('broken', '--ends', 'broken', startsecs=1, startretries=0))
    supervisord.wait_big('broken')
    rules = Rules()

    def add_lines(info: dict[str, Any]) -> dict[str, Any]:
        if info['statename'] != 'FATAL':
            rules.at('getProcessInfo', 'broken:broken', edit(add_lines))
        return {**info, 'spawnerr': 'first line\nERROR memmon: second line\rthird line'}

    def edit_what_follows() -> None:
        (tmp_path / 'broken').touch()
        rules.at('getProcessInfo', 'broken:broken', edit(add_lines))
    rules.at('startProcess', 'broken:broken', first(edit_what_follows))
    memmon = start_listener(start_fake_server(rules, supervisord.env), '-a', LIMIT)
    memmon.send()
    memmon.wait_idle()
    line, = lines_with(memmon, ' failed to start broken:broken: ')
    assert 'first line' in line and 'third line' in line
    assert memmon.log().count('\n') == 3


# Who is who.

def assert_warns_once(memmon: Listener) -> str:
    """Return the line about what cannot be measured."""
    for _ in range(3):
        memmon.send()
    line, = lines_with(memmon, 'cannot measure ')
    return line


@root
@pytest.mark.usefixtures('pid_namespaces')
def test_supervisord_in_another_pid_namespace(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    # High pids: those that are low may be children of this machine's process 1.
    enter = 'echo 30000 > /proc/sys/kernel/ns_last_pid; exec "$0" "$@"'
    supervisord = start_supervisord(
        sleeper('big') + sleeper('also'),
        wrapper=['unshare', '--pid', '--fork', '--kill-child', 'sh', '-c', enter])
    supervisord.wait_up('big', 'also')
    memmon = start_listener(supervisord, '-a', TINY)
    line = assert_warns_once(memmon)
    assert 'big:big (pid ' in line and 'also:also (pid ' in line
    done = check(supervisord, '-a', TINY)
    assert done.status == 2 and done.stdout.count(' unknown ') == 2
    assert 'cannot measure ' in done.stdout
    assert supervisord.spawned('big') == 1


@root
@pytest.mark.usefixtures('pid_namespaces')
def test_process_hidden_by_hidepid(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(
        sleeper('big'), server='[unix_http_server]\nfile=%(here)s/s\nchmod=0777\n')
    supervisord.wait_up('big')
    wrapper = ['unshare', '--mount', 'sh', '-c',
               'mount -t proc -o hidepid=2 proc /proc; exec "$0" "$@"', *as_other_user(54321)]
    memmon = start_listener(supervisord, '-a', TINY, wrapper=wrapper)
    assert 'big:big (pid ' in assert_warns_once(memmon)
    done = run(*wrapper, MEMMON, '--check', '-a', TINY, env=supervisord.env)
    assert done.status == 2 and ' unknown ' in done.stdout


def test_memmon_restarts_neither_itself_nor_its_pool(
        tmp_path: Path, start_supervisord: StartSupervisord) -> None:
    path = os.environ['PATH']
    commands = {
        'plain': f'{MEMMON} %s',
        'bare': f'env -i PATH={path} SUPERVISOR_SERVER_URL=unix://{tmp_path}/s {MEMMON} %s',
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
        wait_until(lambda: assert_equal(supervisord.spawned(f'small-{name}'), 2))
    for name in ('plain', 'bare', 'shell', 'twins_0', 'twins_1'):
        assert supervisord.spawned(name) == 1
    wait_until(lambda: assert_equal(set(supervisord.states().values()), {'RUNNING'}))


# Streams, and many names.

@linux
def test_thousand_names_that_match_nothing(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(
        pool_section('queue', 300, command='sleep 1000', autostart='false') + sleeper('one'))
    memmon = start_listener(supervisord, *[f'-pqueue:quue_{number}={TINY}'
                                           for number in range(1000)])
    memmon.wait_ready()
    before = cpu_secs(memmon.pid)
    memmon.send()
    assert cpu_secs(memmon.pid) - before < 1
    assert memmon.log().count(' covers no process') == 1000


def cpu_secs(pid: int) -> float:
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


@pytest.mark.parametrize('closed', ['0<&-', '1>&-', '2>&-', '0<&- 1>&- 2>&-'])
def test_closed_standard_streams(closed: str, start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord(sleeper('big'))
    supervisord.wait_up('big')
    shell = ['sh', '-c', f'exec "$0" "$@" {closed}', MEMMON, '-a', TINY]
    done = run(*shell, '--check', env=supervisord.env)
    assert (done.status, done.stderr) == (1, '')
    done = run(*shell, env=supervisord.env)  # it gets no event
    assert done.status == 0 and 'Traceback' not in done.stderr


def test_restart_and_mail_without_stderr(
        mailbox: Mailbox, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(sleeper('big'))
    pid, = supervisord.wait_up('big')
    memmon = start_listener(supervisord, '-a', TINY, *mailbox.args,
                            wrapper=['sh', '-c', 'exec "$0" "$@" 2>&-'])
    memmon.send()
    supervisord.wait_new_pid('big', pid)
    mailbox.wait()
    assert memmon.send() < 1


# The sources of what is measured.

@pytest.mark.parametrize('source', ['proc', 'ps', 'neither'])
def test_restart_with_each_source(
        source: str, tmp_path: Path, build_preload: BuildPreload,
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(
        actor('big', '--once', 'big.once') + actor('small', '--mb', '1')
        + actor('parent', '--child', '--once', 'parent.once', stopasgroup='true'))
    big, = supervisord.wait_big('big')
    parent, _ = supervisord.wait_up('parent', 'small')
    wait_until(lambda: assert_big_below(parent))
    env = {} if source == 'proc' else {**build_preload(HIDE), 'HIDE_END': '/children'}
    if source == 'neither':
        (tmp_path / 'empty').mkdir()
        env['PATH'] = str(tmp_path / 'empty')
    alone = start_listener(supervisord, '-v', '-a', LIMIT, **env)
    alone.send()
    supervisord.wait_new_pid('big', big)
    alone.wait_log(' restarted big:big: RSS ')
    alone.wait_idle()
    assert ('no process table from ps' in alone.log()) == (source == 'neither')
    done = check(supervisord, '-c', '-a', LIMIT, **env)
    assert done.status == 1 and ' unknown ' not in done.stdout
    together = start_listener(supervisord, '-c', '-a', LIMIT, **env)
    together.send()
    supervisord.wait_new_pid('parent', parent)
    together.wait_log(' restarted parent:parent: RSS ')
    together.wait_idle()
    assert [supervisord.spawned(name) for name in ('big', 'small', 'parent')] == [2, 1, 2]


def assert_big_below(pid: int) -> None:
    assert any(rss_mb(child) > BIG_MB for child in children_of(pid)), f'no big child of {pid}'


def test_tick_without_any_source_is_lost_and_said(
        tmp_path: Path, build_preload: BuildPreload, start_supervisord: StartSupervisord,
        start_listener: StartListener) -> None:
    supervisord = start_supervisord(sleeper('big'))
    supervisord.wait_up('big')
    memmon = start_listener(supervisord, '-a', TINY, PATH=str(tmp_path),
                            HIDE_BEGIN='/proc', **build_preload(HIDE))
    memmon.send()
    memmon.send()
    assert len(lines_with(memmon, 'nothing checked at this tick: ')) == 2
    assert memmon.log().count('\n') == 3
    assert supervisord.spawned('big') == 1


@linux
def test_children_are_found_while_threads_come_and_go(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    churn = ('import subprocess, threading, time; '
             'subprocess.Popen([\\"sleep\\", \\"1000\\"]); '
             '[([thread.start() for thread in threads], time.sleep(0.001)) for threads in '
             'iter(lambda: [threading.Timer(0.002, int) for _ in range(8)], 0)]')
    supervisord = start_supervisord(section(
        'churn', command=f'{sys.executable} -c "{churn}"', stopasgroup='true'))
    pid, = supervisord.wait_up('churn')
    wait_until(lambda: assert_equal(len(children_of(pid)), 1))
    child, = children_of(pid)
    memmon = start_listener(supervisord, '-c', '-v', '-a', '1GB')
    for _ in range(300):
        memmon.send()
    own, below = rss_mb(pid), rss_mb(child)
    figures = [line.partition('RSS ')[2].partition('MB')[0]
               for line in lines_with(memmon, 'churn:churn: ')]
    assert len(figures) == 300
    assert min(map(float, figures[150:])) > own - 0.5 + below / 2


@linux
def test_ps_has_the_last_word_and_a_steady_tick_asks_nobody(
        tmp_path: Path, start_supervisord: StartSupervisord, start_listener: StartListener,
        start_fake_server: StartFakeServer) -> None:
    # A ps that takes the RSS of all processes from a file, and counts its calls.
    (tmp_path / 'bin').mkdir()
    write_script(tmp_path / 'bin/ps',
                 f'cd {tmp_path}; echo >> called; {shutil.which("ps")} "$@" | '
                 'while read pid ppid rss; do echo $pid $ppid $(cat rss); done')
    path = f'{tmp_path}/bin:{os.environ["PATH"]}'
    supervisord = start_supervisord(sleeper('big') + sleeper('small'))
    supervisord.wait_up('big', 'small')
    rules = Rules()
    server = start_fake_server(rules, supervisord.env)
    memmon = start_listener(server, '-p', f'big={TINY}', '-p', 'small=1GB', PATH=path)
    (tmp_path / 'rss').write_text('77')
    memmon.send()
    memmon.wait_log(' left alone big:big: ')
    assert ' 77KB' in lines_with(memmon, ' left alone big:big: ')[0]
    memmon.wait_idle()
    (tmp_path / 'rss').write_text('123')
    memmon.send()
    memmon.wait_log(' restarted big:big: RSS 123KB is over 100KB')
    memmon.wait_idle()
    steady = start_listener(server, '-a', '1GB', PATH=path)
    steady.send()
    called, asked = (tmp_path / 'called').read_text(), list(rules.calls)
    for _ in range(10):
        steady.send()
    assert (tmp_path / 'called').read_text() == called and rules.calls == asked
