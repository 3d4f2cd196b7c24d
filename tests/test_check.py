"""memmon --check with a real supervisord, and with what is none."""

from __future__ import annotations

import os
import re
import shutil
import socket
import xmlrpc.client
from pathlib import Path
from typing import Any

import pytest
from harness import (CLIENT, LIMIT, MEMMON, PASSWORD, UNIX_SERVER, Done, StartSupervisord,
                     Supervisord, assert_equal, in_pid_namespace, memmon_section, pool_section,
                     rss_mb, run, section, wait_until)
from rpc import (Answer, StartFakeServer, dribble, edit, http_response, raw, reply, silence)


def check(supervisord: Supervisord, *args: str, **env: str) -> Done:
    """Run memmon --check in the directory of a supervisord."""
    return run(MEMMON, '--check', *args, env={**supervisord.env, **env}, cwd=supervisord.path)


def assert_refused(done: Done, error: str) -> None:
    """Assert that memmon --check could not look, and says so in one line."""
    assert done == (2, '', f'memmon: {error}\n')


# What it shows.

PROGRAMS = (section('big') + section('small', '--mb', '1') + section('off', autostart='false')
            + pool_section('queue', 2, '--mb', '1'))


@pytest.fixture
def supervisord(start_supervisord: StartSupervisord) -> Supervisord:
    supervisord = start_supervisord(PROGRAMS)
    supervisord.wait_big('big')
    supervisord.wait_up('small', 'queue:queue_00', 'queue:queue_01')
    return supervisord


def read_table(lines: list[str]) -> dict[str, dict[str, str]]:
    """Return the rows of the table by process, in order, their cells by the heading."""
    heading, *rows = [re.split(' {2,}', line) for line in lines]
    return {row[0]: dict(zip([*heading, 'BAR'], row)) for row in rows}


def assert_rss(cell: str, pid: int) -> None:
    """Assert that a cell shows the RSS of a process."""
    assert cell.endswith('MB') and float(cell[:-2]) == pytest.approx(rss_mb(pid), abs=2), cell


def test_check_shows_what_uses_how_much_of_its_limit(supervisord: Supervisord) -> None:
    before = supervisord.call('getAllProcessInfo')
    status, stdout, stderr = check(supervisord, '-p', f'big={LIMIT}', '-g', 'queue=1GB', '-g',
                                   'off=1GB', '-p', 'smal=1MB')
    assert (status, stderr) == (1, '')
    lines = stdout.splitlines()
    assert lines[6:] == ['-p smal=1MB covers no process; similar: small']
    table = read_table(lines[:6])
    queue = ['queue:queue_00', 'queue:queue_01']
    assert (list(table)[0], list(table)[3:]) == ('big:big', ['small:small', 'off:off'])
    for name in ('big:big', 'small:small', *queue):
        row = table[name]
        assert row['PID'] == str(supervisord.pid(name))
        assert re.fullmatch(r'0:00:\d\d', row['UPTIME'])
        assert_rss(row['RSS'], supervisord.pid(name))
    assert [(row['LIMIT'], row['SET BY']) for row in table.values()] == [
        (LIMIT, f'-p big={LIMIT}'), ('1GB', '-g queue=1GB'), ('1GB', '-g queue=1GB'),
        ('-', 'no option'), ('1GB', '-g off=1GB')]
    big, off = table['big:big'], table['off:off']
    used = float(big['RSS'][:-2]) / float(LIMIT[:-2])
    assert int(big['USED'][:-1]) == pytest.approx(100 * used, abs=1)
    assert (off['PID'], off['UPTIME'], off['RSS'], off['USED']) == ('-', 'STOPPED', '-', '-')
    after = supervisord.call('getAllProcessInfo')
    assert [info['pid'] for info in after] == [info['pid'] for info in before]


def test_bar_fills_the_terminal(supervisord: Supervisord) -> None:
    for columns in (100, 120):
        lines = check(supervisord, '-a', LIMIT, COLUMNS=str(columns)).stdout.splitlines()
        assert len(lines[1]) == columns and re.search(' #+$', lines[1])
        bars = [len(line.partition('#')[1] + line.partition('#')[2]) for line in lines]
        assert bars[1] > 2 * bars[2] > 0 == bars[5]
    assert '#' not in check(supervisord, '-a', LIMIT, COLUMNS='40').stdout


