"""The processes of this machine: read, added up, and followed to their ancestors."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
from typing import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import GB, KB, MB

import memmon
from memmon import PROC_FILES, ProcessTable, Row

ME = os.getpid()
NOBODY = 2 ** 22 + 1  # more than any pid of Linux

has_proc = os.path.exists('/proc/self/statm')
needs_proc = pytest.mark.skipif(not has_proc, reason='needs the /proc of Linux')


# Reading.

def test_parse_ps_reads_kilobytes() -> None:
    assert memmon.parse_ps(b'    1     0  9172\n%7d 1 10\n' % ME).rows == {
        1: Row(0, 9172 * KB), ME: Row(1, 10 * KB)}


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
def test_parse_ps_takes_only_a_whole_table(output: bytes, error: str) -> None:
    with pytest.raises(memmon.MeasureError) as raised:
        memmon.parse_ps(output.replace(b'ME', str(ME).encode()))
    assert str(raised.value) == error


@given(st.one_of(st.binary(), st.from_regex(rb'([ 0-9]{0,9}\n?){0,9}', fullmatch=True)))
def test_parse_ps_raises_nothing_but_its_own_error(output: bytes) -> None:
    try:
        table = memmon.parse_ps(output)
    except memmon.MeasureError:
        return
    assert ME in table.rows


PIDS = st.integers(0, 2 ** 22)


@given(st.dictionaries(PIDS, st.tuples(PIDS, st.integers(0, 2 ** 40))), st.data())
def test_parse_ps_gives_all_or_nothing(processes: dict[int, tuple[int, int]], data: st.DataObject
                                       ) -> None:
    processes = {ME: (1, 5), **processes}
    output = b''.join(b'%5d %5d %6d\n' % (pid, *row) for pid, row in processes.items())
    whole = {pid: Row(ppid, rss * KB) for pid, (ppid, rss) in processes.items()}
    assert memmon.parse_ps(output).rows == whole
    cut = output[:data.draw(st.integers(0, len(output)))]
    try:
        rows = memmon.parse_ps(cut).rows
    except memmon.MeasureError:
        return
    assert cut.count(b'\n') == len(rows) and rows.items() <= whole.items() and ME in rows


TAKE_MEMORY = 'x = b"x" * (30 << 20); print("ready", flush=True); input()'


@pytest.fixture
def child() -> Iterator[int]:
    """The pid of a child that uses more than 30 MB."""
    with subprocess.Popen([sys.executable, '-S', '-c', TAKE_MEMORY], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b'ready\n'
        yield process.pid
        process.kill()


@needs_proc
def test_ps_and_proc_and_its_files_agree(child: int) -> None:
    ps, proc = memmon.read_ps(), memmon.read_proc()
    for pid in (1, ME, child):
        rss = ps.rss(pid)
        assert rss and ps.rows[pid].ppid == proc.rows[pid].ppid
        assert proc.rss(pid) == pytest.approx(rss, rel=0.1, abs=MB)
        assert PROC_FILES.rss(pid) == pytest.approx(rss, rel=0.1, abs=MB)
    for processes in (ps, proc, PROC_FILES):
        assert child in processes.children(ME)
        assert 30 * MB < (processes.rss(child) or 0) < 100 * MB


@needs_proc
def test_children_of_each_thread_are_found() -> None:
    started: list[subprocess.Popen[bytes]] = []
    is_over = threading.Event()

    def start() -> None:
        started.append(subprocess.Popen(['sleep', '60']))
        has_started.set()
        is_over.wait()

    has_started = threading.Event()
    thread = threading.Thread(target=start)
    thread.start()
    assert has_started.wait(30)
    with subprocess.Popen(['sleep', '60']) as other:
        try:
            pids = {started[0].pid, other.pid}
            assert pids <= set(PROC_FILES.children(ME))
            assert set(PROC_FILES.children(ME)) == set(memmon.read_proc().children(ME))
        finally:
            is_over.set()
            thread.join()
            for process in (*started, other):
                process.kill()
                process.wait()


@needs_proc
def test_child_of_another_thread_is_measured_with_its_parent() -> None:
    """As a program does that starts its workers from threads."""
    script = ('import subprocess, sys, threading\n'
              'started = threading.Event()\n'
              'def start():\n'
              '    global child\n'
              f'    child = subprocess.Popen([sys.executable, "-S", "-c", {TAKE_MEMORY!r}],\n'
              '                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n'
              '    child.stdout.readline()\n'
              '    started.set()\n'
              '    threading.Event().wait()\n'
              'threading.Thread(target=start, daemon=True).start()\n'
              'started.wait()\n'
              'print(child.pid, flush=True)\n'
              'input()\n')
    with subprocess.Popen([sys.executable, '-c', script], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as parent:
        try:
            assert parent.stdout
            pid = int(parent.stdout.readline())
            assert memmon.tree(PROC_FILES, parent.pid) == [parent.pid, pid]
            for processes in (PROC_FILES, memmon.read_ps(), memmon.read_proc()):
                rss = [processes.rss(parent.pid) or 0, processes.rss(pid) or 0]
                assert rss[1] > 30 * MB
                assert memmon.measure_rss(processes, parent.pid, True) == pytest.approx(
                    sum(rss), rel=0.1)
                assert memmon.measure_rss(processes, parent.pid, False) == pytest.approx(
                    rss[0], rel=0.1)
        finally:
            parent.kill()


def test_process_that_has_ended_has_no_rss() -> None:
    table = ProcessTable({1: Row(0, 5)})
    assert (table.rss(2), table.children(2)) == (None, [])
    assert memmon.measure_rss(table, 2, False) is None
    assert memmon.measure_rss(table, 2, True) is None


@needs_proc
def test_process_that_has_ended_has_no_files() -> None:
    assert PROC_FILES.rss(NOBODY) is None
    with pytest.raises(FileNotFoundError):
        PROC_FILES.children(NOBODY)
    assert memmon.tree(PROC_FILES, NOBODY) == [NOBODY]
    assert memmon.measure_rss(PROC_FILES, NOBODY, True) is None


@needs_proc
@pytest.mark.parametrize('cumulative, rss', [(False, 0), (True, 0)])
def test_zombie_has_an_rss_of_0(cumulative: bool, rss: int) -> None:
    with subprocess.Popen(['true'], stdout=subprocess.PIPE) as zombie:
        assert zombie.stdout and zombie.stdout.read() == b''
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        assert memmon.measure_rss(PROC_FILES, zombie.pid, cumulative) == rss
        assert memmon.measure_rss(memmon.read_ps(), zombie.pid, cumulative) == rss


def test_each_source_makes_up_for_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    ps = memmon.read_process_table()
    assert ME in ps.rows
    if has_proc:
        monkeypatch.setattr(memmon, 'PS', '/nonexistent/ps')
        assert ME in memmon.read_process_table().rows
        monkeypatch.setattr(memmon, 'PS', None)
        assert ME in memmon.read_process_table().rows
    monkeypatch.setattr(memmon, 'PS', None)
    monkeypatch.setattr('os.listdir', lambda path: ['1', 'self'])
    with pytest.raises(memmon.MeasureError) as error:
        memmon.read_process_table()
    assert str(error.value).startswith(
        'no process table from ps (ps is not in PATH), nor from /proc (')


# Adding up.

def family(*rows: tuple[int, int, int]) -> ProcessTable:
    """Return a table of pids, ppids and RSS."""
    return ProcessTable({pid: Row(ppid, rss) for pid, ppid, rss in rows})


FAMILY = family((1, 0, 1), (2, 1, 10), (3, 2, 100), (4, 3, 1000), (5, 1, 10000), (6, 2, 100000))
OWN_PARENT = family((1, 1, 5), (2, 1, 7))
RING = family((1, 3, 1), (2, 1, 2), (3, 2, 4), (4, 2, 8))


@pytest.mark.parametrize('table, root, pids', [
    (FAMILY, 1, [1, 2, 5, 3, 6, 4]),
    (FAMILY, 2, [2, 3, 6, 4]),
    (FAMILY, 4, [4]),
    (FAMILY, 9, [9]),
    (OWN_PARENT, 1, [1, 2]),
    (RING, 1, [1, 2, 3, 4]),
    (RING, 2, [2, 3, 4, 1]),
    (RING, 4, [4]),
])
def test_tree(table: ProcessTable, root: int, pids: list[int]) -> None:
    seen = memmon.tree(table, root)
    assert seen[0] == root and sorted(seen) == sorted(pids)


@pytest.mark.parametrize('table, pid, alone, together', [
    (FAMILY, 1, 1, 111111),
    (FAMILY, 2, 10, 101110),
    (FAMILY, 4, 1000, 1000),
    (FAMILY, 9, None, None),
    (OWN_PARENT, 1, 5, 12),
    (RING, 2, 2, 15),
    (family((2, 1, 0), (3, 2, 5)), 2, 0, 5),
])
def test_measure_rss(table: ProcessTable, pid: int, alone: int | None, together: int | None
                     ) -> None:
    assert memmon.measure_rss(table, pid, False) == alone
    assert memmon.measure_rss(table, pid, True) == together


def test_tree_goes_down_a_chain_of_10000() -> None:
    table = family(*((pid, pid - 1, 1) for pid in range(1, 10001)))
    assert memmon.measure_rss(table, 1, True) == 10000
    assert memmon.ancestors(table, 10000) == list(range(10000, 0, -1))


@given(st.dictionaries(st.integers(0, 9), st.builds(Row, st.integers(0, 9), st.integers(0, 99)),
                       min_size=1), st.data())
def test_tree_is_between_the_process_and_all(rows: dict[int, Row], data: st.DataObject) -> None:
    root = data.draw(st.sampled_from(sorted(rows)))
    table = ProcessTable(rows)
    pids = memmon.tree(table, root)
    assert len(set(pids)) == len(pids) and set(pids) <= set(rows)
    rss = memmon.measure_rss(table, root, True)
    assert rss is not None and rows[root].rss <= rss <= sum(row.rss for row in rows.values())


class Vanishing(ProcessTable):
    """Processes of which one has ended when its children are asked for."""

    def children(self, pid: int) -> list[int]:
        if pid == 3:
            raise ProcessLookupError
        return super().children(pid)


def test_process_that_ends_meanwhile_does_not_stop_the_count() -> None:
    assert memmon.measure_rss(Vanishing(FAMILY.rows), 1, True) == 110111  # without 4, below 3


@needs_proc
def test_pss_counts_shared_memory_once() -> None:
    shared = mmap.mmap(-1, 32 * MB)
    shared.write(b'x' * (32 * MB))
    ready, is_ready = os.pipe()
    over, is_over = os.pipe()
    pids = [ME]
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            os.close(is_over)
            shared.seek(0)
            shared.read(32 * MB)
            os.write(is_ready, b'x')
            os.read(over, 1)
            os._exit(0)
        pids.append(pid)
    os.close(over)
    for _ in pids[1:]:
        os.read(ready, 1)
    try:
        pss, unread = memmon.measure_pss(PROC_FILES, pids)
        rss = sum(PROC_FILES.rss(pid) or 0 for pid in pids)
    finally:
        for pipe in (is_over, ready, is_ready):
            os.close(pipe)
        for pid in pids[1:]:
            os.waitpid(pid, 0)
        shared.close()
    assert unread == []
    assert pss < rss - 90 * MB


@needs_proc
def test_rss_takes_the_place_of_a_pss_that_cannot_be_read() -> None:
    table = family((NOBODY, 1, 5), (NOBODY + 1, 1, 0), (NOBODY + 2, 1, 7))
    assert memmon.measure_pss(table, [NOBODY, NOBODY + 1, NOBODY + 2, NOBODY + 3]) == (
        12, [NOBODY, NOBODY + 2])


# Ancestors.

@pytest.mark.parametrize('table, pid, pids', [
    (FAMILY, 4, [4, 3, 2, 1]),
    (FAMILY, 1, [1]),
    (FAMILY, 9, []),
    (family((5, 4, 0), (4, 3, 0)), 5, [5, 4]),           # 3 is in another PID namespace
    (family((0, 0, 0), (1, 0, 0), (2, 1, 0)), 2, [2, 1]),  # FreeBSD shows its kernel
    (OWN_PARENT, 2, [2, 1]),
    (RING, 4, [4, 2, 1, 3]),
])
def test_ancestors(table: ProcessTable, pid: int, pids: list[int]) -> None:
    assert memmon.ancestors(table, pid) == pids


@pytest.mark.parametrize('supervisord_pid, pids', [
    (40, [50]),          # the parent
    (30, [50, 40]),      # above a shell
    (20, [50, 40, 30]),
    (99, [50, 40, 30, 20, 1]),
])
def test_find_itself(supervisord_pid: int, pids: list[int], monkeypatch: pytest.MonkeyPatch
                     ) -> None:
    table = family((50, 40, 0), (51, 50, 0), (40, 30, 0), (41, 30, 0), (30, 20, 0), (20, 1, 0),
                   (1, 0, 0))
    monkeypatch.setattr('os.getpid', lambda: 50)
    monkeypatch.setattr('os.getppid', lambda: 40)
    monkeypatch.setattr(memmon, 'read_process_table', lambda: table)
    assert memmon.find_itself(supervisord_pid) == frozenset(pids)


@pytest.mark.parametrize('limits, memory', [([], 2 * GB), ([3 * GB], 2 * GB), ([GB, 3 * GB], GB)])
def test_memory_of_the_machine_is_that_of_the_container_if_less(
        limits: list[int], memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('os.sysconf', lambda name: 2 * GB // memmon.PAGE_BYTES)
    monkeypatch.setattr(memmon, 'read_cgroup_limits', lambda: limits)
    assert memmon.read_machine_memory() == memory


def test_memory_of_a_machine_without_control_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[int]:
        raise FileNotFoundError
    monkeypatch.setattr('os.sysconf', lambda name: 2 * GB // memmon.PAGE_BYTES)
    monkeypatch.setattr(memmon, 'read_cgroup_limits', fail)
    assert memmon.read_machine_memory() == 2 * GB
