"""A program that takes memory, and does other things when a test says so by making a file."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--mb', type=int, default=60, help='how much memory to take')
parser.add_argument('--once', default='', metavar='FILE',
                    help='made by the first life; where it is there already, take no memory')
parser.add_argument('--holds', default='', metavar='FILE',
                    help='after a SIGTERM, go on until the file is there')
parser.add_argument('--frees', default='', metavar='FILE',
                    help='give the memory back as soon as the file is there')
parser.add_argument('--ends', default='', metavar='FILE',
                    help='while the file is there, end at once')
parser.add_argument('--child', action='store_true', help='let a child take the memory')
args = parser.parse_args()


def hold(*_: object) -> None:
    while args.holds and not os.path.exists(args.holds):
        time.sleep(0.02)
    sys.exit()


if args.ends and os.path.exists(args.ends):
    sys.exit(1)
signal.signal(signal.SIGTERM, hold)
memory = b''
if not (args.once and os.path.exists(args.once)):
    if args.child:
        subprocess.Popen([sys.executable, __file__, '--mb', str(args.mb)])
    else:
        memory = b'x' * (args.mb << 20)
if args.once:
    open(args.once, 'w').close()
while True:
    if args.frees and os.path.exists(args.frees):
        memory = b''
    time.sleep(0.05)
