"""The example for Prometheus: its rules by promtool, and all of it with the real programs."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from harness import BIN, children_of, is_running

EXAMPLE = Path(__file__).parent.parent / 'examples' / 'prometheus'
RULES = EXAMPLE / 'rules.yml'

needs_promtool = pytest.mark.skipif(
    not shutil.which('promtool'), reason="needs promtool, of Debian's package prometheus")


def missing() -> list[str]:
    """Name what the example needs and is not there."""
    programs = [name for name in ('prometheus', 'prometheus-node-exporter')
                if not shutil.which(name)]
    packages = [name for name in ('prometheus_client',) if not importlib.util.find_spec(name)]
    return programs + packages


@needs_promtool
@pytest.mark.parametrize('args', [
    ['check', 'rules', 'rules.yml'],
    ['check', 'config', 'prometheus.yml'],
    ['test', 'rules', 'rules_test.yml'],
], ids=' '.join)
def test_promtool_accepts(args: list[str]) -> None:
    done = subprocess.run(['promtool', *args], cwd=EXAMPLE, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, check=False)
    assert (done.returncode, 'SUCCESS' in done.stdout.decode()) == (0, True), done.stdout.decode()


def alerts() -> list[str]:
    return re.findall(r'^ +- alert: (\w+)$', RULES.read_text(), re.M)


@pytest.mark.parametrize('alert', alerts())
def test_rules_test_lets_each_alert_fire_and_not_fire(alert: str) -> None:
    tests = (EXAMPLE / 'rules_test.yml').read_text()
    expected = re.findall(rf'- alertname: {alert}\n +eval_time: \S+\n +exp_alerts:(.*)\n', tests)
    assert {value == ' []' for value in expected} == {True, False}


def wait_seen(look: Callable[[], Any], accept: Callable[[Any], object], secs: float) -> Any:
    """Look until what is seen is accepted; return it. Fail with what was seen last."""
    deadline = time.monotonic() + secs
    seen: Any = 'nothing'
    while time.monotonic() < deadline:
        try:
            seen = look()
        except (OSError, http.client.HTTPException) as error:  # it does not listen yet
            seen = error
        else:
            if accept(seen):
                return seen
        time.sleep(0.2)
    raise AssertionError(f'after {secs} seconds, the last that was seen is {seen!r}')


def get(port: int, path: str) -> str:
    # http.client, for urllib would ask a proxy of the environment.
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=5)
    try:
        connection.request('GET', path)
        response = connection.getresponse()
        body = response.read().decode()
    finally:
        connection.close()
    if response.status != 200:
        raise http.client.HTTPException(f'{response.status} {body}')
    return body


def query(port: int, promql: str) -> list[tuple[dict[str, str], float]]:
    """Ask Prometheus; return each series as its labels and its value."""
    answer = json.loads(get(port, '/api/v1/query?' + urllib.parse.urlencode({'query': promql})))
    return [(series['metric'], float(series['value'][1])) for series in answer['data']['result']]


def firing(port: int) -> list[tuple[str, str]]:
    """Ask Prometheus for the alerts that fire; return the name and the summary of each."""
    answer = json.loads(get(port, '/api/v1/alerts'))
    return [(alert['labels']['alertname'], alert['annotations']['summary'])
            for alert in answer['data']['alerts'] if alert['state'] == 'firing']


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(('127.0.0.1', 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def copy_example(path: Path, changes: dict[str, str]) -> Path:
    """Copy the example; return its supervisord.conf. Each change has to change something."""
    conf = path / 'examples' / 'prometheus' / 'supervisord.conf'
    conf.parent.mkdir(parents=True)
    shutil.copy(EXAMPLE.parent / 'leak.py', path / 'examples')
    texts = {name: (EXAMPLE / name).read_text()
             for name in ('supervisord.conf', 'prometheus.yml', 'rules.yml')}
    for old, new in changes.items():
        assert any(old in text for text in texts.values()), old
        texts = {name: text.replace(old, new) for name, text in texts.items()}
    for name, text in texts.items():
        (conf.parent / name).write_text(text)
    return conf


def end(supervisord: subprocess.Popen[bytes]) -> None:
    """End supervisord, as Ctrl-C does, and whatever it leaves."""
    supervisord.send_signal(signal.SIGINT)
    try:
        assert supervisord.wait(30) == 0
    finally:
        for child in children_of(supervisord.pid):
            os.kill(child, signal.SIGKILL)
        supervisord.kill()
        supervisord.wait()


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Run a copy of the example; give the ports of its node_exporter and its Prometheus."""
    node_exporter, prometheus = free_ports(2)
    (tmp_path / 'd').mkdir()
    conf = copy_example(tmp_path, {
        '/tmp/memmon-prometheus': str(tmp_path / 'd'),
        '127.0.0.1:19100': f'127.0.0.1:{node_exporter}',
        '127.0.0.1:19090': f'127.0.0.1:{prometheus}',
        'restarts_total[1h])) > 3': 'restarts_total[1h])) > 0',  # the fourth is long in coming
    })
    console = tmp_path / 'console'
    with console.open('ab') as output:
        supervisord = subprocess.Popen(
            [BIN / 'supervisord', '-c', conf], stdout=output, stderr=output,
            env={**os.environ, 'PATH': f'{BIN}:{os.environ["PATH"]}'})
    try:
        yield node_exporter, prometheus
    finally:
        children = children_of(supervisord.pid)
        end(supervisord)
        print(console.read_text())  # pytest shows it with a test that failed
    assert [child for child in children if is_running(child)] == []


@pytest.mark.waits
@pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}")
def test_example_shows_the_restart_and_an_alert(ports: tuple[int, int]) -> None:
    node_exporter, prometheus = ports
    counter = 'memmon_process_restarts_total{group="leak",process="leak"}'
    wait_seen(lambda: get(node_exporter, '/metrics'), lambda text: counter in text, secs=30)
    [(labels, _)] = wait_seen(lambda: query(prometheus, f'{counter} > 0'), bool, secs=40)
    assert labels == {'__name__': 'memmon_process_restarts_total', 'group': 'leak',
                      'process': 'leak', 'job': 'memmon', 'instance': f'127.0.0.1:{node_exporter}'}
    alert = ('MemmonRestartsTooOften',
             f'leak:leak on 127.0.0.1:{node_exporter} is restarted too often')
    wait_seen(lambda: firing(prometheus), lambda alerts: alert in alerts, secs=20)
