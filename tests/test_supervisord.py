"""What supervisord answers, and what is said when it does not."""

from __future__ import annotations

import gc
import logging
import math
import re
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable
from urllib.parse import urlsplit
from xmlrpc.client import Fault, ProtocolError

import pytest
from fake_server import Answer, Rules, StartFakeServer, dribble, lose, raw, reply, silence
from harness import (LIMIT, MEMMON, PASSWORD, TINY, UNIX_SERVER, StartListener, StartSupervisord,
                     run, section, sleeper)
from supervisor.states import ProcessStates
from supervisor.xmlrpc import Faults

import memmon
from memmon import Process, Server

INFO = {'group': 'web', 'name': 'worker', 'pid': 7, 'start': 1000, 'stop': 0, 'now': 1725,
        'state': ProcessStates.RUNNING, 'statename': 'RUNNING', 'spawnerr': '', 'exitstatus': 0,
        'description': 'pid 7, uptime 0:12:05', 'logfile': '', 'stdout_logfile': ''}
WORKER = Process('web', 'worker', 7, 1000, 0, 1725, ProcessStates.RUNNING, 'RUNNING', '', 0)
NOT_RUNNING = {'faultCode': 70, 'faultString': 'NOT_RUNNING: web:worker'}


# A process.

def test_process_is_made_of_what_supervisord_answers() -> None:
    assert memmon.to_process(INFO) == WORKER
    assert (WORKER.namespec, WORKER.run) == ('web:worker', (7, 1000))


@pytest.mark.parametrize('info', [
    None, 5, [], 'web', {}, {**INFO, 'start': {}}, {**INFO, 'start': math.inf},
    {**INFO, 'pid': math.nan},
    *({name: value for name, value in INFO.items() if name != field}
      for field in Process._fields)])
def test_process_is_not_made_of_anything_else(info: object, start_fake_server: StartFakeServer
                                              ) -> None:
    with pytest.raises(memmon.SupervisordError, match='^the server at http://127.0.0.1:[0-9]+ is '
                                                      'not supervisord: '):
        Server(start_fake_server(reply(info)).url).process('web:worker')


@pytest.mark.parametrize('answer, why', [
    (7.5, "it answers 7.5"), ('many\nlines', 'it answers many ... lines'),
    ([None] * 100, f'it answers {str([None] * 100)[:100]}'),
])
def test_odd_answer_is_shown(answer: object, why: str, start_fake_server: StartFakeServer) -> None:
    with pytest.raises(memmon.SupervisordError, match=f'{re.escape(why)}$'):
        Server(start_fake_server(reply(answer)).url).process('web:worker')


# Why it does not answer.

@pytest.mark.parametrize('url, shown', [
    ('unix:///run/supervisor.sock', 'unix:///run/supervisor.sock'),
    ('http://localhost:9001', 'http://localhost:9001'),
    ('http://bob:secret@localhost:9001', 'http://localhost:9001'),
    ('http://bob:s/ecret@localhost:9001', 'http://localhost:9001'),
    ('unix:///srv/a@b.sock', 'unix:///srv/a@b.sock'),
    ('http://:secret@localhost', 'http://localhost'),
    ('tcp://bob:secret@localhost', 'tcp://localhost'),
    ('bob:secret@localhost:9001', 'localhost:9001'), ('bob:s//ecret@localhost', 'localhost'),
    ('http:bob:secret@localhost', 'localhost'),
    ('http://bob:sec\nret@localhost', 'http://localhost'),
    ('http://local\x1b[31mhost', r'http://local\x1b[31mhost'),
])
def test_url_is_shown_without_password_and_escapes(url: str, shown: str) -> None:
    assert memmon.show_url(url) == shown


URL = 'http://bob:secret@localhost:9001'
AT = 'http://localhost:9001'


