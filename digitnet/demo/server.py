"""The server of the page to draw on: an ASGI app.

    GET  /        the page; its style and script are /page.css and /page.js
    POST /read    takes a picture's bytes, returns JSON
    GET  /health  JSON: status, names of the networks, number of images read
"""

import asyncio
import base64
import concurrent.futures
import contextlib
import io
import os
import pathlib

import numpy as np
from PIL import Image
from starlette import applications
from starlette import exceptions
from starlette import requests
from starlette import responses
from starlette import routing

from digitnet import imaging
from digitnet.demo.reader import Busy
from digitnet.demo.reader import Reader
from digitnet.errors import UserError

_FILES = {
    '/': ('page.html', 'text/html'),
    '/page.css': ('page.css', 'text/css'),
    '/page.js': ('page.js', 'text/javascript'),
}
# The page loads nothing from elsewhere, and no other page may frame it.
_HEADERS = {
    'Content-Security-Policy': (
        "default-src 'self'; img-src 'self' blob: data:; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'"
    ),
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cache-Control': 'no-cache',
}
# Together these bound the server's memory.
MOST_BYTES = 20 * 2**20  # per request: a phone's photo has 3 to 12 MiB.
_MOST_AT_ONCE = 64  # requests; further ones get a 503.
_MOST_PIXELS = 2**24  # per decoded picture; about 16 bytes each.
_MOST_WORKERS = 4  # pictures decoded at the same time.
_MOST_SECONDS = 20  # for a request to arrive.
_MOST_DIGITS = 64  # per picture.
# Okabe and Ito's sky blue and orange, both visible on black.
_FOR, _AGAINST = (86, 180, 233), (230, 159, 0)


def make_app(reader: Reader) -> applications.Starlette:
  """Makes the app, which answers with what `reader` returns."""
  workers = concurrent.futures.ThreadPoolExecutor(
      min(os.cpu_count(), _MOST_WORKERS), 'imaging'
  )
  num_at_once = 0

  @contextlib.asynccontextmanager
  async def lifespan(app):
    app.state.serving = asyncio.create_task(reader.serve())
    yield
    app.state.serving.cancel()
    workers.shutdown(wait=False, cancel_futures=True)

  async def read(request):
    nonlocal num_at_once
    if num_at_once >= _MOST_AT_ONCE:
      raise _BUSY
    num_at_once += 1
    try:
      return await answer(request)
    finally:
      num_at_once -= 1

  async def answer(request):
    content = await _body(request)
    is_several, is_salient = (
        request.query_params.get(name) == '1' for name in ('several', 'saliency')
    )
    loop = asyncio.get_running_loop()
    try:
      images = await loop.run_in_executor(
          workers,
          imaging.read_picture,
          content,
          'the picture',
          is_several,
          _MOST_PIXELS,
          _MOST_DIGITS,
      )
    except UserError as error:
      raise exceptions.HTTPException(422, str(error)) from None
    try:
      answers = await reader.read(images)
    except Busy:
      raise _BUSY from None
    digits = [
        {
            'probs': _rounded(by_network.mean(axis=0)),
            'by_network': [_rounded(probs) for probs in by_network],
            'seen': _png(image[..., 0]),
        }
        for image, by_network in zip(images, answers)
    ]
    if is_salient:
      for digit, saliency in zip(digits, await reader.saliency(images)):
        digit['saliency'] = _overlay(saliency)
    return responses.JSONResponse({'networks': reader.names, 'digits': digits})

  async def health(request):
    is_dead = request.app.state.serving.done()
    return responses.JSONResponse(
        {
            'status': 'dead' if is_dead else 'ok',
            'networks': reader.names,
            'images_read': reader.num_read,
        },
        503 if is_dead else 200,
    )

  return applications.Starlette(
      routes=[
          *(routing.Route(path, _file(*file)) for path, file in _FILES.items()),
          routing.Route('/read', read, methods=['POST']),
          routing.Route('/health', health),
      ],
      exception_handlers={exceptions.HTTPException: _tell, Exception: _tell_fault},
      lifespan=lifespan,
  )


_BUSY = exceptions.HTTPException(
    503, 'too many are asking; try again', headers={'Retry-After': '1'}
)


def _file(name, media_type):
  content = (pathlib.Path(__file__).parent / name).read_bytes()

  async def answer(request):
    del request
    return responses.Response(content, media_type=media_type, headers=_HEADERS)

  return answer


async def _body(request: requests.Request) -> bytes:
  too_large = exceptions.HTTPException(
      413, f'more than {MOST_BYTES / 2**20:.0f} MiB; make the picture smaller'
  )
  length = request.headers.get('content-length', '')
  if length.isdecimal() and int(length) > MOST_BYTES:
    raise too_large
  content = bytearray()
  try:
    async with asyncio.timeout(_MOST_SECONDS):
      async for chunk in request.stream():
        content += chunk
        if len(content) > MOST_BYTES:
          raise too_large
  except requests.ClientDisconnect:
    raise exceptions.HTTPException(400, 'broken off') from None  # Nobody reads this.
  except TimeoutError:
    raise exceptions.HTTPException(408, 'the picture did not come in time') from None
  except asyncio.CancelledError:
    raise exceptions.HTTPException(503, 'the server is stopping') from None
  return bytes(content)


async def _tell(request, error):
  del request
  return responses.JSONResponse(
      {'error': error.detail}, error.status_code, headers=error.headers
  )


async def _tell_fault(request, error):
  del request, error  # The server logs the error; clients need not see it.
  return responses.JSONResponse({'error': 'an error of the server'}, 500)


def _rounded(probs):
  return [round(float(prob), 5) for prob in probs]


def _png(pixels):
  """[H, W] or [H, W, 4] uint8 as the data URL of a PNG."""
  content = io.BytesIO()
  Image.fromarray(pixels).save(content, 'png')
  return 'data:image/png;base64,' + base64.b64encode(content.getvalue()).decode()


def _overlay(saliency):
  """[28, 28] float as a data URL: translucent blue speaks for the digit, orange against."""
  strength = np.abs(saliency) / max(np.abs(saliency).max(), 1e-9)
  colours = np.where(saliency[..., None] > 0, np.uint8(_FOR), np.uint8(_AGAINST))
  alpha = np.uint8(255 * strength**0.5)
  return _png(np.concatenate([colours, alpha[..., None]], axis=-1))
