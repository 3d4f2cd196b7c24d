"""The recipes of docs/recipes.rst, each as it stands there, but for its paths."""

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
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from harness import (BIN, CELERY, MEMMON, StartSupervisord, Supervisord, children_of,
                     is_running, processes_in, program, rss_mb, section, wait_until)

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / 'docs' / 'recipes.rst'
PATH = '/opt/memmon/bin/memmon'  # of README's installation
QUICK_TICKS = str(Path(__file__).parent / 'quick_ticks.py')


def code_blocks(title: str, language: str) -> list[str]:
    """Return the code in a language that a recipe shows, with the memmon of this environment."""
    text = RECIPES.read_text(encoding='utf-8')
    section = re.search(rf'^{re.escape(title)}\n-+\n(.*?)(?=^[^\n]+\n--+\n|\Z)', text,
                        re.M | re.S)
    assert section, title
    blocks = re.findall(rf'^\.\. code-block:: {language}\n\n((?: {{4}}.*\n|\n)+)',
                        section.group(1), re.M)
    assert blocks, (title, language)
    return [textwrap.dedent(block).replace(PATH, MEMMON) for block in blocks]


def wait_for(get: Callable[[], Any]) -> Any:
    """Call a function until it returns something that is true; return that."""
    return wait_until(lambda: assert_true(get))


def assert_true(get: Callable[[], Any]) -> Any:
    value = get()
    assert value
    return value


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


def sized(name: str, file: str = '') -> str:
    """Return a section of supervisord.conf for a program that is as large as NAME.mb says."""
    return section(name, command=program('--file', f'{file or name}.mb'))


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
    return str(log.read_text())


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
    supervisord = start(start_supervisord, sized('web'), recipe)
    wait_log(supervisord, ' INFO memmon: restarted web:web: ')
    dump = memmon_log(supervisord).partition(' INFO memmon: restarted web:web: ')[0]
    assert re.search(r'^Process \d+: .*program\.py --file web\.mb$', dump, re.M), dump
    assert re.search(r'^    <module> \(.*program\.py:\d+\)$', dump, re.M), dump
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
    assert memmon_log(supervisord).count(' postponed web:web: ') == 1
    assert ' ERROR ' not in memmon_log(supervisord)
    os.kill(supervisord.pid('memmon'), signal.SIGSTOP)  # it looks when all is there
    wait_for(lambda: not any(map(is_running, children_of(supervisord.pid('memmon')))))
    wait_for(lambda: sum(map(rss_mb, children_of(master))) > 420 or not client.get('/leak'))
    os.kill(supervisord.pid('memmon'), signal.SIGCONT)
    wait_log(supervisord, ' INFO memmon: restarted web:web: ')
    assert supervisord.pid('web') != master and ' ERROR ' not in memmon_log(supervisord)


PHP_FPM = """
[global]
error_log = {path}/php-fpm.log
process_control_timeout = 30s
[www]
user = nobody
group = nogroup
listen = {path}/php
pm = static
pm.max_children = 2
"""

NGINX = """
pid {path}/nginx.pid;
error_log {path}/nginx.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {path}/body; fastcgi_temp_path {path}/fastcgi;
    proxy_temp_path {path}/proxy; uwsgi_temp_path {path}/uwsgi; scgi_temp_path {path}/scgi;
    server {{ listen unix:{path}/web; }}
}}
"""

ASGI = """
async def app(scope, receive, send):
    pass
"""


def find_php_fpm() -> str | None:
    """Return the name of php-fpm, which Debian ends with its version."""
    names = ('php-fpm', *(f'php-fpm{version}' for version in ('8.4', '8.2', '7.4')))
    return next(filter(shutil.which, names), None)


