"""A program that leaks: ten megabytes more each second, until it has leaked a hundred."""

from __future__ import annotations

import os
import time

leaked: list[bytes] = []
while True:
    if len(leaked) < 10:
        leaked.append(b'x' * (10 << 20))
        print(f'leak: pid {os.getpid()} has leaked {10 * len(leaked)}MB', flush=True)
    time.sleep(1)
