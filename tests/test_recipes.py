"""The recipes of the README, each in a supervisord.conf as it stands there, but for its paths."""

from __future__ import annotations

import datetime
import fcntl
import http.client
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Iterator

import pytest
from harness import (BIN, StartSupervisord, Supervisord, children_of, is_running, rss_mb, section,
                     wait_for)

ROOT = Path(__file__).parent.parent
README = ROOT / 'README.rst'
OBEDIENT = str(Path(__file__).parent / 'obedient.py')
QUICK_TICKS = str(Path(__file__).parent / 'quick_ticks.py')


def code_blocks(title: str, language: str) -> list[str]:
    """Return the code in a language that a recipe of the README shows."""
    text = README.read_text(encoding='utf-8')
    section = re.search(rf'^{re.escape(title)}\n~+\n(.*?)(?=^[^\n]+\n([~-])\2+\n|\Z)', text,
                        re.M | re.S)
    assert section, title
    blocks = re.findall(rf'^\.\. code-block:: {language}\n\n((?: {{4}}.*\n|\n)+)',
                        section.group(1), re.M)
    assert blocks, (title, language)
    return [textwrap.dedent(block) for block in blocks]


def swap(text: str, **swaps: str) -> str:
    """Return a text with some of its words replaced, each of which it has to hold."""
    for old, new in swaps.items():
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.fixture(autouse=True)
def path_to_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have supervisord find memmon, what is installed beside it, and what a test puts into bin."""
    monkeypatch.setenv('PATH', f'{tmp_path}/bin:{BIN}:{os.environ["PATH"]}')
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'bin').mkdir()


def obedient(name: str, file: str = '') -> str:
    """Return a section of supervisord.conf for a program that is as large as NAME.mb says."""
    return section(name, command=f'{sys.executable} {OBEDIENT} {file or name}.mb')


def resize(path: Path, name: str, megabytes: int) -> None:
    """Have a program use so many MB besides its own 10."""
    (path / 'draft').write_text(str(megabytes))
    (path / 'draft').rename(path / f'{name}.mb')


def start(start_supervisord: StartSupervisord, *sections: str) -> Supervisord:
    """Start a supervisord of which each tick is a second."""
    return start_supervisord('\n'.join(sections), wrapper=[sys.executable, QUICK_TICKS])


def memmon_log(supervisord: Supervisord) -> str:
    """Return what memmon has logged, which ends up where supervisord puts its stderr."""
    log, = wait_for(lambda: list(supervisord.path.glob('memmon-stderr---*')))
    return log.read_text()


def wait_log(supervisord: Supervisord, text: str) -> None:
    wait_for(lambda: text in memmon_log(supervisord))


def can_trace() -> bool:
    """Tell whether py-spy is there, and may look into a process of this user."""
    child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    try:
        wait_for(lambda: rss_mb(child.pid) > 4)
        return subprocess.run([BIN / 'py-spy', 'dump', '--pid', str(child.pid)], check=False,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False
    finally:
        child.communicate()


def test_stack_dump_before_a_restart(tmp_path: Path, start_supervisord: StartSupervisord) -> None:
    if not can_trace():
        pytest.skip('needs py-spy, and the permission to trace')
    recipe, = code_blocks('Stack dump before a restart', 'ini')
    resize(tmp_path, 'web', 210)
    supervisord = start(start_supervisord, obedient('web'), recipe)
    wait_log(supervisord, ' restarted web:web: ')
    dump = memmon_log(supervisord).partition(' restarted web:web: ')[0]
    assert re.search(r'^Process \d+: .*obedient\.py web\.mb$', dump, re.M), dump
    assert re.search(r'^    <module> \(.*obedient\.py:\d+\)$', dump, re.M), dump
    assert ' ERROR ' not in dump


APP = '''
import os
import time

memory = []


def app(environ, start_response):
    if environ['PATH_INFO'] == '/leak':
        memory.append(b'x' * (200 << 20))
    while environ['PATH_INFO'] == '/slow' and not os.path.exists('go'):
        time.sleep(0.05)
    start_response('200 OK', [('Content-Type', 'text/plain')])
    return [str(os.getpid()).encode()]
'''


class WebClient:
    """A client of a web server that listens on a socket of this machine."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def get(self, path: str) -> int:
        """Return the pid of the worker that has answered a request."""
        connection = http.client.HTTPConnection('localhost')
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.settimeout(20)
            connection.sock.connect(str(self.file))
            connection.request('GET', path)
            answer = connection.getresponse()
            assert answer.status == 200
            return int(answer.read())
        finally:
            connection.close()


