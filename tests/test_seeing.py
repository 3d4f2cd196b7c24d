"""What memmon --check shows to choose a limit by: peaks, proposals and hints."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
from harness import (CLIENT, HAS_PROC, MEMMON, Done, StartListener, StartSupervisord, Supervisord,
                     descendants_of, pool_section, rss_mb, run, section, wait_until)

import memmon
from memmon import MeasureError, Process, ProcessTable, Reading, Row

MB = 2 ** 20
FORK = Path(__file__).parent / 'prefork.py'

needs_proc = pytest.mark.skipif(not HAS_PROC, reason='needs the /proc of Linux')


def check(supervisord: Supervisord, *args: str, **env: str) -> Done:
    """Run memmon --check in the directory of a supervisord."""
    return run(MEMMON, '--check', *args, env={**supervisord.env, **env}, cwd=supervisord.path)


def column(table: str, heading: str) -> dict[str, str]:
    """Return the cells of a column by process."""
    head, *rows = [re.split(' {2,}', line) for line in table.split('\n\n')[0].splitlines()]
    return {row[0]: row[head.index(heading)] for row in rows if len(row) == len(head)}


def megabytes(size: str) -> float:
    assert size.endswith('MB'), size
    return float(size[:-2])


# Peaks and proposals.

@needs_proc
def test_check_proposes_limits_above_the_peaks(start_supervisord: StartSupervisord,
                                               start_listener: StartListener) -> None:
    supervisord = start_supervisord(
        section('big') + pool_section('queue', 2, '--mb', '1') + section("o'dd", '--mb', '1')
        + section('off', autostart='false'))
    supervisord.wait_big('big')
    supervisord.wait_up('queue:queue_00', 'queue:queue_01', "o'dd")
    status, stdout, stderr = check(supervisord)
    assert (status, stderr) == (0, '')
    peaks = column(stdout, 'PEAK')
    assert peaks['off:off'] == '-'
    proposal, = re.findall('^    memmon (.+)$', stdout, re.M)
    words = shlex.split(proposal)
    assert words[::2] == ['-p'] * 3
    limits = dict(word.rsplit('=', 1) for word in words[1::2])
    assert list(limits) == ['big', "o'dd", 'queue']
    for program, process in (('big', 'big:big'), ("o'dd", "o'dd:o'dd"),
                             ('queue', 'queue:queue_00')):
        least = 1.5 * megabytes(peaks[process])
        assert least * 0.97 <= megabytes(limits[program]) <= least * 1.15, (peaks, limits)
    assert re.search(r'^The youngest process has been up for 0:00:\d\d: ', stdout, re.M)
    listener = start_listener(supervisord, *words)
    listener.send()
    assert "watching 4 of supervisord's 5 processes: " in listener.log()
    assert 'covers no process' not in listener.log()


def test_check_proposes_nothing_beside_limits(start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord(section('small', '--mb', '1'))
    supervisord.wait_up('small')
    for args in (['-a', '1GB'], ['-t', '90%']):
        assert 'ready to paste' not in check(supervisord, *args).stdout


@pytest.mark.parametrize('size, text', [
    (1.5 * MB, '1.5MB'), (12.1 * 1.5 * MB, '19MB'), (405.9 * MB, '410MB'), (100 * MB, '100MB'),
    (100.01 * MB, '110MB'), (1499 * MB, '1.5GB'), (999 * MB, '1000MB'), (2.25 * 1024 * MB, '2.3GB'),
    (36, '36'),
])
def test_round_up(size: float, text: str) -> None:
    assert memmon.round_up(size) == text
    assert memmon.parse_size(text) >= int(size)


def reading(namespec: str, pid: int, peak: int | None) -> Reading:
    group, name = namespec.split(':')
    process = Process(group, name, pid, 0, 0, 0, 20, 'RUNNING', '')
    return Reading(process, 90, False, peak, peak=peak)


def test_propose_limits_takes_the_largest_process_of_each_program(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memmon, 'is_memmon', lambda process: process.name == 'memmon')
    readings = [reading('q:q_00', 1, 10 * MB), reading('q:q_01', 2, 20 * MB),
                reading('a:web', 3, 40 * MB), reading('b:web', 4, 50 * MB),
                reading('x:x', 5, None), reading('memmon:memmon', 6, 30 * MB)]
    table = ProcessTable({number: Row(0, MB) for number in range(1, 7)})
    lines = memmon.propose_limits(table, readings, memmon.parse_args(['--check']))
    assert [line.strip() for line in lines if line.startswith('    ')] == [
        'memmon -p a:web=60MB -p b:web=75MB -p q=30MB']
    assert lines[-1].startswith('The youngest process has been up for 0:01:30: ')


def test_propose_limits_says_nothing_where_there_is_no_peak() -> None:
    table = ProcessTable({1: Row(0, MB)})
    assert memmon.propose_limits(table, [reading('a:a', 1, None)],
                                 memmon.parse_args(['--check'])) == []


@needs_proc
def test_read_peak_keeps_what_was_given_back() -> None:
    assert (memmon.read_peak([os.getpid()]) or 0) >= (memmon.PROC_FILES.rss(os.getpid()) or 0)
    assert memmon.read_peak([2 ** 22 + 1]) is None


# Processes whose descendants use more than themselves.

@pytest.mark.parametrize('own, below, seen', [
    (2 * MB, 160 * MB, (2 * MB, 160 * MB)),
    (26 * MB, 56 * MB, (26 * MB, 56 * MB)),
    (60 * MB, 60 * MB, None),
    (2 * MB, 3 * MB, None),
    (2 * MB, 0, None),
])
def test_look_below(own: int, below: int, seen: tuple[int, int] | None) -> None:
    table = ProcessTable({1: Row(0, own), 2: Row(1, below // 2), 3: Row(2, below - below // 2)})
    assert memmon.look_below(table, 1) == seen


def test_wrapper_is_named_by_check_and_once_in_the_log(start_supervisord: StartSupervisord,
                                                       start_listener: StartListener,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    supervisord = start_supervisord(
        section('wrapped', '--child', stopasgroup='true') + section('plain', '--mb', '1'))
    pid, _ = supervisord.wait_up('wrapped', 'plain')

    def assert_large() -> None:
        assert max(map(rss_mb, descendants_of(pid)), default=0) > 50

    wait_until(assert_large)
    hint = (r'wrapped:wrapped uses [\d.]+MB, and its descendants use [\d.]+MB: '
            'add -c to count them as well')
    stdout = check(supervisord, '-a', '1GB').stdout
    assert re.search(f'^{hint}$', stdout, re.M), stdout
    assert 'plain:plain uses' not in stdout
    proposal = check(supervisord).stdout
    if HAS_PROC:
        limit, = re.findall(r'^    memmon -c -p .*-p wrapped=([\d.]+)MB', proposal, re.M)
        assert float(limit) > 75
    listener = start_listener(supervisord, '-a', '1GB')

    def assert_told() -> None:
        listener.send()
        assert re.search(f' WARNING memmon: {hint}\n', listener.log())

    wait_until(assert_told)  # it is looked at when it is ten seconds old
    for _ in range(3):
        listener.send()
    assert listener.log().count('add -c to count them') == 1
    counted = check(supervisord, '-c', '-a', '1GB').stdout
    assert 'add -c to count' not in counted
    assert megabytes(column(counted, 'RSS')['wrapped:wrapped']) > 60


@pytest.mark.skipif(not os.path.exists('/proc/self/smaps_rollup'), reason='needs smaps_rollup')
def test_prefork_server_gets_the_hint_to_count_pss(start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord(
        section('prefork', command=f'python3 {FORK}', stopasgroup='true'))
    pid, = supervisord.wait_up('prefork')

    def assert_forked() -> None:
        assert len(descendants_of(pid)) == 4

    wait_until(assert_forked)
    stdout = check(supervisord, '-c').stdout
    size, = re.findall(r'^prefork:prefork shares memory among its 5 processes: '
                       r'with -k pss, ([\d.]+)MB counts$', stdout, re.M)
    assert float(size) < megabytes(column(stdout, 'RSS')['prefork:prefork']) / 1.5
    counted = check(supervisord, '-c', '-k', 'pss').stdout
    assert 'shares memory' not in counted
    pss = megabytes(column(counted, 'PSS')['prefork:prefork'])
    assert pss == pytest.approx(float(size), rel=.2)


# Which supervisord, and errors.

def test_config_finds_another_supervisord(start_supervisord: StartSupervisord,
                                          tmp_path: Path) -> None:
    supervisord = start_supervisord(section('small', '--mb', '1'))
    supervisord.wait_up('small')
    other = tmp_path / 'other.conf'
    other.write_text(CLIENT.replace('%(here)s', str(supervisord.path)))
    done = run(MEMMON, '--check', '--config', str(other), cwd=Path('/'),
               env={'SUPERVISOR_SERVER_URL': 'unix:///nonexistent'})
    assert done.status == 0 and f', from {other}\n' in done.stdout
    missing = run(MEMMON, '--check', '--config', str(tmp_path / 'none.conf'), cwd=Path('/'))
    assert missing == (2, '', f'memmon: cannot read {tmp_path}/none.conf: '
                              'No such file or directory\n')


def test_config_goes_with_check() -> None:
    assert run(MEMMON, '-a', '1GB', '--config', 'x') == (
        2, '', 'memmon: --config goes with --check: supervisord tells a listener where it is\n')


@pytest.mark.parametrize('redirection, status, error', [
    ('| head -1', 0, ''),
    ('> /dev/full', 2, 'memmon: cannot write to stdout: No space left on device\n'),
])
def test_output_that_cannot_be_written(redirection: str, status: int, error: str,
                                       start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord(section('small', '--mb', '1'))
    done = run('sh', '-c', f'{MEMMON} --check {redirection}', env=supervisord.env)
    assert (done.status, done.stderr) == (status, error)


def test_names_in_other_scripts_in_an_ascii_locale(start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord(section('größe', '--mb', '1'))
    supervisord.wait_up('größe')
    done = check(supervisord, PYTHONIOENCODING='ascii', LC_ALL='C', PYTHONUTF8='0',
                 PYTHONCOERCECLOCALE='0')
    assert (done.status, done.stderr) == (0, '')
    assert 'gr\\xf6\\xdfe:gr\\xf6\\xdfe' in done.stdout


def test_measure_error_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MeasureError('no table')

    monkeypatch.setattr(memmon, 'read_all', fail)
    monkeypatch.setenv('SUPERVISOR_SERVER_URL', 'unix:///s')
    with pytest.raises(memmon.UsageError, match='^no table$'):
        memmon.check(memmon.parse_args(['--check']), 80)
