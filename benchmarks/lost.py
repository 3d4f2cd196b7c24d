"""Count what a restart by memmon loses: requests of web servers, jobs of celery and rq.

Eight clients ask a server without a pause, each request on a connection of its own; a request takes
0.1 s, and a client whose request fails tries again 0.1 s later. memmon is started after two seconds
and restarts the server, or has it reload, once. Eight celery workers have 16 jobs, and are
restarted while they work on the first eight; one worker of rq has four, and works on the first.

Prints the tables of docs/figures.rst. Runs on Linux only; what is not installed is left out.
"""

from __future__ import annotations

import argparse
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Callable, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent / 'tests'))

from harness import (BIN, CELERY, MEMMON, Supervisord, descendants_of, rss_mb,  # noqa: E402
                     wait_until)

QUICK_TICKS = str(Path(__file__).parent.parent / 'tests' / 'quick_ticks.py')
PORT, REDIS_PORT = 18080, 18081
CLIENTS = 8
BEFORE_SECS, AFTER_SECS = 2, 8

WSGI = '''
import time
def app(environ, start_response):
    time.sleep(0.1)
    start_response('200 OK', [('Content-Type', 'text/plain')])
    return [b'ok']
'''

ASGI = '''
import asyncio
async def app(scope, receive, send):
    if scope['type'] == 'http':
        await asyncio.sleep(0.1)
        await send({'type': 'http.response.start', 'status': 200, 'headers': []})
        await send({'type': 'http.response.body', 'body': b'ok'})
'''

PHP_FPM = '''
[global]
error_log = /dev/null
daemonize = no
{settings}
[www]
user = nobody
group = nogroup
listen = {path}/php
listen.mode = 0666
pm = static
pm.max_children = 8
'''

NGINX = '''
pid {path}/nginx.pid;
error_log /dev/null;
worker_processes 2;
events {{}}
http {{
    access_log off;
    client_body_temp_path {path}/body; fastcgi_temp_path {path}/fastcgi;
    proxy_temp_path {path}/proxy; uwsgi_temp_path {path}/uwsgi; scgi_temp_path {path}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            fastcgi_pass unix:{path}/php;
            fastcgi_param SCRIPT_FILENAME {path}/index.php;
            fastcgi_param REQUEST_METHOD GET;
        }}
    }}
}}
'''

RQ = '''
import pathlib, time
def job(number, secs):
    pathlib.Path(f'begun-{number}').touch()
    time.sleep(secs)
    pathlib.Path(f'done-{number}').touch()
'''

SEND_TO_CELERY = '''
import tasks
for number in range({jobs}): tasks.job.delay(number, {secs})
'''

SEND_TO_RQ = '''
import redis, rq, rqjobs
queue = rq.Queue(connection=redis.Redis(port={port}))
for number in range({jobs}): queue.enqueue(rqjobs.job, number, {secs})
'''


class Case(NamedTuple):
    """What is restarted, and how."""

    program: str   # what is restarted
    way: str       # as the table shows it
    settings: str  # of its section, besides the command
    signal: str    # with which it reloads; empty: it is restarted
    php: str = ''  # settings of php-fpm


WEB_CASES = (
    Case('gunicorn', 'restart', '', ''),
    Case('gunicorn', 'reload: ``HUP``', '', 'HUP'),
    Case('uvicorn', 'restart', '', ''),
    Case('uvicorn', 'reload: ``HUP``', '', 'HUP'),
    Case('php-fpm', 'restart', '', ''),
    Case('php-fpm', 'restart, ``stopsignal=QUIT``', 'stopsignal=QUIT', ''),
    Case('php-fpm', 'reload: ``USR2``', '', 'USR2'),
    Case('php-fpm', 'reload: ``USR2``, ``process_control_timeout = 30s``', '', 'USR2',
         'process_control_timeout = 30s'),
    Case('nginx', 'restart', '', ''),
    Case('nginx', 'reload: ``HUP``', '', 'HUP'),
)


class JobCase(NamedTuple):
    """Whose jobs are lost."""

    program: str
    secs: int  # that a job takes
    settings: str

    @property
    def numbers(self) -> tuple[int, int]:
        """How many jobs there are, and how many workers."""
        return (16, 8) if self.program == 'celery' else (4, 1)


