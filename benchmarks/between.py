"""Measure how far programs are over their limits when they are stopped, and what a day costs.

A leak writes down what it uses when it is asked to stop. All watchdogs look at the same interval;
the listeners get their TICK events from here, at the true time. Each leak is under way when the
first of them comes. Runs on Linux only; the control groups need root, and version 1 of them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Iterator, NamedTuple

from bench import (DASH, Listener, Peers, begin, cpu_secs, end_all, end_supervisord, install_peers,
                   say, supervised, table, versions, wait_for)
from harness import MEMMON, Supervisord

LIMIT_MB = 100
GROUP_MB = 300
CALM_MB = 60
STEP_SECS = 0.01
UNDER_WAY_SECS = 1.2  # from the start of a leak to the first tick
MEMORY_GROUPS = Path('/sys/fs/cgroup/memory')

# A program that takes so many MB a second, on and on, until it has been asked to stop once.
LEAK = f"""
import os, pathlib, signal, sys, time
rate, at_first, note = float(sys.argv[1]), float(sys.argv[2]), pathlib.Path(sys.argv[3])
def rss():
    return int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
def stop(*_):
    if note != pathlib.Path('/dev/null'):
        note.write_text(str(rss()))
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
memory = [b'x' * int(at_first * 2 ** 20)]
began, taken = time.monotonic(), 0
while rate and not note.is_file():
    due = int((time.monotonic() - began) * rate * 2 ** 20) - taken
    memory.append(b'x' * due)
    taken += due
    time.sleep({STEP_SECS})
while True:
    signal.pause()
