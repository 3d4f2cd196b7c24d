"""memmon --check: the table, the proposals, the status, and what it is refused with."""

from __future__ import annotations

import gc
import math
import os
import re
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence, Tuple

import pytest
from fake_server import StartFakeServer, edit, forward, raw, reply
from harness import (CLIENT, LIMIT, MEMMON, PASSWORD, UNIX_SERVER, Done, StartListener,
                     StartSupervisord, Supervisord, descendants_of, in_pid_namespace, pool_section,
                     rss_mb, run, section, sleeper, wait_until)
from supervisor.options import ServerOptions
from supervisor.states import ProcessStates

import memmon
from memmon import MB, Options, Process, Reading


def check(supervisord: Supervisord, *args: str, **env: str) -> Done:
    """Run memmon --check in the directory of a supervisord."""
    return run(MEMMON, '--check', *args, env={**supervisord.env, **env}, cwd=supervisord.path)


def assert_refused(done: Done, error: str) -> None:
    """Assert that memmon --check could not look, and says so in one line."""
    assert done == (2, '', f'memmon: {error}\n')


# What it shows of real programs.

PROGRAMS = (section('big') + section('small', '--mb', '1') + section('off', autostart='false')
            + pool_section('queue', 2, '--mb', '1'))


@pytest.fixture
def supervisord(start_supervisord: StartSupervisord) -> Supervisord:
    supervisord = start_supervisord(PROGRAMS)
    supervisord.wait_big('big')
    supervisord.wait_up('small', 'queue:queue_00', 'queue:queue_01')
    return supervisord


def read_table(lines: list[str]) -> dict[str, dict[str, str]]:
    """Return the rows of the table by process, in order, their cells by the heading."""
    heading, *rows = [re.split(' {2,}', line) for line in lines]
    return {row[0]: dict(zip([*heading, 'BAR'], row)) for row in rows}


def megabytes(cell: str) -> float:
    assert cell.endswith('MB')
    return float(cell[:-2])


def test_table_shows_what_uses_how_much_of_its_limit(supervisord: Supervisord) -> None:
    before = [info['pid'] for info in supervisord.call('getAllProcessInfo')]
    status, stdout, stderr = check(supervisord, '-p', f'big={LIMIT}', '-g', 'queue=1GB', '-g',
                                   'off=1GB', '-p', 'smal=1MB', COLUMNS='100')
    assert (status, stderr) == (1, '')
    lines = stdout.splitlines()
    assert len(lines[1]) == 100 and re.search(' #+$', lines[1])  # the bar fills the terminal
    assert lines[6:] == ['-p smal=1MB matches no process; similar: small']
    table = read_table(lines[:6])
    queue = ['queue:queue_00', 'queue:queue_01']
    assert (list(table)[0], list(table)[3:]) == ('big:big', ['small:small', 'off:off'])
    for name in ('big:big', 'small:small', *queue):
        row = table[name]
        assert row['PID'] == str(supervisord.pid(name))
        assert re.fullmatch(r'0:0\d:\d\d', row['UPTIME'])
        assert megabytes(row['RSS']) == pytest.approx(rss_mb(int(row['PID'])), abs=2)
        assert megabytes(row['PEAK']) >= megabytes(row['RSS'])
    assert [(row['LIMIT'], row['SET BY']) for row in table.values()] == [
        (LIMIT, f'-p big={LIMIT}'), ('1GB', '-g queue=1GB'), ('1GB', '-g queue=1GB'),
        ('-', 'no option'), ('1GB', '-g off=1GB')]
    big, off = table['big:big'], table['off:off']
    used = megabytes(big['RSS']) / megabytes(LIMIT)
    assert int(big['USED'][:-1]) == pytest.approx(100 * used, abs=1)
    assert [off[head] for head in ('PID', 'UPTIME', 'RSS', 'PEAK', 'USED')] == [
        '-', 'STOPPED', '-', '-', '-']
    assert [info['pid'] for info in supervisord.call('getAllProcessInfo')] == before


