"""The demo page in a real Chromium, as a person uses it.

Skipped if there is no Chromium: put one on the PATH, or run `playwright install chromium`.
"""

import io
import shutil
import subprocess
import sys
import time

from etils import epath
import numpy as np
from PIL import Image
from playwright import sync_api
import pytest

from digitnet.data import idx
from tests import strokes
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / 'scripts'))
import benchmark_demo


@pytest.fixture(scope='module')
def playwright():
  with sync_api.sync_playwright() as running:
    yield running


@pytest.fixture(scope='module')
def browser(playwright):
  try:
    running = benchmark_demo.launch(playwright)
  except sync_api.Error as error:
    pytest.skip(f'needs a Chromium: {str(error).splitlines()[0]}')
  yield running
  running.close()


@pytest.fixture(scope='module')
def test_split(mnist_dir):
  return idx.load(epath.Path(mnist_dir)).test


@pytest.fixture(scope='module')
def address(train_tiny, mnist_dir):
  """The address of a server whose small network can read digits."""
  workdir = train_tiny('400 steps', {
      'data.source': 'idx', 'data.dir': str(mnist_dir), 'batch_size': 128,
      'model.conv_features': ((8,), (16,)), 'model.dense_features': (64,),
      'eval_every': '400 steps', 'checkpoint_every': '400 steps',
      'log_every': '200 steps', 'optim.learning_rate': 4e-3, 'score_test': False,
  })  # fmt: skip
  other = shutil.copytree(workdir, workdir.parent / 'other')
  process = subprocess.Popen(
      [sys.executable, 'scripts/demo.py', f'--workdir={workdir}', f'--workdir={other}',
       '--port=0'],
      cwd=ROOT, stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  yield process.stdout.readline().split()[2]
  process.terminate()
  process.wait(30)


@pytest.fixture
def page(browser, address):
  """The page on a desktop; no error may reach its console."""
  with _opened(browser, address, viewport={'width': 1000, 'height': 800}) as page:
    yield page


class _opened:
  """A page in a context of its own."""

  def __init__(self, browser, address, **options):
    self._context = browser.new_context(**options)
    self._address = address

  def __enter__(self):
    page = self._context.new_page()
    self._faults = []
    page.on('pageerror', lambda error: self._faults.append(str(error)))
    page.on(
        'console',
        # Some tests provoke refused requests.
        lambda line: line.type == 'error'
        and 'Failed to load resource' not in line.text
        and self._faults.append(line.text),
    )
    page.on(
        'request',
        lambda request: request.url.startswith((self._address, 'data:', 'blob:'))
        or self._faults.append(f'asks for {request.url}'),
    )
    page.goto(self._address)
    return page

  def __exit__(self, *exception):
    self._context.close()
    assert not self._faults


def _draw(page, lines):
  box = page.locator('#paper').bounding_box()
  for line in lines:
    for number, (x, y) in enumerate(line):
      page.mouse.move(box['x'] + x * box['width'], box['y'] + y * box['height'])
      if not number:
        page.mouse.down()
    page.mouse.up()


def _until(page, condition):
  """Waits until `condition` holds; the page's content policy forbids Playwright's own wait."""
  end = time.monotonic() + 30
  while not page.evaluate(condition):
    assert time.monotonic() < end, condition
    page.wait_for_timeout(20)


def _answer(page):
  _until(page, '!asking')
  return page.locator('#answer').inner_text()


def _typical(split, digit):
  """The image of a digit that is closest to the mean of all its images."""
  images = split.images[split.labels == digit]
  distance = ((images - images.mean(axis=0)) ** 2).sum(axis=(1, 2, 3))
  return images[distance.argmin()]


def test_all_ten_digits_drawn_by_mouse(page, test_split):
  """Drawn digits differ from those that the network was trained on, and are misread."""
  read = []
  for digit in range(10):
    _draw(page, strokes.of_image(_typical(test_split, digit)))
    read.append(_answer(page))
    page.get_by_role('button', name='Clear').click()
    assert _answer(page) == '?'
  assert read == list('0123456789')


_SEVEN = [[(0.3, 0.2), (0.7, 0.2), (0.45, 0.85)]]


def test_bars_and_pixels_follow_while_one_draws(page):
  """One has to let go of the mouse, or to press a button."""
  box = page.locator('#paper').bounding_box()
  page.mouse.move(box['x'] + 100, box['y'] + 80)
  page.mouse.down()
  page.mouse.move(box['x'] + 250, box['y'] + 80, steps=5)
  assert _answer(page) != '?'
  assert page.locator('#bars tr.best').count() == 1
  first = page.locator('#seen').get_attribute('src')
  page.mouse.move(box['x'] + 160, box['y'] + 330, steps=5)
  _answer(page)
  assert page.locator('#seen').get_attribute('src') != first
  page.mouse.up()
  widths = page.eval_on_selector_all(
      '.bar', 'bars => bars.map((bar) => parseFloat(bar.style.width))'
  )
  np.testing.assert_allclose(sum(widths), 100, atol=0.1)


def test_undo_takes_one_stroke_and_clear_all(page):
  """A slip of the hand costs the whole drawing."""
  _draw(page, _SEVEN)
  seven = _answer(page), page.locator('#seen').get_attribute('src')
  _draw(page, [[(0.2, 0.6), (0.8, 0.6)]])
  _answer(page)
  assert page.locator('#seen').get_attribute('src') != seven[1]
  page.get_by_role('button', name='Undo').click()
  assert (_answer(page), page.locator('#seen').get_attribute('src')) == seven
  page.keyboard.press('Control+z')
  assert _answer(page) == '?'
  assert page.get_by_role('button', name='Undo').is_disabled()
  _draw(page, _SEVEN)
  page.keyboard.press('Escape')
  assert _answer(page) == '?'
  page.keyboard.press('Control+z')
  assert _answer(page) == seven[0]


def test_clearing_in_mid_stroke_ends_the_stroke(page):
  """The next move fails, or draws on from a line that is gone."""
  box = page.locator('#paper').bounding_box()
  page.mouse.move(box['x'] + 100, box['y'] + 80)
  page.mouse.down()
  page.mouse.move(box['x'] + 250, box['y'] + 80, steps=3)
  page.keyboard.press('Escape')
  page.mouse.move(box['x'] + 160, box['y'] + 330, steps=3)
  assert _answer(page) == '?'
  page.mouse.up()
  _draw(page, _SEVEN)
  assert _answer(page) == '7'


def test_the_keyboard_draws_too(page):
  """A user without a mouse cannot draw."""
  page.locator('#paper').focus()
  for key, times in (('ArrowUp', 16), (' ', 1), ('ArrowDown', 32), (' ', 1)):
    for _ in range(times):
      page.keyboard.press(key)
  assert _answer(page) == '1'
  # A held key counts as one press: the pen goes down, and up at the next press.
  page.keyboard.down(' ')
  for _ in range(3):
    page.keyboard.down(' ')
  page.keyboard.up(' ')
  assert page.locator('#spoken').text_content() == 'pen down'
  page.keyboard.press(' ')
  page.keyboard.press('Control+z')
  # Announced once the drawing is left alone.
  _until(page, "document.getElementById('spoken').textContent.startsWith('1, ')")
  assert page.get_by_role('status').count() >= 1
  # Each control has a name, and the bars are a table that can be read aloud.
  for role, name in (
      ('button', 'Undo'), ('button', 'Clear'), ('checkbox', 'several digits in a row'),
      ('table', 'The probability of each digit'), ('table', 'The networks, one by one'),
  ):  # fmt: skip
    assert page.get_by_role(role, name=name).count() == 1, name


def _png(pixels):
  content = io.BytesIO()
  Image.fromarray(pixels).save(content, 'png')
  return content.getvalue()


def test_opened_pictures_are_read(page, test_split, tmp_path):
  """A photo of a number cannot be tried on the page."""
  digits = [_typical(test_split, digit)[..., 0] for digit in (4, 0, 7)]
  number = 255 - np.concatenate(digits, axis=1)
  (tmp_path / 'number.png').write_bytes(_png(number))
  page.locator('#several').check()
  page.locator('#file').set_input_files(tmp_path / 'number.png')
  _until(page, 'digits.length === 3')
  assert _answer(page) == '407'
  # Each digit of the row can be selected.
  page.locator('#row button').nth(2).click()
  assert page.locator('#bars tr.best th').inner_text() == '7'
  # A drawing replaces the picture.
  page.locator('#several').uncheck()
  _draw(page, _SEVEN)
  _until(page, 'digits.length === 1')
  # And undo brings it back.
  page.locator('#several').check()
  page.get_by_role('button', name='Undo').click()
  _until(page, 'digits.length === 3')


def test_a_pasted_picture_is_read(page, test_split):
  """A screenshot has to be saved as a file first."""
  picture = list(_png(np.pad(255 - _typical(test_split, 3)[..., 0], 9, constant_values=255)))
  page.evaluate(
      """bytes => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], 'a.png', {type: 'image/png'}));
        document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data}));
      }""",
      picture,
  )
  _until(page, 'digits.length === 1')
  assert _answer(page) == '3'


def test_what_cannot_be_read_is_said(page, tmp_path):
  """A bad file leaves the last answer standing."""
  _draw(page, _SEVEN)
  _answer(page)
  (tmp_path / 'bad.png').write_text('no picture')
  page.locator('#file').set_input_files(tmp_path / 'bad.png')
  _until(page, '!digits.length')
  assert _answer(page) == '?' and 'not a picture' in page.locator('#note').inner_text()


def test_a_file_that_changes_or_vanishes(page, test_split, tmp_path):
  """The server is blamed for a file that has changed since it was opened."""
  picture = tmp_path / 'a.png'
  picture.write_bytes(_png(np.pad(255 - _typical(test_split, 3)[..., 0], 9, constant_values=255)))
  page.locator('#file').set_input_files(picture)
  _until(page, 'digits.length === 1')
  picture.write_text('something else')
  page.locator('#several').check()
  _until(page, '!asking && digits.length === 1')
  assert _answer(page) == '3'
  page.evaluate('window.chosenFile = null')
  page.evaluate(
      """() => byId('file').addEventListener(
          'change', (event) => { chosenFile = event.target.files[0]; }, {capture: true})"""
  )
  page.locator('#file').set_input_files(picture)
  _until(page, '!digits.length')
  picture.unlink()
  page.evaluate('openPicture(chosenFile)')
  _until(page, "byId('note').textContent.includes('cannot be read')")
  assert _answer(page) == '?'


def test_the_overlay_and_the_networks_are_shown(page):
  """The saliency is asked for and not shown, or the runs are not told apart."""
  _draw(page, _SEVEN)
  _answer(page)
  assert page.locator('#overlay').is_hidden()
  page.locator('#saliency').check()
  _until(page, 'digits[0].saliency')
  assert page.locator('#overlay').is_visible()
  assert page.locator('#networks tr').count() == 2


def test_on_a_phone_by_finger(playwright, browser, address):
  """The page is wider than a phone, scrolls away under the finger, or hides its answer."""
  with _opened(browser, address, **playwright.devices['Pixel 7']) as page:
    size = page.viewport_size
    assert page.evaluate('document.documentElement.scrollWidth') <= size['width']
    box = page.locator('#paper').bounding_box()
    touch = page.context.new_cdp_session(page)
    # Upwards, which would scroll the page.
    way = [(0.45, 0.85), (0.6, 0.45), (0.7, 0.2), (0.5, 0.2), (0.3, 0.2)]
    for kind, (x, y) in zip(['touchStart'] + ['touchMove'] * 4, way):
      at = {'x': box['x'] + x * box['width'], 'y': box['y'] + y * box['height']}
      touch.send('Input.dispatchTouchEvent', {'type': kind, 'touchPoints': [at]})
    touch.send('Input.dispatchTouchEvent', {'type': 'touchEnd', 'touchPoints': []})
    assert _answer(page) == '7'
    assert page.evaluate('scrollY') == 0
    bars = page.locator('#bars').bounding_box()
    assert bars['y'] + bars['height'] <= size['height']


@pytest.mark.parametrize('screen', ['Pixel 7 landscape', 'iPhone SE landscape', (600, 460)])
def test_on_a_phone_held_sideways(playwright, browser, address, screen):
  """The paper is taller than the screen, or the page wider, so that a digit does not fit."""
  if isinstance(screen, tuple):
    options = {'viewport': dict(zip(('width', 'height'), screen))}
  else:
    options = playwright.devices[screen]
  with _opened(browser, address, **options) as page:
    size = page.viewport_size
    assert page.evaluate('document.documentElement.scrollWidth') <= size['width']
    for part in ('#paper', '#undo', '#clear', '#answer', '#bars'):
      box = page.locator(part).bounding_box()
      assert box['y'] + box['height'] <= size['height'], part


def test_a_server_that_has_gone_is_said(browser, address):
  """The page waits for ever, or shows the last answer as that of the new drawing."""
  with _opened(browser, address, viewport={'width': 1000, 'height': 800}) as page:
    _draw(page, _SEVEN)
    _answer(page)
    page.context.set_offline(True)
    _draw(page, [[(0.2, 0.6), (0.8, 0.6)]])
    assert _answer(page) == '?'
    assert 'does not answer' in page.locator('#note').inner_text()
    page.context.set_offline(False)
    _draw(page, [[(0.2, 0.6), (0.8, 0.6)]])
    assert _answer(page) != '?'


def test_no_chromium_is_told_before_the_load_test(run_python, tmp_path):
  """After minutes of measurements the demo's benchmark ends in a traceback."""
  process = run_python(
      'scripts/benchmark_demo.py', '--workdir=any', '--browser',
      env={'PATH': str(tmp_path), 'PLAYWRIGHT_BROWSERS_PATH': str(tmp_path)},
  )  # fmt: skip
  assert process.returncode == 2 and not process.stdout
  assert 'needs a Chromium' in process.stderr and process.stderr.count('\n') == 1
