"""XML-RPC for tests: calls that end in time, and a server that answers as a test tells it."""

from __future__ import annotations

import base64
import functools
import http.client
import select
import socket
import sys
import threading
import time
import xmlrpc.client
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any, Callable, Mapping, NamedTuple
from urllib.parse import urlsplit

RPC_SECS = 30  # a limit that no answer of a healthy server comes near


class UnixConnection(http.client.HTTPConnection):
    """An HTTP connection through a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__('localhost', timeout=RPC_SECS)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def post(env: Mapping[str, str], request: bytes) -> bytes:
    """Send a request to the supervisord that an environment names; return its response."""
    url = env['SUPERVISOR_SERVER_URL']
    login = f"{env.get('SUPERVISOR_USERNAME', '')}:{env.get('SUPERVISOR_PASSWORD', '')}"
    connection = (UnixConnection(url[len('unix://'):]) if url.startswith('unix://')
                  else http.client.HTTPConnection(urlsplit(url).netloc, timeout=RPC_SECS))
    try:
        connection.request('POST', '/RPC2', request, {
            'Content-Type': 'text/xml',
            'Authorization': 'Basic ' + base64.b64encode(login.encode()).decode()})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f'{url} answers {response.status} {response.reason}')
        return response.read()
    finally:
        connection.close()


def call(env: Mapping[str, str], method: str, *args: Any) -> Any:
    """Call a method of the supervisord that an environment names. Raises xmlrpc.client.Fault."""
    (answer,), _ = xmlrpc.client.loads(post(env, xmlrpc.client.dumps(args, method).encode()))
    return answer


# A server that answers as a test tells it.

class Exchange(NamedTuple):
    """A request to a FakeServer, and what is needed to answer it."""

    method: str
    params: tuple[Any, ...]
    request: bytes
    connection: socket.socket
    server: FakeServer

    def send(self, answer: Any) -> None:
        """Send an answer, a Fault being one of them."""
        self.connection.sendall(http_response(answer))

    def wait_hang_up(self, secs: float) -> bool:
        """Wait until the client hangs up, or the test ends; tell whether it did in time."""
        deadline = time.monotonic() + secs
        while time.monotonic() < deadline:
            if self.server.is_ending.is_set() or select.select([self.connection], [], [], 0.05)[0]:
                return True
        return False


def http_response(answer: Any) -> bytes:
    """Return the response with an answer, as an XML-RPC server sends it."""
    packed = answer if isinstance(answer, xmlrpc.client.Fault) else (answer,)
    body = xmlrpc.client.dumps(packed, methodresponse=True, allow_none=True).encode()
    return b'HTTP/1.0 200 OK\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n' % len(
        body) + body


Answer = Callable[[Exchange], object]


def reply(answer: Any) -> Answer:
    """Answer with a value or a Fault."""
    return lambda exchange: exchange.send(answer)


def raw(data: bytes) -> Answer:
    """Send bytes as they are, and hang up; none at all: just hang up."""
    return lambda exchange: exchange.connection.sendall(data)


def dribble(data: bytes, secs: float = 1) -> Answer:
    """Send one byte each so many seconds until the client hangs up."""
    return functools.partial(send_slowly, data, secs)


def send_slowly(data: bytes, secs: float, exchange: Exchange) -> None:
    for i in range(len(data)):
        exchange.connection.sendall(data[i:i + 1])
        if exchange.wait_hang_up(secs):
            break


def silence(exchange: Exchange) -> None:
    """Answer nothing until the client hangs up."""
    exchange.wait_hang_up(RPC_SECS)


def forward(exchange: Exchange) -> None:
    """Answer as the supervisord behind does."""
    exchange.send(exchange.server.ask_behind(exchange.request))


def lose(exchange: Exchange) -> None:
    """Pass the call on to the supervisord behind, but lose the answer."""
    exchange.server.ask_behind(exchange.request)


def edit(change: Callable[[Any], Any]) -> Answer:
    """Answer with a changed answer of the supervisord behind."""
    return lambda exchange: exchange.send(change(exchange.server.ask_behind(exchange.request)))


class Rules:
    """The default answer of a FakeServer: forward, with exceptions for a process and a method.

    The calls in a system.multicall count as those that they are.
    """

    def __init__(self) -> None:
        self.rules: dict[tuple[str, str], Answer] = {}
        self.calls: list[str] = []

    def at(self, method: str, name: str, rule: Answer) -> None:
        """Have a rule answer the next call of a method for a process; it is used once."""
        self.rules[f'supervisor.{method}', name] = rule

    def __call__(self, exchange: Exchange) -> None:
        calls = [(exchange.method, exchange.params)]
        if exchange.method == 'system.multicall':
            calls = [(call['methodName'], call['params']) for call in exchange.params[0]]
        self.calls += [method for method, _ in calls]
        for method, params in calls:
            rule = self.rules.pop((method, str(params[0]) if params else ''), None)
            if rule:
                rule(exchange)
                return
        forward(exchange)

    def count(self, method: str) -> int:
        """Return how often a method was called."""
        return self.calls.count(f'supervisor.{method}')


def first(act: Callable[[], object]) -> Answer:
    """Do something before supervisord hears of the call."""
    def answer(exchange: Exchange) -> None:
        act()
        forward(exchange)
    return answer


def outdated_by(act: Callable[[], object]) -> Answer:
    """Do something between supervisord's answer and its arrival."""
    def answer(exchange: Exchange) -> None:
        response = exchange.server.ask_behind(exchange.request)
        act()
        exchange.send(response)
    return answer


class Handler(BaseHTTPRequestHandler):
    """One connection to a FakeServer."""

    server: FakeServer
    timeout = RPC_SECS

    def do_POST(self) -> None:
        request = self.rfile.read(int(self.headers['Content-Length']))
        params, method = xmlrpc.client.loads(request)
        self.server.calls.append((str(method), params))
        answer = self.server.answers.get(str(method), self.server.default)
        answer(Exchange(str(method), params, request, self.connection, self.server))
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class FakeServer(ThreadingTCPServer):
    """A server that answers each method as answers says, and all others by the default.

    Answers may be changed while it runs. The default passes calls on to the supervisord that an
    environment names. Each call is kept in calls, as its method and its parameters.
    """

    def __init__(self, default: Answer = forward, behind: Mapping[str, str] | None = None,
                 answers: Mapping[str, Answer] | None = None) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.default = default
        self.behind = behind or {}
        self.answers = dict(answers or {})
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.errors: list[BaseException | None] = []
        self.is_ending = threading.Event()
        self.url = f'http://127.0.0.1:{self.server_address[1]}'
        self.env = {'SUPERVISOR_SERVER_URL': self.url}
        self.thread = threading.Thread(target=self.serve_forever, args=(0.05,))
        self.thread.start()

    def ask_behind(self, request: bytes) -> Any:
        """Return the answer of the supervisord behind, which may be a Fault."""
        try:
            (answer,), _ = xmlrpc.client.loads(post(self.behind, request))
            return answer
        except xmlrpc.client.Fault as fault:
            return fault

    def methods(self) -> list[str]:
        """Return the methods that were called, in order."""
        return [method for method, _ in self.calls]

    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, socket.timeout)):  # the client hung up
            self.errors.append(error)

    def end(self) -> None:
        """End the server; fail if it could not do what it was told."""
        self.is_ending.set()
        self.shutdown()
        self.thread.join(RPC_SECS)
        self.server_close()  # joins the threads of the connections, which is_ending ends
        assert not self.errors, self.errors


StartFakeServer = Callable[..., FakeServer]
