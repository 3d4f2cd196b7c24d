"""Limits: which one applies to a process, what it comes to, and what is said of the others."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import GB, MB, limit, options, process, reading

import memmon

# Names.


def applied(namespec: str, args: str) -> str:
    """Return the option whose limit applies to a process; nothing if none does."""
    return memmon.find_limit(process(namespec), options(args).limits).given


COVERED = [
    ('web:web web:worker', '-p web', 'web:web'),
    ('queue:queue_00 queue:queue_01', '-p queue', 'queue:queue_00 queue:queue_01'),
    ('pool:queue_00 pool:queue_01', '-p queue', 'pool:queue_00 pool:queue_01'),
    ('q:00 q:01', '-p q', 'q:00 q:01'),
    ('q:00 q:01', '-p q:q', 'q:00 q:01'),
    ('q:00 q:01', '-p 01', 'q:01'),
    ('web:web web2:web2', '-p web', 'web:web'),
    ('web:web web_2:web_2', '-p web', 'web:web'),
    ('node-18:node-18', '-p node', ''),  # a program of one process
    ('g:node-18 g:node.19', '-p node', 'g:node-18 g:node.19'),
    ('web:web web:web2', '-p web', 'web:web'),
    ('tcp:tcp-8001 tcp:tcp-8002 tcp:tcp', '-p tcp', 'tcp:tcp-8001 tcp:tcp-8002 tcp:tcp'),
    ('pool:queue_00 pool:queue_01', '-p queue_00', 'pool:queue_00'),
    ('pool:queue_00 other:queue_00', '-p pool:queue', 'pool:queue_00'),
    ('pool:queue_00 pool:queue_01', '-p pool:queue_01', 'pool:queue_01'),
    ('foo:bar bar:foo', '-p foo:bar', 'foo:bar'),
    ('queue:queue_00 web:queue_00 web:web', '-p queue:*', 'queue:queue_00'),
    ('queue:queue_00 queue:queue_10 q:00', '-p queue_0?', 'queue:queue_00'),
    ('q:00 web:query web:web', '-p q*', 'q:00 web:query'),
    ('webshop:db shop:web', '-p web*', 'shop:web'),  # no colon: not GROUP:NAME
    ('web:x web:web', '-p *:web', 'web:web'),
    ('web:web Web:Web', '-p [w]eb', 'web:web'),
    ('web:web Web:Web', '-p WEB', ''),
    ('web:web web.x:web.x', '-p web.*', 'web.x:web.x'),  # no regular expression
    ('[x]:[x] x:x', '-p [x]', '[x]:[x] x:x'),            # a name, or a pattern
    ('a=b:a=b a:a', '-p a=b', 'a=b:a=b'),
    ('queue:queue_00 q:00 web:queue', '-g q*', 'queue:queue_00 q:00'),
    ('queue:queue_00 Queue:x', '-g Q*', 'Queue:x'),
    ('web:web web:worker web2:web2', '-g web', 'web:web web:worker'),
    ('web:worker worker:web', '-g worker', 'worker:web'),
    ('web:web', '-g web:web', ''),
    ('web:web queue:queue_00 *:*', '-a', 'web:web queue:queue_00 *:*'),
]


@pytest.mark.parametrize('namespecs, option, covered', COVERED)
def test_limit_covers_and_applies_to_the_processes_of_its_name(namespecs: str, option: str,
                                                               covered: str) -> None:
    flag, _, name = option.partition(' ')
    args = f'{flag} {name}=1MB' if name else f'{flag} 1MB'
    assert [name for name in namespecs.split() if applied(name, args)] == covered.split()
    assert [name for name in namespecs.split() if memmon.covers(limit(args), process(name))
            ] == covered.split()


@pytest.mark.parametrize('namespec, args, given', [
    ('big:big', '-p big=1GB -a 200MB', '-p big=1GB'),
    ('big:big', '-a 200MB -p big=1GB', '-p big=1GB'),
    ('a:x', '-g a=100MB -p a:x=50MB -a 10MB', '-p a:x=50MB'),
    ('a:y', '-g a=100MB -p a:x=50MB -a 10MB', '-g a=100MB'),
    ('b:y', '-g a=100MB -p a:x=50MB -a 10MB', '-a 10MB'),
    ('a:x', '-p *=1MB -p x=2MB', '-p x=2MB'),
    ('a:x', '-p x*=1MB -p *=2MB', '-p x*=1MB'),
    ('a:x', '-p *:*=1MB -p x=2MB', '-p x=2MB'),
    ('a:x', '-p x=1MB -p x=2MB', '-p x=1MB'),
    ('a:x', '-p x=1MB -p a:x=2MB', '-p x=1MB'),
    ('a:x', '-p a:x=1MB -p x=2MB', '-p a:x=1MB'),
    ('a:x', '-g *=1MB -g a=2MB', '-g a=2MB'),
    ('a:x', '-p ?=1MB -g a=2MB', '-p ?=1MB'),
    ('q:q_01', '-p q=1MB -p q_01=2MB', '-p q_01=2MB'),
    ('q:q_01', '-p q_*=1MB -p q=2MB', '-p q=2MB'),
    ('q:q_01', '-p q:*=1MB -p q_0?=2MB', '-p q:*=1MB'),
    ('a:x', '-a 1MB -a 2MB', '-a 2MB'),
    ('a:x', '--program=x=1MB', '--program x=1MB'),
    ('a:x', '-g b=1MB', ''),
    ('a:x', '-p x=none -a 1MB', '-p x=none'),
    ('a:x', '-p x=1MB -g a=none -a none', '-p x=1MB'),
])
def test_most_specific_limit_applies_then_the_first(namespec: str, args: str, given: str) -> None:
    assert applied(namespec, args) == given


@given(st.lists(st.tuples(st.sampled_from(['-p', '-g']), st.sampled_from(
    ['x', 'a', 'a:x', '*', 'x*', 'a:*', 'b', 'x_0', '?', 'x_*'])), min_size=1, max_size=5),
    st.sampled_from(['a:x', 'x:x', 'a:x_0', 'b:a', 'b:b']))
def test_limit_that_applies_covers_and_only_then_none_does(pairs: list[tuple[str, str]],
                                                           namespec: str) -> None:
    limits = options(' '.join(f'{flag} {name}=1MB' for flag, name in pairs)).limits
    found = memmon.find_limit(process(namespec), limits)
    covering = [limit for limit in limits if memmon.covers(limit, process(namespec))]
    assert found in covering if covering else found == memmon.NO_LIMIT
    assert not covering or found.option == covering[0].option


@pytest.mark.parametrize('namespec, program', [
    ('web:web', 'web'), ('web-1:web-1', 'web-1'), ('g:web', 'web'), ('g:web_00', 'web'),
    ('g:web-1', 'web'), ('g:web.1', 'web'), ('g:web1', 'web1'), ('g:web_1_2', 'web_1'),
    ('g:00', 'g'), ('7:7', '7'), ('g:_1', ''), ('g:web_', 'web_'), ('g:web_1a', 'web_1a'),
])
def test_program_is_the_name_without_the_number_of_a_process(namespec: str, program: str) -> None:
    assert memmon.program_of(process(namespec)) == program


def pool(namespec: str, args: str = '-a 1MB', command: str = '', is_alone: bool = True
         ) -> tuple[str, ...]:
    one = process(namespec)
    return memmon.pool_of(one, is_alone, memmon.find_limit(one, options(args).limits), command)


A, B = '/bin/client --port 8001', '/bin/client --port 8002'


@pytest.mark.parametrize('one, other, are_one_pool', [
    (('g:web_00',), ('g:web_01',), True),
    (('g:web_00',), ('g:web-1',), True),
    (('g:web1',), ('g:web2',), True),
    (('g:00',), ('g:01',), True),
    (('g:web',), ('g:web_1',), True),
    (('g:web_00', '-p web_00=1MB -a 2MB'), ('g:web_01', '-p web_00=1MB -a 2MB'), True),
    (('g:web_00', '-a 1MB', A), ('g:web_01', '-a 1MB', '/bin/other'), True),
    (('g:web_00',), ('h:web_00',), False),
    (('g:web_00',), ('g:worker_00',), False),
    (('g:a',), ('g:b',), False),
    # Without a group: the same limit and the same command, but for numbers.
    (('client1:client1', '-a 1MB', A), ('client2:client2', '-a 1MB', B), True),
    (('client-1:client-1', '-p client-*=1MB', A), ('client-2:client-2', '-p client-*=1MB', B),
     True),
    (('client1:client1', '-a 1MB', A), ('client2:client2', '-a 1MB', '/bin/other 1'), False),
    (('client1:client1', '-p client1=1MB -a 2MB', A),
     ('client2:client2', '-p client1=1MB -a 2MB', B), False),
    (('client1:client1', '-a 1MB', A), ('server1:server1', '-a 1MB', A), False),
    (('client1:client1', '-g x=1MB', A), ('client2:client2', '-g x=1MB', B), True),
    (('web:web', '-a 1MB', A), ('db:db', '-a 1MB', A), False),
    (('web:web', '-a 1MB', A), ('web2:web2', '-a 1MB', A), True),
    (('web:web', '-a 1MB', A, False), ('web:web_1', '-a 1MB', B, False), True),
    (('web:web', '-a 1MB', A, False), ('web:db', '-a 1MB', A, False), False),
])
def test_pool_is_what_differs_by_a_number(one: Sequence[Any], other: Sequence[Any],
                                          are_one_pool: bool) -> None:
    assert (pool(*one) == pool(*other)) == are_one_pool


PROCESSES = [process(name) for name in ('web:web', 'web:worker', 'queue:queue_00', 'shop:cart')]


@pytest.mark.parametrize('args, sentence', [
    ('-p wrker=1MB', '-p wrker=1MB matches no process; similar: worker'),
    ('-p web:workers=1MB',
     '-p web:workers=1MB matches no process; similar: web:worker, web:web'),
    ('-p queues=1MB', '-p queues=1MB matches no process; similar: queue, queue_00'),
    ('-p Web=1MB', '-p Web=1MB matches no process; similar: web'),
    ('-p xyz*=1MB', '-p xyz*=1MB matches no process'),
    ('-p shop=1MB', '-p shop=1MB matches no process; shop is a group: use -g'),
    ('-g webs=1MB', '-g webs=1MB matches no process; similar: web'),
    ('-g worker=1MB', '-g worker=1MB matches no process; worker is a program: use -p'),
    ('-g queue_00=1MB', '-g queue_00=1MB matches no process; queue_00 is a program: use -p'),
    ('-g shop:cart=1MB', '-g shop:cart=1MB matches no process; shop:cart is a program: use -p'),
    ('-p abc=none', '-p abc=none matches no process'),
])
def test_limit_that_matches_no_process_is_explained(args: str, sentence: str) -> None:
    unmatched = limit(args)
    assert not any(memmon.covers(unmatched, one) for one in PROCESSES)
    assert memmon.explain_unmatched(unmatched, PROCESSES) == sentence


def test_thousand_patterns_take_no_time() -> None:
    args = [arg for number in range(1000) for arg in ('-p', f'web{number}-*=1MB')]
    limits = memmon.parse_args(args).limits
    began = time.process_time()
    found = [memmon.find_limit(process(f'pool:web{number}-1'), limits)
             for number in range(0, 1000, 100)]
    assert time.process_time() - began < 3
    assert [one.pattern for one in found] == [
        f'web{number}-*' for number in range(0, 1000, 100)]


# Sizes.

INF = math.inf


@pytest.mark.parametrize('args, soft, hard', [
    ('-a 200MB', 200 * MB, INF), ('-a 25%', 2 * GB, INF), ('-a 100%', 8 * GB, INF),
    ('-a 200MB..300MB', 200 * MB, 300 * MB), ('-a 25%..50%', 2 * GB, 4 * GB),
    ('-a 200MB..50%', 200 * MB, 4 * GB), ('-a 5GB..25%', 2 * GB, 2 * GB),
    ('-a none', INF, INF), ('-a 0.000000001%', 0, INF), ('-a 33.3%', int(8 * GB * .333), INF),
    ('-t 50%..4.5GB', 4 * GB, int(4.5 * GB)), ('', INF, INF),
])
def test_sizes_are_those_of_a_machine_of_8gb(args: str, soft: float, hard: float) -> None:
    assert memmon.sizes_of(limit(args), 8 * GB) == (soft, hard)


@pytest.mark.parametrize('memory, args, level, share', [
    (200 * MB - 1, '-a 200MB', '', 1 - 1 / (200 * MB)),
    (200 * MB, '-a 200MB', '', 1),  # exactly at the limit
    (200 * MB + 1, '-a 200MB', 'soft', 1 + 1 / (200 * MB)),
    (0, '-a 200MB', '', 0), (None, '-a 200MB', '', None), (300 * MB, '', '', None),
    (300 * MB, '-a none', '', None), (50, '-a 0.000000001%', 'soft', 50),  # less than a byte
    (250 * MB, '-a 200MB..300MB', 'soft', 1.25), (300 * MB, '-a 200MB..300MB', 'soft', 1.5),
    (300 * MB + 1, '-a 200MB..300MB', 'hard', 1.5 + 1 / (200 * MB)),
    (None, '-a 200MB..300MB', '', None), (2 * GB + 1, '-a 25%', 'soft', 1 + 1 / (2 * GB)),
    (2 * GB + 1, '-a 5GB..25%', 'hard', 1 + 1 / (2 * GB)),
])
def test_limit_is_exceeded_from_a_byte_above_it(memory: int | None, args: str, level: str,
                                                share: float | None) -> None:
    taken = reading(memory, args)
    assert taken.level == level
    assert taken.share == (None if share is None else pytest.approx(share, rel=1e-12))


def test_percentages_are_worked_out_anew_at_each_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container can be resized."""
    table = memmon.ProcessTable({7: (1, 60 * MB)})
    monkeypatch.setattr(memmon, 'PROC_FILES', table)
    monkeypatch.setattr(memmon.Server, 'call', lambda server, take, method: take({
        'supervisor.getPID': 1, 'supervisor.getAllProcessInfo': [process()._asdict()]}[method]))
    monitor = memmon.Monitor(options('-p web=10%..20% -t 50%'), memmon.Server('unix:///none'))
    seen = []
    for machine in (GB, 100 * MB, GB):
        monkeypatch.setattr(memmon, 'read_machine_memory', lambda: machine)
        monitor.look(0)
        taken, total = monitor.histories['web:web'].reading, monitor.total.reading
        assert taken
        seen.append((taken.soft, taken.hard, taken.level, total and total.soft))
    large = (GB // 10, GB // 5, '', GB // 2)
    assert seen == [large, (10 * MB, 20 * MB, 'hard', 50 * MB), large]


# What a percentage refers to: the machine, or its container.

UNLIMITED = 0x7FFFFFFFFFFFF000
MACHINE = os.sysconf('SC_PHYS_PAGES') * memmon.PAGE_BYTES


def write_files(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def v1(limit: int) -> str:
    return f'cache 0\nhierarchical_memory_limit {limit}\ntotal_rss 5\n'


V2 = 'cgroup2 cgroup2 rw,nsdelegate'
V1 = 'cgroup cgroup rw,memory'


@pytest.mark.parametrize('groups, mounts, files, limits', [
    pytest.param('0::/a/b\n', [('/', '/cg', V2)],
                 {'cg/a/b/memory.max': 'max\n', 'cg/a/memory.max': '300\n'}, [300],
                 id='version 2: the one above is limited'),
    pytest.param('0::/a/b\n', [('/', '/cg', V2)],
                 {'cg/a/b/memory.max': '500\n', 'cg/a/memory.max': '300\n'}, [500, 300],
                 id='version 2: both are'),
    pytest.param('0::/a/b\n', [('/', '/cg', V2)],
                 {'cg/a/b/memory.max': '300\n', 'cg/a/memory.max': '500\n'}, [300, 500],
                 id='version 2: both are, the lower one more'),
    pytest.param('0::/a/b\n', [('/', '/cg', V2)],
                 {'cg/a/b/memory.max': 'max\n', 'cg/a/memory.max': 'max\n'}, [],
                 id='version 2: none is'),
    pytest.param('0::/a/b\n', [('/', '/cg', V2)], {'cg/a/cgroup.procs': ''}, [],
                 id='version 2: no memory controller'),
    pytest.param('0::/\n', [('/', '/cg', V2)], {'cg/memory.max': '300\n'}, [300],
                 id='version 2: a namespace of its own'),
    pytest.param('0::/../../x\n', [('/', '/cg', V2)], {'cg/memory.max': '300\n'}, [300],
                 id='version 2: outside of its namespace'),
    pytest.param('0::/docker/7f\n', [('/docker/7f', '/cg', V2)],
                 {'cg/memory.max': '300\n', 'memory.max': '1\n'}, [300],
                 id='version 2: only the own group is mounted'),
    pytest.param('0::/docker/7f/a\n', [('/docker/7f', '/cg', V2)],
                 {'cg/memory.max': '300\n', 'cg/a/memory.max': '200\n'}, [200, 300],
                 id='version 2: below the group that is mounted'),
    pytest.param('0::/docker/7fff\n', [('/docker/7f', '/cg', V2)],
                 {'cg/memory.max': '300\n', 'cg/ff/memory.max': '1\n'}, [300],
                 id='version 2: beside the group that is mounted'),
    pytest.param('0::/a\\b c\n', [('/', '/cg', V2)],
                 {'cg/a\\b c/memory.max': '300\n'}, [300], id='version 2: no escapes'),
    pytest.param('0::/a\\b c\n', [('/', '/my\\040cg', V2)],
                 {'my cg/a\\b c/memory.max': '300\n'}, [300], id='version 2: escapes'),
    pytest.param('0::/a:b\n', [('/', '/cg', V2)], {'cg/a:b/memory.max': '300\n'}, [300],
                 id='version 2: a colon in the path'),
    pytest.param('0::/gone (deleted)\n', [('/', '/cg', V2)], {'cg/memory.stat': ''}, [],
                 id='version 2: a group that is gone'),
    pytest.param('4:memory:/a/b\n', [('/', '/cg/memory', V1)], {
        'cg/memory/a/b/memory.limit_in_bytes': f'{UNLIMITED}\n',
        'cg/memory/a/b/memory.stat': v1(256)}, [256], id='version 1: the leaf says unlimited'),
    pytest.param('4:memory:/\n', [('/', '/cg/memory', V1)],
                 {'cg/memory/memory.stat': v1(UNLIMITED)}, [UNLIMITED], id='version 1: none is'),
    pytest.param('4:cpu,memory:/docker/7f\n',
                 [('/docker/7f', '/elsewhere', 'cgroup cgroup rw,cpu,memory')],
                 {'elsewhere/memory.stat': v1(256)}, [256],
                 id='version 1: elsewhere, with another controller'),
    pytest.param('5:cpu:/a\n4:memory:/b\n1:name=systemd:/c\n0::/c\n',
                 [('/', '/cg/cpu', 'cgroup cgroup rw,cpu'), ('/', '/cg/memory', V1),
                  ('/', '/cg/systemd', 'cgroup cgroup rw,name=systemd'),
                  ('/', '/cg/unified', V2)],
                 {'cg/memory/b/memory.stat': v1(256), 'cg/cpu/a/memory.stat': v1(1),
                  'cg/memory/a/memory.stat': v1(4),
                  'cg/cpu/b/memory.stat': v1(2), 'cg/systemd/c/memory.stat': v1(3),
                  'cg/unified/c/cgroup.procs': ''}, [256],
                 id='hybrid: memory is in version 1'),
    pytest.param('5:cpu:/a\n0::/c\n',
                 [('/', '/cg/cpu', 'cgroup cgroup rw,cpu'), ('/', '/cg/unified', V2)],
                 {'cg/unified/c/memory.max': '300\n'}, [300], id='hybrid: memory is in version 2'),
    pytest.param('4:memory:/a\n', [], {}, [], id='nothing is mounted'),
    pytest.param('', [], {}, [], id='no groups'),
])
def test_memory_is_the_least_of_machine_own_group_and_all_above(
        groups: str, mounts: Sequence[tuple[str, str, str]], files: dict[str, str],
        limits: list[int], tmp_path: Path) -> None:
    """mounts: root, point below tmp_path, and what follows the dash in /proc/self/mountinfo."""
    lines = [f'{i} 1 0:{i} {root} {tmp_path}{point} rw,nosuid shared:{i} - {rest}\n'
             for i, (root, point, rest) in enumerate(mounts, 30)]
    write_files(tmp_path, files)
    write_files(tmp_path / 'proc', {'cgroup': groups, 'mountinfo': ''.join([
        '21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n',
        '22 21 0:5 / /mnt rw,relatime - tmpfs  rw\n',  # whose source is an empty string
        *lines])})
    assert memmon.read_machine_memory(str(tmp_path / 'proc')) == min([*limits, MACHINE])


def test_system_without_cgroups_has_the_memory_of_the_machine(tmp_path: Path) -> None:
    assert memmon.read_machine_memory(str(tmp_path)) == MACHINE
