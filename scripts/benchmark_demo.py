"""Measure how quickly the demo page answers, with one client and with many at once.

    python scripts/benchmark_demo.py --workdir=runs/default
    python scripts/benchmark_demo.py --workdir=runs/default --clients=32 --requests=4000

Starts scripts/demo.py in its own process and sends it drawings of random lines, as the page
would: first one after the other, then from many clients, each of which sends the next drawing
as soon as the last is answered, faster than people can draw. Prints percentiles of the time
from request to answer, and the server's memory before and after.

With --browser, a real Chromium draws too, to time from the end of a stroke to its answer on
the page (needs playwright, from the extra [test]). --screenshots=FOLDER saves screenshots of
the page on a desktop and on a phone.
"""

import concurrent.futures
import contextlib
import http.client
import io
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
from PIL import Image
from PIL import ImageDraw

from digitnet import cli
from digitnet.errors import UserError
from digitnet.errors import brief

_ROOT = pathlib.Path(__file__).parent.parent
_SIDE = 112  # pixels, the size of what the page sends
_NUM_ALONE = 200
_STROKES = 50  # drawn in the browser, per device
# No background network traffic; --no-sandbox is for root, as in a container.
_FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-background-networking',
          '--disable-component-update', '--disable-sync', '--no-first-run']  # fmt: skip


def main() -> None:
  parser = cli.parser(__doc__)
  parser.add_argument('--workdir', required=True, help='workdir of a run')
  parser.add_argument(
      '--clients', type=cli.positive, default=32, help='at once, at most 64; default: 32'
  )
  parser.add_argument(
      '--requests',
      type=cli.positive,
      default=2000,
      help='of all clients together; default: 2000',
  )
  parser.add_argument('--browser', action='store_true', help='also draw in Chromium')
  parser.add_argument('--screenshots', metavar='FOLDER', help='folder for screenshots')
  args = parser.parse_args()
  screenshots = args.screenshots and cli.folder(args.screenshots)
  if args.browser or screenshots:
    _check_browser()
  drawings = _drawings(64)
  with _server(args.workdir) as (process, port):
    _client(port, drawings[:20])  # Warms up: the first requests are not typical.
    _show('one client', _client(port, (drawings * 9)[:_NUM_ALONE]))
    before = _resident_mib(process)
    each = -(-args.requests // args.clients)
    with concurrent.futures.ThreadPoolExecutor(args.clients) as pool:
      work = [(drawings[i % 64 :] + drawings * (each // 64 + 1))[:each] for i in range(args.clients)]
      start = time.perf_counter()
      seconds = [s for some in pool.map(lambda one: _client(port, one), work) for s in some]
      wall = time.perf_counter() - start
    _show(f'{args.clients} clients', seconds)
    print(f'{len(seconds) / wall:.0f} answers/s; memory {before:.0f} MiB before these'
          f' {len(seconds):,} requests, {_resident_mib(process):.0f} MiB after')
    if args.browser or screenshots:
      _show('page, from the end of a stroke', _browse(port, screenshots))


@contextlib.contextmanager
def _server(workdir):
  process = subprocess.Popen(
      [sys.executable, _ROOT / 'scripts/demo.py', f'--workdir={workdir}', '--port=0'],
      stdout=subprocess.PIPE,
      text=True,
  )
  try:
    line = process.stdout.readline()
    if not line:
      sys.exit(process.wait())  # The server has printed the reason.
    yield process, int(line.split()[2].rpartition(':')[2])
  finally:
    process.terminate()
    process.wait()


def _drawings(num):
  """Random lines on white paper, in the format that the page sends."""
  rng = np.random.default_rng(0)
  pictures = []
  for _ in range(num):
    picture = Image.new('L', (_SIDE, _SIDE), 255)
    points = [tuple(point) for point in rng.integers(20, _SIDE - 20, (4, 2)).tolist()]
    ImageDraw.Draw(picture).line(points, 0, 8)
    content = io.BytesIO()
    picture.save(content, 'ppm')
    pictures.append(content.getvalue())
  return pictures


def _client(port, drawings):
  """Sends the drawings one after the other; returns the seconds that each took."""
  connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
  seconds = []
  for drawing in drawings:
    start = time.perf_counter()
    try:
      connection.request('POST', '/read', drawing)
      response = connection.getresponse()
      response.read()
    except (OSError, http.client.HTTPException) as error:
      raise UserError(f'the page does not answer any more ({error!r})') from None
    seconds.append(time.perf_counter() - start)
    if response.status != 200:
      raise UserError(
          f'the page answered {response.status} ({response.reason}); are there fewer --clients?'
      )
  connection.close()
  return seconds


def _resident_mib(process):
  status = pathlib.Path(f'/proc/{process.pid}/status').read_text()
  return int(status.partition('VmRSS:')[2].split()[0]) / 1024


def _show(what, seconds):
  median, high, highest = 1000 * np.percentile(seconds, (50, 99, 100))
  print(f'{what}: median {median:.1f} ms, p99 {high:.1f} ms, longest {highest:.1f} ms'
        f' ({len(seconds):,} answers)', flush=True)


def launch(running):
  """Launches Chromium from the PATH, or Playwright's own; `running`: from sync_playwright."""
  found = shutil.which('chromium') or shutil.which('google-chrome')
  return running.chromium.launch(executable_path=found, args=_FLAGS)


def _check_browser():
  with cli.needs_extra('test'):
    from playwright import sync_api
  with sync_api.sync_playwright() as running:
    try:
      launch(running).close()
    except sync_api.Error as error:
      raise UserError(
          f'--browser needs a Chromium ({brief(error)}); put one on the PATH, or run'
          ' playwright install chromium'
      ) from None


def _browse(port, screenshots):
  """Draws strokes; returns the seconds from the end of each to its answer on the page."""
  from playwright import sync_api

  seconds = []
  with sync_api.sync_playwright() as running:
    browser = launch(running)
    devices = {'desktop': {'viewport': {'width': 1000, 'height': 720}},
               'phone': running.devices['Pixel 7']}
    for name, device in devices.items():
      page = browser.new_context(**device).new_page()
      page.goto(f'http://127.0.0.1:{port}')
      for number in range(_STROKES):
        _draw_seven(page, shift=number % 10 / 50)
        # Timed within the page, to exclude the time to reach it from here.
        seconds.append(page.evaluate("""async () => {
          const start = performance.now();
          changed();
          while (asking) await new Promise((resolve) => setTimeout(resolve));
          return (performance.now() - start) / 1000;
        }"""))
        if number < _STROKES - 1:
          page.evaluate('clear()')
      if screenshots:
        page.locator('#saliency').check()
        page.wait_for_timeout(500)  # The bars are animated.
        page.screenshot(path=screenshots / f'demo_{name}.png', full_page=True)
    browser.close()
  return seconds


def _draw_seven(page, shift):
  box = page.locator('#paper').bounding_box()
  for number, (x, y) in enumerate([(0.3, 0.2), (0.5, 0.2), (0.7, 0.2), (0.58, 0.5), (0.45, 0.85)]):
    page.mouse.move(box['x'] + (x + shift - 0.1) * box['width'], box['y'] + y * box['height'])
    if not number:
      page.mouse.down()
  page.mouse.up()


if __name__ == '__main__':
  cli.leave(cli.run(main))