def test_check_without_limits_shows_all_by_rss(supervisord: Supervisord) -> None:
    status, stdout, stderr = check(supervisord)
    assert (status, stderr) == (0, '')
    names = list(read_table(stdout.splitlines()[:6]))
    assert (names[0], names[-1]) == ('big:big', 'off:off')
    assert sorted(names[1:-1]) == ['queue:queue_00', 'queue:queue_01', 'small:small']


def test_status_of_check_tells_whether_any_process_is_over(supervisord: Supervisord) -> None:
    assert check(supervisord, '-a', '1GB').status == 0
    assert check(supervisord, '-a', LIMIT).status == 1


def test_check_counts_the_tree_with_c(start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord(section('parent', '--child', stopasgroup='true'))
    wait_until(lambda: assert_equal(check(supervisord, '-c', '-a', LIMIT).status, 1))
    assert check(supervisord, '-a', LIMIT).status == 0


# How it finds supervisord.

def test_check_finds_supervisord_as_supervisorctl_does(start_supervisord: StartSupervisord
                                                       ) -> None:
    supervisord = start_supervisord(section('small', '--mb', '1'),
                                    server=UNIX_SERVER + PASSWORD + CLIENT + PASSWORD)
    supervisord.env = {}
    done = check(supervisord)
    assert (done.status, done.stderr) == (0, '')
    assert done.stdout.splitlines()[1].startswith('small:small ')


def test_check_asks_an_inet_server(start_supervisord: StartSupervisord) -> None:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    supervisord = start_supervisord(section('big', '--once', 'big') + memmon_section('-a', LIMIT),
                                    server=f'[inet_http_server]\nport=127.0.0.1:{port}\n')
    supervisord.env = {'SUPERVISOR_SERVER_URL': f'http://127.0.0.1:{port}'}
    pid, = supervisord.wait_big('big')
    assert check(supervisord, '-a', LIMIT).status == 1
    supervisord.start_memmon()
    supervisord.wait_new_pid('big', pid)


@pytest.mark.parametrize('conf, error', [
    ('[supervisord]\n',
     'supervisord.conf: .ini file does not include supervisorctl section; fix it, or set '
     'SUPERVISOR_SERVER_URL'),
    ('[supervisorctl]\nserverurl=unix:///nonexistent/s\n',
     'no such socket: unix:///nonexistent/s; is supervisord running, with a [unix_http_server] '
     'section? (the URL is that of supervisord.conf)'),
])
def test_check_names_a_configuration_that_does_not_help(conf: str, error: str, tmp_path: Path
                                                        ) -> None:
    (tmp_path / 'supervisord.conf').write_text(conf)
    assert_refused(run(MEMMON, '--check', cwd=tmp_path), error)


# Why it cannot look.

def test_check_names_the_variables_for_a_password(start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord(server=UNIX_SERVER + PASSWORD)
    assert_refused(check(supervisord), (
        f'supervisord at unix://{supervisord.socket} refused the user name or password: set '
        "SUPERVISOR_USERNAME and SUPERVISOR_PASSWORD in memmon's environment to those of its HTTP "
        'server'))


def test_check_names_a_missing_rpc_interface(start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord(interface='')
    assert_refused(check(supervisord), f'supervisord at unix://{supervisord.socket} has no '
                                       '[rpcinterface:supervisor] section: add it')


def test_check_names_the_settings_for_permission(start_supervisord: StartSupervisord) -> None:
    without_root: list[str] = []
    if os.getuid() == 0:
        if not shutil.which('setpriv'):
            pytest.skip('needs setpriv, from util-linux: root may use any socket')
        without_root = ['setpriv', '--bounding-set=-dac_override']
    supervisord = start_supervisord()
    supervisord.socket.chmod(0)
    done = run(*without_root, MEMMON, '--check', env=supervisord.env)
    assert_refused(done, f'no permission to use unix://{supervisord.socket}: see chmod and chown '
                         'in [unix_http_server]')


def test_check_names_a_missing_socket() -> None:
    assert_refused(run(MEMMON, '--check', env={'SUPERVISOR_SERVER_URL': 'unix:///nonexistent/s'}), (
        'no such socket: unix:///nonexistent/s; is supervisord running, with a '
        '[unix_http_server] section?'))


def test_check_names_a_socket_that_was_left_behind(start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord()
    supervisord.end()
    assert_refused(check(supervisord), f'nothing listens at unix://{supervisord.socket}; is '
                                       'supervisord running?')


@pytest.mark.parametrize('url', ['supervisor.sock', 'unix://', 'http://', 'http://[', 'ftp://x',
                                 'http://x:many'])
def test_check_names_a_url_that_cannot_work(url: str) -> None:
    assert_refused(run(MEMMON, '--check', env={'SUPERVISOR_SERVER_URL': url}), (
        f'the URL of supervisord is {url!r}: it must be unix://PATH or http://HOST:PORT'))


NO_SUPERVISORD = 'what answers at {url} is no supervisord: '


@pytest.mark.parametrize('answer, error', [
    (raw(b'HTTP/1.0 404 Not Found\r\n\r\n'), NO_SUPERVISORD + 'it says 404 Not Found'),
    (raw(b'HTTP/1.0 200 OK\r\n\r\nhello'), NO_SUPERVISORD + 'syntax error: line 1, column 0'),
    (raw(b'220 mail.example.com ESMTP\r\n'), NO_SUPERVISORD + '220 mail.example.com ESMTP'),
    (raw(b'HTTP/1.0 200 OK\r\n\r\n<methodResponse></methodResponse>'),
     NO_SUPERVISORD + 'ResponseError()'),
    (raw(b''), 'no answer from supervisord at {url}: Remote end closed connection without '
               'response'),
    (reply('many'), NO_SUPERVISORD + "its pid is 'many'"),
    (reply(xmlrpc.client.Fault(1, 'UNKNOWN_METHOD')),
     'supervisord at {url} has no [rpcinterface:supervisor] section: add it'),
    (reply(xmlrpc.client.Fault(6, 'SHUTDOWN_STATE')), 'supervisord is shutting down'),
    (reply(xmlrpc.client.Fault(99, 'first\nsecond')), 'first ... second'),
    (silence, 'no answer from supervisord at {url} within 10 seconds'),
    (dribble(http_response(7)), 'no answer from supervisord at {url} within 10 seconds'),
], ids=['404', 'no XML', 'no HTTP', 'no response', 'hang-up', 'wrong type', 'unknown method',
        'shutdown', 'fault', 'silence', 'dribble'])
def test_check_of_what_is_no_supervisord(answer: Answer, error: str,
                                         start_fake_server: StartFakeServer) -> None:
    server = start_fake_server(answer)
    assert_refused(run(MEMMON, '--check', env=server.env), error.format(url=server.url))


def without_start(infos: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: info[key] for key in info if key != 'start'} for info in infos]


@pytest.mark.parametrize('answer', [
    edit(without_start), reply(5), reply(['big']), reply([{}]), reply(None),
])
def test_check_of_a_supervisord_whose_processes_make_no_sense(
        answer: Answer, start_supervisord: StartSupervisord,
        start_fake_server: StartFakeServer) -> None:
    supervisord = start_supervisord(section('big', '--mb', '1'))
    server = start_fake_server(behind=supervisord.env,
                               answers={'supervisor.getAllProcessInfo': answer})
    status, stdout, stderr = run(MEMMON, '--check', env=server.env)
    assert (status, stdout, stderr.count('\n')) == (2, '', 1)
    assert stderr.startswith('memmon: ' + NO_SUPERVISORD.format(url=server.url))


def test_check_of_a_process_that_cannot_be_measured(
        start_supervisord: StartSupervisord, pid_namespaces: None) -> None:
    supervisord = start_supervisord(section('small', '--mb', '1'))
    supervisord.wait_up('small')
    done = run(*in_pid_namespace(MEMMON, '--check', '-a', '1GB'), env=supervisord.env)
    assert (done.status, done.stderr) == (2, '')
    assert 'cannot measure small:small: ' in done.stdout


def test_check_into_a_reader_that_goes_away_is_silent(supervisord: Supervisord) -> None:
    done = run('sh', '-c', f'{MEMMON} --check | true', cwd=supervisord.path)
    assert done == (0, '', '')


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs the /dev/full of Linux')
def test_check_onto_a_full_disk_has_status_2(supervisord: Supervisord) -> None:
    done = run('sh', '-c', f'{MEMMON} --check >/dev/full', cwd=supervisord.path)
    assert_refused(done, 'cannot write to stdout: No space left on device')
