"""A program that takes memory and, if told to, its time to stop."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--mb', type=int, default=60, help='how much to take')
parser.add_argument('--once', metavar='FILE',
                    help='take it only if there is no such file, which is then made')
parser.add_argument('--when', metavar='FILE',
                    help='take it as soon as there is such a file, which is then removed')
parser.add_argument('--child', action='store_true', help='let a child take it')
parser.add_argument('--stop-secs', type=float, default=0, help='how long to go on after SIGTERM')
args = parser.parse_args()


def stop(*_: object) -> None:
    time.sleep(args.stop_secs)
    sys.exit()


def is_time() -> bool:
    """Tell whether to take the memory now."""
    if args.when:
        try:
            os.unlink(args.when)
        except FileNotFoundError:
            return False
    if args.once and os.path.exists(args.once):
        return False
    return True


signal.signal(signal.SIGTERM, stop)
memory: object = None
while True:
    if memory is None and is_time():
        if args.child:
            memory = subprocess.Popen([sys.executable, __file__, '--mb', str(args.mb)])
        else:
            memory = b'x' * (args.mb << 20)
        if args.once:
            open(args.once, 'w').close()
    time.sleep(0.1)  # short: a signal that comes just before does not end it
