"""What memmon says of limits that cover no process."""

from __future__ import annotations

import pytest
from samples import options, process

import memmon

PROCESSES = [process('web:web'), process('web:worker'), process('queue:queue_00'),
             process('shop:cart')]


@pytest.mark.parametrize('args, warnings', [
    ('-p wrker=1MB', ['-p wrker=1MB covers no process; similar: worker']),
    ('-p web:workers=1MB', [
        '-p web:workers=1MB covers no process; similar: web:worker, web:web']),
    ('-p queues=1MB', ['-p queues=1MB covers no process; similar: queue, queue_00']),
    ('-p Web=1MB', ['-p Web=1MB covers no process; similar: web']),
    ('-p xyz*=1MB', ['-p xyz*=1MB covers no process']),
    ('-p shop=1MB', ['-p shop=1MB covers no process; shop is a group: use -g']),
    ('-g webs=1MB', ['-g webs=1MB covers no process; similar: web']),
    ('-g worker=1MB', ['-g worker=1MB covers no process; worker is a program: use -p']),
    ('-g queue_00=1MB', ['-g queue_00=1MB covers no process; queue_00 is a program: use -p']),
    ('-g shop:cart=1MB', ['-g shop:cart=1MB covers no process; shop:cart is a program: use -p']),
    ('-p xyz=1MB -p web=1MB -p abc=none', [
        '-p xyz=1MB covers no process', '-p abc=none covers no process']),
    ('-g web=1MB', []),
    ('-p que*=1MB', []),
    ('-g que*=1MB', []),
    ('-a 1MB', []),
    ('-p web=1MB -g web=2MB -a 3MB', []),  # one that another overrules does cover something
    ('-p we*=1MB -p web=2MB', []),
])
def test_limit_that_covers_no_process_is_explained(args: str, warnings: list[str]) -> None:
    unmatched = memmon.Limits(options(args).limits).unmatched(PROCESSES)
    assert memmon.explain_unmatched(unmatched, PROCESSES) == warnings


def test_any_covers_nothing_where_there_is_nothing() -> None:
    limits = memmon.Limits(options('-a 1MB -p web=1MB').limits)
    assert [limit.given for limit in limits.unmatched([])] == ['-p web=1MB', '-a 1MB']


def test_many_limits_are_explained_without_similar_names() -> None:
    args = ' '.join(f'-p worker{number}=1MB' for number in range(21))
    unmatched = memmon.Limits(options(args + ' -p shop=1MB').limits).unmatched(PROCESSES)
    assert memmon.explain_unmatched(unmatched[-2:], PROCESSES) == [
        '-p worker20=1MB covers no process; similar: worker',
        '-p shop=1MB covers no process; shop is a group: use -g']
    assert memmon.explain_unmatched(unmatched, PROCESSES)[-2:] == [
        '-p worker20=1MB covers no process',
        '-p shop=1MB covers no process; shop is a group: use -g']
