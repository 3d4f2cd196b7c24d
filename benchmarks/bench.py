"""Measure what memmon costs, side by side with what people would use instead.

All watchdogs watch the same programs, which sleep, under the same supervisord. The listeners get
their events from here, one after the other, so that each check is timed from the event to the
answer. A check is steady when no program came or went since the last one, and none is over its
limit. The CPU time is that of the watchdog, of the commands that it runs, and of what it asks of
supervisord. The floor is a loop that reads supervisord's children, and one statm for each.

Prints tables; README.rst has what matters of them. Runs on Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.metadata
import math
import os
import platform
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
import venv
from pathlib import Path
from typing import (Any, Callable, ContextManager, Iterator, Mapping, NamedTuple, Protocol,
                    Sequence)

sys.path.insert(0, str(Path(__file__).parent.parent / 'tests'))

from harness import MEMMON, Supervisord  # noqa: E402

PS = ['ps', '-A', '-o', 'pid=', '-o', 'ppid=', '-o', 'rss=']
SLEEP = 'sleep 7200'
MARK = f'MEMMON_BENCH={os.getpid()}'  # in the environment of all that is started here
PATIENCE_SECS = 300.0
BEGAN = time.monotonic()
TURN_SECS = 0.1  # how long a watchdog checks, again and again, before it is the next one's turn
SETTLE_SECS = 0.002  # for what follows an answer: the next READY, supervisord closing a connection
QUIET_SECS = 0.05  # a monit that uses no CPU time for so long has finished its cycle
SAMPLE_SECS = 0.05

# What a first tick cannot do without, in a process that has come as far as a listener that waits
# for its first event.
PS_AND_REQUEST = f"""
import os, subprocess, time
from supervisor import childutils
with childutils.getRPCInterface(os.environ) as server:
    server.supervisor.getPID()
time.sleep(0.5)
began = time.perf_counter()
subprocess.run({PS}, stdout=subprocess.PIPE, check=True)
with childutils.getRPCInterface(os.environ) as server:
    server.supervisor.getAllProcessInfo()
print(time.perf_counter() - began)
"""

# A program that takes memory when it is told to, and its time to stop.
OFFENDER = """
import signal, sys, time
memory = []
def stop(*_):
    time.sleep(float(sys.argv[1]))
    sys.exit()
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGUSR1, lambda *_: memory.append(b'x' * (10 << 20)))
while True:
    signal.pause()
"""
ROOM_KB = 5 << 10  # from what an offender uses at first to its limit
DASH = '–'

OURS, SUPERLANCE, CHECKS, MONIT = 'memmon', "superlance's memmon", 'supervisor_checks', 'monit'
ONE_PS, FLOOR = 'one bare ``ps``', 'the floor'
CONTESTANTS = [OURS, SUPERLANCE, CHECKS, MONIT, ONE_PS, FLOOR]
RATIOS = [(SUPERLANCE, OURS), (CHECKS, OURS), (MONIT, OURS), (OURS, ONE_PS), (OURS, FLOOR)]

OPTIONS = [
    ('--programs', int, [1, 10, 100, 500], 'how many programs to watch, in each run'),
    ('--crowded', int, 10, 'which run to repeat among other processes, and to measure the RSS in'),
    ('--others', int, 1000, 'how many other processes'),
    ('--secs', float, 10.0, 'how long to compare steady checks in each run, at least'),
    ('--rounds', int, 10, 'how often to measure first ticks'),
    ('--ticks', int, [1000, 100000], 'after how many ticks to measure the RSS'),
    ('--offenders', int, 8, 'how many programs are over their limit in the storm'),
    ('--stop-secs', float, 1.5, 'how long they take to stop'),
    ('--groups', int, 100, 'how many groups are over their limit at once'),
    ('--restarts', int, 1850, 'after how many restarts to look for what is left behind'),
]


class Peers(NamedTuple):
    """The commands that memmon is compared with."""

    python: Path
    superlance: str
    memory_check: str
    monit: str | None


class Cost(NamedTuple):
    """The seconds that a check takes."""

    wall: float
    cpu: float


class Contestant(Protocol):
    """What can check all programs once."""

    def check(self) -> Cost:
        """Check; return the cost but for the CPU time of commands that were run."""

    def commands_secs(self) -> float:
        """Return the CPU time of all commands up to now."""


class Column(NamedTuple):
    """What steady checks cost under some conditions."""

    title: str
    costs: dict[str, Cost]
    quiet: Cost | None = None  # memmon's, without the other processes


class FirstTicks(NamedTuple):
    """The seconds that other ticks take, and what they cannot do without."""

    first: float
    changed: float
    ps_and_request: float


class Memory(NamedTuple):
    """What processes use, in KB."""

    rss: int
    pss: int


class Storm(NamedTuple):
    """The seconds from a tick that finds offenders to its answer, and until all are back."""

    answered: float
    back: float


class Forks(NamedTuple):
    """What a listener forks to restart many groups at once."""

    number: int
    alone: Memory  # the listener before
    together: Memory  # with what it has forked, at the worst


class Leftovers(NamedTuple):
    """What a listener holds."""

    descriptors: int
    maps: int
    children: int


# Processes, as /proc shows them.

def children_of(pid: int) -> list[int]:
    """Return the children of a process, which has one thread."""
    try:
        return [int(child) for child in read(f'/proc/{pid}/task/{pid}/children').split()]
    except OSError:
        return []


def read(path: str) -> bytes:
    """Read a file of /proc, which gives no more than a page of 4 KB at a time."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        text = piece = os.read(descriptor, 1 << 16)
        while piece:
            piece = os.read(descriptor, 1 << 16)
            text += piece
        return text
    finally:
        os.close(descriptor)


