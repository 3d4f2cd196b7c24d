"""Run supervisord with a TICK_60 event every second: quick_ticks.py supervisord [option]..."""

from __future__ import annotations

import sys

from supervisor import events, supervisord

events.Tick60Event.period = 1
sys.argv = sys.argv[1:]
supervisord.main()
