"""The ways in which a program ends early, each with its exit code."""


class UserError(Exception):
  """A mistake that the user can fix: shown as one line, exit code 2.

  The message says what is wrong, where, and what to do.
  """


class Failed(Exception):
  """The program cannot go on, through no fault of the user: one line, exit code 1."""


class TrainingFailed(Failed):
  """Training cannot go on."""


class ExportFailed(Failed):
  """An exported file is not what it should be."""


def brief(error: Exception) -> str:
  """The first line of an error's message, cut to 160 characters."""
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0] if len(lines[0]) <= 160 else lines[0][:160] + '...'


class Stopped(BaseException):
  """A signal asked the process to stop; the training loop first saves its state.

  Like KeyboardInterrupt it is no `Exception`, which much code would catch as an error.

  Attributes:
    signum: the signal's number; the process exits with 128 + signum.
  """

  def __init__(self, signum: int, message: str):
    super().__init__(message)
    self.signum = signum
