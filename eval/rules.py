"""The gate's rules: how their file must look, and how it is read. ``gate.yaml`` says of every number why."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from eval.reports import OVERALL
from wwts_ops.errors import WwtsError

_SHIPPED = Path(__file__).with_name("gate.yaml")

_Share = Annotated[float, Field(ge=0, le=1)]
_Positive = Annotated[float, Field(gt=0)]
_Alpha = Annotated[float, Field(gt=0, lt=1)]
_Count = Annotated[int, Field(ge=0)]
_AtLeastOne = Annotated[int, Field(ge=1)]


class _Part(BaseModel):
    # strict: the YAML words yes, no and "0.1" are no numbers.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class EvidenceRules(_Part):
    """How much must be known before anything is permitted; the starter set alone never is enough."""

    min_curated_cases: _AtLeastOne


class OverallRules(_Part):
    """Of all cases together; shares and differences of shares, 0-1."""

    min_top1: _Share
    min_top5: _Share
    min_auto_precision: _Share
    margin: _Share
    tolerated_cases: _Count
    alpha: _Alpha
    interval_margin: _Share
    max_forbidden_increase: _Share
    max_auto_right_fall: _Share
    min_auto_right_kept: _Share
    max_auto_wrong_increase: _Share
    max_ece: _Share
    max_ece_increase: _Share


class SliceRules(_Part):
    """Of one slice; ``advisory`` excuses it from ``min_cases`` only."""

    min_cases: _AtLeastOne
    advisory: bool
    min_top1: _Share
    margin: _Share
    tolerated_cases: _Count
    alpha: _Alpha


class SliceExceptions(_Part):
    """What differs from the default in one slice; None is as the default."""

    min_cases: _AtLeastOne | None = None
    advisory: bool | None = None
    min_top1: _Share | None = None
    margin: _Share | None = None
    tolerated_cases: _Count | None = None
    alpha: _Alpha | None = None


class SlicesRules(_Part):
    """Rules of every slice, and exceptions by the slice's name."""

    default: SliceRules
    by_name: dict[str, SliceExceptions]

    @field_validator("by_name")
    @classmethod
    def _only_slices(cls, value: dict[str, SliceExceptions]) -> dict[str, SliceExceptions]:
        if OVERALL in value:
            raise ValueError(f"{OVERALL!r} is no slice; its rules stand under the key 'overall'")
        return value

    def of(self, name: str) -> SliceRules:
        """The rules of the slice ``name``."""
        exceptions = self.by_name.get(name, SliceExceptions())
        return self.default.model_copy(update=exceptions.model_dump(exclude_none=True))


class LatencyRules(_Part):
    """Of one picture after another; seconds, and a ratio to the champion."""

    max_p95_seconds: _Positive
    max_p95_ratio: _Positive


class SizeRules(_Part):
    """Of all the tagger's files, 10^6 bytes."""

    max_megabytes: _Positive


class Rules(_Part):
    """Everything the gate judges by; ``gate.yaml`` says of every number why."""

    evidence: EvidenceRules
    overall: OverallRules
    slices: SlicesRules
    latency: LatencyRules
    size: SizeRules


def load(path: Path | None) -> tuple[Rules, str]:
    """The rules of a YAML file (None: those that are shipped), and the SHA-256 of its bytes.

    Raises:
        WwtsError: naming the file and everything that is wrong in it, at once.
    """
    path = path or _SHIPPED
    try:
        data = path.read_bytes()
        node = yaml.compose(data, Loader=yaml.SafeLoader)
        content = yaml.safe_load(data)
    except OSError as error:
        raise WwtsError(
            f"The gate's rules {path} cannot be read ({error.strerror}); check WWTS_GATE_RULES, or leave it empty."
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise WwtsError(
            f"The gate's rules {path} are no YAML ({' '.join(str(error).split())}); mend the file."
        ) from error
    wrong = [f"{key} is there twice" for key in _twice(node)]
    try:
        rules = Rules.model_validate(content)
    except ValidationError as error:
        wrong += [_mistake(detail) for detail in error.errors()]
    if wrong:
        raise WwtsError(f"The gate's rules {path} are wrong; mend: {'; '.join(wrong)}.")
    return rules, hashlib.sha256(data).hexdigest()


def _twice(node: yaml.Node | None, path: tuple[str, ...] = (), inside: tuple[int, ...] = ()) -> Iterator[str]:
    """Keys that a mapping has more than once, of which YAML would silently take the last."""
    if not isinstance(node, yaml.MappingNode) or id(node) in inside:  # a YAML alias can contain itself
        return
    seen: set[str] = set()
    for key, value in node.value:
        here = (*path, str(key.value))
        if here[-1] in seen:
            yield ".".join(here)
        seen.add(here[-1])
        yield from _twice(value, here, (*inside, id(node)))


def _mistake(detail: Any) -> str:
    where = ".".join(str(part) for part in detail["loc"]) or "the file"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" + ("" if detail["type"] == "missing" else f" (got {str(detail['input'])[:40]!r})")
