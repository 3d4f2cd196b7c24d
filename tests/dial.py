"""A program that uses as many MB as a file says, and shares them with children if told to."""

from __future__ import annotations

import argparse
import os
import time

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('file', help='it may be missing, and changed at any time')
parser.add_argument('--children', type=int, default=0, help='how many, which do nothing')
args = parser.parse_args()


def read_mb() -> int:
    try:
        with open(args.file) as file:
            return int(file.read())
    except FileNotFoundError:
        return 0


memory = b'x' * (read_mb() << 20)
for _ in range(args.children):
    if not os.fork():
        while True:
            time.sleep(1000)
while True:
    if len(memory) != read_mb() << 20:
        memory = b''
        memory = b'x' * (read_mb() << 20)
    time.sleep(0.05)
