"""The demo's server, over real connections."""

import asyncio
import base64
import concurrent.futures
import http.client
import io
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import numpy as np
from PIL import Image
from PIL import ImageDraw
import pytest
import uvicorn

from digitnet import imaging
from digitnet.demo import server
from digitnet.demo.reader import Busy
from digitnet.demo.reader import Reader
from digitnet.predict import Predictor
from tests.conftest import ROOT


@pytest.fixture(scope='module')
def predictors(train_tiny):
  return {f'run{n}': Predictor(str(train_tiny(f'{n} steps'))) for n in (4, 6)}


@pytest.fixture(scope='module')
def site(predictors):
  """The port of a running server."""
  reader = Reader(predictors)
  with socket.create_server(('127.0.0.1', 0)) as listener:
    running = uvicorn.Server(
        uvicorn.Config(server.make_app(reader), log_level='error', lifespan='on')
    )
    thread = threading.Thread(target=running.run, kwargs={'sockets': [listener]})
    thread.start()
    yield listener.getsockname()[1]
    running.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


def _ask(port, method='POST', path='/read', body=None, headers={}):
  connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
  connection.request(method, path, body, headers)
  response = connection.getresponse()
  content = response.read()
  connection.close()
  if response.headers['Content-Type'] == 'application/json':
    content = json.loads(content)
  return response, content


def _drawing(*lines, size=(112, 112)):
  picture = Image.new('RGB', size, 'white')
  for line in lines:
    ImageDraw.Draw(picture).line(line, 'black', 9)
  content = io.BytesIO()
  picture.save(content, 'png')
  return content.getvalue()


_SEVEN = ((30, 25), (80, 25), (45, 90))


def test_an_answer_is_that_of_predict(site, predictors):
  """The page and the command line read one picture differently."""
  drawing = _drawing(_SEVEN)
  response, answer = _ask(site, body=drawing)
  assert response.status == 200 and answer['networks'] == ['run4', 'run6']
  (digit,) = answer['digits']
  (image,) = imaging.read_picture(drawing, 'seven')
  each = np.concatenate([one.probs(image[None]) for one in predictors.values()])
  np.testing.assert_allclose(digit['by_network'], each, atol=2e-5)
  np.testing.assert_allclose(digit['probs'], each.mean(axis=0), atol=2e-5)
  assert 'saliency' not in digit
  seen = base64.b64decode(digit['seen'].removeprefix('data:image/png;base64,'))
  np.testing.assert_array_equal(Image.open(io.BytesIO(seen)), image[..., 0])


def test_a_row_of_digits_and_what_speaks_for_them(site):
  """The two check boxes of the page have no effect."""
  drawing = _drawing(_SEVEN, ((130, 20), (130, 90)), size=(170, 112))
  _, answer = _ask(site, path='/read?several=1&saliency=1', body=drawing)
  assert len(answer['digits']) == 2
  for digit in answer['digits']:
    overlay = base64.b64decode(digit['saliency'].partition(',')[2])
    assert Image.open(io.BytesIO(overlay)).mode == 'RGBA'


@pytest.mark.parametrize('path,kind', [
    ('/', 'text/html'), ('/page.css', 'text/css'), ('/page.js', 'text/javascript'),
])  # fmt: skip
def test_the_page_asks_nobody_else(site, path, kind):
  """The page loads a font or a script from elsewhere, or lets others frame it."""
  response, content = _ask(site, 'GET', path)
  assert response.status == 200
  assert response.headers['Content-Type'].startswith(kind)
  assert "default-src 'self'" in response.headers['Content-Security-Policy']
  assert b'http:' not in content and b'https:' not in content
  assert b'src="//' not in content and b'url(' not in content


@pytest.fixture
def server_log():
  """The log of the running server."""
  records = []
  handler = logging.Handler()
  handler.emit = records.append
  logging.getLogger('uvicorn.error').addHandler(handler)
  yield records
  logging.getLogger('uvicorn.error').removeHandler(handler)


