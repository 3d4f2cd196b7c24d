"""What supervisord answers, and what is said when it does not."""

from __future__ import annotations

import socket
from typing import Any, Callable
from xmlrpc.client import Fault, ProtocolError

import pytest
from samples import STOPPED, process
from supervisor.xmlrpc import Faults

import memmon
from memmon import Server

INFO = {**process('web:worker')._asdict(), 'description': 'pid 7, uptime 0:12:05',
        'exitstatus': 0, 'logfile': '', 'stdout_logfile': '', 'stderr_logfile': ''}
STOPPED_INFO = {**INFO, 'pid': 0, 'state': STOPPED, 'statename': 'STOPPED', 'stop': 1725}
REFUSED = {'faultCode': 70, 'faultString': 'NOT_RUNNING: web:worker'}


def without(field: str) -> dict[str, Any]:
    return {name: value for name, value in INFO.items() if name != field}


def test_to_process() -> None:
    assert memmon.to_process(INFO) == process('web:worker')
    assert memmon.to_process(INFO).namespec == 'web:worker'


@pytest.mark.parametrize('info', [
    None, 5, [], 'web', {}, *[without(field) for field in memmon.PROCESS_FIELDS],
    *[{**INFO, field: None} for field in memmon.PROCESS_FIELDS],
    {**INFO, 'pid': '7'}, {**INFO, 'start': 1.5}, {**INFO, 'name': 7}, {**INFO, 'name': b'web'},
])
def test_to_process_refuses(info: object) -> None:
    with pytest.raises(ValueError) as error:
        memmon.to_process(info)
    assert str(error.value) == f'it describes a process as {str(info)[:100]!r}'


def test_to_pid() -> None:
    assert memmon.to_pid(7) == 7
    with pytest.raises(ValueError, match="^its pid is 'many'$"):
        memmon.to_pid('many')


def test_to_processes() -> None:
    assert memmon.to_processes([INFO, STOPPED_INFO]) == [
        process('web:worker'), process('web:worker', STOPPED, stop=1725)]
    assert memmon.to_processes([]) == []


def test_to_looks() -> None:
    assert memmon.to_looks([INFO, True, STOPPED_INFO]) == (
        process('web:worker'), process('web:worker', STOPPED, stop=1725))


@pytest.mark.parametrize('answers, code', [
    ([INFO, REFUSED, INFO], 70),                                     # no stop
    ([{'faultCode': 10, 'faultString': 'BAD_NAME'}, REFUSED, INFO], 10),  # not known any more
])
def test_to_looks_raises_a_refusal(answers: list[object], code: int) -> None:
    with pytest.raises(Fault) as error:
        memmon.to_looks(answers)
    assert error.value.faultCode == code


def test_to_looks_after_a_stop_without_a_look_is_no_refusal() -> None:
    """A Fault would mean that nothing was stopped."""
    with pytest.raises(ValueError):
        memmon.to_looks([INFO, True, REFUSED])


def test_to_known_leaves_out_what_is_not_known() -> None:
    assert memmon.to_known([INFO, REFUSED]) == [process('web:worker')]


@pytest.mark.parametrize('to_value, answer', [
    (memmon.to_processes, None), (memmon.to_processes, 5), (memmon.to_processes, {}),
    (memmon.to_processes, [None]), (memmon.to_processes, ['faultCode']),
    (memmon.to_known, None), (memmon.to_known, {}), (memmon.to_known, ['faultCode']),
    (memmon.to_looks, [None, None, None]), (memmon.to_looks, [INFO, True]),
    (memmon.to_looks, [INFO, True, {}]),
])
def test_answer_of_another_shape_is_an_error(
        to_value: Callable[[object], object], answer: object) -> None:
    with pytest.raises(ValueError):
        to_value(answer)


@pytest.mark.parametrize('url, shown', [
    ('unix:///run/supervisor.sock', 'unix:///run/supervisor.sock'),
    ('http://localhost:9001', 'http://localhost:9001'),
    ('http://bob:secret@localhost:9001', 'http://localhost:9001'),
    ('http://bob:s@cret@localhost:9001/a@b', 'http://localhost:9001/a@b'),
    ('http://:secret@localhost', 'http://localhost'),
    ('tcp://bob:secret@localhost', 'tcp://localhost'),
    ('unix:///run/a@b.sock', 'unix:///run/a@b.sock'),
])
def test_show_url_hides_the_password(url: str, shown: str) -> None:
    assert memmon.show_url(url) == shown


