"""Train with several processes on this machine, as a cluster of hosts would.

    python scripts/launch_local.py --processes=2 -- --config=configs/quick.py
    python scripts/launch_local.py --processes=4 --devices_per_process=2 -- \\
        --config=configs/quick.py --workdir=runs/cluster

Flags after -- go to main.py. Each process gets --devices_per_process virtual CPU devices.
Each line of output starts with the number of its process. The first Ctrl-C or SIGTERM makes
all processes save and exit; a second kills them at once.

The exit code is 0 if all processes succeed, otherwise that of the first one that failed.
When one fails, the others exit within seconds; any that does not is killed. Run the same
command again to resume.
"""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

from digitnet import cli
from digitnet.errors import UserError

_MAIN = pathlib.Path(__file__).parent.parent / 'main.py'
# Longer than the other processes need to notice that one is gone.
_PATIENCE_SECONDS = 30


def main() -> int:
  ours, flags = sys.argv[1:], []
  if '--' in ours:
    place = ours.index('--')
    ours, flags = ours[:place], ours[place + 1 :]
  parser = cli.parser(__doc__)
  parser.usage = 'launch_local.py [-h] [--processes N] [--devices_per_process N] -- FLAGS'
  parser.add_argument(
      '--processes', type=cli.positive, default=2, help='default: 2'
  )
  parser.add_argument(
      '--devices_per_process', type=cli.positive, default=1, help='default: 1'
  )
  args = parser.parse_args(ours)
  for flag in flags:
    name = flag.lstrip('-').split('=')[0]
    if name in ('coordinator', 'num_processes', 'process_id'):
      raise UserError(f'{flag}: is set by this script; leave it out')
  return _Cluster(args, flags).run()


class _Cluster:
  """The processes of one run: starts them, waits for them, and stops or kills them."""

  def __init__(self, args, flags):
    self._args, self._flags = args, flags
    self._processes: list[subprocess.Popen] = []
    self._readers: list[threading.Thread] = []
    self._stops = 0
    self._unread: OSError | None = None  # Why their lines cannot be printed any more.

  def run(self) -> int:
    for signum in (signal.SIGINT, signal.SIGTERM):
      signal.signal(signum, self._stop)
    port = _free_port()
    try:
      for number in range(self._args.processes):
        if not self._stops:
          self._start(number, port)
      code = self._wait()
    finally:
      self._kill_all()
      for reader in self._readers:
        reader.join(5)
    if self._unread is not None:
      raise self._unread
    return code

  def _start(self, number, port):
    process = subprocess.Popen(
        [
            sys.executable, _MAIN, f'--coordinator=localhost:{port}',
            f'--num_processes={self._args.processes}', f'--process_id={number}',
            *self._flags,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='surrogateescape',
        env=_environment(self._args.devices_per_process),
        # Otherwise the terminal's Ctrl-C would reach them directly.
        start_new_session=True,
    )  # fmt: skip
    self._processes.append(process)
    reader = threading.Thread(
        target=self._relay, args=(number, process.stdout), daemon=True
    )
    reader.start()
    self._readers.append(reader)

  def _relay(self, number, lines):
    for line in lines:
      # Read to the end in any case: a process whose pipe is full stands still.
      if self._unread is None:
        try:
          print(f'[{number}] {line}', end='', flush=True)
        except OSError as error:  # As after `| head`; `_wait` stops the processes.
          self._unread = error

  def _wait(self):
    """Waits for all processes; kills those left `_PATIENCE_SECONDS` after a failure."""
    first, deadline = 0, None
    while True:
      codes = [process.poll() for process in self._processes]
      if not first:
        # Prefer other codes to 1, with which processes also end that only lost another one.
        failed = [code for code in codes if code]
        first = min(failed, key=lambda code: code == 1, default=0)
        if first:
          deadline = time.monotonic() + _PATIENCE_SECONDS
      if None not in codes:
        break
      if self._unread is not None and not self._stops:
        self._stop(signal.SIGTERM, None)
      if deadline and time.monotonic() > deadline:
        left = [number for number, code in enumerate(codes) if code is None]
        print(f'digitnet: killing processes {left}, which do not end', file=sys.stderr)
        self._kill_all()
      time.sleep(0.1)
    return 128 - first if first < 0 else first

  def _stop(self, signum, frame):
    del signum, frame
    self._stops += 1
    for process in self._processes:
      if process.poll() is None:
        # SIGTERM to any process makes all of them agree on a step, save it and exit.
        process.send_signal(signal.SIGTERM if self._stops == 1 else signal.SIGKILL)

  def _kill_all(self):
    for process in self._processes:
      if process.poll() is None:
        process.kill()
    for process in self._processes:
      process.wait()


def _environment(num_devices):
  flags = os.environ.get('XLA_FLAGS', '')
  return {
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'PYTHONUNBUFFERED': '1',
      'XLA_FLAGS': f'{flags} --xla_force_host_platform_device_count={num_devices}',
  }


def _free_port():
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]


if __name__ == '__main__':
  # Exit with the code of the process that failed.
  codes = []
  cli.leave(cli.run(lambda: codes.append(main())) or codes[0])
