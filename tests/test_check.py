"""memmon --check against a real supervisord."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import Iterator, List, Tuple

import pytest
from harness import LIMIT, MEMMON, StartSupervisord, Supervisord, hog, memmon_section, wait_until

import memmon
from memmon import Limit, Process, Reading

MB = 2 ** 20


def check(supervisord: Supervisord, *args: str, **env: str) -> Tuple[int, List[str], str]:
    """Return the status of memmon --check, its lines and its stderr."""
    done = subprocess.run([MEMMON, '--check', *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False,
                          env={**os.environ, **supervisord.env, **env}, cwd=supervisord.path)
    return done.returncode, done.stdout.decode().splitlines(), done.stderr.decode()


PROGRAMS = (hog('big') + hog('small', '--mb', '1') + hog('off', autostart='false')
            + hog('queue', '--mb', '1', numprocs=2, process_name='%(program_name)s_%(process_num)02d'))


@pytest.fixture
def supervisord(start_supervisord: StartSupervisord) -> Supervisord:
    supervisord = start_supervisord(PROGRAMS)
    supervisord.wait_big('big')
    supervisord.wait_state('queue:queue_01', 'RUNNING')
    return supervisord


def test_check_shows_what_uses_how_much_of_its_limit(supervisord: Supervisord) -> None:
    before = supervisord.call('getAllProcessInfo')
    status, lines, errors = check(supervisord, '-p', f'big={LIMIT}', '-g', 'queue=1GB', '-g', 'off=1GB',
                                  '-p', 'smal=1MB', COLUMNS='100')
    assert (status, errors) == (1, '')
    assert re.fullmatch('PROCESS +PID +UPTIME +RSS +LIMIT +SET BY +USED', lines[0])
    assert re.fullmatch(r'big:big +\d+ +0:00:\d\d +5\d(\.\d)?MB +30MB  -p big=30MB +1[678]\d%  #+', lines[1])
    assert len(lines[1]) == 100
    for line in lines[2:4]:
        assert re.fullmatch(r'queue:queue_0[01] +\d+ +0:00:\d\d +1\d(\.\d)?MB +1GB  -g queue=1GB +1%', line)
    assert re.fullmatch(r'small:small +\d+ +0:00:\d\d +1\d(\.\d)?MB +-  no option +-', lines[4])
    assert re.fullmatch(r'off:off +- +STOPPED +- +1GB  -g off=1GB +-', lines[5])
    assert lines[6:] == ['-p smal=1MB covers no process; near it: small']
    after = supervisord.call('getAllProcessInfo')
    assert [info['pid'] for info in after] == [info['pid'] for info in before]


def test_check_without_limits_shows_all_by_rss(supervisord: Supervisord) -> None:
    status, lines, errors = check(supervisord)
    assert (status, errors) == (0, '')
    assert lines[0].split() == ['PROCESS', 'PID', 'UPTIME', 'RSS']
    assert [line.split()[0] for line in lines[1:]][::4] == ['big:big', 'off:off']
    assert lines[-1].split() == ['off:off', '-', 'STOPPED', '-']


def test_check_tells_by_its_status_that_all_is_well(supervisord: Supervisord) -> None:
    assert check(supervisord, '-a', '1GB')[0] == 0
    assert check(supervisord, '-a', LIMIT)[0] == 1


def test_check_counts_the_tree_if_told_so(start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord(hog('parent', '--child', stopasgroup='true'))
    wait_until(lambda: check(supervisord, '-c', '-a', LIMIT)[0] == 1)
    assert check(supervisord, '-a', LIMIT)[0] == 0


def test_check_finds_supervisord_as_supervisorctl_does(start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord(hog('small', '--mb', '1'), server=(
        '[unix_http_server]\nfile=%(here)s/s\nusername=bob\npassword=secret\n'
        '[supervisorctl]\nserverurl=unix://%(here)s/s\nusername=bob\npassword=secret\n'))
    supervisord.env = {}
    status, lines, errors = check(supervisord)
    assert (status, errors) == (0, '')
    assert lines[1].startswith('small:small ')


def test_check_asks_an_inet_server(start_supervisord: StartSupervisord) -> None:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    supervisord = start_supervisord(hog('big', '--once', 'big') + memmon_section('-a', LIMIT),
                                    server=f'[inet_http_server]\nport=127.0.0.1:{port}\n')
    supervisord.env = {'SUPERVISOR_SERVER_URL': f'http://127.0.0.1:{port}'}
    pid, = supervisord.wait_big('big')
    assert check(supervisord, '-a', LIMIT)[0] == 1
    supervisord.start_memmon()
    supervisord.wait_new_pid('big', pid)


def refusal(supervisord: Supervisord, **env: str) -> str:
    """Return the one line by which memmon --check says that it could not look."""
    status, lines, errors = check(supervisord, **env)
    assert (status, lines) == (2, [])
    assert errors.startswith('memmon: ') and errors.endswith('\n') and errors.count('\n') == 1
    return errors[len('memmon: '):-1].replace(str(supervisord.path), '.')


def test_check_refuses_a_wrong_password(start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord('', server='[unix_http_server]\nfile=%(here)s/s\nusername=bob\npassword=secret\n')
    assert refusal(supervisord) == (
        'supervisord at unix://./s refused the user name or password: set SUPERVISOR_USERNAME and SUPERVISOR_PASSWORD '
        "in memmon's environment to those of its HTTP server")


def test_check_without_rpc_interface(start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord('', interface='')
    assert refusal(supervisord) == 'supervisord at unix://./s has no [rpcinterface:supervisor] section: add it'


def test_check_without_permission(start_supervisord: StartSupervisord, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.getuid() == 0 and not shutil.which('setpriv'):
        pytest.skip('needs setpriv, from util-linux, to take from root what lets it use any socket')
    supervisord = start_supervisord('')
    (supervisord.path / 's').chmod(0)
    if os.getuid() == 0:
        script = supervisord.path / 'memmon'
        script.write_text(f'#!/bin/sh\nexec setpriv --bounding-set=-dac_override {MEMMON} "$@"\n')
        script.chmod(0o755)
        monkeypatch.setattr('test_check.MEMMON', str(script))
    assert refusal(supervisord) == 'no permission to use unix://./s: see chmod and chown in [unix_http_server]'


def test_check_without_socket(start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord('')
    assert refusal(supervisord, SUPERVISOR_SERVER_URL='unix:///nonexistent/s') == (
        'no such socket: unix:///nonexistent/s; does supervisord run, with a [unix_http_server] section?')


def test_check_with_a_socket_that_supervisord_left_behind(start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord('')
    supervisord.end()
    assert refusal(supervisord) == 'nobody listens at unix://./s; does supervisord run?'


@contextlib.contextmanager
def server_that_answers(answer: bytes) -> Iterator[str]:
    """Yield the URL of a server that gives one answer to anything, and none where that is empty."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        thread = threading.Thread(target=answer_once, args=(server, answer))
        thread.start()
        yield f'http://127.0.0.1:{server.getsockname()[1]}'
        thread.join()


