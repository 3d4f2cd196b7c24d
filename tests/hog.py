"""A program that takes memory and, if told so, its time to stop."""

import argparse
import os
import signal
import subprocess
import sys
import time
from typing import Any

parser = argparse.ArgumentParser()
parser.add_argument('--mb', type=int, default=40, help='how much to take')
parser.add_argument('--once', help='a file that is made; where it is there already, no memory is taken')
parser.add_argument('--stop-secs', type=float, default=0, help='how long to go on after SIGTERM')
parser.add_argument('--child', action='store_true', help='let a child take the memory')
args = parser.parse_args()


def stop(*_: Any) -> None:
    time.sleep(args.stop_secs)
    sys.exit()


signal.signal(signal.SIGTERM, stop)
memory = b''
if args.child:
    child = subprocess.Popen([sys.executable, __file__, '--mb', str(args.mb)])
elif not args.once or not os.path.exists(args.once):
    memory = b'x' * (args.mb << 20)
if args.once:
    open(args.once, 'w').close()
while True:
    time.sleep(0.1)  # short, for a signal that comes just before does not cut it shorter