@pytest.mark.parametrize('name, title, needs, command, helpers, workers', [
    # Python's multiprocessing starts a process of its own beside uvicorn's workers.
    ('web', 'Graceful reload of uvicorn', 'uvicorn',
     'uvicorn --workers 2 --uds {path}/web asgi:app', 1, 2),
    ('php-fpm', 'Graceful reload of php-fpm', find_php_fpm() or 'php-fpm',
     f'{find_php_fpm()} -F -R -y {{path}}/php-fpm.conf', 0, 2),
    ('nginx', 'Graceful reload of nginx', 'nginx',
     'nginx -c {path}/nginx.conf -g "daemon off;"', 0, 1),
], ids=['uvicorn', 'php-fpm', 'nginx'])
def test_graceful_reload(name: str, title: str, needs: str, command: str, helpers: int,
                         workers: int, tmp_path: Path, start_supervisord: StartSupervisord) -> None:
    if not shutil.which(needs) or os.getuid():
        pytest.skip(f'needs {needs}, and root')
    recipe, = code_blocks(title, 'ini')
    (tmp_path / 'asgi.py').write_text(ASGI)
    (tmp_path / 'php-fpm.conf').write_text(PHP_FPM.format(path=tmp_path))
    (tmp_path / 'nginx.conf').write_text(NGINX.format(path=tmp_path))
    # Over its limit, and not over twice as much, which is restarted.
    recipe = swap(recipe, **{'=400MB': '=100KB', '2 * MEMMON': '9999 * MEMMON'})
    memmon = recipe.replace('events=', 'autostart=false\nevents=')
    supervisord = start(start_supervisord, section(name, command=command.format(path=tmp_path)),
                        memmon)
    master, = supervisord.wait_up(name)

    wait_for(lambda: len(children_of(master)) == helpers + workers)
    old = set(children_of(master))
    supervisord.call('startProcess', 'memmon')
    wait_log(supervisord, f'\nreloaded {name}:{name}\n')
    wait_for(lambda: len(set(children_of(master)) - old) == workers)
    wait_for(lambda: sum(map(is_running, old)) == helpers)
    assert supervisord.pid(name) == master and supervisord.spawned(name) == 1
    assert memmon_log(supervisord).count(f' postponed {name}:{name}: ') == 1
    assert ' ERROR ' not in memmon_log(supervisord)


@pytest.mark.waits
def test_settings_for_celery_lose_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         start_supervisord: StartSupervisord) -> None:
    if not (BIN / 'celery').exists():
        pytest.skip('needs celery')
    row = re.search(r'^celery +``(.*?)`` +``stopwaitsecs=600``, ``killasgroup=true``',
                    RECIPES.read_text(encoding='utf-8'), re.M)
    assert row
    (tmp_path / 'tasks.py').write_text(CELERY)
    monkeypatch.setenv('C_FORCE_ROOT', '1')
    options = row.group(1).replace('…', '1MB')
    supervisord = start(
        start_supervisord,
        section('celery', command='celery -A tasks worker --concurrency 4 --loglevel error',
                stopwaitsecs=600, killasgroup='true'),
        section('memmon', kind='eventlistener', command=f'{MEMMON} {options}', autostart='false',
                events='TICK_60'))
    master, = supervisord.wait_up('celery')
    send = 'import tasks\nfor number in range(8): tasks.job.delay(number, 2)'
    subprocess.run([sys.executable, '-c', send], cwd=tmp_path, check=True)
    wait_for(lambda: len(list(tmp_path.glob('begun-*'))) >= 4)
    supervisord.call('startProcess', 'memmon')
    wait_log(supervisord, ' INFO memmon: restarted celery:celery: ')
    assert supervisord.pid('celery') != master
    supervisord.call('stopProcess', 'memmon')
    wait_for(lambda: len(list(tmp_path.glob('done-*'))) == 8)
    assert ' killed after ' not in memmon_log(supervisord)