@pytest.mark.parametrize('error, why', [
    (ProtocolError(AT, 401, 'Unauthorized', {}),
     f'supervisord at {AT} refused the user name or password: set SUPERVISOR_USERNAME and '
     "SUPERVISOR_PASSWORD in memmon's environment to those of its HTTP server"),
    (ProtocolError(AT, 502, 'Bad\nGateway\x1b', {}),
     f'the server at {AT} is not supervisord: HTTP 502 Bad ... Gateway\\x1b'),
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
    (MemoryError(), f'no answer from supervisord at {AT}: MemoryError'),
    (ValueError("its pid is 'many'"),
     f"the server at {AT} is not supervisord: its pid is 'many'"),
    ('b\udce9'.encode, f'the user name or password for {AT} is not UTF-8: '
     "'utf-8' codec can't encode character '\\udce9' in position 1: surrogates not allowed"),
    (RecursionError(), f'the server at {AT} is not supervisord: RecursionError'),
])
def test_failure_of_a_call_is_one_line_that_says_what_to_do(
        error: Exception | Callable[[], object], why: str) -> None:
    if callable(error):
        with pytest.raises(UnicodeEncodeError) as raised:
            error()
        error = raised.value
    explained = memmon.explain(error, URL)
    assert (type(explained), str(explained)) == (memmon.SupervisordError, why)


@pytest.mark.parametrize('code, kind, why', [
    (Faults.SHUTDOWN_STATE, memmon.ShuttingDown, 'supervisord is shutting down'),
    (Faults.UNKNOWN_METHOD, memmon.SupervisordError,
     f'supervisord at {AT} has no [rpcinterface:supervisor] section: add it'),
    (Faults.BAD_NAME, Fault, "<Fault 10: 'why'>"),
])
def test_fault_is_an_answer_but_for_two(code: int, kind: type[Exception], why: str) -> None:
    error = memmon.explain(Fault(code, 'why'), URL)
    assert (type(error), str(error)) == (kind, why)


ENV = {'SUPERVISOR_SERVER_URL': 'unix:///s', 'SUPERVISOR_USERNAME': 'bob',
       'SUPERVISOR_PASSWORD': 'secret'}


@pytest.mark.parametrize('env, server', [
    (ENV, Server('unix:///s', 'bob', 'secret')),
    ({'SUPERVISOR_SERVER_URL': 'unix://relative/s'}, Server('unix://relative/s')),
    ({'SUPERVISOR_SERVER_URL': 'http://127.0.0.1:9001'}, Server('http://127.0.0.1:9001')),
    ({'SUPERVISOR_SERVER_URL': 'http://[::1]:9001/x'}, Server('http://[::1]:9001/x')),
])
def test_server_is_the_one_of_the_environment(env: dict[str, str], server: Server) -> None:
    assert memmon.find_server(env) == server


@pytest.mark.parametrize('url, shown', [
    ('', ''), ('supervisor.sock', 'supervisor.sock'), ('unix://', 'unix://'),
    ('unix:/run/s', 'unix:/run/s'), ('http://', 'http://'), ('http://:9001', 'http://:9001'),
    ('http://[', 'http://['), ('http://localhost:many', 'http://localhost:many'),
    ('http://localhost:65536', 'http://localhost:65536'),
    ('http://localhost:0', 'http://localhost:0'),
    ('https://localhost', 'https://localhost'),  # supervisord has none
    ('tcp://bob:secret@localhost', 'tcp://localhost'),
])
def test_url_that_is_none_of_supervisord_is_refused(url: str, shown: str) -> None:
    with pytest.raises(memmon.UsageError) as error:
        memmon.find_server({'SUPERVISOR_SERVER_URL': url})
    assert str(error.value) == (f'the URL of supervisord is {shown!r}: it must be unix://PATH or '
                                'http://HOST:PORT')


