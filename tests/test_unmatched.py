"""What memmon says of limits that cover no process."""

from __future__ import annotations

import pytest

import memmon


def process(group: str, name: str) -> memmon.Process:
    return memmon.Process(group, name, 1, 0, 0, 0, 20, 'RUNNING', '')


PROCESSES = [process('web', 'web'), process('web', 'worker'), process('queue', 'queue_00')]


@pytest.mark.parametrize('option, warning', [
    ('-p wrker=1MB', '-p wrker=1MB covers no process; similar: worker'),
    ('-p web:workers=1MB', '-p web:workers=1MB covers no process; similar: web:worker, web:web'),
    ('-p queues=1MB', '-p queues=1MB covers no process; similar: queue, queue_00'),
    ('-p Web=1MB', '-p Web=1MB covers no process; similar: web'),
    ('-p xyz*=1MB', '-p xyz*=1MB covers no process'),
    ('-g webs=1MB', '-g webs=1MB covers no process; similar: web'),
    ('-g worker=1MB', '-g worker=1MB covers no process; worker is a program: use -p'),
    ('-g web=1MB', ''),
    ('-p que*=1MB', ''),
    ('-a 1MB', ''),
    ('-p web=1MB -g web=2MB -a 3MB', ''),
])
def test_limit_that_covers_no_process_is_explained(option: str, warning: str) -> None:
    limits = memmon.Limits(memmon.parse_args(option.split()).limits)
    assert memmon.explain_unmatched(limits.unmatched(PROCESSES), PROCESSES) == (
        [warning] * bool(warning))
