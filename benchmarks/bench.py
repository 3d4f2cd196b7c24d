"""What memmon costs, side by side with superlance's memmon under the same supervisord.

The listeners get their events from here, in turn, so that each tick can be timed from the event to the answer. A tick
is steady when none of supervisord's children came or went since the last one.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Callable, Dict, List, Tuple

sys.path.insert(0, str(Path(__file__).parent.parent / 'tests'))

from harness import MEMMON, Memmon, Supervisord, hog, rss_kb, wait_until  # noqa: E402

PS = ['ps', '-A', '-o', 'pid=', '-o', 'ppid=', '-o', 'rss=']
Rows = List[Tuple[str, str]]

# What a first tick cannot do without, in a process that has come as far as a listener that waits for its first event.
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


def install_superlance(path: Path) -> str:
    """Install superlance's latest release into a virtual environment; return its memmon."""
    venv.create(path, with_pip=True)
    subprocess.run([path / 'bin' / 'pip', 'install', '--quiet', 'superlance'], check=True)
    return str(path / 'bin' / 'memmon')


def versions(superlance: str) -> str:
    pip = Path(superlance).parent / 'pip'
    shown = subprocess.run([pip, 'show', 'superlance', 'supervisor'], stdout=subprocess.PIPE, check=True).stdout
    theirs = [line.split()[1] for line in shown.decode().splitlines() if line.startswith('Version: ')]
    own = subprocess.run([MEMMON, '--version'], stdout=subprocess.PIPE, check=True).stdout.decode().strip()
    return (f'{own}, superlance {theirs[0]}, supervisor {theirs[1]}, Python {platform.python_version()}, '
            f'{platform.system()} with {os.cpu_count()} CPUs')


