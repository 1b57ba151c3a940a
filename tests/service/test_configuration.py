"""Settings that are wrong are told in one sentence that names them."""

from pathlib import Path

import pytest

from service import configuration
from service.configuration import SettingsUnusable


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("FOVEAL_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("FOVEAL_PORT", "tcp://10.0.0.1:8000", "port: .*tcp://10.0.0.1:8000"),
        ("FOVEAL_THREADS", "0", "threads: .*greater than or equal to 1"),
        ("FOVEAL_MAX_IMAGES", "many", "max_images: .*'many'"),
        ("FOVEAL_MAX_IMAGS", "3", "unknown setting FOVEAL_MAX_IMAGS; did you mean FOVEAL_MAX_IM"),
        ("FOVEAL_COLOUR", "red", "unknown setting FOVEAL_COLOUR .*--show-config"),
        ("FOVEAL_RATE_LIMIT", "fast", "rate_limit: write images a second"),
        ("FOVEAL_REDIS_URL", "http://me:geheim@cache", "redis_url: write redis://"),
        ("FOVEAL_URL_ALLOW", "intranet", "url_allow"),
        ("FOVEAL_WORKERS", "2", "workers: 2 processes share cache and index through Redis"),
        ("FOVEAL_CONFIG", "/nowhere.toml", "there is no file /nowhere.toml"),
    ],
)
def test_a_wrong_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsUnusable, match=told) as raised:
        configuration.read({})
    assert "geheim" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("port = ", "cannot be read"),
        ("max_imags = 3", "unknown setting max_imags; did you mean max_images?"),
        ("port = 70000", "port: "),
    ],
)
def test_a_wrong_line_of_the_file_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, told: str
) -> None:
    file = tmp_path / "foveal.toml"
    file.write_text(text)
    monkeypatch.setenv("FOVEAL_CONFIG", str(file))
    with pytest.raises(SettingsUnusable) as raised:
        configuration.read({})
    assert told in str(raised.value)


def test_a_wrong_setting_is_told_without_those_that_are_worked_out_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FOVEAL_PORT", "abc")
    with pytest.raises(SettingsUnusable, match="port: ") as raised:
        configuration.read({})
    assert "threads" not in str(raised.value)
    assert ";" not in str(raised.value)


def test_a_tilde_is_the_home_wherever_no_shell_expands_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "foveal.toml").write_text('data = "~/index"\nrepository = "~nobody-here/models"\n')
    monkeypatch.setenv("FOVEAL_CONFIG", "~/foveal.toml")
    with pytest.raises(SettingsUnusable, match="repository: no home is known for this ~; write"):
        configuration.read({})
    settings = configuration.read({"repository": "~/models"}).settings
    assert settings.data == tmp_path / "index"
    assert settings.repository == tmp_path / "models"


def test_the_key_of_the_client_is_no_unknown_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEAL_API_KEY", "secret")
    assert configuration.read({}).settings.port == 8000


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)))
    shared = {"redis_url": "redis://cache", "index": "redis"}
    assert configuration.read({}).settings.threads == 12
    assert configuration.read({"workers": 5, **shared}).settings.threads == 2
    assert configuration.read({"workers": 16, **shared}).settings.threads == 1
    assert configuration.read({"workers": 4, "threads": 7, **shared}).settings.threads == 7
