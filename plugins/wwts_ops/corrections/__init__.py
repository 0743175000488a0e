"""Corrections: what people say of images. Answers are kept for ever, and the latest one of a content counts."""

from wwts_ops.corrections.answers import (
    KINDS,
    LABELLED,
    Answer,
    Recorded,
    changed,
    frozen,
    in_force,
    latest,
    record,
    weak,
)
from wwts_ops.corrections.importing import Imported, Refusal, import_answers, import_weak
from wwts_ops.corrections.known import content_of
from wwts_ops.corrections.retracting import retract

__all__ = [
    "KINDS",
    "LABELLED",
    "Answer",
    "Imported",
    "Recorded",
    "Refusal",
    "changed",
    "content_of",
    "frozen",
    "import_answers",
    "import_weak",
    "in_force",
    "latest",
    "record",
    "retract",
    "weak",
]
