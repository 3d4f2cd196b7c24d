"""Processes, limits and readings for the tests of what is pure."""

from __future__ import annotations

from typing import Any

from supervisor.states import ProcessStates, getProcessStateDescription

import memmon
from memmon import Debt, Job, Limit, Options, Process, Reading, Server

KB, MB, GB, TB = 2 ** 10, 2 ** 20, 2 ** 30, 2 ** 40

STOPPED, STARTING, RUNNING = ProcessStates.STOPPED, ProcessStates.STARTING, ProcessStates.RUNNING
BACKOFF, STOPPING = ProcessStates.BACKOFF, ProcessStates.STOPPING
EXITED, FATAL, UNKNOWN = ProcessStates.EXITED, ProcessStates.FATAL, ProcessStates.UNKNOWN
STATES = (STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL, UNKNOWN)

SERVER = Server('unix:///nonexistent/s')


def options(args: str = '-a 200MB') -> Options:
    """Return the options of arguments that hold no spaces."""
    return memmon.parse_args(args.split())


def limit(arg: str = '-a 200MB') -> Limit:
    """Return the limit that an option with its argument sets."""
    parsed = options(f'{arg} --check')  # so that none will do
    return parsed.total or parsed.limits[0]


def process(namespec: str = 'web:web', state: int = RUNNING, **fields: Any) -> Process:
    """Return a process that has been up for 725 seconds, unless the fields say otherwise."""
    group, _, name = namespec.rpartition(':')
    is_up = state in (STARTING, RUNNING, STOPPING)
    fields = {'pid': 7 if is_up else 0, 'start': 1000, 'stop': 0, 'now': 1725, 'spawnerr': '',
              'statename': getProcessStateDescription(state), **fields}
    return Process(group=group or name, name=name, state=state, **fields)


def reading(namespec: str = 'web:web', rss: int | None = 270 * MB, arg: str = '-a 200MB',
            **fields: Any) -> Reading:
    """Return a reading under the limit that an option sets; without an option, under none."""
    if arg:
        applied = limit(arg)
        size, urgent = memmon.in_bytes(applied.sizes, GB)
        fields = {'limit': applied, 'size': size, 'urgent': urgent, **fields}
    fields = {'process': process(namespec), 'uptime': 725, 'with_descendants': False, **fields}
    return Reading(rss=rss, **fields)


def job(namespec: str = 'web:web', debt: Debt | None = None, **fields: Any) -> Job:
    """Return a job whose reading is 270MB under -a 200MB."""
    return Job(**{'reading': reading(namespec), 'debt': debt or Debt(), **fields})