def rss_pages(pid: int) -> int:
    """Return a process's RSS; its statm is always read whole."""
    descriptor = os.open(f'/proc/{pid}/statm', os.O_RDONLY)
    try:
        return int(os.read(descriptor, 100).split()[1])
    finally:
        os.close(descriptor)


def cpu_secs(*pids: int) -> float:
    """Return the CPU time of all threads of processes; see clock_getcpuclockid(3)."""
    secs = 0.0
    for pid in pids:
        clock = ctypes.c_int()
        if ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)):
            raise ProcessLookupError(pid)
        secs += time.clock_gettime(clock.value)
    return secs


def ended_children_secs(pid: int) -> float:
    """Return the CPU time of a process's children that have ended; known to 10 ms only."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf('SC_CLK_TCK')


def own_cpu_secs() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def memory_of(*pids: int) -> Memory:
    """Add up the memory of those processes that are still there."""
    sums = {'Rss': 0, 'Pss': 0}
    for pid in pids:
        with contextlib.suppress(OSError):
            rollup = Path(f'/proc/{pid}/smaps_rollup').read_text()
            for name, size in re.findall(r'^(Rss|Pss): +(\d+) kB$', rollup, re.MULTILINE):
                sums[name] += int(size)
    return Memory(sums['Rss'], sums['Pss'])


def marked() -> list[int]:
    """Return the processes that were started here, and what they started."""
    pids = []
    for path in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            if MARK.encode() in (path / 'environ').read_bytes().split(b'\0'):
                pids.append(int(path.name))
    return pids


def forks_of(pid: int) -> set[int]:
    """Return the processes with the command line and the working directory of this one."""
    def look(pid: int) -> tuple[bytes, str]:
        return Path(f'/proc/{pid}/cmdline').read_bytes(), os.readlink(f'/proc/{pid}/cwd')

    forks = set()
    for other in marked():
        with contextlib.suppress(OSError):
            if other != pid and look(other) == look(pid):
                forks.add(other)
    return forks


def catches(pid: int, signum: int) -> bool:
    """Tell whether a process has a handler for a signal."""
    try:
        caught = Path(f'/proc/{pid}/status').read_text().partition('SigCgt:')[2].split()[0]
    except OSError:
        return False
    return bool(int(caught, 16) >> (signum - 1) & 1)


def wait_for(what: str, is_true: Callable[[], bool], pause: float = 0.01) -> None:
    deadline = time.monotonic() + PATIENCE_SECS
    while not is_true():
        if time.monotonic() > deadline:
            raise SystemExit(f'waited for {PATIENCE_SECS:.0f} seconds in vain: {what}')
        time.sleep(pause)


def kill(*pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# The programs.

@contextlib.contextmanager
def supervised(sections: str, count: int, files: Mapping[str, str] = {}
               ) -> Iterator[Supervisord]:
    """Run a supervisord with programs, from when all are running; without any, from its start."""
    with tempfile.TemporaryDirectory(prefix='memmon-bench-') as directory:
        path = Path(directory)
        for name, text in files.items():
            (path / name).write_text(text)
        server = Supervisord(path, sections, settings='minfds=8192\nminprocs=4096\n')
        try:
            server.wait_ready()
            if count:
                wait_for(f'{count} programs', lambda: are_running(server, count), 0.2)
            yield server
        finally:
            end_supervisord(server)


def are_running(server: Supervisord, count: int) -> bool:
    return [info['statename'] for info in server.call('getAllProcessInfo')] == ['RUNNING'] * count


def end_supervisord(server: Supervisord) -> None:
    """End supervisord and all its programs, each of which has a process group of its own."""
    server.process.send_signal(signal.SIGSTOP)
    for child in children_of(server.process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    server.process.kill()
    server.process.wait()


def sleepers(count: int, cumulative: bool) -> ContextManager[Supervisord]:
    """Run programs that sleep, in one group."""
    command = f'sh -c "{SLEEP} & wait"' if cumulative else SLEEP
    return supervised(f'[program:sleeper]\ncommand={command}\nnumprocs={count}\nstartsecs=0\n'
                      'process_name=%(program_name)s_%(process_num)03d\n', count)


def offenders(count: int, stop_secs: float, start_secs: int) -> ContextManager[Supervisord]:
    """Run programs that take memory when they are told to, each in a group of its own."""
    command = f'{sys.executable} -S -E %(here)s/offender.py {stop_secs}'
    # Names that end in a number would be those of one pool.
    sections = [f'[program:p{number}x]\ncommand={command}\nstartsecs={start_secs}\n'
                f'stopwaitsecs=60\n' for number in range(count)]
    return supervised('\n'.join(sections), count, {'offender.py': OFFENDER})


@contextlib.contextmanager
def others(count: int) -> Iterator[None]:
    """Let more processes sleep on the machine."""
    script = f'i=0; while [ $i -lt {count} ]; do {SLEEP} & i=$((i+1)); done; wait'
    shell = subprocess.Popen(['sh', '-c', script], start_new_session=True)
    try:
        wait_for(f'{count} more processes', lambda: len(children_of(shell.pid)) == count)
        yield
    finally:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()


# The watchdogs.

class Listener:
    """An event listener that gets its events from here, as it would from supervisord."""

    def __init__(self, server: Supervisord, *command: str) -> None:
        self.server_pid = server.process.pid
        with (server.path / f'listener-{time.monotonic_ns()}.log').open('w') as stderr:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
                env={**os.environ, **server.env}, cwd=server.path)
        self.pid = self.process.pid
        self.serial = 0
        self.is_ready = False

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        kill(*forks_of(self.pid), self.pid)
        assert self.process.stdin and self.process.stdout
        self.process.stdout.close()
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.wait()

    def expect(self, answer: bytes) -> None:
        assert self.process.stdout
        got = self.process.stdout.read(len(answer))
        if got != answer:
            raise SystemExit(f'{self.process.args!r} answered {got!r} instead of {answer!r}')

    def wait_ready(self) -> None:
        if not self.is_ready:
            self.expect(b'READY\n')
            self.is_ready = True

    def tick(self, interval: int = 5) -> float:
        """Send an event; return the seconds until it is answered."""
        assert self.process.stdin
        self.wait_ready()
        self.serial += 1
        payload = f'when:{1201063880 + 5 * self.serial}'
        event = (f'ver:3.0 server:supervisor serial:{self.serial} pool:listener poolserial:'
                 f'{self.serial} eventname:TICK_{interval} len:{len(payload)}\n{payload}')
        began = time.perf_counter()
        self.process.stdin.write(event.encode())
        self.process.stdin.flush()
        self.expect(b'RESULT 2\nOK')
        self.is_ready = False
        return time.perf_counter() - began

    def check(self) -> Cost:
        self.wait_ready()
        used = cpu_secs(self.pid, self.server_pid)
        wall = self.tick()
        time.sleep(SETTLE_SECS)
        return Cost(wall, cpu_secs(self.pid, self.server_pid) - used)

    def commands_secs(self) -> float:
        return ended_children_secs(self.pid)


class Monit:
    """A monit that checks when a signal tells it to."""

    def __init__(self, command: str, server: Supervisord, cumulative: bool) -> None:
        directory = Path(tempfile.mkdtemp(dir=server.path))
        lines = ['set daemon 3600']
        lines += [f'set {name} {directory}/{name}' for name in
                  ('pidfile', 'statefile', 'idfile', 'logfile')]
        for pid in children_of(server.process.pid):
            (directory / str(pid)).write_text(f'{pid}\n')
            lines += [f'check process p{pid} with pidfile {directory}/{pid}',
                      f"if {'total memory' if cumulative else 'memory'} > 100 GB then restart"]
        control = directory / 'monitrc'
        control.touch(mode=0o600)
        control.write_text('\n'.join(lines) + '\n')
        self.process = subprocess.Popen([command, '-I', '-c', str(control)],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.pid = self.process.pid

    def __enter__(self) -> Monit:
        wait_for('monit to start', lambda: catches(self.pid, signal.SIGUSR1))
        self.wait_end_of_cycle(0)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def wait_end_of_cycle(self, used: float) -> float:
        """Wait until CPU time was used, and then none for a while; return when that began."""
        last, ended = used, time.perf_counter()
        while last == used or time.perf_counter() < ended + QUIET_SECS:
            now = cpu_secs(self.pid)
            if now != last:
                last, ended = now, time.perf_counter()
            time.sleep(0.0001)
        return ended

    def check(self) -> Cost:
        used = cpu_secs(self.pid)
        began = time.perf_counter()
        self.process.send_signal(signal.SIGUSR1)
        wall = self.wait_end_of_cycle(used) - began
        return Cost(wall, cpu_secs(self.pid) - used)

    def commands_secs(self) -> float:
        return ended_children_secs(self.pid)


class Own:
    """Something that this process does itself."""

    def __init__(self, do: Callable[[], object]) -> None:
        self.do = do

    def check(self) -> Cost:
        time.sleep(SETTLE_SECS)
        used, began = own_cpu_secs(), time.perf_counter()
        self.do()
        wall = time.perf_counter() - began
        return Cost(wall, own_cpu_secs() - used)

    def commands_secs(self) -> float:
        return 0


def bare_ps() -> None:
    subprocess.run(PS, stdout=subprocess.PIPE, check=True)


def sum_pages(pid: int, cumulative: bool) -> int:
    """Add up the RSS of a process's children, or of all its descendants: the floor."""
    pages = 0
    for child in children_of(pid):
        pages += rss_pages(child)
        if cumulative:
            pages += sum_pages(child, cumulative)
    return pages