@pytest.mark.skipif(not (BIN / 'gunicorn').exists(), reason='needs gunicorn')
def test_graceful_reload_of_gunicorn(tmp_path: Path, start_supervisord: StartSupervisord) -> None:
    recipe, = code_blocks('Graceful reload of gunicorn', 'ini')
    (tmp_path / 'app.py').write_text(APP)
    supervisord = start(start_supervisord, section(
        'web', command=f'gunicorn --workers 2 --bind unix:{tmp_path}/web app:app',
        stopasgroup='true', killasgroup='true'), recipe)
    client = WebClient(tmp_path / 'web')
    wait_for((tmp_path / 'web').exists)
    master = supervisord.pid('web')
    old = wait_for(lambda: pids if len(pids := children_of(master)) == 2 else [])
    slow: list[int] = []
    request = threading.Thread(target=lambda: slow.append(client.get('/slow')), daemon=True)
    request.start()
    assert client.get('/leak') in old
    wait_log(supervisord, '\nreloaded web:web\n')
    wait_for(lambda: client.get('/') not in old)
    (tmp_path / 'go').touch()
    request.join(20)
    assert slow and slow[0] in old  # which has finished what it was asked
    wait_for(lambda: not any(map(is_running, old)))
    assert supervisord.pid('web') == master and supervisord.spawned('web') == 1
    assert memmon_log(supervisord).count(' put off web:web: ') == 1
    assert ' ERROR ' not in memmon_log(supervisord)
    os.kill(supervisord.pid('memmon'), signal.SIGSTOP)  # it looks when all is there
    wait_for(lambda: not any(map(is_running, children_of(supervisord.pid('memmon')))))
    wait_for(lambda: sum(map(rss_mb, children_of(master))) > 420 or not client.get('/leak'))
    os.kill(supervisord.pid('memmon'), signal.SIGCONT)
    wait_log(supervisord, ' restarted web:web: ')
    assert supervisord.pid('web') != master and ' ERROR ' not in memmon_log(supervisord)


def set_hour(hour: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose a time zone in which it is so many o'clock."""
    east = (hour - datetime.datetime.now(datetime.timezone.utc).hour) % 24
    monkeypatch.setenv('TZ', f'XXX-{east}')


def test_quiet_hours_put_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                             start_supervisord: StartSupervisord) -> None:
    recipe, = code_blocks('Quiet hours', 'ini')
    set_hour(13, monkeypatch)
    resize(tmp_path, 'web', 210)
    supervisord = start(start_supervisord, obedient('web'), recipe)
    wait_log(supervisord, ' put off web:web: RSS ')
    assert supervisord.spawned('web') == 1
    resize(tmp_path, 'web', 310)
    wait_log(supervisord, ' restarted web:web: RSS ')
    assert ' is over 300MB ' in memmon_log(supervisord)


def test_quiet_hours_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                         start_supervisord: StartSupervisord) -> None:
    recipe, = code_blocks('Quiet hours', 'ini')
    set_hour(22, monkeypatch)
    resize(tmp_path, 'web', 210)
    supervisord = start(start_supervisord, obedient('web'), recipe)
    wait_log(supervisord, ' restarted web:web: RSS ')
    assert ' put off ' not in memmon_log(supervisord)


@pytest.mark.parametrize('hour', range(24))
def test_quiet_hours_are_those_that_it_says(hour: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, = code_blocks('Quiet hours', 'ini')
    command = re.search("'before=(.*)'", recipe)
    assert command
    script = command.group(1).replace('%%', '%').replace('$(date +%H)', f'{hour:02}')
    assert subprocess.run(['sh', '-c', script], check=False).returncode == 75 * (8 <= hour < 18)


@pytest.mark.parametrize('event', ['after', 'failed'])
def test_draining(event: str, tmp_path: Path, start_supervisord: StartSupervisord) -> None:
    recipe, = code_blocks('Draining', 'ini')
    health_check, = code_blocks('Draining', 'sh')
    draining = tmp_path / 'draining'
    draining.mkdir()
    recipe = swap(recipe, **{'/run/draining': str(draining),
                             'sleep 20': 'until test -e go; do sleep 0.1; done'})
    check = ['sh', '-c', swap(health_check, **{'/run/draining': str(draining)})]
    command = tmp_path / 'command'
    command.write_text(f'#!/bin/sh\nexec {sys.executable} {OBEDIENT} "$@"\n')
    command.chmod(0o755)
    resize(tmp_path, 'web_00', 210)
    supervisord = start(
        start_supervisord, recipe,
        section('web', command=f'{command} %(program_name)s_%(process_num)02d.mb', numprocs=2,
                process_name='%(program_name)s_%(process_num)02d'))
    wait_for(lambda: os.listdir(draining) == ['web_00'])
    assert subprocess.call(check) == 1
    assert supervisord.spawned('web_00') == 1
    if event == 'failed':
        command.unlink()
    (tmp_path / 'go').touch()
    outcome = {'after': 'restarted', 'failed': 'failed to start'}[event]
    wait_log(supervisord, f' {outcome} web:web_00: ')
    wait_for(lambda: os.listdir(draining) == [])
    assert subprocess.call(check) == 0
    (draining / 'web_00').touch()
    assert subprocess.call(check) == 1
    os.utime(draining / 'web_00', (0, 0))
    assert subprocess.call(check) == 0


class Chat(http.server.HTTPServer):
    """A chat that remembers what it was sent."""

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), ChatHandler)
        self.url = f'http://127.0.0.1:{self.server_port}/hooks/a%20token'
        self.requests: list[str] = []
        self.texts: list[str] = []


