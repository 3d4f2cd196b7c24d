"""Options, processes, limits and readings for the tests of what is pure."""

from __future__ import annotations

from typing import Any

from supervisor.states import ProcessStates, getProcessStateDescription

import memmon
from memmon import Limit, Options, Process, Reading

KB, MB, GB, TB = 2 ** 10, 2 ** 20, 2 ** 30, 2 ** 40
RUNNING, FATAL = ProcessStates.RUNNING, ProcessStates.FATAL


def options(args: str = '-a 200MB') -> Options:
    """Return the options of arguments that hold no spaces."""
    return memmon.parse_args(args.split())


def limit(args: str) -> Limit:
    """Return the limit that an option with its argument sets; without an option, none."""
    parsed = options(f'{args} --check')  # so that none will do
    return parsed.total or (*parsed.limits, memmon.NO_LIMIT)[0]


def process(namespec: str = 'web:web', state: int = RUNNING, **fields: Any) -> Process:
    """Return a process that has been up for 725 seconds, unless the fields say otherwise."""
    group, _, name = namespec.rpartition(':')
    return Process(**{
        'group': group or name, 'name': name, 'state': state, 'start': 1000, 'stop': 0,
        'now': 1725, 'statename': getProcessStateDescription(state), 'spawnerr': '',
        'pid': 7 if state == RUNNING else 0, 'exitstatus': 0, **fields})


def reading(memory: float | None = 270 * MB, args: str = '-a 200MB', **fields: Any) -> Reading:
    """Return a reading under the limit that an option sets; without an option, under none.

    Of a process that has been up for 725 seconds, unless the fields say otherwise.
    """
    applied = limit(args)
    known = None if memory is None else int(memory)
    soft, hard = memmon.sizes_of(applied, 8 * GB)
    return Reading(**{
        'process': process(), 'limit': applied, 'soft': soft, 'hard': hard, 'rss': known,
        'bound': known, 'memory': known, 'measure': memmon.MEASURES['rss'], 'at': 1725,
        **fields})