JOB_CASES = (
    JobCase('celery', 3, ''),
    JobCase('celery', 3, 'stopwaitsecs=600 killasgroup=true'),
    JobCase('celery', 3, 'stopwaitsecs=600 stopasgroup=true killasgroup=true'),
    JobCase('celery', 15, ''),
    JobCase('celery', 15, 'killasgroup=true'),
    JobCase('celery', 15, 'stopwaitsecs=600 killasgroup=true'),
    JobCase('celery', 15, 'stopwaitsecs=600 stopasgroup=true killasgroup=true'),
    JobCase('rq', 15, ''),
    JobCase('rq', 15, 'stopwaitsecs=600'),
    JobCase('rq -w rq.SimpleWorker', 15, ''),
    JobCase('rq -w rq.SimpleWorker', 15, 'stopwaitsecs=600'),
)


def find_php_fpm() -> str:
    """Return the path of php-fpm, whose name Debian ends with its version; '' if there is none."""
    return next((found for name in ('php-fpm', 'php-fpm8.4', 'php-fpm8.2', 'php-fpm7.4')
                 for found in [shutil.which(name)] if found), '')


def commands(path: Path) -> dict[str, str]:
    """Return the command of each program that is installed, in the foreground as it should be."""
    found = {
        'gunicorn': (f'{BIN}/gunicorn',
                     f'--workers 4 --threads 4 --bind 127.0.0.1:{PORT} wsgi:app'),
        'uvicorn': (f'{BIN}/uvicorn', f'--workers 4 --port {PORT} --log-level error asgi:app'),
        'celery': (f'{BIN}/celery', '-A tasks worker --concurrency 8 --loglevel error'),
        'rq': (f'{BIN}/rq', f'worker --url redis://127.0.0.1:{REDIS_PORT} --quiet'),
        'redis': (shutil.which('redis-server') or '',
                  f'--bind 127.0.0.1 --port {REDIS_PORT} --save ""'),
        'php-fpm': (find_php_fpm(), f'-F -R -y {path}/php-fpm.conf'),
        'nginx': (shutil.which('nginx') or '', f'-c {path}/nginx.conf -g "daemon off;"'),
    }
    return {name: f'{program} {args}' for name, (program, args) in found.items()
            if os.path.exists(program)}


def program(name: str, command: str, settings: str = '') -> str:
    """Return a section with supervisord's defaults but for the settings."""
    return f'[program:{name}]\ncommand={command}\n' + '\n'.join(settings.split()) + '\n'


def memmon(name: str, on: str = '') -> str:
    """Return the section of a memmon that finds a program over its limit at once."""
    return (f'[eventlistener:memmon]\ncommand={MEMMON} -c -p {name}=1MB {on}\nevents=TICK_60\n'
            'autostart=false\nstderr_logfile=%(here)s/memmon.log\n')


def act_once(supervisord: Supervisord, sign: str) -> None:
    """Let memmon run until its log shows a sign."""
    supervisord.call('startProcess', 'memmon')
    wait_for(lambda: sign in supervisord.memmon_log())
    supervisord.call('stopProcess', 'memmon')


def wait_for(is_true: Callable[[], object]) -> None:
    """Wait until a function returns something that is true."""
    wait_until(lambda: assert_true(is_true), secs=120)


def assert_true(is_true: Callable[[], object]) -> None:
    assert is_true()


class Load:
    """Clients that ask a server until they are told to end."""

    def __init__(self) -> None:
        self.answered = self.lost = 0
        self.is_ending = threading.Event()
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.ask) for _ in range(CLIENTS)]

    def ask(self) -> None:
        while not self.is_ending.is_set():
            is_answered = answers()
            with self.lock:
                self.answered += is_answered
                self.lost += not is_answered
            if not is_answered:
                time.sleep(0.1)

    def run(self, act: Callable[[], None]) -> None:
        for thread in self.threads:
            thread.start()
        try:
            time.sleep(BEFORE_SECS)
            act()
            time.sleep(AFTER_SECS)
        finally:
            self.is_ending.set()
            for thread in self.threads:
                thread.join()