# Ticks.

class Series:
    """The checks of one contestant."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        self.costs: list[Cost] = []
        self.turn()
        self.costs.clear()  # those were to warm up
        self.commands_secs = contestant.commands_secs()

    def turn(self) -> None:
        end = time.monotonic() + TURN_SECS
        self.costs.append(self.contestant.check())
        while time.monotonic() < end:
            self.costs.append(self.contestant.check())

    def cost(self) -> Cost:
        """Return the medians; of what the commands used, which is known too coarsely, the mean."""
        commands = self.contestant.commands_secs() - self.commands_secs
        return Cost(statistics.median(cost.wall for cost in self.costs),
                    statistics.median(cost.cpu for cost in self.costs)
                    + commands / len(self.costs))


def steady_checks(server: Supervisord, peers: Peers, cumulative: bool, secs: float
                  ) -> dict[str, Cost]:
    """Let all contestants check in turn."""
    option = ['-c'] if cumulative else []
    pid = server.process.pid
    with contextlib.ExitStack() as stack:
        listeners = {
            OURS: [MEMMON, '-a', '100GB'],
            SUPERLANCE: [peers.superlance, '-a', '100GB'],
            CHECKS: [peers.memory_check, '-n', 'check', '-g', 'sleeper', '-m', str(100 << 20)]}
        all_series = {name: Series(stack.enter_context(Listener(server, *command, *option)))
                      for name, command in listeners.items()}
        if peers.monit:
            monit = stack.enter_context(Monit(peers.monit, server, cumulative))
            all_series[MONIT] = Series(monit)
        all_series[ONE_PS] = Series(Own(bare_ps))
        all_series[FLOOR] = Series(Own(lambda: sum_pages(pid, cumulative)))
        take_turns(list(all_series.values()), secs)
        return {name: series.cost() for name, series in all_series.items()}


def take_turns(all_series: list[Series], secs: float) -> None:
    end = time.monotonic() + secs
    rounds = 0
    while rounds < 3 or time.monotonic() < end:
        for series in all_series:
            series.turn()
        rounds += 1


def ps_and_request(server: Supervisord) -> float:
    """Return the seconds that a fresh process takes for one ps and one getAllProcessInfo."""
    done = subprocess.run([sys.executable, '-c', PS_AND_REQUEST], stdout=subprocess.PIPE,
                          env={**os.environ, **server.env}, check=True)
    return float(done.stdout)


def first_ticks(server: Supervisord, rounds: int) -> FirstTicks:
    info = server.call('getAllProcessInfo')[0]
    namespec = f"{info['group']}:{info['name']}"
    first, changed, needed = [], [], []
    for _ in range(rounds):
        with Listener(server, MEMMON, '-a', '100GB') as listener:
            needed.append(ps_and_request(server))  # which takes so long that memmon is ready then
            first.append(listener.tick())
            server.call('stopProcess', namespec)
            server.call('startProcess', namespec)
            needed.append(ps_and_request(server))
            changed.append(listener.tick())
    return FirstTicks(*map(statistics.median, (first, changed, needed)))


# Restarts.

def fresh_limit(server: Supervisord) -> int:
    """Return a limit in KB that offenders keep until they take memory."""
    wait_can_grow(server)
    return max(memory_of(pid).rss for pid in children_of(server.process.pid)) + ROOM_KB


def wait_can_grow(server: Supervisord) -> None:
    wait_for('programs to have started', lambda: all(
        catches(pid, signal.SIGUSR1) for pid in children_of(server.process.pid)))


def grow(server: Supervisord, limit: int) -> list[int]:
    """Let all offenders go over their limit; return their pids."""
    wait_can_grow(server)
    pids = children_of(server.process.pid)
    for pid in pids:
        os.kill(pid, signal.SIGUSR1)
    wait_for('programs to take memory', lambda: all(memory_of(pid).rss > limit for pid in pids))
    return pids


def are_back(server: Supervisord, old: list[int]) -> bool:
    """Tell whether all programs have another pid, and are running."""
    pids = children_of(server.process.pid)
    return len(pids) == len(old) and not set(pids) & set(old) and are_running(server, len(old))


def wait_workers(listener: Listener) -> None:
    wait_for('the last worker to end', lambda: not forks_of(listener.pid))
    time.sleep(SAMPLE_SECS)  # one that has given up its memory may yet have to end


def storm(server: Supervisord, command: str, limit: int) -> Storm:
    """Let all offenders go over their limit at once."""
    with Listener(server, command, '-a', f'{limit}KB') as listener:
        listener.tick()
        old = grow(server, limit)
        began = time.perf_counter()
        answered = listener.tick()
        wait_for('programs to be back', lambda: are_back(server, old), SAMPLE_SECS)
        back = time.perf_counter() - began
        wait_workers(listener)
        return Storm(answered, back)


class ForkWatch:
    """Looks again and again at what a listener has forked."""

    def __init__(self, listener: Listener) -> None:
        self.pid = listener.pid
        self.alone = self.together = memory_of(self.pid)
        self.last: set[int] = set()
        self.seen: set[int] = set()

    def look(self) -> bool:
        """Take down what is there; tell whether there is nothing."""
        forks = forks_of(self.pid)
        lasting = forks & self.last  # others may be about to become a ps
        now = memory_of(self.pid, *lasting)
        self.together = Memory(*map(max, self.together, now))
        self.seen |= lasting
        self.last = forks
        return not forks

    def result(self) -> Forks:
        return Forks(len(self.seen), self.alone, self.together)


def many_groups(server: Supervisord, limit: int) -> Forks:
    """Let many groups go over their limit at once."""
    with Listener(server, MEMMON, '-a', f'{limit}KB') as listener:
        listener.tick()
        old = grow(server, limit)
        watch = ForkWatch(listener)
        listener.tick()
        wait_for('programs to be back', lambda: watch.look() and are_back(server, old), SAMPLE_SECS)
        return watch.result()


def many_restarts(server: Supervisord, limit: int, rounds: int) -> Leftovers:
    """Let all offenders go over their limit, again and again; return what has accumulated."""
    with Listener(server, MEMMON, '-a', f'{limit}KB') as listener:
        listener.tick()
        restart_all(server, listener, limit)
        before = leftovers(listener.pid)
        for _ in range(rounds - 1):
            restart_all(server, listener, limit)
        after = leftovers(listener.pid)
    return Leftovers(*(late - early for early, late in zip(before, after)))


def restart_all(server: Supervisord, listener: Listener, limit: int) -> None:
    old = grow(server, limit)
    listener.tick()
    wait_for('programs to be back', lambda: are_back(server, old), SAMPLE_SECS)
    wait_workers(listener)
    # Else their next restart would be in vain: memmon forgets what supervisord does not know.
    names = [info['group'] for info in server.call('getAllProcessInfo')]
    for name in names:
        server.call('stopProcess', name)
        server.call('removeProcessGroup', name)
    listener.tick()
    for name in names:
        server.call('addProcessGroup', name)
    wait_for('programs to be there again', lambda: are_running(server, len(names)), SAMPLE_SECS)
    listener.tick()


def leftovers(pid: int) -> Leftovers:
    return Leftovers(len(os.listdir(f'/proc/{pid}/fd')),
                     len(Path(f'/proc/{pid}/maps').read_text().splitlines()),
                     len(children_of(pid)))


def rss_after(server: Supervisord, command: str, *ticks: int) -> list[int]:
    """Return a listener's RSS in KB after so many ticks."""
    sizes = []
    with Listener(server, command, '-a', '100GB') as listener:
        for count in ticks:
            while listener.serial < count:
                listener.tick()
            sizes.append(memory_of(listener.pid).rss)
    return sizes


