"""The server of the page to draw on: an ASGI app.

    GET  /        the page, with its style and its script beside it
    POST /read    a picture's bytes; answers JSON
    GET  /health  JSON: that it lives, which networks answer, how many images were read
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
# Nothing from elsewhere, and nobody else's page around ours.
_HEADERS = {
    'Content-Security-Policy': (
        "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'"
    ),
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cache-Control': 'no-cache',
}
MOST_BYTES = 20 * 2**20  # of a request: a phone's photo has 3 to 12 MiB.
_MOST_SECONDS = 20  # that a request may take to come in.
_MOST_DIGITS = 64  # of one picture.
# Okabe and Ito's blue and orange, as in the report.
_FOR, _AGAINST = (0, 114, 178), (213, 94, 0)


def make_app(reader: Reader) -> applications.Starlette:
  """The app; its answers are the reader's."""
  # As many pictures at a time as there are cores, so that memory is bounded.
  workers = concurrent.futures.ThreadPoolExecutor(os.cpu_count(), 'imaging')

  @contextlib.asynccontextmanager
  async def lifespan(app):
    del app
    serving = asyncio.create_task(reader.serve())
    yield
    serving.cancel()

  async def read(request):
    content = await _body(request)
    is_several, is_salient = (
        request.query_params.get(name) == '1' for name in ('several', 'saliency')
    )
    loop = asyncio.get_running_loop()
    try:
      images = await loop.run_in_executor(
          workers, imaging.read_picture, content, 'the picture', is_several
      )
    except UserError as error:
      raise exceptions.HTTPException(422, str(error)) from None
    if len(images) > _MOST_DIGITS:
      raise exceptions.HTTPException(422, f'more than {_MOST_DIGITS} parts: no row of digits')
    try:
      answers = await reader.read(images)
    except Busy:
      raise exceptions.HTTPException(503, 'too many are asking; try again') from None
    digits = []
    for image, by_network in zip(images, answers):
      digit = {
          'probs': _rounded(by_network.mean(axis=0)),
          'by_network': [_rounded(probs) for probs in by_network],
          'seen': _png(image[..., 0]),
      }
      if is_salient:
        digit['saliency'] = _overlay(await reader.saliency(image))
      digits.append(digit)
    return responses.JSONResponse({'networks': reader.names, 'digits': digits})

  async def health(request):
    del request
    return responses.JSONResponse(
        {'status': 'ok', 'networks': reader.names, 'images_read': reader.num_read}
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
  except TimeoutError:
    raise exceptions.HTTPException(408, 'the picture did not come in time') from None
  return bytes(content)


async def _tell(request, error):
  del request
  return responses.JSONResponse(
      {'error': error.detail}, error.status_code, headers=error.headers
  )


async def _tell_fault(request, error):
  del request, error  # The server logs it; a stranger need not know more.
  return responses.JSONResponse({'error': 'a fault of the server'}, 500)


def _rounded(probs):
  return [round(float(prob), 5) for prob in probs]


def _png(pixels):
  """A picture as a URL that holds it."""
  content = io.BytesIO()
  Image.fromarray(pixels).save(content, 'png')
  return 'data:image/png;base64,' + base64.b64encode(content.getvalue()).decode()


def _overlay(saliency):
  """[28, 28] float to see-through blue for what speaks for the digit, orange against."""
  strength = np.abs(saliency) / max(np.abs(saliency).max(), 1e-9)
  colours = np.where(saliency[..., None] > 0, np.uint8(_FOR), np.uint8(_AGAINST))
  alpha = np.uint8(255 * strength**0.5)
  return _png(np.concatenate([colours, alpha[..., None]], axis=-1))