def answers() -> bool:
    """Tell whether the server answers a request."""
    connection = http.client.HTTPConnection('127.0.0.1', PORT, timeout=20)
    try:
        connection.request('GET', '/')
        answer = connection.getresponse()
        return answer.status == 200 and answer.read().strip() == b'ok'
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def write_files(path: Path, php: str) -> None:
    path.chmod(0o755)
    (path / 'wsgi.py').write_text(WSGI)
    (path / 'asgi.py').write_text(ASGI)
    (path / 'tasks.py').write_text(CELERY)
    (path / 'rqjobs.py').write_text(RQ)
    (path / 'index.php').write_text('<?php usleep(100000); echo "ok";')
    (path / 'php-fpm.conf').write_text(PHP_FPM.format(path=path, settings=php))
    (path / 'nginx.conf').write_text(NGINX.format(path=path, port=PORT))


def lose_requests(case: Case, path: Path) -> tuple[int, int]:
    """Return how many requests were answered and lost."""
    write_files(path, case.php)
    known = commands(path)
    names = ('php-fpm', 'nginx') if case.program in ('php-fpm', 'nginx') else (case.program,)
    sections = [program(name, known[name], case.settings if name == case.program else '')
                for name in names]
    on = (f"-o 'before=kill -{case.signal} $MEMMON_PID && echo reloaded && exit 75'"
          if case.signal else '')
    supervisord = Supervisord(path, '\n'.join([*sections, memmon(case.program, on)]),
                              wrapper=[sys.executable, QUICK_TICKS])
    try:
        supervisord.wait_ready()
        wait_for(answers)
        load = Load()
        sign = 'reloaded' if case.signal else ' restarted '
        load.run(lambda: act_once(supervisord, sign))
        return load.answered, load.lost
    finally:
        supervisord.end()


def lose_jobs(case: JobCase, path: Path) -> tuple[int, float]:
    """Return how many of the jobs were lost, and how long the restart took in seconds."""
    write_files(path, '')
    known = commands(path)
    name, _, args = case.program.partition(' ')
    jobs, workers = case.numbers
    sections = [program(name, f'{known[name]} {args}', case.settings), memmon(name)]
    if name == 'rq':
        sections.append(program('redis', known['redis']))
    send = (SEND_TO_RQ if name == 'rq' else SEND_TO_CELERY).format(
        jobs=jobs, secs=case.secs, port=REDIS_PORT)
    supervisord = Supervisord(path, '\n'.join(sections), wrapper=[sys.executable, QUICK_TICKS])
    try:
        supervisord.wait_ready()
        pid, = supervisord.wait_up(name)
        wait_for(lambda: rss_mb(pid) > 10 and (name == 'rq' or len(descendants_of(pid)) >= workers))
        subprocess.run([sys.executable, '-c', send], cwd=path, check=True)
        wait_for(lambda: len(list(path.glob('begun-*'))) >= workers)
        began = time.monotonic()
        supervisord.call('startProcess', 'memmon')
        wait_for(lambda: ' restarted ' in supervisord.memmon_log())
        took = time.monotonic() - began
        supervisord.call('stopProcess', 'memmon')
        last = time.monotonic()
        done = -1
        while time.monotonic() < last + case.secs + 8:  # as long as jobs still end
            if done != len(list(path.glob('done-*'))):
                done, last = len(list(path.glob('done-*'))), time.monotonic()
            if done == jobs:
                break
            time.sleep(0.2)
        return jobs - done, took
    finally:
        supervisord.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0] if __doc__ else '')
    parser.add_argument('programs', nargs='*', help='gunicorn, uvicorn, php-fpm, nginx, celery, rq')
    wanted = parser.parse_args().programs
    known = commands(Path())
    for case in WEB_CASES:
        if case.program in known and (not wanted or case.program in wanted):
            with tempfile.TemporaryDirectory() as directory:
                answered, lost = lose_requests(case, Path(directory))
            print(f'{case.program:10}{case.way:56}{lost:6} of {answered + lost}', flush=True)
    for job_case in JOB_CASES:
        needed = {'celery': {'celery'}}.get(job_case.program, {'rq', 'redis'})
        if needed <= set(known) and (not wanted or needed & set(wanted)):
            with tempfile.TemporaryDirectory() as directory:
                lost, took = lose_jobs(job_case, Path(directory))
            shown = job_case.settings or 'the defaults'
            print(f'{job_case.program:22} jobs of {job_case.secs:2} s, {shown:52}{lost:4} of '
                  f'{job_case.numbers[0]}, in {took:.0f} s', flush=True)


if __name__ == '__main__':
    main()