# Tables in reStructuredText.

def table(*rows: list[str]) -> str:
    """Return a simple table whose first row is its head."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    rule = '  '.join('=' * width for width in widths)
    lines = ['  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
             for row in rows]
    return '\n'.join([rule, lines[0], rule, *lines[1:], rule, ''])


def digits(value: float) -> str:
    """Return a number with three significant digits, or all before the point."""
    decimals = 0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.9995 else 3
    return f'{value:,.{decimals}f}'


def ms(secs: float) -> str:
    return digits(secs * 1000)


def check_table(head: str, columns: list[Column], pick: Callable[[Cost], float]) -> str:
    rows = [[head, *(column.title for column in columns)]]
    for name in CONTESTANTS:
        costs = [column.costs.get(name) for column in columns]
        rows.append([name, *(ms(pick(cost)) if cost else DASH for cost in costs)])
    for one, other in RATIOS:
        rows.append([f'{one} / {other}', *(ratio(column.costs, one, other, pick)
                                           for column in columns)])
    if columns[-1].quiet:
        alone = digits(pick(columns[-1].costs[OURS]) / pick(columns[-1].quiet))
        rows.append(['memmon / memmon without others', *[''] * (len(columns) - 1), alone])
    return table(*rows)


def ratio(costs: dict[str, Cost], one: str, other: str, pick: Callable[[Cost], float]) -> str:
    if one not in costs or other not in costs:
        return DASH
    return digits(pick(costs[one]) / pick(costs[other]))


def first_table(titles: list[str], ticks: list[FirstTicks]) -> str:
    rows = [['other ticks, wall time in ms', *titles],
            ['first tick', *(ms(tick.first) for tick in ticks)],
            ['tick after a change', *(ms(tick.changed) for tick in ticks)],
            ['one ``getAllProcessInfo`` and one ``ps``', *(ms(t.ps_and_request) for t in ticks)],
            ['first tick / these two', *(digits(t.first / t.ps_and_request) for t in ticks)],
            ['tick after a change / these two',
             *(digits(t.changed / t.ps_and_request) for t in ticks)]]
    return table(*rows)


def storm_rows(count: int, stop_secs: float, ours: Storm, theirs: Storm) -> list[list[str]]:
    return [[f'{count} offenders in {count} groups, {stop_secs} s to stop: all are back',
             f'{ours.back:.1f} s', f'{theirs.back:.1f} s',
             f'{digits(theirs.back / ours.back)} times sooner'],
            ['the tick that finds them: answered',
             f'{ms(ours.answered)} ms', f'{theirs.answered:.1f} s',
             f'{digits(theirs.answered / ours.answered)} times sooner']]


def size_rows(ticks: list[int], ours: list[int], theirs: int) -> list[list[str]]:
    """Compare RSS; superlance's is known for the first number of ticks only."""
    rows = [[f'RSS after {count:,} ticks', f'{size:,} KB', '',
             f"{size / theirs:.3f} of superlance's"]
            for count, size in zip(ticks, ours)]
    rows[0][2] = f'{theirs:,} KB'
    return rows + [[f'RSS, growth from {ticks[0]:,} to {ticks[-1]:,} ticks',
                    f'{ours[-1] / ours[0] - 1:.2%}', '', '']]