def test_garbage_collection_before_a_restart(
        tmp_path: Path, start_supervisord: StartSupervisord) -> None:
    recipe, = code_blocks('Garbage collection before anything else', 'ini')
    resize(tmp_path, 'java', 210)
    jcmd = tmp_path / 'bin' / 'jcmd'
    jcmd.write_text('#!/bin/sh\necho "$@" >>jcmd.log\necho 20 >draft && mv draft java.mb\n')
    jcmd.chmod(0o755)
    supervisord = start(start_supervisord, sized('java'),
                        swap(recipe, **{'/run': str(tmp_path), '=2GB..3GB': '=200MB..3GB'}))
    wait_log(supervisord, ' postponed java:java: RSS ')
    pid = supervisord.pid('java')
    wait_for(lambda: rss_mb(pid) < 100)
    assert (tmp_path / 'jcmd.log').read_text() == f'{pid} GC.run\n'
    assert list(tmp_path.glob('gc-*')) == [tmp_path / f'gc-{pid}']
    resize(tmp_path, 'java', 210)  # so soon again: a collection is no help
    wait_log(supervisord, ' INFO memmon: restarted java:java: RSS ')
    wait_for(lambda: not list(tmp_path.glob('gc-*')))
    assert (tmp_path / 'jcmd.log').read_text() == f'{pid} GC.run\n'
    assert ' ERROR ' not in memmon_log(supervisord)


LOADING = '''
import os, time
while os.path.exists('loading'):
    time.sleep(0.1)


def app(environ, start_response):
    start_response('200 OK', [])
    return [b'warm']
'''


@pytest.mark.skipif(not (BIN / 'gunicorn').exists() or not shutil.which('curl'),
                    reason='needs gunicorn and curl')
def test_warming_up(tmp_path: Path, start_supervisord: StartSupervisord) -> None:
    web, memmon = code_blocks('Warming up', 'ini')[0].strip().split('\n\n')
    (tmp_path / 'app.py').write_text(LOADING)
    hundred = 200 + os.getpid() % 300  # so that tests side by side have ports of their own
    web = swap(web, **{'127.0.0.1:80': f'127.0.0.1:{hundred}', 'numprocs=4': 'numprocs=2'})
    memmon = swap(memmon, **{'port=80': f'port={hundred}', '=400MB': '=1MB',
                             'events=': 'autostart=false\nevents='})
    supervisord = start(start_supervisord, web, memmon)
    supervisord.wait_up('web:web_00', 'web:web_01')
    (tmp_path / 'loading').touch()
    supervisord.call('startProcess', 'memmon')
    wait_log(supervisord, ' INFO memmon: restarted web:web_00: ')
    command = f'http://127.0.0.1:{hundred}00/'
    wait_for(lambda: any(command in line for line in processes_in(tmp_path).values()))
    assert not wait_for_pid_change(supervisord, 'web:web_01', secs=3)
    (tmp_path / 'loading').unlink()
    wait_log(supervisord, ' INFO memmon: restarted web:web_01: ')
    assert ' ERROR ' not in memmon_log(supervisord)


def wait_for_pid_change(supervisord: Supervisord, name: str, secs: float) -> bool:
    """Tell whether a process is replaced within some time."""
    pid, deadline = supervisord.pid(name), time.monotonic() + secs
    while time.monotonic() < deadline:
        if supervisord.pid(name) != pid:
            return True
        time.sleep(0.1)
    return False


