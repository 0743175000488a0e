"""Every command of both READMEs is run: here, or by what is named beside it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from environment import plain

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
READMES = ("README.md", "README.zh-CN.md")
#: Commands that this test does not run itself, and what does.
ELSEWHERE = {
    "make test": "CI runs it: this test is part of it",
    "make up": "test_servers.py starts and stops what it runs, test_review_e2e.py reviews in such an Airflow",
    "make bench": "test_bench.py runs each of its parts on a few images",
    "wwts init": "test_compose.py runs it against a real Airflow and MLflow",
    "wwts doctor": "test_doctor.py",
    "wwts models import": "test_import.py imports checkpoints by the same command",
    "wwts run evaluate_model": "test_proof.py judges six versions through the DAG",
    "wwts run promote_model": "test_proof.py promotes, refuses and takes back through the DAG",
    "wwts run retrain_head": "test_retrain.py trains, judges and promotes through the DAG",
    "wwts run retag_catalog": "test_retag_dag.py tags a catalog anew through the DAG",
    "wwts tags restore": "test_publish_retag.py goes back to a snapshot by the same command",
    "wwts models register": "test_register.py registers the smallest backbone by the same command",
}


def _blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def _commands(name: str) -> list[str]:
    return [line for block in _blocks(name, "sh") for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a fresh checkout to the commands: our Makefile, code, environment; no demo yet."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("Makefile", "requirements.txt", "pyproject.toml", "dags", "plugins", "eval"):
        (folder / name).symlink_to(ROOT / name)
    environment = Path(sys.prefix)
    (folder / ".venv").symlink_to(environment)
    (environment / ".installed").touch()
    (folder / "photos").mkdir()
    from wwts_ops import demo

    for photo in demo.photographs()[:3]:
        (folder / "photos" / photo.name).write_bytes(photo.read_bytes())
    (folder / "badcases.csv").write_text(
        "uri,label_id,slice,reason,never_regress\nphoto.jpg,imagenet:n04266014,火箭 🚀,被标成炮弹,true\n",
        encoding="utf-8",
    )
    (folder / "photo.jpg").write_bytes(next(p for p in demo.photographs() if p.suffix == ".jpg").read_bytes())
    return folder


@pytest.fixture(scope="module")
def demo_night(shop: Path) -> str:
    """What `make demo`, the first command of the README, prints."""
    return _run("make demo", shop)


def _run(command: str, folder: Path) -> str:
    environment = plain()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_make_demo_tells_what_the_readme_says(demo_night: str, shop: Path) -> None:
    for words in ("本次打标结果", "自动通过", "待审核", "强制审核", "重复内容", "隔离", "每秒", "标签数据", "日报"):
        assert words in demo_night
    page = re.search(r"日报\s+(\S+index\.html)", demo_night)
    assert page
    assert Path(page[1]).is_file()
    assert Path(page[1]).is_relative_to(shop)
    assert "WWTS_STORE=.wwts/demo/store make up" in demo_night


def test_a_second_demo_finds_nothing_new(demo_night: str, shop: Path) -> None:
    again = _run("make demo", shop)
    assert "没有发现新图片" in again
    assert "没有新图片，无需打标" in again
    assert "标签数据" in demo_night


def test_both_readmes_hold_the_same_commands() -> None:
    assert _commands(READMES[0]) == _commands(READMES[1])
    assert _blocks(READMES[0], "python") == _blocks(READMES[1], "python")


def test_every_command_runs(demo_night: str, shop: Path) -> None:
    assert demo_night
    for block in _blocks(READMES[0], "sh"):
        script = "\n".join(
            line for line in block.splitlines() if not any(name in line for name in ELSEWHERE) and line != "make demo"
        )
        if script.strip():
            _run(script, shop)
    assert (shop / ".wwts" / "tags.xlsx").stat().st_size > 1000
    assert (shop / ".wwts" / "taxonomy.csv").read_bytes().startswith(b"\xef\xbb\xbf")


def test_every_python_example_runs_and_prints_rows(demo_night: str, shop: Path) -> None:
    assert demo_night
    examples = _blocks(READMES[0], "python")
    assert len(examples) == 2
    for number, example in enumerate(examples):
        path = shop / f"example_{number}.py"
        path.write_text(example, encoding="utf-8")
        printed = _run(f".venv/bin/python {path}", shop)
        assert len(printed.splitlines()) >= 4


def test_what_is_run_elsewhere_is_what_the_makefile_does() -> None:
    planned = subprocess.run(
        ["make", "--dry-run", "up", "bench", "test"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "bin/wwts up" in planned
    assert "bin/python -m eval.bench" in planned
    assert "bin/python -m pytest" in planned


@pytest.mark.parametrize("name", READMES)
def test_settings_exist_and_have_the_default_that_is_told(name: str) -> None:
    from wwts_ops.settings import Settings

    fields = Settings.model_fields
    text = (ROOT / name).read_text(encoding="utf-8")
    assert {found.lower() for found in re.findall(r"\bWWTS_([A-Z][A-Z0-9_]*)", text)} <= fields.keys()
    told = re.findall(r"^\| `WWTS_(\w+)` \|.*\| `([^`|]+)` \|$", text, flags=re.MULTILINE)
    plain = {field.lower(): default for field, default in told if default not in ("MLFLOW_TRACKING_URI",)}
    assert len(plain) > 10
    assert plain == {
        field: f"{fields[field].default:g}" if isinstance(fields[field].default, float) else str(fields[field].default)
        for field in plain
    }


@pytest.mark.parametrize("name", READMES)
def test_keys_that_are_told_are_those_of_the_page(name: str) -> None:
    sheet = (ROOT / "plugins/wwts_ops/web/static/js/help.js").read_text(encoding="utf-8")
    known = {key for row in re.findall(r"\[\[([^\]]+)\], \"", sheet) for key in re.findall(r"\"([^\"]+)\"", row)}
    table = re.search(
        r"^\| `1`–`5` .*?(?=\n\n)", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    assert table
    assert set(re.findall(r"`([^`]+)`", table[0])) <= known


@pytest.mark.parametrize("name", READMES)
def test_pictures_and_pages_that_are_linked_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target