def fork_rows(count: int, forks: Forks) -> list[list[str]]:
    rows = [[f'{count} groups over their limit at once: processes forked', f'{forks.number}',
             '', '']]
    for name, alone, together in zip(('RSS', 'PSS'), forks.alone, forks.together):
        rows.append([f'{name} of the listener and these, at most', f'{together:,} KB', '',
                     f"{digits(together / alone)} of the listener's"])
    return rows


def leftover_rows(count: int, leftovers: Leftovers) -> list[list[str]]:
    return [[f'{what} left after {count:,} restarts', f'{number}', '', ''] for what, number in
            zip(('file descriptors', 'memory maps', 'zombies'), leftovers)]


# What was measured, and with what.

def install_peers(path: Path) -> Peers:
    """Install the latest releases from PyPI into a virtual environment; find monit."""
    venv.create(path, with_pip=True)
    subprocess.run([path / 'bin' / 'pip', 'install', '--quiet', '--disable-pip-version-check',
                    'superlance', 'supervisor_checks'], check=True)
    search = os.pathsep.join([os.environ['PATH'], '/usr/sbin', '/usr/local/sbin'])
    return Peers(path / 'bin' / 'python', str(path / 'bin' / 'memmon'),
                 str(path / 'bin' / 'supervisor_memory_check'), shutil.which('monit', path=search))


