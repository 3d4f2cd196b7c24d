import os
import subprocess
from typing import Dict

import pytest
from hypothesis import given
from hypothesis import strategies as st

import memmon
from memmon import Row

ME = os.getpid()


def test_parse_ps_reads_kilobytes() -> None:
    assert memmon.parse_ps(b'    1     0  9172\n%7d 1 10\n' % ME) == {1: Row(0, 9172 * 1024), ME: Row(1, 10240)}


@pytest.mark.parametrize('output', [
    b'',
    b'\n',
    b'1 0 9172\n',                     # without the process that reads it
    b'ME 1 10',                        # the last line may have been cut
    b'ME 1 10\n12 1\n',
    b'ME 1 10\n12 1 60m\n',            # BusyBox
    b'ME 1 10\n12 1 -5\n',
    b'ME 1 10\n12 1 5 5\n',
    b'PID PPID RSS\nME 1 10\n',
    b'ME 1 10\n12 1 \xc2\xb2\n',
    b'ME 1 10\n12 1 ' + b'9' * 5000,
    b'ps: unrecognized option: A\n',
])
def test_parse_ps_takes_only_a_whole_table(output: bytes) -> None:
    with pytest.raises(memmon.MeasureError):
        memmon.parse_ps(output.replace(b'ME', str(ME).encode()))


@given(st.one_of(st.binary(), st.from_regex(rb'([ 0-9]{0,9}\n?){0,9}', fullmatch=True)))
def test_parse_ps_raises_nothing_but_its_own_error(output: bytes) -> None:
    try:
        table = memmon.parse_ps(output)
    except memmon.MeasureError:
        return
    assert ME in table


@given(st.dictionaries(st.integers(0, 2 ** 22), st.tuples(st.integers(0, 2 ** 22), st.integers(0, 2 ** 40))), st.data())
def test_parse_ps_gives_all_or_nothing(rows: 'Dict[int, tuple[int, int]]', data: st.DataObject) -> None:
    rows = {ME: (1, 5), **rows}
    output = ''.join(f'{pid:5} {parent:5} {rss:6}\n' for pid, (parent, rss) in rows.items()).encode()
    whole = {pid: Row(parent, rss * 1024) for pid, (parent, rss) in rows.items()}
    assert memmon.parse_ps(output) == whole
    cut = output[:data.draw(st.integers(0, len(output)))]
    try:
        table = memmon.parse_ps(cut)
    except memmon.MeasureError:
        return
    assert cut.count(b'\n') == len(table) and table.items() <= whole.items() and ME in table


def test_ps_and_proc_give_the_same_table() -> None:
    with subprocess.Popen(['sleep', '60']) as sleep:
        try:
            ps = memmon.read_ps()
            proc = memmon.read_proc()
        finally:
            sleep.kill()
    for pid in (1, ME, sleep.pid):
        assert ps[pid].parent == proc[pid].parent
        assert ps[pid].rss == pytest.approx(proc[pid].rss, rel=0.1, abs=2 ** 20)
    assert proc[sleep.pid].parent == ME


def tree_rss(table: Dict[int, Row], root: int) -> int:
    return memmon.tree_rss(table, memmon.children_by_parent(table), root)


def test_tree_rss_adds_up_descendants_alone() -> None:
    table = {1: Row(0, 1), 2: Row(1, 10), 3: Row(2, 100), 4: Row(3, 1000), 5: Row(1, 10000)}
    assert tree_rss(table, 2) == 1110
    assert tree_rss(table, 4) == 1000


def test_tree_rss_counts_a_process_that_is_its_own_ancestor_once() -> None:
    assert tree_rss({1: Row(1, 5)}, 1) == 5
    assert tree_rss({1: Row(3, 1), 2: Row(1, 2), 3: Row(2, 4)}, 2) == 7


def test_tree_rss_goes_down_a_chain_of_10000() -> None:
    assert tree_rss({pid: Row(pid - 1, 1) for pid in range(1, 10001)}, 1) == 10000


@given(st.dictionaries(st.integers(0, 9), st.builds(Row, st.integers(0, 9), st.integers(0, 99)), min_size=1), st.data())
def test_tree_rss_is_between_the_process_and_all(table: Dict[int, Row], data: st.DataObject) -> None:
    root = data.draw(st.sampled_from(sorted(table)))
    assert table[root].rss <= tree_rss(table, root) <= sum(row.rss for row in table.values())


@pytest.mark.parametrize('command, why', [
    ('exit 3', 'exit status 3'),
    ('kill -9 $$', 'killed by signal 9'),
    ('sleep 60', 'not done after 1 seconds, so killed'),
    ('sleep 60 & sleep 60', 'not done after 1 seconds, so killed'),
])
def test_run_tells_how_a_command_failed(command: str, why: str) -> None:
    with pytest.raises(memmon.CommandError, match=f'^{why}$'):
        memmon.run(command, 1, text=b'', stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