@pytest.mark.parametrize('env, why', [
    ({}, 'memmon is a supervisor event listener, to be started by supervisord '),
    ({'SUPERVISOR_ENABLED': '1'}, 'supervisord has no RPC server for memmon to call: add '),
])
def test_without_a_url_it_is_said_what_is_missing(env: dict[str, str], why: str) -> None:
    with pytest.raises(memmon.UsageError, match=f'^{why}'):
        memmon.find_server(env)


# Answers of a server that a test makes.

def http(body: bytes) -> Answer:
    """Answer with the body of a response."""
    return raw(b'HTTP/1.0 200 OK\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n%b'
               % (len(body), body))


NO_SUPERVISORD: dict[str, Answer] = {
    'hang up': raw(b''),
    'no HTTP': raw(b'nothing like HTTP\r\n\r\n'),
    'status 500': raw(b'HTTP/1.0 500 Internal Server Error\r\n\r\n'),
    'no body': http(b''),
    'HTML': http(b'<html>\n<body>it works</body>\n</html>'),
    'bytes': http(b'\xff\xfe\x00' * 1000),
    'no answer': http(b'<methodResponse><params></params></methodResponse>'),
}
ODD_ANSWERS: dict[str, Answer] = {
    'nothing': reply(None), 'text': reply('text'), 'a list': reply([7]), 'a dict': reply([{}]),
    'half a process': reply([{'name': 'a', 'group': 'a', 'pid': 1}]),
}


def open_connections(server: Server) -> list[object]:
    """Return the sockets that are connected to a server."""
    gc.collect()
    return [each for each in gc.get_objects() if isinstance(each, socket.socket)
            and each.fileno() >= 0 and is_connected(each, server)]


def is_connected(each: socket.socket, server: Server) -> bool:
    with suppress(OSError):
        return str(each.getpeername()[1:2]) == f'({urlsplit(server.url).port},)'
    return False


def failure_of(server: Server) -> str:
    """Return how a call fails."""
    with pytest.raises(memmon.SupervisordError) as error:
        server.processes()
    return str(error.value)


@pytest.mark.parametrize('answer', [*NO_SUPERVISORD.values(), *ODD_ANSWERS.values()],
                         ids=[*NO_SUPERVISORD, *ODD_ANSWERS])
def test_odd_answer_is_one_line(answer: Answer, start_fake_server: StartFakeServer) -> None:
    server = Server(start_fake_server(answer).url)
    line = failure_of(server)
    assert line and '\n' not in line
    assert open_connections(server) == []


def test_mistake_in_the_own_code_is_not_hidden(start_fake_server: StartFakeServer) -> None:
    server = Server(start_fake_server(reply(True)).url)
    with pytest.raises(TypeError):
        server.start()  # type: ignore[call-arg]


