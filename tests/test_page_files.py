"""The pages' own files: what the Content-Security-Policy, the frame and people's labels ask of them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

import wwts_ops

STATIC = Path(wwts_ops.__file__).parent / "web" / "static"
OURS = sorted(STATIC.glob("js/*.js"))
IMPORTED = re.compile(r"""(?:from|import)\s*\(?\s*["'](\.[^"']+)["']""")

#: What puts text into the page as HTML or as a style.
HTML = (
    "innerHTML",
    "outerHTML",
    "insertAdjacentHTML",
    "document.write",
    "setHTMLUnsafe",
    'style="',
    "cssText",
    "_blank",
)
#: What runs text as code, or opens a window that the frame refuses.
CALLS = re.compile(r"(?<![\w.])(?:window\.)?(?:eval|alert|confirm|prompt|Function)\(")


def test_there_are_pages() -> None:
    assert {"main.js", "single.js", "outbox.js", "labels.js"} <= {path.name for path in OURS}


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_a_module_has_nothing_forbidden(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert [word for word in HTML if word in text] == []
    assert CALLS.findall(text) == []
    assert "://" not in re.sub(r"http://www\.w3\.org/\S+", "", text), "asks another server"


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_what_a_module_imports_is_there(path: Path) -> None:
    for name in IMPORTED.findall(path.read_text(encoding="utf-8")):
        assert (path.parent / name).resolve().is_file(), name


def test_the_shell_has_no_script_or_style_of_its_own_and_names_files_that_are_there() -> None:
    shell = (STATIC / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script(?![^>]*\bsrc=)", shell) == []
    assert "<style" not in shell
    assert " style=" not in shell
    assert re.findall(r"\son\w+=", shell) == []
    named = re.findall(r'(?:src|href)="(?!data:)([^"]+)"', shell)
    assert named
    for name in named:
        assert (STATIC.parent / name).is_file(), name


def test_code_of_others_stands_unchanged_with_its_licences() -> None:
    vendor = STATIC / "vendor"
    told = (vendor / "README.md").read_text(encoding="utf-8")
    for path in vendor.iterdir():
        assert path.name in {"README.md"} or path.name in told, f"{path.name} is not explained"
    library = (vendor / "htm-preact.js").read_bytes()
    assert hashlib.sha256(library).hexdigest() in told
    assert "Apache License" in (vendor / "LICENSE.htm").read_text(encoding="utf-8")
    assert "MIT License" in (vendor / "LICENSE.preact").read_text(encoding="utf-8")
