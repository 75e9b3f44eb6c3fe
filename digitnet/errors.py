"""The ways a run ends early, each with its exit code."""


class UserError(Exception):
  """A mistake the user can mend: shown as one line, exit code 2.

  The message says what is wrong, where, and what to do.
  """


class TrainingFailed(Exception):
  """Training cannot go on, through nobody's typing: one line, exit code 1."""


class ExportFailed(Exception):
  """An exported file is not what it should be: one line, exit code 1."""


def brief(error: Exception) -> str:
  """The first line of a message that may have many, without its tail."""
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0] if len(lines[0]) <= 160 else lines[0][:160] + '...'


class Stopped(BaseException):
  """A signal asked to stop; what was trained since the last save has been saved.

  Like KeyboardInterrupt no `Exception`, which much code takes for a fault.

  Attributes:
    signum: the signal's number; the process exits with 128 + signum.
  """

  def __init__(self, signum: int, message: str):
    super().__init__(message)
    self.signum = signum