def first_line(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.stdout.decode().partition('\n')[0].strip()


def versions(peers: Peers) -> str:
    """Return a paragraph about the programs and the machine."""
    packages = 'superlance', 'supervisor_checks'
    show = f'import importlib.metadata as m; print(*map(m.version, {packages}))'
    theirs = first_line(str(peers.python), '-c', show).split()
    names = [first_line(MEMMON, '--version'),
             *(f'{name} {version}' for name, version in zip(packages, theirs)),
             f'supervisor {importlib.metadata.version("supervisor")}']
    if peers.monit:
        names.append(f"monit {first_line(peers.monit, '--version').split()[-1]}")
    if 'procps' in first_line('ps', '--version'):
        names.append(f"the ``ps`` of procps {first_line('ps', '--version').split()[-1]}")
    kernel = '.'.join(platform.release().split('.')[:2])
    absent = '' if peers.monit else ' The dash is for monit, which is not installed there.'
    return textwrap.fill(
        f"The times of ticks are medians, with {', '.join(names)} and Python "
        f'{platform.python_version()}, on {platform.system()} {kernel} ({platform.machine()}) '
        f'with {os.cpu_count()} CPUs.{absent}', 100, break_on_hyphens=False)


def say(what: str) -> None:
    """Tell who waits for the tables what is measured now."""
    print(f'{time.monotonic() - BEGAN:6.1f} s  {what}', file=sys.stderr, flush=True)


def measure_checks(args: argparse.Namespace, peers: Peers, cumulative: bool
                   ) -> tuple[list[Column], list[FirstTicks]]:
    """Measure ticks with each number of programs, the last with other processes beside them."""
    columns, crowded, ticks = [], [], []
    for count in args.programs:
        say(f"ticks of {count}{' with -c' if cumulative else ''}")
        with sleepers(count, cumulative) as server:
            costs = steady_checks(server, peers, cumulative, args.secs)
            columns.append(Column(f'{count}', costs))
            if count == args.crowded:
                with others(args.others):
                    crowd = steady_checks(server, peers, cumulative, args.secs)
                crowded = [Column(f'{count} + {args.others:,} others', crowd, costs[OURS])]
            if not cumulative:
                ticks.append(first_ticks(server, args.rounds))
    return columns + crowded, ticks


def measure_restarts(args: argparse.Namespace, peers: Peers) -> list[list[str]]:
    say('a storm')
    with offenders(args.offenders, args.stop_secs, 1) as server:
        limit = fresh_limit(server)
        rows = storm_rows(args.offenders, args.stop_secs, storm(server, MEMMON, limit),
                          storm(server, peers.superlance, limit))
    say('many groups')
    with offenders(args.groups, 0, 1) as server:
        limit = fresh_limit(server)
        rows += fork_rows(args.groups, many_groups(server, limit))
        say('many restarts')
        rounds = max(2, math.ceil(args.restarts / args.groups))
        rows += leftover_rows(rounds * args.groups, many_restarts(server, limit, rounds))
    return rows


def measure_sizes(args: argparse.Namespace, peers: Peers) -> list[list[str]]:
    say('many ticks')
    with sleepers(args.crowded, False) as server:
        return size_rows(args.ticks, rss_after(server, MEMMON, *args.ticks),
                         rss_after(server, peers.superlance, args.ticks[0])[0])


def print_tables(args: argparse.Namespace, peers: Peers) -> None:
    plain, ticks = measure_checks(args, peers, False)
    cumulative, _ = measure_checks(args, peers, True)
    rest = measure_sizes(args, peers) + measure_restarts(args, peers)
    for how, columns in (('', plain), (', ``-c``', cumulative)):
        print(check_table(f'a steady check{how}: CPU time in ms', columns, lambda cost: cost.cpu))
        print(check_table(f'a steady check{how}: wall time in ms', columns, lambda cost: cost.wall))
    print(first_table([f'{count}' for count in args.programs], ticks))
    print(table(['the rest', 'memmon', 'superlance', 'ratio'], *rest))
    print(versions(peers))


def leave(signum: int, _: object) -> None:
    raise SystemExit(128 + signum)


def end_all() -> None:
    """End whatever is still there of all that was started here."""
    pids = [pid for pid in marked() if pid != os.getpid()]
    while pids:
        kill(*pids)
        time.sleep(SAMPLE_SECS)
        pids = [pid for pid in marked() if pid != os.getpid()]


def begin(text: str | None, options: Sequence[tuple[str, Any, Any, str]]) -> argparse.Namespace:
    """Read the arguments, and see to it that all that is started here can be found."""
    parser = argparse.ArgumentParser(description=(text or '').partition('\n')[0])
    for option, type_, default, what in options:
        shown = ' '.join(map(str, default)) if isinstance(default, list) else default
        parser.add_argument(option, type=type_, default=default, help=f'{what} ({shown})',
                            nargs='+' if isinstance(default, list) else None)
    args = parser.parse_args()
    name, value = MARK.split('=')
    os.environ[name] = value
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, leave)
    return args


def main() -> None:
    args = begin(__doc__, OPTIONS)
    try:
        with tempfile.TemporaryDirectory(prefix='memmon-peers-') as path:
            print_tables(args, install_peers(Path(path)))
    finally:
        end_all()


if __name__ == '__main__':
    main()
