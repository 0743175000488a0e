"""Settings: every error at once, defaults that fit any machine, dates of the shop."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, date, datetime, time, tzinfo
from pathlib import Path

import pytest
from pydantic import ValidationError

from wwts_ops import settings
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.settings import Settings, load

DATABASE = "postgresql+psycopg://shop:hush-hush@db/wwts"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without any setting of ours, in an empty folder."""
    for name in os.environ:
        if name.upper().startswith("WWTS_") or name.upper() == "MLFLOW_TRACKING_URI":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_defaults(tmp_path: Path) -> None:
    found = load()
    assert found.store == str(tmp_path / ".wwts/store")
    assert found.state_dir == tmp_path / ".wwts/store.state"
    assert found.resolved_database_url == f"sqlite:///{tmp_path}/.wwts/store.state/wwts.db"
    assert found.resolved_tracking_uri == f"sqlite:///{tmp_path}/.wwts/store.state/mlflow.db"
    assert (found.timezone, found.model_name, found.device) == ("Asia/Shanghai", "wwts-tagger", "auto")
    # What is not asked for is not done: nothing goes live, and no web host is fetched from.
    assert (found.release, found.https_hosts) == (None, ())


def test_no_default_holds_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = load().model_dump()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    there = load().model_dump()
    assert {name for name in here if here[name] != there[name]} == {"store"}
    defaults = [field.default for field in Settings.model_fields.values()]
    assert not [value for value in defaults if isinstance(value, str) and value.startswith(("/", "~"))]


def test_every_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "WWTS_STORE": "s3://bucket/prefix",  # without a database
        "WWTS_TOP_K": "many",
        "WWTS_TIMEZONE": "Mars/Olympus",
        "WWTS_THRESHOLD": "0",
        "WWTS_DEVICE": "gpu",
        "WWTS_RELEASE": "Live!",
        "WWTS_DEADLINE": "25:00",
    }
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(WwtsError) as told:
        load()
    lines = str(told.value).splitlines()
    assert {line.split(":")[0] for line in lines} == {*wrong, "WWTS_DATABASE_URL"} - {"WWTS_STORE"}
    assert len(lines) == len(wrong)
    assert "'many'" in str(told.value)
    assert not isinstance(told.value, UnavailableError)


def test_an_error_does_not_tell_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WWTS_DATABASE_URL", DATABASE)
    with pytest.raises(WwtsError) as told:
        load(store="s3://", top_k="many")
    assert "hush-hush" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("武器,烟草", ("武器", "烟草")),
        ("武器，医药 > 药品，烟草", ("武器", "医药 > 药品", "烟草")),
        (" 武器 ， , imagenet:n03666591,", ("武器", "imagenet:n03666591")),
        ("，", ()),
    ],
)
def test_lists_are_split_at_either_comma(monkeypatch: pytest.MonkeyPatch, text: str, parts: tuple[str, ...]) -> None:
    monkeypatch.setenv("WWTS_FORCED_REVIEW", text)
    assert load().forced_review == parts


def test_all_lists_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REVIEWERS", "REVIEW_ADMINS", "HTTPS_HOSTS", "TAGS"):
        monkeypatch.setenv(f"WWTS_{name}", "张三，李四")
    found = load()
    assert found.reviewers == found.review_admins == found.https_hosts == found.tags == ("张三", "李四")


def test_chinese_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WWTS_STORE", "数据/仓库 一/")
    monkeypatch.setenv("WWTS_CATALOG", "商品图片/清单（新）.xlsx")
    found = load()
    assert found.store == f"{tmp_path}/数据/仓库 一"
    assert found.state_dir == tmp_path / "数据" / "仓库 一.state"
    assert found.catalog == "商品图片/清单（新）.xlsx"


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/shop")
    assert load(store="~/数据").store == "/home/shop/数据"


def test_an_s3_store_needs_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WWTS_STORE", "s3://bucket/前缀/")
    with pytest.raises(WwtsError, match=r"^WWTS_DATABASE_URL: is required when WWTS_STORE is on s3://"):
        load()
    monkeypatch.setenv("WWTS_DATABASE_URL", DATABASE)
    found = load()
    assert found.store == "s3://bucket/前缀"
    assert found.resolved_database_url == DATABASE
    assert found.state_dir.parent == tmp_path / ".wwts"  # what is not shared stays on this machine


@pytest.mark.parametrize("store", ["s3://", "s3:///prefix", "gs://bucket/prefix", "file:///tmp/store", "S3://bucket"])
def test_a_store_that_is_none(store: str) -> None:
    with pytest.raises(WwtsError, match=r"^WWTS_STORE: .*neither a folder nor s3://bucket/prefix"):
        load(store=store, database_url=DATABASE)


@pytest.mark.parametrize("zone", ["", "Shanghai", "UTC+8", "../../etc/passwd", "/etc/localtime", "Asia"])
def test_a_time_zone_that_is_none(zone: str) -> None:
    with pytest.raises(WwtsError, match=r"^WWTS_TIMEZONE: .*Asia/Shanghai"):
        load(timezone=zone)


@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
@pytest.mark.parametrize("name", ["threshold", "images_per_second", "https_timeout", "run_timeout_hours"])
def test_numbers_are_numbers(name: str, value: str) -> None:
    with pytest.raises(WwtsError, match=f"^WWTS_{name.upper()}: "):
        load(**{name: value})


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1"])
def test_devices(device: str) -> None:
    assert load(device=device).device == device


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WWTS_TIMEZONE", "WWTS_DEADLINE", "WWTS_TOP_K", "WWTS_FORCED_REVIEW", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")
    assert load() == Settings()
    assert load().timezone == "Asia/Shanghai"


def test_overrides_come_first_and_none_is_no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WWTS_TOP_K", "3")
    monkeypatch.setenv("WWTS_DEADLINE", "06:30")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert load(top_k=None).top_k == 3
    assert load(top_k=7).top_k == 7
    assert load().deadline == time(6, 30)
    assert load().resolved_tracking_uri == "http://mlflow:5000"
    assert load(mlflow_tracking_uri="http://other:5000").resolved_tracking_uri == "http://other:5000"


def test_settings_do_not_change() -> None:
    found = load()
    with pytest.raises(ValidationError):
        found.top_k = 7


@pytest.mark.parametrize(
    ("moment", "shanghai", "utc"),
    [
        (datetime(2026, 3, 7, 18, 0, tzinfo=UTC), date(2026, 3, 8), date(2026, 3, 7)),  # 02:00 in Shanghai
        (datetime(2026, 3, 7, 15, 59, 59, tzinfo=UTC), date(2026, 3, 7), date(2026, 3, 7)),
        (datetime(2026, 12, 31, 16, 0, tzinfo=UTC), date(2027, 1, 1), date(2026, 12, 31)),
    ],
)
def test_today_is_the_shops(monkeypatch: pytest.MonkeyPatch, moment: datetime, shanghai: date, utc: date) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Clock:
            told = moment.astimezone(tz)
            return cls.combine(told.date(), told.timetz())

    monkeypatch.setattr(settings, "datetime", Clock)
    assert load().today() == shanghai
    assert load(timezone="UTC").today() == utc
    assert load().now() == moment


def test_reading_settings_loads_nothing_heavy() -> None:
    code = "import sys; from wwts_ops import settings; settings.load(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "mlflow", "pyarrow", "numpy", "pandas", "sqlalchemy", "fsspec", "airflow", "duckdb"}
    assert not heavy & set(done.stdout.split())
