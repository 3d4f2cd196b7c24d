"""A program that eats memory. Its arguments say how much, when, for how long, and how it dies.

Beside them it reads files, by which a test tells it what to do now; a file may be missing.
It imports little, and is to be started with python -S: it is started hundreds of times.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time

HELP = """\
  --mb MB             how much to take; by default 60
  --after SECS        take it only then
  --rate MB           take only so much each second
  --file FILE         be as many MB as the file says, now
  --once FILE         take it only if there is no such file; the one who takes it makes it
  --when FILE         take it as soon as there is such a file, and remove the file
  --frees FILE        give it back as soon as there is such a file
  --map MB            map a file of this size, and read it
  --children COUNT    have so many children that share the memory
  --child             have a child take the memory
  --own-group         the child leads a process group of its own
  --stop-secs SECS    go on for so long after a SIGTERM
  --holds FILE        go on after a SIGTERM until there is such a file
  --ignore-term       ignore SIGTERM; with --child the child does
  --exit-after SECS   end then
  --status NUMBER     with this status; by default 0
  --fails-while FILE  while there is such a file, end at once with status 1
"""
FLAGS = ('--child', '--own-group', '--ignore-term')
MB = 1 << 20


def parse(argv: list[str]) -> dict[str, str]:
    """Return the options; a flag is itself."""
    options = {}
    while argv:
        name = argv.pop(0)
        if f'  {name} ' not in HELP:
            sys.exit(f'unknown option {name}\n{HELP}')
        options[name] = name if name in FLAGS else argv.pop(0)
    return options


OPTIONS = parse(sys.argv[1:])


def number(name: str, default: float = 0) -> float:
    return float(OPTIONS.get(name, default))


def is_there(name: str) -> bool:
    """Tell whether there is the file that an option names."""
    return name in OPTIONS and os.path.exists(OPTIONS[name])


def stop(*_: object) -> None:
    """End after a SIGTERM as the options say."""
    time.sleep(number('--stop-secs'))
    while '--holds' in OPTIONS and not is_there('--holds'):
        time.sleep(0.02)
    sys.exit()


def megabytes(secs: float) -> int | None:
    """Return how much to take so many seconds after the start; None: as much as before."""
    if is_there('--frees') or secs < number('--after'):
        return 0
    if '--file' in OPTIONS:
        try:
            with open(OPTIONS['--file']) as file:
                return int(file.read())
        except (FileNotFoundError, ValueError):
            return 0
    if '--when' in OPTIONS:
        if not is_there('--when'):
            return None
        os.unlink(OPTIONS['--when'])
    if '--rate' in OPTIONS:
        return int(min(number('--mb', 60), number('--rate') * (secs - number('--after'))))
    return int(number('--mb', 60))


def map_file(size: int) -> object:
    """Return a file of some MB, mapped, and read so that it counts as RSS."""
    path = f'mapped.{os.getpid()}'
    with open(path, 'w+b') as file:
        for _ in range(size):  # piece by piece: the whole would be private for a moment
            file.write(b'x' * MB)
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    os.unlink(path)
    for offset in range(0, len(mapped), mmap.PAGESIZE):
        mapped[offset]
    return mapped


def fork_child() -> bool:
    """Fork; tell whether this is the child."""
    if os.fork():
        return False
    signal.signal(signal.SIGTERM,
                  signal.SIG_IGN if '--ignore-term' in OPTIONS else signal.SIG_DFL)
    if '--own-group' in OPTIONS:
        os.setpgid(0, 0)
    return True


def main() -> None:
    began, memory = time.monotonic(), 0
    pieces: list[object] = []  # of the memory
    mapped: list[object] = []
    if is_there('--fails-while'):
        sys.exit(1)
    ignores = '--ignore-term' in OPTIONS and '--child' not in OPTIONS
    signal.signal(signal.SIGTERM, signal.SIG_IGN if ignores else stop)
    if '--map' in OPTIONS:
        mapped.append(map_file(int(number('--map'))))
    is_calm = is_there('--once') or '--child' in OPTIONS and not fork_child()
    while True:
        secs = time.monotonic() - began
        wanted = None if is_calm else megabytes(secs)
        if wanted is not None and wanted != memory:
            if wanted < memory:
                pieces, memory = [], 0
            pieces.append(b'x' * ((wanted - memory) * MB))
            memory = wanted
            if '--once' in OPTIONS and memory >= number('--mb', 60):
                with open(OPTIONS['--once'], 'w'):
                    is_calm = True
        if memory and number('--children'):
            for _ in range(int(number('--children'))):
                if fork_child():
                    while True:
                        time.sleep(1000)
            OPTIONS['--children'] = '0'
        if '--exit-after' in OPTIONS and secs >= number('--exit-after'):
            sys.exit(int(number('--status')))
        time.sleep(0.05)  # short: a signal that comes just before does not end it


if __name__ == '__main__':
    main()