def test_without_limits_all_are_shown_and_limits_proposed(supervisord: Supervisord) -> None:
    status, stdout, stderr = check(supervisord)
    assert (status, stderr) == (0, '')
    lines = stdout.splitlines()
    names = list(read_table(lines[:6]))
    assert (names[0], names[-1]) == ('big:big', 'off:off')
    assert sorted(names[1:-1]) == ['queue:queue_00', 'queue:queue_01', 'small:small']
    assert lines[6:8] == ['', 'Limits of half as much again as the peaks, ready to paste behind '
                              'command=:']
    words = lines[9].split()
    assert words[0] == MEMMON and words[1::2] == ['-p'] * 3
    limits = dict(word.split('=') for word in words[2::2])
    assert (limits['queue'], limits['small']) == ('32MB', '32MB')
    assert megabytes(limits['big']) >= 1.5 * rss_mb(supervisord.pid('big')) - 1
    assert check(supervisord, *words[1:]).status == 0
    done = check(supervisord, '-t', '200')
    assert done.status == 1
    question, total = done.stdout.splitlines()[-2:]
    assert question == '-t 200 is 200 bytes; did you mean 200MB?'
    assert re.fullmatch(r'total: PSS [\d.]+MB of 200 \(-t 200\), \d+%', total)


def test_prefork_server_is_proposed_what_is_private(start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord(section('fork', '--children', '4', stopasgroup='true'))
    supervisord.wait_big('fork')
    # 300 MB of RSS, 60 of which are the 60 that all share; what Python needs is small beside it.
    wait_until(lambda: len(descendants_of(supervisord.pid('fork'))) == 4)
    done = check(supervisord)
    words = next(line for line in done.stdout.splitlines() if 'memmon -c ' in line).split()
    assert words[:4] == [MEMMON, '-c', '-k', 'private']
    name, _, limit = words[5].partition('=')
    assert name == 'fork' and 90 <= megabytes(limit) < 250
    assert check(supervisord, *words[1:]).status == 0
    lines = check(supervisord, '-c', '-a', '1GB').stdout.splitlines()
    assert re.fullmatch(r'fork:fork shares memory among its 5 processes: with -k private, '
                        r'[\d.]+MB counts', lines[-1])


# Proposals, from readings that are made up.

ABSENT = 2 ** 22  # no process has this pid or a higher one


class Table(memmon.Processes):
    """Processes with a number of MB of RSS each, and their children."""

    def __init__(self, sizes: Mapping[int, float], parents: Mapping[int, int]) -> None:
        self.sizes, self.parents = sizes, parents

    def children(self, pid: int) -> list[int]:
        return [child for child, parent in self.parents.items() if parent == pid]

    def rss(self, pid: int) -> int | None:
        return int(self.sizes[pid] * MB) if pid in self.sizes else None


def process(namespec: str, pid: int, **fields: Any) -> Process:
    """Return a process that has been up for 100 seconds."""
    group, _, name = namespec.rpartition(':')
    row = Process(group or name, name, pid, 1000, 0, 1100, ProcessStates.RUNNING, 'RUNNING', '', 0)
    return row._replace(**fields)


Row = Tuple[Reading, int]  # with its peak


def row(namespec: str, pid: int, rss_mb: float | None, peak_mb: float = 0, **fields: Any) -> Row:
    rss = None if rss_mb is None else int(rss_mb * MB)
    reading = Reading(process(namespec, pid), memmon.NO_LIMIT, math.inf, math.inf,
                      memmon.MEASURES['rss'], rss, rss, rss, 1100)
    return reading._replace(**fields), int(peak_mb * MB)


def options(*args: str) -> Options:
    return memmon.parse_args(['--check', *args])


def propose(monkeypatch: pytest.MonkeyPatch, rows: Sequence[Row], *args: str,
            parents: Mapping[int, int] | None = None, sizes: Mapping[int, float] | None = None,
            exact: Mapping[int, float] | None = None) -> list[str]:
    """Return the words of the proposal for rows; exact has the MB of what smaps_rollup tells."""
    readings = [reading for reading, _ in rows]
    table = Table({**{reading.process.pid: (reading.rss or 0) / MB for reading in readings},
                   **(sizes or {})}, parents or {})
    peaks = {reading.process.pid: peak for reading, peak in rows}
    monkeypatch.setattr(memmon, 'read_status', lambda pids, _: sum(
        peaks.get(pid) or table.rss(pid) or 0 for pid in pids))
    real = memmon.read_fields
    monkeypatch.setattr(memmon, 'read_fields', lambda pid, fields: int(
        (exact or {})[pid] * MB) if pid >= ABSENT else real(pid, fields))
    monkeypatch.setattr(sys, 'argv', ['bin/memmon', '--check'])
    lines = memmon.propose_limits(table, readings, options(*args))
    path, *words = shlex.split(' '.join(lines[3:-3]))
    assert path == os.path.abspath('bin/memmon')
    return words


A, B, C, D = range(ABSENT, ABSENT + 4)


def test_proposal_is_half_as_much_again_as_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row('web', A, 50, 100), row('queue:queue_00', B, 10, 40), row('queue:queue_01', C, 70),
            row('stopped', 0, None), row('cron', D, 3, 4)]
    assert propose(monkeypatch, rows) == [
        '-p', 'cron=32MB', '-p', 'queue=110MB', '-p', 'web=150MB']


