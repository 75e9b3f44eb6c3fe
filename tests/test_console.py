"""Lines go where they are looked for."""

from digitnet import console


def test_a_warning_is_no_refusal(capsys):
  """A run that goes on seems to have ended."""
  console.warn('odd')
  console.error('bad')
  assert capsys.readouterr().err == 'digitnet: warning: odd\ndigitnet: bad\n'


def test_a_note_is_no_result_and_can_be_turned_off(monkeypatch, capsys):
  """A program's results are mixed with what they are of, or --quiet is not quiet."""
  console.note('of these')
  monkeypatch.setattr(console, '_silent', True)
  console.note('of those')
  assert capsys.readouterr() == ('', 'of these\n')