def timed(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def bare_ps() -> None:
    subprocess.run(PS, stdout=subprocess.PIPE, check=True)


def ps_and_request(env: Dict[str, str]) -> float:
    """Return the seconds that a fresh process takes for one ps and one getAllProcessInfo."""
    done = subprocess.run([sys.executable, '-c', PS_AND_REQUEST], stdout=subprocess.PIPE, check=True,
                          env={**os.environ, **env})
    return float(done.stdout)


def cpu_secs(pid: int) -> float:
    """Return the CPU time that a process has used; see schedstat in proc(5)."""
    return int(Path(f'/proc/{pid}/schedstat').read_text().split()[0]) / 1e9


def ms(secs: float) -> str:
    return f'{secs * 1000:,.1f} ms'


def times(ratio: float) -> str:
    return f'{ratio:,.1f} times'


class Bench:
    """A supervisord with some programs, and listeners that watch them."""

    def __init__(self, sections: str, superlance: str) -> None:
        self.dir = tempfile.TemporaryDirectory(prefix='memmon-bench-')
        self.path = Path(self.dir.name)
        self.supervisord = Supervisord(self.path, sections, settings='minfds=8192\nminprocs=2048\n')
        self.supervisord.wait_ready()
        wait_until(self.all_are_running, 120)
        self.superlance = superlance
        self.listeners: List[Memmon] = []

    def all_are_running(self) -> bool:
        return all(info['statename'] == 'RUNNING' for info in self.supervisord.call('getAllProcessInfo'))

    def listener(self, command: str, limit: str) -> Memmon:
        self.listeners.append(Memmon(self.path, '-a', limit, env=self.supervisord.env, command=command))
        return self.listeners[-1]

    def end(self) -> None:
        for listener in self.listeners:
            listener.end()
        self.supervisord.end()
        self.dir.cleanup()


def sleepers(count: int) -> str:
    return hog('sleeper', command='sleep 100000', numprocs=count, process_name='%(program_name)s_%(process_num)03d')


def steady_ticks(bench: Bench, rounds: int) -> Dict[str, float]:
    """Return medians in seconds: a steady tick of either listener, a bare ps, supervisord's CPU time in a tick."""
    pid = bench.supervisord.process.pid
    ours, theirs = bench.listener(MEMMON, '100GB'), bench.listener(bench.superlance, '100GB')
    took: Dict[str, List[float]] = {'memmon': [], 'superlance': [], 'ps': [], 'cpu': [], 'superlance cpu': []}
    ours.send()
    for _ in range(rounds):
        for _ in range(5):
            took['ps'].append(timed(bare_ps))
            cpu = cpu_secs(pid)
            took['memmon'].append(ours.send())
            took['cpu'].append(cpu_secs(pid) - cpu)
        cpu = cpu_secs(pid)
        took['superlance'].append(theirs.send())
        took['superlance cpu'].append(cpu_secs(pid) - cpu)
    return {name: statistics.median(secs) for name, secs in took.items()}


def first_ticks(bench: Bench, rounds: int) -> Dict[str, float]:
    """Return medians in seconds: the first tick, one after a change, and the one ps and one request that they need."""
    took: Dict[str, List[float]] = {'first': [], 'changed': [], 'ps and request': []}
    first = bench.supervisord.call('getAllProcessInfo')[0]
    namespec = f"{first['group']}:{first['name']}"
    for _ in range(rounds):
        ours = bench.listener(MEMMON, '100GB')
        took['ps and request'].append(ps_and_request(bench.supervisord.env))
        ours.wait_ready()
        took['first'].append(ours.send())
        bench.supervisord.call('stopProcess', namespec)
        bench.supervisord.call('startProcess', namespec)
        took['ps and request'].append(ps_and_request(bench.supervisord.env))
        took['changed'].append(ours.send())
        ours.end()
    return {name: statistics.median(secs) for name, secs in took.items()}


def offenders(superlance: str, count: int) -> Dict[str, float]:
    """Return the seconds until offenders that take 1.5 seconds to stop are all back, and until the tick is answered."""
    names = [f'p{i}' for i in range(count)]
    bench = Bench(''.join(hog(name, '--stop-secs', '1.5', startsecs=1) for name in names), superlance)
    result = {}
    for whose, command in (('memmon', MEMMON), ('superlance', superlance)):
        pids = bench.supervisord.wait_big(*names)
        listener = bench.listener(command, '30MB')
        listener.wait_ready()
        began = time.perf_counter()
        result[f'{whose} answer'] = listener.send()
        for name, pid in zip(names, pids):
            bench.supervisord.wait_new_pid(name, pid, secs=60)
        result[whose] = time.perf_counter() - began
    bench.end()
    return result


def growth(bench: Bench, ticks: int) -> float:
    """Return by how much memmon's RSS grows from the 100th tick on, as a share of it."""
    ours = bench.listener(MEMMON, '100GB')
    for _ in range(100):
        ours.send()
    before = rss_kb(ours.pid)
    for _ in range(ticks - 100):
        ours.send()
    return rss_kb(ours.pid) / before - 1


def sizes(bench: Bench, ticks: int) -> Tuple[int, int]:
    """Return the RSS in KB of memmon and of superlance's after some ticks."""
    ours, theirs = bench.listener(MEMMON, '100GB'), bench.listener(bench.superlance, '100GB')
    for _ in range(ticks):
        ours.send()
        theirs.send()
    return rss_kb(ours.pid), rss_kb(theirs.pid)


def tick_rows(superlance: str, count: int, rounds: int) -> Rows:
    bench = Bench(sleepers(count), superlance)
    steady = steady_ticks(bench, max(3, rounds // (1 + count // 10)))
    first = first_ticks(bench, max(5, rounds // (1 + count // 100)))
    bench.end()
    ps, needed = steady['ps'], first['ps and request']
    return [
        (f'steady tick, {count} programs',
         f"{times(steady['superlance'] / steady['memmon'])} faster than superlance, {times(steady['memmon'] / ps)} "
         f"a bare ps ({ms(steady['memmon'])}, {ms(steady['superlance'])}, {ms(ps)})"),
        ("- supervisord's CPU time in it", f"{ms(steady['cpu'])} (superlance: {ms(steady['superlance cpu'])})"),
        ('- first tick', f"{times(first['first'] / needed)} one getAllProcessInfo and one ps "
         f"({ms(first['first'])}, {ms(needed)})"),
        ('- tick after a change', f"{times(first['changed'] / needed)} the same ({ms(first['changed'])})"),
    ]


def offender_rows(superlance: str, count: int) -> Rows:
    back = offenders(superlance, count)
    return [
        (f'{count} offenders in {count} groups, 1.5 s to stop',
         f"all back {times(back['superlance'] / back['memmon'])} sooner than with superlance "
         f"({back['memmon']:.1f} s, {back['superlance']:.1f} s)"),
        ('- the tick that finds them',
         f"answered in {ms(back['memmon answer'])} (superlance: {ms(back['superlance answer'])})"),
    ]


def size_rows(superlance: str, count: int, ticks: int) -> Rows:
    bench = Bench(sleepers(count), superlance)
    ours, theirs = sizes(bench, ticks)
    bench.end()
    return [(f'RSS after {ticks:,} ticks, {count} programs',
             f"{ours / theirs:.3f} times superlance's ({ours:,} KB, {theirs:,} KB)")]


def growth_rows(superlance: str, ticks: int) -> Rows:
    bench = Bench(sleepers(1), superlance)
    share = growth(bench, ticks)
    bench.end()
    return [(f'growth of RSS from 100 to {ticks:,} ticks', f'{share:.2%}')]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--programs', type=int, nargs='+', default=[1, 10, 100, 500], help='how many, in each run')
    parser.add_argument('--rounds', type=int, default=40, help='how many at 1 program; fewer at more')
    parser.add_argument('--offenders', type=int, default=8)
    parser.add_argument('--ticks', type=int, default=1000)
    parser.add_argument('--sizes', type=int, nargs='+', default=[1, 50], help='programs, for the RSS')
    parser.add_argument('--more-ticks', type=int, default=10000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix='superlance-') as path:
        superlance = install_superlance(Path(path))
        rows = [row for count in args.programs for row in tick_rows(superlance, count, args.rounds)]
        rows += offender_rows(superlance, args.offenders)
        rows += [row for count in args.sizes for row in size_rows(superlance, count, args.ticks)]
        rows += growth_rows(superlance, args.more_ticks)
        print(versions(superlance))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f'{name:{width}}  {value}')


if __name__ == '__main__':
    main()
