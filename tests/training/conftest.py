import sys

import pytest

from training import cli


@pytest.fixture
def foveal_train(monkeypatch, capsys, tmp_path):
    """Runs the command line in an empty folder; exit status and what it printed, on one line."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["foveal-train", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        printed = capsys.readouterr()
        return exit_.value.code or 0, " ".join((printed.out + printed.err).split())

    return run
