"""What the gate recorded of a model version, and promotion reads: one JSON document in one MLflow tag.

One tag, because MLflow sets tags one at a time: a verdict is there whole, or not at all. The other ``gate.*`` tags
and the description repeat it for people.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from wwts_ops.errors import WwtsError

#: The model version's tag that holds the verdict.
TAG = "gate.verdict"

Mode = Literal["enforced", "dry_run"]
Outcome = Literal["passed", "failed", "insufficient", "advisory"]

#: Each outcome in Chinese, in the order in which people read them.
OUTCOMES: dict[Outcome, str] = {
    "failed": "未通过",
    "insufficient": "坏例太少",
    "advisory": "仅提示",
    "passed": "通过",
}
#: Stands before each outcome where rules are listed.
SIGNS: dict[Outcome, str] = {"failed": "❌", "insufficient": "❌", "advisory": "⚠️", "passed": "✅"}


class RuleOutcome(BaseModel):
    """What one rule of the gate came to.

    Attributes:
        rule: its stable name, such as ``p95_ratio`` or ``slice.old_labels.top1``; unique within a verdict. Programs,
            tags and tests go by it.
        title: what it is called in Chinese, such as 首位准确率. For people only: it may change, and two may be alike.
        outcome: ``insufficient``: too few cases to tell, which fails; ``advisory``: did not pass, but must not.
        value: what was measured, as people read it; empty when it was not.
        threshold: what it had to reach, as people read it.
        reason: one sentence in Chinese: why it did not pass; empty when it did.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str
    title: str
    outcome: Outcome
    value: str
    threshold: str
    reason: str = ""


class Verdict(BaseModel):
    """The gate's decision on one version, and everything it stands on.

    Attributes:
        passed: whether the version may become champion.
        mode: a ``dry_run`` rehearses the rules and permits nothing.
        reasons: why not, one Chinese sentence each.
        rules: every rule that was applied.
        model_version: MLflow's number of the version judged.
        model_sha256: of its tagger.
        champion_version: the version it was compared with.
        champion_sha256: of that one's tagger.
        badcases: name of the snapshot of bad cases.
        badcases_sha256: of that snapshot.
        rules_sha256: of the rules' file.
        run_id: MLflow run that holds the measures.
        git_sha: of the code that judged, ``-dirty`` when it was changed.
        judged_at: UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    passed: bool
    mode: Mode
    reasons: tuple[str, ...]
    rules: tuple[RuleOutcome, ...]
    model_version: str
    model_sha256: str
    champion_version: str
    champion_sha256: str
    badcases: str
    badcases_sha256: str
    rules_sha256: str
    run_id: str
    git_sha: str
    judged_at: datetime

    @classmethod
    def from_tag(cls, text: str) -> Verdict:
        """Reads what ``model_dump_json`` wrote.

        Raises:
            WwtsError: when it is no verdict.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise WwtsError(f"The tag {TAG} holds no verdict that can be read; run evaluate_model again.") from error
