"""A program that leaks: ten megabytes more each second."""

import os
import time

leaked = []
while True:
    leaked.append(b'x' * (10 << 20))
    print(f'leak: pid {os.getpid()} has leaked {10 * len(leaked)}MB', flush=True)
    time.sleep(1)
