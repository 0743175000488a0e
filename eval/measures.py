"""The numbers of the reports as MLflow keeps them: flat, with names that it takes and people can read."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from eval.reports import NEW_LABELS, OLD_LABELS, OVERALL

if TYPE_CHECKING:
    from eval.reports import Estimate, Latency, Metrics, Model, Paired, Reports

#: What is measured of a group, in the order of the pages: its Chinese name.
TITLES = {
    "top1": "首位准确率",
    "top5": "前五准确率",
    "macro_f1": "宏平均 F1",
    "auto_precision": "自动通过的准确率",
    "coverage": "自动通过的占比",
    "ece": "校准误差（ECE）",
    "forbidden": "禁用标签出现率",
}
#: Groups that are ours, in Chinese; every other one is a slice with a name that people gave it.
GROUPS = {OVERALL: "全部坏例", OLD_LABELS: "旧标签", NEW_LABELS: "新标签", "starter": "起步坏例"}

#: Not what MLflow takes in the names of metrics and tags. It takes ``/`` and ``:`` too, of which the first would make
#: levels of a slice's own name. The limit leaves room for a prefix and a suffix below its 250 characters.
_FOREIGN = re.compile(r"[^\w.\- ]+")
_LONGEST = 120
_DIGESTED = re.compile(r"-[0-9a-f]{8}$")


def safe_names(names: Iterable[str]) -> dict[str, str]:
    """A name that MLflow takes for each of ``names``; two of them never share one.

    A name that had to be altered, that differs from another only in upper and lower case (which MySQL takes for the
    same), or that itself ends like this, ends in eight digits of its own SHA-256.
    """
    wanted = {name: _readable(name) for name in names}
    plain = [name for name, text in wanted.items() if text == name and not _DIGESTED.search(name)]
    folded = Counter(name.casefold() for name in plain)
    kept = {name for name in plain if folded[name.casefold()] == 1}
    return {name: name if name in kept else f"{text}-{_digest(name)}" for name, text in wanted.items()}


def flat(reports: Reports) -> dict[str, float]:
    """Every number there is; what could not be measured is left out."""
    found: dict[str, float | None] = {}
    accuracy, latency = reports.accuracy, reports.latency
    if accuracy is not None:
        groups = safe_names({**accuracy.groups, **accuracy.challenger, **accuracy.champion, **accuracy.paired})
        for group, safe in groups.items():
            found |= _metrics(f"badcases/{safe}/", accuracy.challenger.get(group))
            found |= _metrics(f"champion/badcases/{safe}/", accuracy.champion.get(group))
            found |= _paired(f"badcases/{safe}/", accuracy.paired.get(group))
        found |= {**_model("", accuracy.challenger_model), **_model("champion/", accuracy.champion_model)}
    if latency is not None:
        found |= _times("", latency.challenger)
        if latency.champion is not None:
            found |= _times("champion/", latency.champion)
            if latency.champion.p95 > 0:
                found["latency/p95_ratio"] = latency.challenger.p95 / latency.champion.p95
    return {name: value for name, value in found.items() if value is not None}


def _metrics(prefix: str, metrics: Metrics | None) -> Mapping[str, float | None]:
    if metrics is None:
        return {}
    found: dict[str, float | None] = {f"{prefix}n": metrics.n}
    for name in TITLES:
        found |= _estimate(prefix + name, getattr(metrics, name))
    return found


def _paired(prefix: str, paired: Paired | None) -> Mapping[str, float | None]:
    if paired is None:
        return {}
    counts = {f"{prefix}wins": paired.wins, f"{prefix}losses": paired.losses, f"{prefix}mcnemar_p": paired.p_value}
    return {**counts, **_estimate(f"{prefix}difference", paired.difference)}


def _estimate(name: str, estimate: Estimate) -> Mapping[str, float | None]:
    ends = {f"{name}_low": estimate.low, f"{name}_high": estimate.high, f"{name}_n": estimate.n}
    return {name: estimate.value, **ends}


def _model(prefix: str, model: Model) -> Mapping[str, float]:
    return {f"{prefix}model/megabytes": model.megabytes, f"{prefix}model/labels": model.labels}


def _times(prefix: str, latency: Latency) -> Mapping[str, float]:
    seconds = {f"{prefix}latency/{name}_seconds": getattr(latency, name) for name in ("p50", "p95", "p99")}
    return {**seconds, f"{prefix}latency/images_per_second": latency.images_per_second}


def _readable(name: str) -> str:
    text = re.sub(r"\s*\.\s*", ".", " ".join(_FOREIGN.sub(" ", name).split())).strip(". ")
    return text[:_LONGEST].strip(". ") or "-"


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