def test_nothing_is_proposed_where_nothing_runs() -> None:
    assert memmon.propose_limits(Table({}, {}), [row('web', 0, None)[0]], options()) == []


def test_proposal_names_the_group_where_two_have_a_program_of_one_name(
        monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row('blue:web', A, 100), row('green:web', B, 200)]
    assert propose(monkeypatch, rows) == ['-p', 'blue:web=150MB', '-p', 'green:web=300MB']


@pytest.mark.parametrize('args, exact, words', [
    ((), {A: 20, B: 25, C: 25}, ['-c', '-k', 'private', '-p', 'web=110MB']),
    (('-c',), {A: 20, B: 25, C: 25}, ['-c', '-k', 'private', '-p', 'web=110MB']),
    (('-c', '-k', 'pss'), {A: 40, B: 40, C: 40}, ['-c', '-k', 'pss', '-p', 'web=180MB']),
    # All but 10 of 300 MB swapped out: what is private, not 30 times the peak.
    ((), {A: 100, B: 100, C: 101}, ['-c', '-k', 'private', '-p', 'web=460MB']),
], ids=['private', 'with -c', 'with -k pss', 'more than the RSS'])
def test_proposal_for_a_tree_counts_what_is_its_own(
        args: Sequence[str], exact: Mapping[int, float], words: Sequence[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    assert propose(monkeypatch, [row('web', A, 100)], *args, parents={B: A, C: A},
                   sizes={B: 100, C: 100}, exact=exact) == words


def test_proposal_for_what_is_swapped_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row('web', A, 5, 200)]
    assert propose(monkeypatch, rows, '-k', 'private', exact={A: 200}) == [
        '-k', 'private', '-p', 'web=300MB']


def test_proposal_scales_the_peak_by_what_is_private_now(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row('web', A, 100, 400)]
    assert propose(monkeypatch, rows, '-k', 'private', exact={A: 50}) == [
        '-k', 'private', '-p', 'web=300MB']


def test_proposal_for_a_thousand_programs_is_wrapped_as_supervisord_conf_takes_it(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [row(f'program%{i:03d}x', ABSENT + i, 100) for i in range(1000)]
    words = propose(monkeypatch, rows)
    lines = memmon.propose_limits(Table({ABSENT + i: 100 for i in range(1000)}, {}),
                                  [reading for reading, _ in rows], options())[3:-3]
    assert len(lines) > 100 and max(map(len, lines)) <= 100
    assert all(line.startswith('      -p ') for line in lines[1:])
    conf = tmp_path / 'supervisord.conf'
    conf.write_text('[supervisord]\n[eventlistener:memmon]\nevents=TICK_60\ncommand='
                    + '\n'.join(lines).strip() + '\n')
    server = ServerOptions()
    server.configfile = str(conf)
    server.process_config(do_usage=False)
    command = shlex.split(server.process_group_configs[0].process_configs[0].command)
    is_same = command == [os.path.abspath('bin/memmon'),
                          *(word.replace('%%', '%') for word in words)]
    assert is_same  # apart: a failure would show all of it
    assert len(memmon.parse_args(command[1:]).limits) == 1000


# The table, from readings that are made up.

@pytest.mark.parametrize('peak, rss, memory, shown', [
    (0, 100, 100, '100MB'), (90, 100, 100, '100MB'), (120, 100, 100, '120MB'),
    (50, 10, 60, '60MB'), (0, None, None, '-'),
])
def test_peak_is_never_below_what_is_used(peak: float, rss: float | None, memory: float | None,
                                          shown: str) -> None:
    one = row('web', A, rss, peak, memory=None if memory is None else int(memory * MB))
    cells = memmon.format_table([one], options(), 80)[1].split()
    assert cells[-1] == shown


def test_processes_that_share_memory_are_named_with_c(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table({A: 100, B: 100, C: 100}, {B: A, C: A})
    monkeypatch.setattr(memmon, 'read_fields', lambda pid, fields: 40 * MB)
    shared = row('web', A, 300)[0]._replace(descendants=memmon.tree(table, A)[1:])
    assert memmon.explain_tree(table, shared, options('-c')) == (
        'web:web shares memory among its 3 processes: with -k private, 120MB counts')
    monkeypatch.setattr(memmon, 'read_fields', lambda pid, fields: 80 * MB)
    assert memmon.explain_tree(table, shared, options('-c')) == ''


@pytest.mark.parametrize('own_mb, below_mb, is_named', [
    (2, 160, True), (26, 56, True), (60, 60, False), (2, 3, False), (2, 0, False),
])
def test_process_whose_descendants_use_more_is_named(own_mb: float, below_mb: float,
                                                     is_named: bool) -> None:
    table = Table({A: own_mb, B: below_mb / 2, C: below_mb / 2}, {B: A, C: B})
    sentence = memmon.look_below(table, process('web', A))
    start = f'web:web uses {own_mb}MB, and its descendants use {below_mb}MB: add -c to count them'
    assert sentence.startswith(start) if is_named else sentence == ''


@pytest.mark.waits
def test_wrapper_is_named_by_check_and_once_in_the_log(start_supervisord: StartSupervisord,
                                                       start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('wrapped', '--child', stopasgroup='true')
                                    + sleeper('plain'))
    wrapped, _ = supervisord.wait_up('wrapped', 'plain')
    wait_until(lambda: max(map(rss_mb, descendants_of(wrapped)), default=0) > 50)
    hint = (r'(\w+):\w+ uses [\d.]+MB, and its descendants use [\d.]+MB: add -c to count them as '
            'well')
    assert re.findall(hint, check(supervisord, '-a', '1GB').stdout) == ['wrapped']
    assert 'add -c' not in check(supervisord, '-c', '-a', '1GB').stdout
    listener = start_listener(supervisord, '-a', '1GB')

    def assert_told() -> None:
        listener.send()
        assert re.findall(hint, listener.log()) == ['wrapped']

    wait_until(assert_told)  # it is looked at when it is ten seconds old
    for _ in range(3):
        assert_told()


def test_child_whose_memory_is_hidden_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, hidden = process('seen', A), process('hidden', B)
    monkeypatch.setattr(memmon, 'PROC_FILES', Table({A: 100}, {A: 1, B: 1}))
    monkeypatch.setattr(memmon.Server, 'call', lambda server, take, method, *args: (
        take(1 if method == 'supervisor.getPID' else [seen._asdict(), hidden._asdict()])))
    monitor = memmon.Monitor(options('-a', '1GB'), memmon.Server('unix:///nonexistent/s'))
    monitor.look(0)
    readings = [history.reading and history.reading.memory for history in monitor.running]
    assert (readings, monitor.hidden) == ([100 * MB, None], ['hidden:hidden'])
    stopped = process('hidden', 0, state=ProcessStates.STOPPED, statename='STOPPED')
    hidden = stopped  # whose end no child shows
    monitor.look(1)
    assert monitor.hidden == []


def test_memmon_has_no_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [process('web', A), process('memmon', B)]
    monkeypatch.setattr(memmon, 'PROC_FILES', Table({A: 40, B: 60}, {A: 1, B: 1}))
    monkeypatch.setattr(memmon, 'is_memmon', lambda process: process.name == 'memmon')
    monkeypatch.setattr(memmon.Server, 'call', lambda server, take, method, *args: (
        take(1 if method == 'supervisor.getPID' else [row._asdict() for row in rows])))
    monkeypatch.setenv('SUPERVISOR_SERVER_URL', 'unix:///nonexistent/s')
    monkeypatch.setattr(memmon.log, 'disabled', False)  # and put it back
    for limit, expected in (('50MB', 0), ('30MB', 1)):
        lines, status = memmon.check(options('-a', limit))
        assert status == expected
        cells = next(line for line in lines if line.startswith('memmon:memmon')).split()
        assert cells[-6:] == ['60MB', '60MB', '-', 'no', 'option', '-']


@pytest.mark.parametrize('command, is_one', [
    ('/opt/memmon/bin/python3 /opt/memmon/bin/memmon -a 1MB', True),
    ('python3.11 -u -m memmon -a 1MB', True), ('python memmon.py', True), ('memmon -a 1MB', True),
    ('python app.py /var/log/memmon', False), ('tail -F /var/log/memmon', False), ('', False),
])
def test_memmon_is_told_by_its_command(command: str, is_one: bool,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memmon, 'read_proc', lambda path: '\0'.join(
        [*command.split(), '']).encode())
    assert memmon.is_memmon(process('web', 7)) == is_one


# Names, and what they must not do to a terminal.

def info(namespec: str, pid: int, **fields: Any) -> dict[str, Any]:
    """Return what supervisord answers about a process."""
    return process(namespec, pid, now=int(time.time()), start=int(time.time()) - 100,
                   **fields)._asdict()


def test_nothing_of_a_name_reaches_the_terminal_raw(start_fake_server: StartFakeServer) -> None:
    names = ['csi\x9b31m', 'bidi\u202egpj', 'line\u2028end', 'web\x85x']
    server = start_fake_server(reply([]), answers={
        'supervisor.getPID': reply(1),
        'supervisor.getAllProcessInfo': reply([info(name, ABSENT + i)
                                               for i, name in enumerate(names)])})
    done = run(MEMMON, '--check', '-p', 'webx=1MB', '-p', 'csi\x9b3=1MB', '-g', 'bidi\u202e=1MB',
               env=server.env)
    assert done.status == 2
    assert '\\x9b31m:csi\\x9b31m' in done.stdout and 'similar: web\\x85x' in done.stdout
    assert 'cannot measure csi\\x9b31m:csi\\x9b31m, bidi\\u202egpj' in done.stdout
    text = done.stdout + done.stderr
    assert [char for char in text if not char.isprintable() and char != '\n'] == []
    assert len(done.stdout.splitlines()) == done.stdout.count('\n')


def test_names_in_other_scripts_in_an_ascii_locale(start_fake_server: StartFakeServer) -> None:
    server = start_fake_server(reply([]), answers={
        'supervisor.getPID': reply(os.getpid()), 'supervisor.getAllProcessInfo': reply(
            [info('größe', 0, state=ProcessStates.STOPPED, statename='STOPPED')])})
    done = run(MEMMON, '--check', env={**server.env, 'PYTHONIOENCODING': 'ascii', 'LC_ALL': 'C',
                                       'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'})
    assert (done.status, done.stderr) == (0, '')
    assert done.stdout.splitlines()[1].startswith('gr\\xf6\\xdfe:gr\\xf6\\xdfe  ')


def test_process_that_ends_in_between_is_no_failure(start_fake_server: StartFakeServer) -> None:
    looks: list[int] = []

    def answer(exchange: Any) -> None:
        looks.append(1)
        gone = info('web', ABSENT) if len(looks) == 1 else info(
            'web', 0, state=ProcessStates.EXITED, statename='EXITED')
        exchange.send([gone])

    server = start_fake_server(reply([]), answers={
        'supervisor.getPID': reply(os.getpid()), 'supervisor.getAllProcessInfo': answer})
    done = run(MEMMON, '--check', '-a', '1GB', env=server.env)
    assert (done.status, len(looks)) == (0, 2), done
    assert done.stdout.splitlines()[1].split()[:3] == ['web:web', '-', 'EXITED']


def test_process_that_cannot_be_measured(start_supervisord: StartSupervisord,
                                         pid_namespaces: None) -> None:
    supervisord = start_supervisord(sleeper('small'))
    supervisord.wait_up('small')
    done = run(*in_pid_namespace(MEMMON, '--check', '-a', '1GB'), env=supervisord.env)
    assert (done.status, done.stderr) == (2, '')
    assert 'cannot measure small:small: ' in done.stdout


# How it finds supervisord.

def test_supervisord_is_found_as_supervisorctl_finds_it(start_supervisord: StartSupervisord
                                                        ) -> None:
    supervisord = start_supervisord(sleeper('small'),
                                    server=UNIX_SERVER + PASSWORD + CLIENT + PASSWORD)
    supervisord.env = {}
    conf = supervisord.path / 'supervisord.conf'
    done = check(supervisord, '-a', '1GB')
    assert (done.status, done.stderr) == (0, '')
    assert done.stdout.splitlines()[1].startswith('small:small ')
    assert done.stdout.splitlines()[-1] == (
        f'supervisord: unix://{os.path.realpath(supervisord.path)}/s, from supervisord.conf')
    elsewhere = run(MEMMON, '--check', '-a', '1GB', '--config', conf, cwd=Path('/'),
                    env={'SUPERVISOR_SERVER_URL': 'unix:///nonexistent/s'})
    assert (elsewhere.status, elsewhere.stderr) == (0, '')


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('conf, error', [
    (None, 'cannot read x.conf: No such file or directory'),
    ('', 'cannot read x.conf: it is no regular file'),
    ('[supervisord]\n', 'x.conf: .ini file does not include supervisorctl section; fix it, or set '
                        'SUPERVISOR_SERVER_URL'),
    ('[supervisorctl]\nserverurl=ftp://bob:se/cr@et@x\n',
     "the URL of supervisord is 'ftp://x': it must be unix://PATH or http://HOST:PORT"),
    ('[supervisorctl]\nserverurl=http://bob:se/c%zret@x\n',
     "x.conf: Format string (not shown) for 'supervisorctl.serverurl' is badly formatted: "
     'unsupported format character'),
    ('password=secret\n', 'x.conf: File contains no section headers. ... (not shown); fix it, or'),
    ('[unix_http_server]\npassword "it\'s secret"\n',
     "x.conf: Source contains parsing errors: 'x.conf' ... [line  2]: (not shown); fix it, or"),
    ('[supervisorctl]\npassword=%(secret\n',
     "x.conf: Format string (not shown) for 'supervisorctl.password' is badly formatted: "),
])
def test_configuration_that_does_not_help_is_named(
        conf: str | None, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if conf:
        (tmp_path / 'x.conf').write_text(conf)
    elif conf is not None:
        (tmp_path / 'x.conf').mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(memmon.log, 'disabled', False)  # it is set, and then back again
    with pytest.raises(memmon.UsageError) as raised:
        memmon.check(options('--config', 'x.conf'))
    assert str(raised.value).startswith(error)
    del raised
    gc.collect()  # supervisor leaves a file open that it cannot read


def test_supervisord_that_does_not_run_is_named_with_the_configuration(tmp_path: Path) -> None:
    (tmp_path / 'x.conf').write_text('[supervisorctl]\nserverurl=unix:///nonexistent/s\n')
    assert_refused(run(MEMMON, '--check', '--config', 'x.conf', cwd=tmp_path), (
        'no such socket: unix:///nonexistent/s; is supervisord running, with a [unix_http_server] '
        'section? (the URL is that of x.conf)'))


def test_configuration_that_is_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / 'x.conf')
    assert_refused(run(MEMMON, '--check', '--config', 'x.conf', cwd=tmp_path),
                   'cannot read x.conf: it is no regular file')


# Why it cannot look. What else a server may answer is tried where supervisord is.

def test_missing_permission_names_the_settings(start_supervisord: StartSupervisord) -> None:
    without_root: list[str] = []
    if os.getuid() == 0:
        if not shutil.which('setpriv'):
            pytest.skip('needs setpriv, from util-linux: root may use any socket')
        without_root = ['setpriv', '--bounding-set=-dac_override']
    supervisord = start_supervisord()
    supervisord.socket.chmod(0)
    done = run(*without_root, MEMMON, '--check', env=supervisord.env)
    assert_refused(done, f'no permission to use unix://{supervisord.socket}: see chmod and chown '
                         'in [unix_http_server]')


def test_what_answers_is_not_supervisord(start_supervisord: StartSupervisord,
                                         start_fake_server: StartFakeServer) -> None:
    server = start_fake_server(raw(b'HTTP/1.0 404 No\x1b[31m\r\n\r\n'))
    assert_refused(run(MEMMON, '--check', env=server.env),
                   f'the server at {server.url} is not supervisord: HTTP 404 No\\x1b[31m')
    supervisord = start_supervisord(sleeper('small'))
    server = start_fake_server(forward, supervisord.env, {
        'supervisor.getAllProcessInfo': edit(lambda infos: [{'name': 'x'}])})
    done = run(MEMMON, '--check', env=server.env)
    assert (done.status, done.stdout, done.stderr.count('\n')) == (2, '', 1), done
    assert 'Traceback' not in done.stderr


# Where its output goes.

def test_reader_that_goes_away_is_no_error() -> None:
    assert run('sh', '-c', f'{MEMMON} --help | true') == (0, '', '')
    if os.path.exists('/dev/full'):
        assert_refused(run('sh', '-c', f'{MEMMON} --help >/dev/full'),
                       'cannot write to stdout: No space left on device')


# Who watches the watchdog: --check --metrics.

pytest.importorskip('prometheus_client', reason='needs prometheus_client')


def tell(last: float | str, interval: float | str = 60, success: float | str = 1) -> str:
    """Return the metrics of a memmon whose last tick came then."""
    return (f'memmon_check_success {success}\nmemmon_last_tick_timestamp_seconds {last}\n'
            f'memmon_tick_interval_seconds {interval}\n')


def test_status_is_2_if_memmon_does_not_tick(start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord()
    file = supervisord.path / 'memmon.prom'
    file.write_text(tell(time.time() - 1000))
    done = check(supervisord, '-a', '1GB', '--metrics', str(file))
    assert (done.status, done.stderr) == (2, ''), done
    assert done.stdout.splitlines()[-1].startswith('last tick: 0:')


def test_memmon_that_is_blind_is_told_from_a_dead_one_without_a_supervisord(tmp_path: Path) -> None:
    file, socket = tmp_path / 'memmon.prom', tmp_path / 'x@y.sock'
    file.write_text(tell(time.time(), success=0))
    done = run(MEMMON, '--check', '-a', '1GB', '--metrics', str(file),
               env={'SUPERVISOR_SERVER_URL': f'unix://{socket}'})
    assert (done.status, done.stdout) == (2, '')
    assert re.fullmatch(f'memmon: no such socket: unix://{socket}; .*; last tick: 0:00:0. ago, .*: '
                        'memmon ticks, but could check nothing: see its log\n', done.stderr), done


NOW = 1_800_000_000.0


@pytest.mark.parametrize('last, interval, success, is_good, line', [
    (NOW - 10, 60, 1, True, '0:00:10 ago, one is due every 0:01:00'),
    (NOW - 180, 60, 1, True, '0:03:00 ago, one is due every 0:01:00'),
    (NOW - 181, 60, 1, False, '0:03:01 ago, one is due every 0:01:00: memmon is not ticking'),
    (NOW - 10, 5, 0, False, '0:00:10 ago, one is due every 0:00:05: memmon ticks, but could check '
                            'nothing: see its log'),
    (NOW - 16, 5, 0, False, '0:00:16 ago, one is due every 0:00:05: memmon is not ticking'),
    (0, 60, 1, False, '20833 days, 8:00:00 ago, one is due every 0:01:00: memmon is not ticking'),
])
def test_last_tick_is_told(last: float, interval: float, success: float, is_good: bool, line: str,
                           tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, 'time', lambda: NOW)
    (tmp_path / 'x.prom').write_text(tell(last, interval, success))
    assert memmon.check_ticks(str(tmp_path / 'x.prom')) == (is_good, f'last tick: {line}')


UNREADABLE = 'last tick: unknown: {file} cannot be read: '
NO_TIME = UNREADABLE + 'its last tick is no time in the past'


@pytest.mark.parametrize('content, line', [
    *((tell(*values), NO_TIME) for values in (
        ('NaN',), ('+Inf',), ('-Inf',), (NOW + 3600,), (-1e300,), (1e300,),
        (NOW, 'NaN'), (NOW, '+Inf'), (NOW, 0), (NOW, -60), (NOW, 1e300),
        (NOW, 60, 'NaN'), (NOW, 60, '+Inf'), (NOW, 60, 2), (NOW, 60, -1))),
    ('', 'last tick: unknown: {file} has no memmon_last_tick_timestamp_seconds'),
    (tell(NOW).partition('\n')[2], 'last tick: unknown: {file} has no memmon_check_success'),
    ('{{{\n', None), ('memmon_x{a="', None), ('memmon_x{a="b"} x\n', None), ('\udcff', None),
    ('\0', None), ('x' * 100_000, None), ('memmon_check_success', None), ('x 1 2 3 4', None),
])
def test_file_that_does_not_tell_the_last_tick(content: str, line: str | None, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, 'time', lambda: NOW)
    file = tmp_path / 'x.prom'
    file.write_bytes(content.encode(errors='surrogateescape'))
    is_good, said = memmon.check_ticks(str(file))
    assert not is_good and '\n' not in said
    if line:
        assert said == line.format(file=file)
    else:
        assert said.startswith('last tick: unknown: ')


@pytest.mark.parametrize('make', [os.mkfifo, os.mkdir, lambda path: os.symlink('/dev/zero', path)],
                         ids=['fifo', 'directory', 'device'])
def test_what_is_no_regular_file_is_not_opened(make: Callable[[Path], None], tmp_path: Path
                                               ) -> None:
    make(tmp_path / 'x.prom')
    assert memmon.check_ticks(str(tmp_path / 'x.prom')) == (
        False, UNREADABLE.format(file=tmp_path / 'x.prom') + 'it is no regular file')


def test_missing_file_of_metrics(tmp_path: Path) -> None:
    file = tmp_path / 'none.prom'
    assert memmon.check_ticks(str(file)) == (
        False, UNREADABLE.format(file=file) + 'No such file or directory')
