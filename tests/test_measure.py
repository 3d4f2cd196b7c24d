"""What processes use: read from ps or from /proc, added up, and what of it counts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Iterator, Sequence

import pytest
from harness import BIG_MB, PROGRAM, rss_mb, wait_until
from hypothesis import given
from hypothesis import strategies as st
from samples import KB, MB, reading

import memmon
from memmon import MEASURES, PROC_FILES, ProcessTable

ME = os.getpid()
NOBODY = 2 ** 22 + 1  # more than any pid of Linux

needs_proc = pytest.mark.skipif(not os.path.exists('/proc/self/statm'),
                                reason='needs the /proc of Linux')
needs_rollup = pytest.mark.skipif(not os.path.exists('/proc/self/smaps_rollup'),
                                  reason='needs the /proc/PID/smaps_rollup of Linux')


def measure_tree(processes: memmon.Processes, pid: int) -> memmon.Reading:
    measure = memmon.Measure('RSS', (), with_tree=True)
    process = memmon.ALL._replace(pid=pid)
    return memmon.take_reading(processes, reading(process=process, measure=measure), True)


# The table that ps prints.

def test_rss_of_ps_is_in_kilobytes() -> None:
    assert memmon.parse_ps(b'    1     0  9172\n%7d 1 10\n' % ME).rows == {
        1: (0, 9172 * KB), ME: (1, 10 * KB)}


@pytest.mark.parametrize('output, error', [
    (b'', 'the output of ps is incomplete'),
    (b'\n', "ps printed b''"),
    (b'1 0 9172\n', 'the output of ps is incomplete'),  # without the process that reads it
    (b'ME 1 10', 'the output of ps is incomplete'),     # the last line may have been cut
    (b'ME 1 10\n12 1\n', "ps printed b'12 1'"),
    (b'ME 1 10\n12 1 60m\n', "ps printed b'12 1 60m'"),  # BusyBox
    (b'ME 1 10\n12 1 -5\n', "ps printed b'12 1 -5'"),
    (b'ME 1 10\n12 1 5 5\n', "ps printed b'12 1 5 5'"),
    (b'PID PPID RSS\nME 1 10\n', "ps printed b'PID PPID RSS'"),
    (b'ME 1 10\n12 1 \xc2\xb2\n', r"ps printed b'12 1 \xc2\xb2'"),
    (b'ME 1 10\n12 1 ' + b'9' * 5000 + b'\n', "ps printed b'12 1 " + '9' * 55 + "'"),
    (b'ps: unrecognized option: A\n', "ps printed b'ps: unrecognized option: A'"),
])
def test_table_of_ps_is_taken_whole_or_not_at_all(output: bytes, error: str) -> None:
    with pytest.raises(memmon.MeasureError) as raised:
        memmon.parse_ps(output.replace(b'ME', str(ME).encode()))
    assert str(raised.value) == error


@given(st.one_of(st.binary(), st.from_regex(rb'([ 0-9]{0,9}\n?){0,9}', fullmatch=True)))
def test_output_of_ps_raises_nothing_but_its_own_error(output: bytes) -> None:
    try:
        table = memmon.parse_ps(output)
    except memmon.MeasureError:
        return
    assert ME in table.rows


PIDS = st.integers(0, 2 ** 22)


@given(st.dictionaries(PIDS, st.tuples(PIDS, st.integers(0, 2 ** 40))), st.data())
def test_output_of_ps_that_was_cut_is_no_table(processes: dict[int, tuple[int, int]],
                                               data: st.DataObject) -> None:
    processes = {ME: (1, 5), **processes}
    output = b''.join(b'%5d %5d %6d\n' % (pid, *row) for pid, row in processes.items())
    whole = {pid: (ppid, rss * KB) for pid, (ppid, rss) in processes.items()}
    assert memmon.parse_ps(output).rows == whole
    cut = output[:data.draw(st.integers(0, len(output)))]
    try:
        rows = memmon.parse_ps(cut).rows
    except memmon.MeasureError:
        return
    assert cut.count(b'\n') == len(rows) and rows.items() <= whole.items() and ME in rows


# The same from /proc.

@pytest.fixture
def child() -> Iterator[int]:
    """The pid of a child that uses more than 55 MB."""
    with subprocess.Popen([sys.executable, '-S', PROGRAM]) as process:
        wait_until(lambda: rss_mb(process.pid) > BIG_MB)
        yield process.pid
        process.kill()


@needs_proc
def test_ps_and_the_files_of_proc_agree(child: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memmon, 'TASKS', '/nonexistent/%d')
    table, _ = memmon.find_children(ME)
    monkeypatch.undo()
    assert isinstance(table, ProcessTable)
    for processes in (table, PROC_FILES):
        assert child in processes.children(ME)
        assert processes.rss(child) == pytest.approx(table.rss(child), rel=0.1)
        assert 55 * MB < (processes.rss(child) or 0) < 120 * MB


@needs_proc
def test_peak_is_that_of_all_together(child: int) -> None:
    for pids in ([ME, child], [child, ME]):
        assert memmon.read_status([*pids, NOBODY], 'VmHWM') == pytest.approx(
            memmon.read_status([ME], 'VmHWM') + memmon.read_status([child], 'VmHWM'), rel=0.1)
    assert memmon.read_status([child], 'VmHWM') > 55 * MB


@needs_proc
def test_children_of_each_thread_are_found() -> None:
    """As of a program that starts its workers from threads."""
    started: list[subprocess.Popen[bytes]] = []
    has_started, is_over = threading.Event(), threading.Event()

    def start() -> None:
        started.append(subprocess.Popen(['sleep', '60']))
        has_started.set()
        is_over.wait()

    thread = threading.Thread(target=start)
    thread.start()
    assert has_started.wait(30)
    with subprocess.Popen(['sleep', '60']) as other:
        try:
            pids = {started[0].pid, other.pid}
            assert pids <= set(PROC_FILES.children(ME))
            assert pids <= set(memmon.tree(PROC_FILES, ME))
        finally:
            is_over.set()
            thread.join()
            for process in (*started, other):
                process.kill()
                process.wait()


@needs_proc
def test_process_that_has_ended_is_unknown() -> None:
    assert PROC_FILES.rss(NOBODY) is None
    with pytest.raises(FileNotFoundError):
        PROC_FILES.children(NOBODY)
    assert memmon.tree(PROC_FILES, NOBODY) == [NOBODY]
    for processes in (PROC_FILES, ProcessTable({1: (0, 5)})):
        assert measure_tree(processes, NOBODY).memory is None


@pytest.mark.parametrize('error', [ProcessLookupError(), FileNotFoundError(), PermissionError()])
@pytest.mark.parametrize('function', ['open', 'read'])
def test_process_that_ends_or_is_hidden_while_it_is_read_is_unknown(
        function: str, error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    """hidepid=1 shows the directory and refuses the file."""
    def fail(*_: object) -> None:
        raise error
    monkeypatch.setattr(os, function, fail)
    assert PROC_FILES.rss(ME) is None


@needs_proc
def test_zombie_uses_nothing_and_is_no_run() -> None:
    with subprocess.Popen(['true'], stdout=subprocess.PIPE) as zombie:
        assert zombie.stdout and zombie.stdout.read() == b''
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        assert PROC_FILES.rss(zombie.pid) == 0
        assert memmon.read_stat(zombie.pid) is None


@needs_proc
def test_name_with_parentheses_hides_neither_start_nor_group(tmp_path: Path) -> None:
    script = tmp_path / 'a) S (b'
    script.write_text('#!/bin/sh\nread line\n')
    script.chmod(0o755)
    processes = [subprocess.Popen([str(script)], stdin=subprocess.PIPE, start_new_session=True)
                 for _ in range(2)]
    for process in processes:
        with process:
            run = memmon.read_stat(process.pid)
            assert run and run.group == process.pid
            assert run.start == pytest.approx(
                (time.clock_gettime(time.CLOCK_BOOTTIME)) * os.sysconf('SC_CLK_TCK'), abs=3000)
            process.kill()


@needs_proc
def test_children_are_asked_of_proc_first_and_of_ps_where_it_does_not_tell(
        child: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memmon.find_children(ME) == (PROC_FILES, frozenset(PROC_FILES.children(ME)))
    monkeypatch.setattr(memmon, 'TASKS', '/nonexistent/%d')
    processes, children = memmon.find_children(ME)
    assert isinstance(processes, ProcessTable) and child in children


@pytest.mark.parametrize('script, why', [
    (None, 'it is not in PATH'),
    ('', '[Errno 2] No such file or directory: '),
    ('echo usage: ps >&2; exit 1', 'exit status 1'),
    ('echo what is this', "ps printed b'what is this'"),
    ('echo 1 2 3; kill -9 $$', 'killed by signal 9'),
    ('echo 1 2 3', 'the output of ps is incomplete'),
    ('exec sleep 1000', 'killed after 0.5 seconds'),
    pytest.param('exec busybox ps "$@"', '', marks=pytest.mark.skipif(
        not shutil.which('busybox'), reason='needs BusyBox')),
])
def test_ps_that_is_of_no_use_is_one_line(
        script: str | None, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str]) -> None:
    if script:
        (tmp_path / 'ps').write_text(f'#!/bin/sh\n{script}\n')
        (tmp_path / 'ps').chmod(0o755)
    monkeypatch.setattr(memmon, 'PS', None if script is None else str(tmp_path / 'ps'))
    monkeypatch.setattr(memmon, 'PS_TIMEOUT_SECS', 0.5 if 'sleep' in str(script) else 10)
    monkeypatch.setattr(memmon, 'TASKS', '/nonexistent/%d')
    with pytest.raises(memmon.MeasureError) as error:
        memmon.find_children(ME)
    assert str(error.value).startswith(f'/proc does not show all processes, nor does ps: {why}')
    assert '\n' not in str(error.value) and capfd.readouterr() == ('', '')


# Trees.

def family(*rows: tuple[int, int, int]) -> ProcessTable:
    """Return a table of pids, ppids and RSS."""
    return ProcessTable({pid: (ppid, rss) for pid, ppid, rss in rows})


FAMILY = family((1, 0, 1), (2, 1, 10), (3, 2, 100), (4, 3, 1000), (5, 1, 10000), (6, 2, 100000))
OWN_PARENT = family((1, 1, 5), (2, 1, 7))
RING = family((1, 3, 1), (2, 1, 2), (3, 2, 4), (4, 2, 8))
CHAIN = family(*((pid, pid - 1, 1) for pid in range(1, 10001)))


@pytest.mark.parametrize('table, root, pids, rss', [
    (FAMILY, 1, [1, 2, 3, 4, 5, 6], 111111),
    (FAMILY, 2, [2, 3, 4, 6], 101110),
    (FAMILY, 4, [4], 1000),
    (FAMILY, 9, [9], None),
    (OWN_PARENT, 1, [1, 2], 12),
    (RING, 1, [1, 2, 3, 4], 15),
    (RING, 2, [1, 2, 3, 4], 15),
    (RING, 4, [4], 8),
    (family((2, 1, 0), (3, 2, 5)), 2, [2, 3], 5),
    (CHAIN, 1, list(range(1, 10001)), 10000),
])
def test_tree_is_a_process_and_all_below(
        table: ProcessTable, root: int, pids: list[int], rss: int | None) -> None:
    seen = memmon.tree(table, root)
    assert seen[0] == root and sorted(seen) == pids
    assert measure_tree(table, root).rss == rss


ROWS = st.dictionaries(st.integers(0, 9), st.tuples(st.integers(0, 9), st.integers(0, 99)),
                       min_size=1)


@given(ROWS, st.data())
def test_tree_is_between_the_process_and_all(rows: dict[int, tuple[int, int]],
                                             data: st.DataObject) -> None:
    root = data.draw(st.sampled_from(sorted(rows)))
    table = ProcessTable(rows)
    pids = memmon.tree(table, root)
    assert len(set(pids)) == len(pids) and set(pids) <= set(rows)
    rss = measure_tree(table, root).rss
    assert rss is not None and rows[root][1] <= rss <= sum(row[1] for row in rows.values())


@pytest.mark.parametrize('error', [ProcessLookupError, FileNotFoundError, PermissionError])
def test_process_that_ends_meanwhile_does_not_stop_the_count(error: type[OSError]) -> None:
    class Vanishing(ProcessTable):
        def children(self, pid: int) -> list[int]:
            if pid == 3:
                raise error
            return super().children(pid)
    assert sorted(memmon.tree(Vanishing(FAMILY.rows), 1)) == [1, 2, 3, 5, 6]


@pytest.mark.parametrize('supervisord_pid, pids', [
    (40, [50]),          # the parent
    (30, [40]),          # above a shell
    (20, [30]),
])
def test_itself_is_what_runs_below_supervisord_and_holds_memmon(
        supervisord_pid: int, pids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    table = family((50, 40, 0), (51, 50, 0), (40, 30, 0), (41, 30, 0), (30, 20, 0), (20, 1, 0),
                   (1, 0, 0))
    monkeypatch.setattr('os.getpid', lambda: 50)
    monkeypatch.setattr(memmon, 'find_children', lambda pid: (table, set(table.children(pid))))
    monkeypatch.setattr(memmon.Server, 'call', lambda server, take, method: {
        'supervisor.getPID': supervisord_pid, 'supervisor.getAllProcessInfo': []}[method])
    monitor = memmon.Monitor(memmon.parse_args(['-a', '1MB']), memmon.Server('unix:///none'))
    monitor.look(0)
    assert monitor.itself == set(pids)


def test_wrapper_is_what_is_small_with_large_descendants() -> None:
    process = memmon.Process('web', 'web', 2, 1, 0, 9, 20, 'RUNNING', '', 0)
    for own, below, said in [(1, 60, True), (60, 59, False), (60, 61, True), (1, 4, False)]:
        table = family((2, 1, own * MB), (3, 2, below * MB))
        sentence = memmon.look_below(table, process)
        assert bool(sentence) == said and 'killasgroup=true' in sentence + 'killasgroup=true'


# What counts: RSS, PSS, private.

@needs_rollup
def test_what_may_not_be_read_counts_with_its_rss_and_what_has_gone_with_nothing(
        monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(pid: int, names: Sequence[str]) -> int:
        if pid > 1:
            raise {2: ProcessLookupError, 3: PermissionError, 4: OSError}[pid]
        return 1
    monkeypatch.setattr(memmon, 'read_fields', fake)
    assert memmon.measure_exactly(FAMILY, [1, 2, 3, 4], MEASURES['pss']) == (1101, (3, 4))


@needs_rollup
def test_sum_of_fields_is_not_known_if_the_kernel_lacks_one() -> None:
    pss = memmon.read_fields(ME, ['Pss'])
    assert pss and 0 < pss <= (PROC_FILES.rss(ME) or 0) * 1.1
    with pytest.raises(OSError, match='^smaps_rollup of [0-9]+ has not all of Pss, '
                                      'Pss_Missing$'):
        memmon.read_fields(ME, ['Pss', 'Pss_Missing'])


@pytest.mark.parametrize('size', [0, 2048, 2049, 4096, 10000])
def test_file_is_read_whole_however_long_it_is(size: int, tmp_path: Path) -> None:
    (tmp_path / 'children').write_bytes(b'1234 ' * size)
    assert memmon.read_proc(str(tmp_path / 'children')) == b'1234 ' * size


SWAPS = b'Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n'


@pytest.mark.parametrize('swaps, has_swap', [
    (SWAPS, False), (SWAPS + b'/dev/dm-1 partition\t999420\t0\t-2\n', True), (b'', False),
    (FileNotFoundError(), False), (PermissionError(), False)])
def test_swap_is_a_line_below_the_heading_and_counts_as_private_only(
        swaps: Any, has_swap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_proc(path: str) -> bytes:
        if isinstance(swaps, OSError):
            raise swaps
        return swaps if path == '/proc/swaps' else b'VmRSS:\t 9 kB\nVmSwap:\t 5 kB\n'
    monkeypatch.setattr(memmon, 'read_proc', read_proc)
    assert memmon.read_swap([1, 2], MEASURES['private']) == 10 * KB * has_swap
    assert memmon.read_swap([1, 2], MEASURES['pss']) == 0
    assert memmon.read_swap([1, 2], memmon.TOTAL_MEASURES['private']) == 0


@needs_proc
def test_peak_is_no_less_than_the_rss_and_of_who_has_gone_nothing() -> None:
    rss = PROC_FILES.rss(ME) or 0
    assert rss <= memmon.read_status([ME, NOBODY], 'VmHWM') * 1.01
    assert memmon.read_status([NOBODY], 'VmHWM') == 0