def set_hour(hour: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose a time zone in which it is so many o'clock."""
    east = (hour - datetime.datetime.now(datetime.timezone.utc).hour) % 24
    monkeypatch.setenv('TZ', f'XXX-{east}')


def test_quiet_hours_postpone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                              start_supervisord: StartSupervisord) -> None:
    recipe, = code_blocks('Quiet hours', 'ini')
    set_hour(13, monkeypatch)
    resize(tmp_path, 'web', 210)
    supervisord = start(start_supervisord, sized('web'), recipe)
    wait_log(supervisord, ' postponed web:web: RSS ')
    assert supervisord.spawned('web') == 1
    resize(tmp_path, 'web', 310)
    wait_log(supervisord, ' INFO memmon: restarted web:web: RSS ')
    assert ' is over 300MB ' in memmon_log(supervisord)


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
    recipe = swap(recipe, **{'/run/draining': str(draining),
                             'sleep 20': 'until test -e go; do sleep 0.1; done'})
    check = ['sh', '-c', swap(health_check, **{'/run/draining': str(draining)})]
    command = tmp_path / 'command'
    command.write_text(f'#!/bin/sh\nexec {program("--file")} "$@"\n')
    command.chmod(0o755)
    resize(tmp_path, 'web_00', 210)
    supervisord = start(
        start_supervisord, recipe,
        section('web', command=f'{command} %(program_name)s_%(process_num)02d.mb', numprocs=1,
                process_name='%(program_name)s_%(process_num)02d'))
    wait_for((draining / 'web_00').exists)
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
    supervisord = start(start_supervisord, sized(NOISE, 'web'), recipe)
    wait_for(lambda: len(chat.texts) == 1)
    resize(tmp_path, 'web', 210)
    namespec = f'{NOISE}:{NOISE}'
    # The new one may be near its limit, too, before it is known to be up.
    restarted, = wait_for(lambda: [text for text in chat.texts if text.startswith('restarted ')])
    for line, beginning in ((chat.texts[0], 'near limit'), (restarted, 'restarted')):
        assert line.startswith(f'{beginning} {namespec}: RSS ')
        assert f' memmon: {line}\n' in memmon_log(supervisord)
    assert set(chat.requests) == {"/hooks/a%20token application/json ['text']"}
    assert ' ERROR ' not in memmon_log(supervisord) and 'token' not in memmon_log(supervisord)
    for reason in ('two\nlines', '"', '\\', "'; touch pwned; '", '\x01\t', '', '-n', '@/etc/passwd',
                   '☃'):
        environment = {**os.environ, 'CHAT_URL': chat.url, 'MEMMON_REASON': reason}
        subprocess.run([to_chat], env=environment, check=True)
        assert reason in chat.texts
    assert not list(tmp_path.glob('pwned*'))


@pytest.mark.skipif(not shutil.which('flock'), reason='needs flock from util-linux')
def test_waiting_for_a_lock(tmp_path: Path, start_supervisord: StartSupervisord) -> None:
    recipe = code_blocks('Waiting for a job to end', 'ini')[0]
    lock = tmp_path / 'queue.lock'
    resize(tmp_path, 'queue', 210)
    with lock.open('w') as job:
        fcntl.flock(job, fcntl.LOCK_EX)
        supervisord = start(start_supervisord, sized('queue'),
                            swap(recipe, **{'/run/lock/queue.lock': str(lock)}))
        wait_log(supervisord, ' postponed queue:queue: ')
        assert supervisord.spawned('queue') == 1
    wait_log(supervisord, ' INFO memmon: restarted queue:queue: ')
    assert ' ERROR ' not in memmon_log(supervisord)


def test_waiting_for_the_files_of_jobs(tmp_path: Path, start_supervisord: StartSupervisord) -> None:
    recipe = code_blocks('Waiting for a job to end', 'ini')[1]
    (tmp_path / 'running').mkdir()
    for job in ('job 1', 'job 2'):
        (tmp_path / 'running' / job).touch()
    resize(tmp_path, 'queue', 210)
    supervisord = start(start_supervisord, sized('queue'),
                        swap(recipe, **{'/var/spool/queue/running': f'{tmp_path}/running'}))
    wait_log(supervisord, ' postponed queue:queue: ')
    (tmp_path / 'running' / 'job 1').unlink()
    assert supervisord.spawned('queue') == 1
    (tmp_path / 'running' / 'job 2').unlink()
    wait_log(supervisord, ' INFO memmon: restarted queue:queue: ')
    assert ' ERROR ' not in memmon_log(supervisord)
