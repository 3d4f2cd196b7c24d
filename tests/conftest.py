"""Fixtures that end what a test has started."""

from pathlib import Path
from typing import Any, Iterator, List

import pytest
from harness import Memmon, StartMemmon, StartSupervisord, Supervisord


@pytest.fixture
def start_supervisord(tmp_path: Path) -> Iterator[StartSupervisord]:
    started: List[Supervisord] = []

    def start(sections: str, **kwargs: Any) -> Supervisord:
        started.append(Supervisord(tmp_path, sections, **kwargs))
        started[-1].wait_ready()
        return started[-1]

    yield start
    for supervisord in started:
        supervisord.end()


@pytest.fixture
def start_memmon(tmp_path: Path) -> Iterator[StartMemmon]:
    started: List[Memmon] = []

    def start(supervisord: Supervisord, *args: str, **env: str) -> Memmon:
        started.append(Memmon(tmp_path, *args, env={**supervisord.env, **env}))
        return started[-1]

    yield start
    for memmon in started:
        memmon.end()