"""

OPTIONS = [
    ('--rates', float, [1, 10, 50], 'the leaks over a limit of their own, in MB/s'),
    ('--intervals', int, [5, 60], 'the seconds between two ticks'),
    ('--group-rates', float, [5, 15, 30], 'the leaks in a control group, in MB/s'),
    ('--group-interval', int, 60, 'the seconds between two ticks there'),
    ('--group-secs', float, 300.0, 'how long to count kills'),
    ('--programs', int, 100, 'how many programs the host has whose day is measured'),
    ('--day-interval', int, 60, 'the seconds between two ticks there'),
    ('--day-ticks', int, 5, 'how many of these ticks to wait for'),
]


def leak(rate: float, at_first: float, note: str) -> str:
    """Return the command of a program that leaks."""
    return f'{sys.executable} -S -E %(here)s/leak.py {rate} {at_first} {note}'


# A limit of one program.

class Row(NamedTuple):
    """One leak and who watches it."""

    interval: int
    rate: float
    watchdog: str

    @property
    def name(self) -> str:
        return f'{self.watchdog}-{self.interval}-{self.rate:g}x'


def overshoots(rows: list[Row], peers: Peers) -> dict[Row, float]:
    """Return how many MB each leak is over its limit when it is asked to stop."""
    sections = [f'[program:{row.name}]\ncommand={leak(row.rate, 0, row.name)}\nautostart=false\n'
                f'directory=%(here)s\nstartsecs=0\n' for row in rows]
    with supervised('\n'.join(sections), 0, {'leak.py': LEAK}) as server:
        threads = [threading.Thread(target=watch, args=(row, peers, server, at / 5), daemon=True)
                   for at, row in enumerate(rows)]
        for thread in threads:
            thread.start()
        wait_for('leaks to be stopped', lambda: all(
            (server.path / row.name).is_file() for row in rows), 0.5)
        time.sleep(2)
        return {row: int((server.path / row.name).read_text()) / 2 ** 20 - LIMIT_MB
                for row in rows}


def watch(row: Row, peers: Peers, server: Supervisord, delay: float) -> None:
    """Start a leak, and let it be watched until it has been stopped."""
    time.sleep(delay)
    limit = ['-p', f'{row.name}={LIMIT_MB}MB']
    note = server.path / row.name
    if row.watchdog == 'monit':
        server.call('startProcess', row.name, False)
        time.sleep(UNDER_WAY_SECS)
        watch_by_monit(row, peers, server)
        return
    command = MEMMON if row.watchdog == 'memmon' else peers.superlance
    with Listener(server, command, *limit) as listener:
        listener.wait_ready()
        server.call('startProcess', row.name, False)
        time.sleep(UNDER_WAY_SECS)
        due = time.monotonic()
        while not note.is_file():
            listener.tick(row.interval)
            due += row.interval
            while time.monotonic() < due and not note.is_file():
                time.sleep(STEP_SECS)
        time.sleep(2)  # for a worker to end


def watch_by_monit(row: Row, peers: Peers, server: Supervisord) -> None:
    assert peers.monit
    directory = Path(tempfile.mkdtemp(dir=server.path))
    pid = server.call('getProcessInfo', row.name)['pid']
    (directory / 'leak').write_text(f'{pid}\n')
    lines = [f'set daemon {row.interval}', *(f'set {name} {directory}/{name}' for name in (
        'pidfile', 'statefile', 'idfile', 'logfile')),
        f'check process leak with pidfile {directory}/leak',
        f'stop program = "/bin/kill {pid}"', f'if memory > {LIMIT_MB} MB then stop']
    control = directory / 'monitrc'
    control.touch(mode=0o600)
    control.write_text('\n'.join(lines) + '\n')
    with running(peers.monit, '-I', '-c', str(control)):
        wait_for('monit to stop a leak', (server.path / row.name).is_file)


@contextlib.contextmanager
def running(*command: str) -> Iterator[None]:
    import subprocess
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def overshoot_table(args: argparse.Namespace, peers: Peers) -> str:
    watchdogs = ['memmon', 'superlance', *(['monit'] if peers.monit else [])]
    rows = [Row(interval, rate, watchdog) for interval in args.intervals for rate in args.rates
            for watchdog in watchdogs]
    seen = overshoots(rows, peers)
    lines = [[f'over a limit of {LIMIT_MB} MB at the stop, in MB', *watchdogs,
              "memmon's, in seconds of growth"]]
    for interval in args.intervals:
        for rate in args.rates:
            found = [seen[Row(interval, rate, watchdog)] for watchdog in watchdogs]
            lines.append([f'``TICK_{interval}``, {rate:g} MB/s', *(f'{mb:.1f}' for mb in found),
                          f'{found[0] / rate:.2f} s'])
    return table(*lines)


# A control group.

def count_kills(rate: float, watchdog: str, peers: Peers, args: argparse.Namespace,
                kills: dict[tuple[float, str], int]) -> None:
    """Let one program leak beside a calm one; count what the kernel kills."""
    group = MEMORY_GROUPS / f'memmon-bench-{os.getpid()}-{watchdog or "none"}-{rate:g}'
    group.mkdir()
    (group / 'memory.limit_in_bytes').write_text(f'{GROUP_MB << 20}')
    inside = ['sh', '-c', f'echo $$ >{group}/cgroup.procs; exec "$@"', 'sh']
    sections = (f'[program:leak]\ncommand={leak(rate, 0, "/dev/null")}\nautostart=false\n'
                'startsecs=0\nautorestart=true\n'
                f'[program:calm]\ncommand={leak(0, CALM_MB, "/dev/null")}\nautorestart=true\n')
    with tempfile.TemporaryDirectory(prefix='memmon-bench-') as directory:
        path = Path(directory)
        (path / 'leak.py').write_text(LEAK)
        server = Supervisord(path, sections, wrapper=inside)
        try:
            server.wait_ready()
            wait_for('the calm program', lambda: server.call(
                'getProcessInfo', 'calm')['statename'] == 'RUNNING', 0.2)
            command = {'memmon': [MEMMON, '-t', '80%'],
                       'superlance': [peers.superlance, '-a', f'{GROUP_MB // 2}MB']}.get(watchdog)
            with contextlib.ExitStack() as stack:
                listener = None
                if command:
                    listener = stack.enter_context(Listener(server, *inside, *command))
                    listener.wait_ready()
                server.call('startProcess', 'leak', False)
                time.sleep(UNDER_WAY_SECS)
                due, end = time.monotonic(), time.monotonic() + args.group_secs
                while due < end:
                    if listener:
                        listener.tick(args.group_interval)
                    due += args.group_interval
                    time.sleep(max(0, min(due, end) - time.monotonic()))
                control = (group / 'memory.oom_control').read_text()
                kills[rate, watchdog] = int(control.partition('oom_kill ')[2].split()[0])
        finally:
            end_supervisord(server)
    wait_for('the control group to be empty', lambda: not (
        group / 'cgroup.procs').read_text(), 0.1)
    group.rmdir()


def kill_table(args: argparse.Namespace, peers: Peers) -> str:
    watchdogs = ['', 'superlance', 'memmon']
    kills: dict[tuple[float, str], int] = {}
    if (MEMORY_GROUPS / 'memory.limit_in_bytes').is_file() and os.geteuid() == 0:
        threads = [threading.Thread(target=count_kills, args=(rate, watchdog, peers, args, kills))
                   for rate in args.group_rates for watchdog in watchdogs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = [[f'kills by the kernel in {args.group_secs:.0f} s, ``TICK_{args.group_interval}``',
              'nothing', f'superlance, ``-a {GROUP_MB // 2}MB``', 'memmon, ``-t 80%``']]
    for rate in args.group_rates:
        lines.append([f'{rate:g} MB/s', *(str(kills.get((rate, watchdog), DASH))
                                          for watchdog in watchdogs)])
    return table(*lines)


# A day.

def wakeups(pid: int) -> int:
    """Return how often a process has gone to sleep by itself."""
    status = Path(f'/proc/{pid}/status').read_text()
    return int(status.partition('\nvoluntary_ctxt_switches:')[2].split()[0])


def day(args: argparse.Namespace, rate: float) -> list[str]:
    """Return how often memmon wakes up between ticks, and what a day of that costs."""
    section = (f'[program:worker]\ncommand={leak(rate, 0, "/dev/null")}\nstartsecs=0\n'
               f'numprocs={args.programs}\nprocess_name=%(program_name)s_%(process_num)03d\n')
    with supervised(section, args.programs, {'leak.py': LEAK}) as server:
        time.sleep(2)
        with Listener(server, MEMMON, '-a', '200MB') as listener:
            due = time.monotonic()
            between = 0
            for number in range(args.day_ticks + 1):
                listener.tick(args.day_interval)
                listener.wait_ready()
                time.sleep(0.5)
                if number == 0:
                    used = cpu_secs(listener.pid, listener.server_pid)
                woken = wakeups(listener.pid)
                due += args.day_interval
                if number < args.day_ticks:
                    time.sleep(due - time.monotonic())
                    between += wakeups(listener.pid) - woken
            secs = cpu_secs(listener.pid, listener.server_pid) - used
            used = cpu_secs(listener.server_pid)
            time.sleep(args.day_interval)  # what supervisord uses by itself
            secs -= (cpu_secs(listener.server_pid) - used) * args.day_ticks
    per_day = 24 * 3600 / args.day_interval / args.day_ticks
    return [f'{between / args.day_ticks:g}', f'{secs * per_day:.2f} s']


def day_table(args: argparse.Namespace) -> str:
    lines = [[f'a host of {args.programs} programs, ``TICK_{args.day_interval}``',
              'wake-ups between two ticks', 'CPU time a day']]
    for what, rate in (('that do not grow', 0.0), ('that grow by 100 MB a day', 100 / 86400)):
        say(f'a day of programs {what}')
        lines.append([what, *day(args, rate)])
    return table(*lines)


def main() -> None:
    args = begin(__doc__, OPTIONS)
    try:
        with tempfile.TemporaryDirectory(prefix='memmon-peers-') as path:
            peers = install_peers(Path(path))
            if args.rates[0]:
                say('leaks over a limit of their own')
                print(overshoot_table(args, peers), flush=True)
            if args.group_rates[0]:
                say('leaks in a control group')
                print(kill_table(args, peers), flush=True)
            if args.programs:
                print(day_table(args), flush=True)
            print(versions(peers))
    finally:
        end_all()


if __name__ == '__main__':
    main()