class ChatHandler(http.server.BaseHTTPRequestHandler):
    server: Chat

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        self.server.requests.append(f'{self.path} {self.headers["Content-Type"]} {list(body)}')
        self.server.texts.append(body['text'])
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def chat() -> Iterator[Chat]:
    with Chat() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


NOISE = 'we"b\\n-$(touch${IFS}pwned)\'`touch${IFS}pwned`<ü>'


@pytest.mark.skipif(not shutil.which('jq') or not shutil.which('curl'), reason='needs jq and curl')
def test_message_to_a_chat(chat: Chat, tmp_path: Path, start_supervisord: StartSupervisord) -> None:
    script, = code_blocks('Message to a chat', 'sh')
    recipe, = code_blocks('Message to a chat', 'ini')
    to_chat = tmp_path / 'bin' / 'memmon-to-chat'
    to_chat.write_text(script)
    to_chat.chmod(0o755)
    recipe = swap(recipe, **{'https://chat.example.com/hooks/T0KEN': chat.url.replace('%', '%%')})
    resize(tmp_path, 'web', 165)
    supervisord = start(start_supervisord, obedient(NOISE, 'web'), recipe)
    wait_for(lambda: len(chat.texts) == 1)
    resize(tmp_path, 'web', 210)
    wait_for(lambda: len(chat.texts) == 2)
    namespec = f'{NOISE}:{NOISE}'
    beginnings = (f'process {namespec} uses ', f'restarted {namespec}: RSS ')
    for line, beginning in zip(chat.texts, beginnings):
        assert line.startswith(beginning) and f' memmon: {line}\n' in memmon_log(supervisord)
    assert set(chat.requests) == {"/hooks/a%20token application/json ['text']"}
    assert ' ERROR ' not in memmon_log(supervisord) and 'token' not in memmon_log(supervisord)
    for reason in ('two\nlines', '"', '\\', "'; touch pwned; '", '\x01\t', '', '-n', '@/etc/passwd',
                   '☃'):
        environment = {**os.environ, 'CHAT_URL': chat.url, 'MEMMON_REASON': reason}
        subprocess.run([to_chat], env=environment, check=True)
        assert chat.texts[-1] == reason
    assert not list(tmp_path.glob('pwned*'))


@pytest.mark.skipif(not shutil.which('flock'), reason='needs flock from util-linux')
def test_waiting_for_a_lock(tmp_path: Path, start_supervisord: StartSupervisord) -> None:
    recipe = code_blocks('Waiting for a job to end', 'ini')[0]
    lock = tmp_path / 'queue.lock'
    resize(tmp_path, 'queue', 210)
    with lock.open('w') as job:
        fcntl.flock(job, fcntl.LOCK_EX)
        supervisord = start(start_supervisord, obedient('queue'),
                            swap(recipe, **{'/run/lock/queue.lock': str(lock)}))
        wait_log(supervisord, ' put off queue:queue: ')
        assert supervisord.spawned('queue') == 1
    wait_log(supervisord, ' restarted queue:queue: ')
    assert ' ERROR ' not in memmon_log(supervisord)


def test_waiting_for_the_files_of_jobs(tmp_path: Path, start_supervisord: StartSupervisord) -> None:
    recipe = code_blocks('Waiting for a job to end', 'ini')[1]
    (tmp_path / 'running').mkdir()
    for job in ('job 1', 'job 2'):
        (tmp_path / 'running' / job).touch()
    resize(tmp_path, 'queue', 210)
    supervisord = start(start_supervisord, obedient('queue'),
                        swap(recipe, **{'/var/spool/queue/running': f'{tmp_path}/running'}))
    wait_log(supervisord, ' put off queue:queue: ')
    (tmp_path / 'running' / 'job 1').unlink()
    assert supervisord.spawned('queue') == 1
    (tmp_path / 'running' / 'job 2').unlink()
    wait_log(supervisord, ' restarted queue:queue: ')
    assert ' ERROR ' not in memmon_log(supervisord)
