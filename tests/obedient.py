"""A program that uses as many MB as a file says, besides its own."""

from __future__ import annotations

import sys
import time
from pathlib import Path

file, memory, megabytes = Path(sys.argv[1]), b'', 0
while True:
    wanted = int((file.read_text() if file.exists() else '') or 0)
    if wanted != megabytes:
        memory = b''
        memory, megabytes = b'x' * (wanted << 20), wanted
    time.sleep(0.05)