def test_mistake_within_a_call_has_a_traceback_with_v(
        monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr('supervisor.childutils.getRPCInterface', lambda env: env.missing)
    caplog.set_level(logging.DEBUG)
    with pytest.raises(memmon.SupervisordError):
        Server('unix:///nonexistent/s').pid()
    assert [bool(record.exc_info) for record in caplog.records] == [True]
    caplog.clear()
    monkeypatch.undo()
    with pytest.raises(memmon.SupervisordError):
        Server('unix:///nonexistent/s').pid()
    assert caplog.records == []


@pytest.mark.parametrize('answer', [
    silence, dribble(b'HTTP/1.0 200 OK\r\n' + b'X: x\r\n' * 99, 0.2),
    dribble(b'HTTP/1.0 200 OK\r\nContent-Length: 999\r\n\r\n' + b' ' * 999, 0.2),
], ids=['silence', 'headers dribble', 'the body dribbles'])
def test_a_call_ends_in_time_however_slowly_the_answer_comes(
        answer: Answer, start_fake_server: StartFakeServer, monkeypatch: pytest.MonkeyPatch
        ) -> None:
    monkeypatch.setattr(memmon, 'RPC_TIMEOUT_SECS', 1)
    server = Server(start_fake_server(answer).url)
    began = time.monotonic()
    assert failure_of(server).endswith(' within 10 seconds')
    assert 0.9 < time.monotonic() - began < 8
    assert open_connections(server) == []


def test_a_call_ends_in_time_though_a_host_has_several_addresses(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one gives no answer, the next is tried: the first signal ends only that."""
    monkeypatch.setattr(memmon, 'RPC_TIMEOUT_SECS', 1)
    tries: list[object] = []

    def connect(self: socket.socket, address: object) -> None:
        tries.append(address)
        time.sleep(20)
    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, '', ('127.0.0.1', 1))] * 2
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_: addresses)
    monkeypatch.setattr(socket.socket, 'connect', connect)
    began = time.monotonic()
    assert failure_of(Server('http://twofold:1')).endswith(' within 10 seconds')
    assert time.monotonic() - began < 8 and len(tries) == 2


def test_time_limit_ends_with_the_call(start_fake_server: StartFakeServer) -> None:
    assert Server(start_fake_server(reply(7)).url).pid() == 7
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_connection_to_a_full_backlog_ends_in_time(tmp_path: Path) -> None:
    """As to a supervisord that hangs, and that many have asked already."""
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as other:
        listening.bind(str(tmp_path / 's'))
        listening.listen(0)
        other.connect(str(tmp_path / 's'))
        done = run(MEMMON, '--check', '-a', '1GB',
                   env={'SUPERVISOR_SERVER_URL': f'unix://{tmp_path}/s'})
    assert done.status == 2 and 'no answer from supervisord at ' in done.stderr + done.stdout


def test_stop_returns_what_was_stopped(start_fake_server: StartFakeServer) -> None:
    fake = start_fake_server(reply([INFO, True]))
    assert Server(fake.url).stop('web:worker').pid == 7
    (method, (calls,)), = fake.calls
    assert method == 'system.multicall'
    assert [call['methodName'] for call in calls] == [
        'supervisor.getProcessInfo', 'supervisor.stopProcess']
    assert calls[1]['params'] == ['web:worker', False]  # with wait it would take its time


@pytest.mark.parametrize('answers, kind', [
    ([INFO, NOT_RUNNING], Fault),
    ([{'faultCode': 10, 'faultString': 'BAD_NAME'}, NOT_RUNNING], Fault),
    ([{'faultCode': 10, 'faultString': 'BAD_NAME'}, True], Fault),
    ([INFO, {'faultCode': 6, 'faultString': 'SHUTDOWN_STATE'}], memmon.ShuttingDown),
    ([INFO], memmon.SupervisordError),
    ([INFO, True, INFO], memmon.SupervisordError),
    ([None, None], memmon.SupervisordError),
    (None, memmon.SupervisordError),
])
def test_stop_that_was_refused_is_an_error(
        answers: Any, kind: type[Exception], start_fake_server: StartFakeServer) -> None:
    with pytest.raises(kind):
        Server(start_fake_server(reply(answers)).url).stop('web:worker')


def test_start_does_not_wait(start_fake_server: StartFakeServer) -> None:
    fake = start_fake_server(reply(True))
    Server(fake.url).start('web:worker')
    assert fake.calls == [('supervisor.startProcess', ('web:worker', False))]


@pytest.mark.parametrize('answer', [reply(Fault(1, 'UNKNOWN_METHOD')), reply(None), reply([7]),
                                    reply([{'name': 'a'}])])
def test_without_configurations_there_are_none(
        answer: Answer, start_fake_server: StartFakeServer) -> None:
    """supervisord before 4.1 has no getAllConfigInfo."""
    server = Server(start_fake_server(answer).url)
    assert server.configs() == {}


# The same, met by a listener.

SOCKET_AWAY = ('ERROR memmon: tick skipped: no such socket: {url}; is supervisord running, with a '
               '[unix_http_server] section?')


def test_tick_without_a_socket_is_lost_and_the_next_one_is_not(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(section('big', '--once', 'big'))
    pid, = supervisord.wait_big('big')
    listener = start_listener(supervisord, '-a', LIMIT)
    supervisord.hide_socket()
    listener.send()
    url = supervisord.env['SUPERVISOR_SERVER_URL']
    assert listener.messages()[-1] == SOCKET_AWAY.format(url=url)
    supervisord.show_socket()
    listener.send()
    supervisord.wait_new_pid('big', pid)


def test_password_is_the_one_of_the_environment(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(sleeper('big'), server=UNIX_SERVER + PASSWORD)
    supervisord.env.update(SUPERVISOR_USERNAME='bob', SUPERVISOR_PASSWORD='secret')
    supervisord.wait_up('big')
    for password, answer in [
            ('guess', 'refused the user name or password: set SUPERVISOR_USERNAME and '),
            ('secret', ' restarted big:big: ')]:
        listener = start_listener(supervisord, '-a', TINY, SUPERVISOR_PASSWORD=password)
        listener.send()
        listener.wait_log(answer)
        assert password not in listener.log()


def test_server_without_the_interface_is_told_what_to_add(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord('', interface='')
    listener = start_listener(supervisord, '-a', TINY)
    listener.send()
    assert listener.messages()[-1].endswith(' has no [rpcinterface:supervisor] section: add it')


@pytest.mark.parametrize('method', ['getPID', 'getAllProcessInfo'])
def test_odd_answer_costs_one_tick_and_one_line(
        method: str, start_supervisord: StartSupervisord, start_listener: StartListener,
        start_fake_server: StartFakeServer) -> None:
    supervisord = start_supervisord(sleeper('big'))
    pid, = supervisord.wait_up('big')
    rules = Rules()
    rules.at('getPID', '', reply([]))  # to the first try, before any tick
    listener = start_listener(start_fake_server(rules, supervisord.env), '-a', TINY)
    listener.wait_ready()
    if method == 'getAllProcessInfo':
        rules.at('getAllProcessInfo', '', reply(Fault(Faults.FAILED, 'one')))
        listener.send()
    for name, answer in {**NO_SUPERVISORD, **ODD_ANSWERS}.items():
        count = len(listener.messages())
        rules.at(method, '', answer)
        listener.send()
        said = listener.messages()[count:]
        assert len(said) == 1 and said[0].startswith('ERROR memmon: '), (name, said)
    listener.send()
    supervisord.wait_new_pid('big', pid)
    assert 'Traceback' not in listener.log()


IN_A_RESTART = [raw(b''), reply(None), reply([{'name': 'a'}]), lose,
                reply(Fault(Faults.FAILED, 'line 1\nline 2'))]


def test_odd_answer_in_a_restart_loses_no_program(
        start_supervisord: StartSupervisord, start_listener: StartListener,
        start_fake_server: StartFakeServer) -> None:
    answers = {f'{method}-{letter}': (method, answer)
               for method in ('getProcessInfo', 'stopProcess', 'startProcess')
               for letter, answer in zip('abcde', IN_A_RESTART)}
    supervisord = start_supervisord(''.join(map(sleeper, answers)))
    supervisord.wait_up(*answers)
    rules = Rules()
    for name, (method, answer) in answers.items():
        rules.at(method, f'{name}:{name}', answer)
    # It takes a request for lost when its answer has not come by then.
    listener = start_listener(start_fake_server(rules, supervisord.env), '-a', TINY,
                              constants={'RPC_TIMEOUT_SECS': 3})
    listener.send()
    listener.wait_idle(90)
    assert supervisord.states() == dict.fromkeys(answers, 'RUNNING')
    assert not rules.rules  # each was used
    assert 'Traceback' not in listener.log() and 'a worker failed' not in listener.log()
    assert 'failed to start' not in listener.log()  # one refusal is a hiccup
    for name in answers:
        listener.assert_log(f' {name}:{name}: ')
