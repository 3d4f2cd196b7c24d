"""Fixtures that end what a test has started, and tests that hang."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path
from typing import Any, Iterator

import pytest
from fake_server import FakeServer, StartFakeServer
from harness import (BuildPreload, Listener, Mailbox, StartListener, StartSupervisord, Supervisord,
                     has_pid_namespaces, kill, processes_in, run)
from hypothesis import HealthCheck, settings

TEST_SECS = 150  # beyond the sum of what any test may wait for on a busy machine

# Few examples, since each run tries others; and no time for each: the machine may be busy.
settings.register_profile('memmon', max_examples=30, deadline=None,
                          suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('memmon')


def fail_test(*_: object) -> None:
    # Neither an AssertionError, after which wait_until would go on, nor any other Exception,
    # which the code under test may catch.
    pytest.fail(f'not done after {TEST_SECS} seconds')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that take long, so that none is left alone at the end."""
    items.sort(key=lambda item: (
        item.get_closest_marker('waits') is None,
        item.path.name not in ('test_races.py', 'test_simulation.py', 'test_recipes.py'),
        'start_supervisord' not in getattr(item, 'fixturenames', [])))


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """End a test that hangs although each of its waits has an end."""
    signal.signal(signal.SIGALRM, fail_test)
    signal.alarm(TEST_SECS)
    yield
    signal.alarm(0)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory in which nothing runs any more when the test is over."""
    yield tmp_path
    kill(*processes_in(tmp_path))


@pytest.fixture
def start_supervisord(directory: Path) -> Iterator[StartSupervisord]:
    started: list[Supervisord] = []

    def start(sections: str = '', **kwargs: Any) -> Supervisord:
        started.append(Supervisord(directory, sections, **kwargs))
        started[-1].wait_ready()
        return started[-1]

    yield start
    for supervisord in started:
        supervisord.end()


@pytest.fixture
def start_listener(directory: Path) -> Iterator[StartListener]:
    started: list[Listener] = []

    def start(supervisord: Supervisord | FakeServer, *args: str, wrapper: Any = (),
              constants: Any = None, **env: str) -> Listener:
        started.append(Listener(directory, *args, env={**supervisord.env, **env},
                                constants=constants, wrapper=wrapper))
        return started[-1]

    yield start
    for listener in started:
        listener.end()


@pytest.fixture
def start_fake_server() -> Iterator[StartFakeServer]:
    started: list[FakeServer] = []

    def start(*args: Any, **kwargs: Any) -> FakeServer:
        started.append(FakeServer(*args, **kwargs))
        return started[-1]

    yield start
    for server in started:
        server.end()


@pytest.fixture
def mailbox(tmp_path: Path) -> Mailbox:
    return Mailbox(tmp_path / 'mails')


@pytest.fixture(scope='session')
def build_preload(tmp_path_factory: pytest.TempPathFactory) -> BuildPreload:
    """What compiles C, and returns the environment of a process that is to be linked with it."""
    if sys.platform != 'linux' or not shutil.which('cc'):
        pytest.skip('needs a C compiler, and LD_PRELOAD')

    def build(source: str) -> dict[str, str]:
        path = tmp_path_factory.mktemp('preload')
        (path / 'preload.c').write_text(source)
        done = run('cc', '-shared', '-fPIC', '-o', 'preload.so', 'preload.c', '-ldl', cwd=path)
        assert done.status == 0, done.stderr
        return {'LD_PRELOAD': str(path / 'preload.so')}

    return build


NO_FORK = r'''
#include <errno.h>
#include <sys/types.h>
pid_t fork(void) { errno = ENOMEM; return -1; }
pid_t vfork(void) { errno = ENOMEM; return -1; }
'''


@pytest.fixture(scope='session')
def no_fork(build_preload: BuildPreload) -> dict[str, str]:
    """The environment of a process in which every fork fails."""
    return build_preload(NO_FORK)


@pytest.fixture
def pid_namespaces() -> None:
    """Skips a test where in_pid_namespace does not work."""
    if not has_pid_namespaces():
        pytest.skip('needs root, and unshare from util-linux')