def test_a_client_that_leaves_is_no_fault(site, server_log, monkeypatch):
  """Each closed tab leaves a traceback in the server's log."""
  with socket.create_connection(('127.0.0.1', site), timeout=30) as connection:
    connection.sendall(b'POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc')
  assert _ask(site, body=_drawing(_SEVEN))[0].status == 200
  assert not server_log
  # A fault does leave one.
  monkeypatch.setattr(server, '_body', None)
  assert _ask(site, body=_drawing(_SEVEN))[0].status == 500
  assert 'Exception in ASGI application' in server_log[0].getMessage()


def test_more_requests_than_memory_allows_are_turned_away(site, monkeypatch):
  """A thousand slow uploads fill the memory."""
  monkeypatch.setattr(server, '_MOST_AT_ONCE', 1)
  with socket.create_connection(('127.0.0.1', site), timeout=30) as slow:
    slow.sendall(b'POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n')
    response, answer = _ask_until(site, 503)
    assert 'try again' in answer['error'] and response.headers['Retry-After']
  assert _ask_until(site, 200)


def _ask_until(port, status):
  """Asks until the status is `status`: the server notices other clients with a delay."""
  for _ in range(100):
    response, answer = _ask(port, body=_drawing(_SEVEN))
    if response.status == status:
      return response, answer
    time.sleep(0.05)
  raise AssertionError(f'never {status}')


def test_a_picture_of_too_many_pixels_is_refused(site):
  """A few kilobytes of PNG are gigabytes once decoded."""
  content = io.BytesIO()
  Image.new('1', (5000, 5000)).save(content, 'png')
  response, answer = _ask(site, body=content.getvalue())
  assert response.status == 422 and 'make it smaller' in answer['error']


def test_health(site):
  """A watchdog cannot tell that the server is alive."""
  response, answer = _ask(site, 'GET', '/health')
  assert response.status == 200
  assert answer['status'] == 'ok' and answer['networks'] == ['run4', 'run6']


@pytest.mark.parametrize('request_of,status,reason', [
    (dict(body=b''), 422, 'not a picture'),
    (dict(body=b'no picture'), 422, 'not a picture'),
    (dict(body=_drawing()), 422, 'nothing but paper'),
    (dict(body=_drawing(_SEVEN)[:200]), 422, 'not a picture'),
    (dict(body=b'', headers={'Content-Length': str(10**9)}), 413, 'smaller'),
    (dict(body=iter([b'x' * 2**20] * 21)), 413, 'smaller'),
    (dict(method='GET'), 405, 'Method Not Allowed'),
    (dict(method='GET', path='/nothing'), 404, 'Not Found'),
    (dict(method='GET', path='/../../etc/passwd'), 404, 'Not Found'),
    (dict(path='/read?several=1',
          body=_drawing(*(((x, 30), (x, 80)) for x in range(50, 3350, 50)),
                        size=(3400, 112))),
     422, 'no row'),
])  # fmt: skip
def test_bad_requests_are_told_and_harm_nobody(site, request_of, status, reason):
  """A bad request ends in a traceback, or the server with it."""
  try:
    response, answer = _ask(site, **request_of)
  except (BrokenPipeError, ConnectionResetError):
    # The server need not read the rest of a body that it has refused.
    assert status == 413
  else:
    assert response.status == status and reason in answer['error'], answer
  assert _ask(site, body=_drawing(_SEVEN))[0].status == 200


def test_a_request_that_never_comes_in_is_given_up(site, monkeypatch):
  """Uploads that never end use up the server."""
  monkeypatch.setattr(server, '_MOST_SECONDS', 0.2)
  with socket.create_connection(('127.0.0.1', site), timeout=30) as connection:
    connection.sendall(b'POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n')
    assert b' 408 ' in connection.recv(100)


def test_a_fault_is_told_without_its_traceback(site, monkeypatch):
  """Strangers see our paths, or the server answers nothing after a fault."""
  drawing = _drawing(_SEVEN)
  with monkeypatch.context() as patched:
    patched.setattr(Reader, 'read', lambda *_: 1 / 0)
    response, answer = _ask(site, body=drawing)
    assert response.status == 500 and answer == {'error': 'an error of the server'}

    async def busy(*_):
      raise Busy

    patched.setattr(Reader, 'read', busy)
    assert _ask(site, body=drawing)[0].status == 503
  assert _ask(site, body=drawing)[0].status == 200