def answer_once(server: socket.socket, answer: bytes) -> None:
    connection, _ = server.accept()
    with connection:
        request = b''
        while b'</methodCall>' not in request:
            request += connection.recv(65536)
        connection.sendall(answer)
        while not answer and connection.recv(65536):
            pass  # until memmon hangs up


@pytest.mark.parametrize('answer, error', [
    (b'HTTP/1.0 404 Not Found\r\n\r\n', 'what listens at URL is no supervisord: it says 404 Not Found'),
    (b'HTTP/1.0 200 OK\r\n\r\nhello', 'no answer from a supervisord at URL: syntax error: line 1, column 0'),
    (b'220 mail.example.com ESMTP\r\n', 'no answer from a supervisord at URL: 220 mail.example.com ESMTP'),
    (b'HTTP/1.0 200 OK\r\n\r\n<methodResponse></methodResponse>',
     'no answer from a supervisord at URL: ResponseError()'),
    (b'', 'no answer from a supervisord at URL: timed out'),
])
def test_check_with_another_server(answer: bytes, error: str, start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord('')
    with server_that_answers(answer) as url:
        assert refusal(supervisord, SUPERVISOR_SERVER_URL=url) == error.replace('URL', url)


def test_check_with_a_url_of_another_kind(start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord('')
    assert refusal(supervisord, SUPERVISOR_SERVER_URL='supervisor.sock') == (
        "the URL of supervisord is 'supervisor.sock': it has to begin with unix:// or http://")


@pytest.mark.parametrize('conf, error', [
    ('[supervisord]\n', 'supervisord.conf: .ini file does not include supervisorctl section; '
                        'mend it, or set SUPERVISOR_SERVER_URL'),
    ('[supervisorctl]\nserverurl=unix:///nonexistent/s\n',
     'no such socket: unix:///nonexistent/s; does supervisord run, with a [unix_http_server] section?'),
])
def test_check_with_a_configuration_that_does_not_help(conf: str, error: str, tmp_path: Path) -> None:
    (tmp_path / 'supervisord.conf').write_text(conf)
    done = subprocess.run([MEMMON, '--check'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path,
                          check=False)
    assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == (2, '', f'memmon: {error}\n')


def reading(name: str, size: int = 0, rss: int = 0) -> Reading:
    limit = Limit('program', name, size, f'-p {name}={size // MB}MB') if size else None
    process = Process(name, name, 7, 0, 'RUNNING') if rss else Process(name, name, 0, 0, 'FATAL')
    return Reading(process, limit, rss or None)


@pytest.mark.parametrize('columns, bars', [(80, 25), (70, 15), (40, 0)])
def test_bar_fills_the_terminal(columns: int, bars: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('time.time', lambda: 725)
    readings = [reading('a', 100 * MB, 250 * MB), reading('b', 100 * MB, 50 * MB), reading('c', 100 * MB),
                reading('d')]
    assert memmon.format_readings(readings, True, columns) == [line.rstrip() for line in [
        'PROCESS  PID   UPTIME    RSS  LIMIT  SET BY      USED',
        'a:a        7  0:12:05  250MB  100MB  -p a=100MB  250%  ' + '#' * bars,
        'b:b        7  0:12:05   50MB  100MB  -p b=100MB   50%  ' + '#' * (bars // 2),
        'c:c        -    FATAL      -  100MB  -p c=100MB     -',
        'd:d        -    FATAL      -      -  no option      -',
    ]]
