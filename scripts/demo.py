"""Serve a page to draw digits on, which reads them while they are drawn.

    python scripts/demo.py --workdir=runs/default
    python scripts/demo.py --workdir=runs/a --workdir=runs/b --port=8000
    curl --data-binary @photo.jpg http://127.0.0.1:8080/read

Open the address that it prints; Ctrl-C ends it. With several runs, the page shows the mean
of their predictions and those of each run. By default only this machine can reach the page;
--host=0.0.0.0 lets in everyone who can reach the machine, such as a phone in the same
network. Needs `pip install -e '.[demo]'`.
"""

import socket

from digitnet import cli
from digitnet import environment
from digitnet.errors import UserError


def main() -> None:
  parser = cli.parser(__doc__)
  parser.add_argument(
      '--workdir', required=True, action='append', help='workdir of a run; may be repeated'
  )
  parser.add_argument('--host', default='127.0.0.1', help='default: this machine only')
  parser.add_argument(
      '--port', type=int, default=8080, help='default: 8080; 0 picks a free one'
  )
  args = parser.parse_args()
  environment.prepare()
  # After the arguments are parsed: importing JAX takes a second.
  with cli.needs_extra('demo'):
    import uvicorn
    from digitnet.demo import server
  from digitnet import predict
  from digitnet import workdir
  from digitnet.demo.reader import Reader

  with _listening(args.host, args.port) as listener:
    names = workdir.short_names(args.workdir)
    predictors = [predict.Predictor(path) for path in args.workdir]
    app = server.make_app(Reader(dict(zip(names, predictors))))
    host, port = listener.getsockname()[:2]
    if host in ('0.0.0.0', '::'):
      host = _outward_address()
    shown = f'[{host}]' if ':' in host else host
    print(f'draw at http://{shown}:{port} (Ctrl-C ends it)', flush=True)
    config = uvicorn.Config(
        app, log_level='warning', lifespan='on', timeout_graceful_shutdown=5
    )
    uvicorn.Server(config).run(sockets=[listener])


def _outward_address():
  """An address of this machine that others can reach, for a server on all addresses."""
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nothing_is_sent:
    try:
      nothing_is_sent.connect(('192.0.2.1', 9))  # Reserved for documentation: nobody's.
      return nothing_is_sent.getsockname()[0]
    except OSError:
      return socket.gethostname()


def _listening(host, port):
  if not host:
    raise UserError('--host=: is empty; leave it out, or name an address')
  try:
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    # '::' means all addresses, IPv4 as well as IPv6.
    is_both = host == '::' and socket.has_dualstack_ipv6()
    return socket.create_server((host, port), family=family, dualstack_ipv6=is_both)
  except (OSError, OverflowError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise UserError(
        f'--host={host} --port={port}: cannot listen there ({reason}); choose others'
    ) from None


if __name__ == '__main__':
  cli.leave(cli.run(main))