def test_many_at_once_get_their_own_answers(site):
  """Under load one client gets another's answer, or none."""
  drawings = [_drawing(((20, 20), (20 + 2 * i, 90))) for i in range(32)]
  alone = [_ask(site, body=drawing)[1] for drawing in drawings]
  with concurrent.futures.ThreadPoolExecutor(32) as pool:
    together = list(pool.map(lambda d: _ask(site, body=d)[1], drawings * 2))
  for a, b in zip(alone * 2, together):
    assert a['digits'][0]['seen'] == b['digits'][0]['seen']
    np.testing.assert_allclose(
        a['digits'][0]['probs'], b['digits'][0]['probs'], atol=2e-5
    )


def _start(*flags):
  return subprocess.Popen(
      [sys.executable, 'scripts/demo.py', *map(str, flags)],
      cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip


@pytest.mark.parametrize('signum,code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_starts_and_stops_as_programs_do(train_tiny, signum, code):
  """The server cannot be stopped, or ends in a traceback."""
  process = _start(f'--workdir={train_tiny("4 steps")}', '--port=0')
  line = process.stdout.readline()
  assert line.startswith('draw at http://127.0.0.1:')
  port = int(line.split()[2].rpartition(':')[2])
  assert _ask(port, body=_drawing(_SEVEN))[0].status == 200
  # A browser keeps its connection open; that must not delay the end.
  with socket.create_connection(('127.0.0.1', port)) as idle:
    idle.sendall(b'GET /health HTTP/1.1\r\nHost: x\r\n\r\n')
    assert b'200 OK' in idle.recv(1000)
    process.send_signal(signum)
    _, told = process.communicate(timeout=30)
  assert process.returncode == code and len(told.splitlines()) == 1, told


def test_it_stops_during_an_upload(train_tiny):
  """The server ends in a traceback if somebody still uploads a picture."""
  process = _start(f'--workdir={train_tiny("4 steps")}', '--port=0')
  port = int(process.stdout.readline().split()[2].rpartition(':')[2])
  with socket.create_connection(('127.0.0.1', port)) as upload:
    upload.sendall(
        b'POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n'
    )
    assert b'100 Continue' in upload.recv(1000)  # The request has arrived.
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=30)
    assert b'503' in upload.recv(1000)
  assert process.returncode == 143 and 'Traceback' not in told, told


def test_a_port_in_use_is_told(run_python, train_tiny, site):
  """A second server ends in a traceback, or claims to listen."""
  process = run_python(
      'scripts/demo.py', f'--workdir={train_tiny("4 steps")}', f'--port={site}'
  )
  assert process.returncode == 2 and 'choose others' in process.stderr
  assert not process.stdout


def test_what_speaks_for_a_digit_has_its_own_colour():
  """The colours for and against a digit are swapped."""
  saliency = np.zeros((28, 28), np.float32)
  saliency[3, 4], saliency[5, 6] = 1, -1
  content = base64.b64decode(server._overlay(saliency).partition(',')[2])
  pixels = np.asarray(Image.open(io.BytesIO(content)))
  assert tuple(pixels[3, 4]) == (*server._FOR, 255)
  assert tuple(pixels[5, 6]) == (*server._AGAINST, 255)
  assert pixels[0, 0, 3] == 0


def test_a_reader_that_died_is_not_healthy():
  """A watchdog is told that all is well, and no digit is read."""
  app = server.make_app(types.SimpleNamespace(names=[], num_read=0))
  health = {route.path: route.endpoint for route in app.routes}['/health']
  serving = types.SimpleNamespace(done=lambda: True)
  dead = types.SimpleNamespace(state=types.SimpleNamespace(serving=serving))
  assert asyncio.run(health(types.SimpleNamespace(app=dead))).status_code == 503