URL = 'http://bob:secret@localhost:9001'
AT = 'http://localhost:9001'


@pytest.mark.parametrize('error, why', [
    (Fault(Faults.SHUTDOWN_STATE, 'SHUTDOWN_STATE'), 'supervisord is shutting down'),
    (Fault(Faults.UNKNOWN_METHOD, 'UNKNOWN_METHOD'),
     f'supervisord at {AT} has no [rpcinterface:supervisor] section: add it'),
    (ProtocolError(AT, 401, 'Unauthorized', {}),
     f'supervisord at {AT} refused the user name or password: set SUPERVISOR_USERNAME and '
     "SUPERVISOR_PASSWORD in memmon's environment to those of its HTTP server"),
    (ProtocolError(AT, 502, 'Bad\nGateway', {}),
     f'what answers at {AT} is no supervisord: it says 502 Bad ... Gateway'),
    (FileNotFoundError(2, 'No such file'),
     f'no such socket: {AT}; is supervisord running, with a [unix_http_server] section?'),
    (PermissionError(13, 'Permission denied'),
     f'no permission to use {AT}: see chmod and chown in [unix_http_server]'),
    (ConnectionRefusedError(111, 'Connection refused'),
     f'nothing listens at {AT}; is supervisord running?'),
    (socket.timeout('timed out'), f'no answer from supervisord at {AT} within 10 seconds'),
    (ConnectionResetError('reset'), f'no answer from supervisord at {AT}: reset'),
    (socket.gaierror(-2, 'Name or service not known'),
     f'no answer from supervisord at {AT}: [Errno -2] Name or service not known'),
    (OSError('AF_UNIX path too long'),
     f'no answer from supervisord at {AT}: AF_UNIX path too long'),
    (MemoryError(), f'no answer from supervisord at {AT}: MemoryError'),
    (ValueError("its pid is 'many'"),
     f"what answers at {AT} is no supervisord: its pid is 'many'"),
    (RecursionError(), f'what answers at {AT} is no supervisord: RecursionError'),
])
def test_explain(error: Exception, why: str) -> None:
    assert memmon.explain(error, URL) == why


ENV = {'SUPERVISOR_SERVER_URL': 'unix:///s', 'SUPERVISOR_USERNAME': 'bob',
       'SUPERVISOR_PASSWORD': 'secret'}


@pytest.mark.parametrize('env, server', [
    (ENV, Server('unix:///s', 'bob', 'secret')),
    ({'SUPERVISOR_SERVER_URL': 'unix:///s'}, Server('unix:///s')),
    ({'SUPERVISOR_SERVER_URL': 'unix://relative/s'}, Server('unix://relative/s')),
    ({'SUPERVISOR_SERVER_URL': 'http://127.0.0.1:9001'}, Server('http://127.0.0.1:9001')),
    ({'SUPERVISOR_SERVER_URL': 'http://[::1]:9001/x'}, Server('http://[::1]:9001/x')),
    ({'SUPERVISOR_SERVER_URL': 'http://localhost'}, Server('http://localhost')),
])
def test_parse_server(env: dict[str, str], server: Server) -> None:
    assert memmon.parse_server(env) == server


@pytest.mark.parametrize('url, shown', [
    ('', ''),
    ('supervisor.sock', 'supervisor.sock'),
    ('/run/supervisor.sock', '/run/supervisor.sock'),
    ('unix://', 'unix://'),
    ('unix:/run/s', 'unix:/run/s'),
    ('http://', 'http://'),
    ('http://:9001', 'http://:9001'),
    ('http://[', 'http://['),
    ('http://localhost:many', 'http://localhost:many'),
    ('http://localhost:65536', 'http://localhost:65536'),
    ('https://localhost', 'https://localhost'),  # supervisord has none
    ('tcp://bob:secret@localhost', 'tcp://localhost'),
])
def test_parse_server_refuses(url: str, shown: str) -> None:
    with pytest.raises(memmon.UsageError) as error:
        memmon.parse_server({'SUPERVISOR_SERVER_URL': url})
    assert str(error.value) == (f'the URL of supervisord is {shown!r}: it must be unix://PATH or '
                                'http://HOST:PORT')
