"""A real supervisord, a memmon to which a test sends events, and patience until something is true."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, TypeVar

from supervisor import childutils

BIN = Path(sys.executable).parent
MEMMON = str(BIN / 'memmon')
HOG = str(Path(__file__).parent / 'hog.py')
LIMIT = '30MB'  # a hog at rest is below it, one that has taken its memory above

T = TypeVar('T')


def wait_until(get: Callable[[], Optional[T]], secs: float = 20) -> T:
    """Return what get returns as soon as it is true."""
    deadline = time.monotonic() + secs
    while time.monotonic() < deadline:
        value = get()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f'{get} was not true within {secs} seconds')


def hog(name: str, *args: str, command: str = '', section: str = 'program', **settings: object) -> str:
    """Return a section of supervisord.conf for a program that takes 40 MB."""
    lines = [f'[{section}:{name}]', f"command={command or ' '.join([sys.executable, HOG, *args])}"]
    settings = {'startsecs': 0, 'stopwaitsecs': 60, **settings}
    return '\n'.join(lines + [f'{key}={value}' for key, value in settings.items()]) + '\n'


def memmon_section(*args: str, **settings: object) -> str:
    """Return a section of supervisord.conf for memmon, to be started when the programs have taken their memory."""
    command = ' '.join(shlex.quote(arg) for arg in (MEMMON, *args))
    return hog('memmon', command=command, section='eventlistener', events='TICK_5', autostart='false', **settings)


SAVE_MAIL = ['-m', 'bob@example.com', '-s', 'cat > new.$$ && mv new.$$ mail.$$']


def read_mails(path: Path) -> List[str]:
    """Return the mails that SAVE_MAIL has saved whole."""
    return [mail.read_text() for mail in path.glob('mail.*')]


def rss_kb(pid: int) -> int:
    """Return the RSS of a process; 0 where there is none."""
    ps = subprocess.run(['ps', '-o', 'rss=', '-p', str(pid)], stdout=subprocess.PIPE, check=False)
    return int(ps.stdout or 0)


def rss_mb(pid: int) -> float:
    return rss_kb(pid) / 1024


def is_running(pid: int) -> bool:
    """Tell whether a process is there, and no zombie."""
    ps = subprocess.run(['ps', '-o', 'stat=', '-p', str(pid)], stdout=subprocess.PIPE, check=False)
    return bool(ps.stdout.strip()) and not ps.stdout.startswith(b'Z')


def children_of(pid: int) -> List[int]:
    ps = subprocess.run(['ps', '-A', '-o', 'pid=', '-o', 'ppid=', '-o', 'stat='], stdout=subprocess.PIPE, check=True)
    rows = [line.split() for line in ps.stdout.splitlines()]
    return [int(child) for child, parent, stat in rows if int(parent) == pid]


class Supervisord:
    """A real supervisord in a directory of its own."""

    server = '[unix_http_server]\nfile=%(here)s/s\n[supervisorctl]\nserverurl=unix://%(here)s/s\n'
    interface = ('[rpcinterface:supervisor]\n'
                 'supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n')

    def __init__(self, path: Path, sections: str, server: str = '', interface: str = interface,
                 settings: str = '', wrapper: Sequence[str] = ()) -> None:
        self.path = path
        self.conf = path / 'supervisord.conf'
        self.log = path / 'supervisord.log'
        self.env = {'SUPERVISOR_SERVER_URL': f'unix://{path}/s'}
        self.conf.write_text(
            f'[supervisord]\nnodaemon=true\nlogfile={self.log}\npidfile={path}/pid\nchildlogdir={path}\n'
            + settings + (server or self.server) + interface + sections)
        self.process = subprocess.Popen([*wrapper, str(BIN / 'supervisord'), '-n', '-c', str(self.conf)], cwd=path,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait_ready(self) -> None:
        wait_until(lambda: self.log.exists() and 'supervisord started with pid' in self.log.read_text())

    def call(self, method: str, *args: object) -> Any:
        with childutils.getRPCInterface({**os.environ, **self.env}) as server:
            return getattr(server.supervisor, method)(*args)

    def info(self, name: str) -> Dict[str, Any]:
        info: Dict[str, Any] = self.call('getProcessInfo', name)
        return info

    def pid(self, name: str) -> int:
        return int(self.info(name)['pid'])

    def state(self, name: str) -> str:
        return str(self.info(name)['statename'])

    def wait_state(self, name: str, state: str, secs: float = 20) -> None:
        wait_until(lambda: self.state(name) == state, secs)

    def wait_new_pid(self, name: str, old_pid: int, secs: float = 20) -> int:
        wait_until(lambda: self.pid(name) not in (0, old_pid) and self.state(name) == 'RUNNING', secs)
        return self.pid(name)

    def start_memmon(self) -> int:
        """Start memmon's section; return its pid."""
        self.call('startProcess', 'memmon')
        return self.pid('memmon')

    def wait_big(self, *names: str) -> List[int]:
        """Wait until programs have taken their memory; return their pids."""
        for name in names:
            wait_until(lambda: self.state(name) == 'RUNNING' and rss_mb(self.pid(name)) > 35)
        return [self.pid(name) for name in names]

    def spawned(self, name: str) -> int:
        """Return how often a program was started."""
        return self.log.read_text().count(f"spawned: '{name}'")

    def ctl(self, *args: str) -> str:
        done = subprocess.run([BIN / 'supervisorctl', '-c', self.conf, *args], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, check=False)
        return done.stdout.decode()

    def end(self) -> None:
        """End supervisord and everything that it started."""
        self.process.send_signal(signal.SIGSTOP)
        for child in children_of(self.process.pid):
            for pid in [*children_of(child), child]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        self.process.kill()
        self.process.wait()


class Memmon:
    """A memmon to which a test sends events, as supervisord would."""

    def __init__(self, path: Path, *args: str, env: Dict[str, str], command: str = MEMMON) -> None:
        self.stderr = path / f'memmon-{time.monotonic_ns()}.log'
        with self.stderr.open('w') as stderr:
            self.process = subprocess.Popen([command, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=stderr, env={**os.environ, **env}, cwd=path)
        self.pid = self.process.pid
        assert self.process.stdin and self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.serial = 0
        self.is_ready = False

    def wait_ready(self) -> None:
        if not self.is_ready:
            assert self.stdout.readline() == b'READY\n'
            self.is_ready = True

    def send(self, event: str = 'TICK_5', payload: str = 'when:1201063880') -> float:
        """Send an event and take the answer; return the seconds that it took."""
        self.serial += 1
        self.wait_ready()
        began = time.monotonic()
        header = f'ver:3.0 server:supervisor serial:{self.serial} pool:memmon poolserial:{self.serial}'
        self.stdin.write(f'{header} eventname:{event} len:{len(payload)}\n{payload}'.encode())
        self.stdin.flush()
        assert self.stdout.read(len(b'RESULT 2\nOK')) == b'RESULT 2\nOK'
        self.is_ready = False
        return time.monotonic() - began

    def log(self) -> str:
        return self.stderr.read_text()

    def is_busy(self) -> bool:
        """Tell whether a worker is under way."""
        return any(is_running(child) for child in children_of(self.pid))

    def wait_log(self, text: str, count: int = 1, secs: float = 20) -> None:
        wait_until(lambda: self.log().count(text) >= count, secs)

    def end(self) -> None:
        for stream in (self.stdin, self.stdout):
            stream.close()
        self.process.kill()
        self.process.wait()


StartSupervisord = Callable[..., Supervisord]
StartMemmon = Callable[..., Memmon]
