"""Who may become champion: on the verdict that the gate recorded, and on nothing else; and the way back.

:func:`propose` says what is to be decided, a person may agree, :func:`promote` checks all of it again and moves the
aliases (see ``wwts_ops.moves``). :func:`rollback` needs neither verdict nor approval.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import structlog

from wwts_ops import addresses, badcases, moves, tracking
from wwts_ops import verdict as verdicts
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.moves import CHALLENGER, PREVIOUS, Decided, Move, Order, Situation, history, history_from_tags
from wwts_ops.provenance import git_sha
from wwts_ops.registry import CHAMPION
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tracking import ModelVersion
from wwts_ops.verdict import OUTCOMES, SIGNS, RuleOutcome, Verdict
from wwts_ops.webpage import cell

__all__ = [
    "Move",
    "Override",
    "Proposal",
    "hindrance",
    "history",
    "history_from_tags",
    "in_short",
    "nominate",
    "promote",
    "propose",
    "rollback",
    "withdraw",
]

log = structlog.get_logger(__name__)

_AGAIN = "请重新运行“评测模型”（evaluate_model）"
_OVERRIDE_CHARS = 1000
_UNWRITABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
#: Rules that an approval shows; those that did not pass come first.
_SHOWN = 30
#: Of which so many are named in a sentence.
_NAMED = 5


@dataclass(frozen=True)
class Override:
    """A person who lets a version that failed become champion.

    Attributes:
        by: who.
        reason: why; it stays on the version.
    """

    by: str
    reason: str


@dataclass(frozen=True)
class Proposal:
    """What a person is asked, in plain JSON values.

    Attributes:
        version: that is to become champion.
        sha256: of its tagger.
        champion_version: that it was compared with.
        champion_sha256: of that one's tagger.
        override_by: who overrides a verdict that failed; None when it passed.
        override_reason: why.
        summary: Markdown, for the approval.
        evidence: what the audit keeps of it.
        rules: Markdown, for the approval: the gate's rules, those against it first.
    """

    version: str
    sha256: str
    champion_version: str
    champion_sha256: str
    override_by: str | None
    override_reason: str | None
    summary: str
    evidence: dict[str, Any]
    rules: str = ""


def hindrance(settings: Settings, version: str) -> str | None:
    """Why a promotion that was asked for before the verdict was known is left out, in Chinese; None when it may go on.

    No error: the gate's no is a result too, and what is in force stays as it is.

    Raises:
        WwtsError: when there is no such version, or nobody judged it.
        UnavailableError: when MLflow does not answer.
    """
    with tracking.connected(settings, tracking.ANSWER_SECONDS) as client:
        model = ModelVersion.of(tracking.entry(client, settings.model_name, version))
        if moves.aliases(client, settings.model_name)[CHAMPION] == model.version:
            return f"版本 {model.version} 已经是当前启用的模型。"
        verdict = _verdict(client, model)
    if verdict.passed:
        return None
    titles = _against(verdict)
    more = f"等 {len(titles)} 条" if len(titles) > _NAMED else ""
    return f"版本 {model.version} 未通过门禁（{'、'.join(titles[:_NAMED])}{more}），当前启用的模型不变。"


def propose(settings: Settings, version: str | None, override: Override | None) -> Proposal:
    """Checks whether ``version`` may become champion, and says what is to be decided.

    Args:
        settings: which registry.
        version: its number; None: the one that alias ``challenger`` names.
        override: for a version that was judged and failed.

    Raises:
        WwtsError: with every reason why it may not.
        UnavailableError: when MLflow or the database does not answer.
    """
    with _refusals_told("promote", version), tracking.connected(settings, tracking.ANSWER_SECONDS) as client:
        return _proposal(settings, client, version, override)


def promote(settings: Settings, proposal: Proposal, actor: str, approved_by: str | None, run: str) -> tuple[Move, ...]:
    """Makes the proposed version champion, when all that it was proposed on still holds.

    Args:
        settings: which registry.
        proposal: of :func:`propose`.
        actor: who or what asks.
        approved_by: who agreed; None when nobody was asked.
        run: token of the asking run; starting again with the same one continues it.

    Returns:
        The moves that this run made, also those before it was killed and started again.

    Raises:
        WwtsError: when it may not (any more), or another promotion is going on.
        UnavailableError: when MLflow or the database does not answer; start again with the same ``run``.
    """

    def decide(situation: Situation) -> Decided:
        _check_unchanged(proposal, _proposal(settings, situation.client, proposal.version, _override(proposal)))
        evidence = {**proposal.evidence, "approved_by": approved_by, "git_sha": git_sha()}
        if proposal.override_by:
            at = datetime.now(UTC).isoformat(timespec="seconds")
            evidence["override"] = {**proposal.evidence["override"], "at": at}
        targets: dict[str, str | None] = {PREVIOUS: situation.aliases[CHAMPION], CHAMPION: proposal.version}
        if situation.aliases[CHALLENGER] == proposal.version:
            targets[CHALLENGER] = None
        return Decided(targets, evidence)

    with _refusals_told("promote", proposal.version):
        done = moves.carry_out(settings, Order(run, actor, "promote", WwtsError), decide)
        _check_arrived(done, proposal.version)
        return done


def rollback(settings: Settings, version: str | None, actor: str, reason: str, run: str) -> tuple[Move, ...]:
    """Makes a former champion champion again.

    Afterwards ``previous`` names the champion before that one, so that going back twice goes back further.

    Args:
        settings: which registry.
        version: a version that was champion before; None: the one that alias ``previous`` names.
        actor: who or what asks.
        reason: why; kept in the audit.
        run: token of the asking run; starting again with the same one continues it.

    Raises:
        WwtsError: when there is nothing to go back to, or that version never was champion or is not whole.
        UnavailableError: when MLflow or the database does not answer, or aliases are being moved right now.
    """

    def decide(situation: Situation) -> Decided:
        target = version or situation.aliases[PREVIOUS]
        _check_way_back(settings.model_name, situation, target)
        name = settings.model_name
        below = [entry for entry in _below(situation.history, target) if moves.is_there(situation.client, name, entry)]
        targets = {CHAMPION: target, PREVIOUS: below[-1] if below else None}
        return Decided(targets, {"reason": reason, "git_sha": git_sha()})

    with _refusals_told("rollback", version):
        done = moves.carry_out(settings, Order(run, actor, "rollback"), decide)
        _check_arrived(done, version)
        return done


def nominate(settings: Settings, verdict: Verdict, actor: str, run: str) -> Move | None:
    """Sets alias ``challenger`` on the version that passed; None when it is there, or the version is champion.

    Raises:
        WwtsError: when ``verdict`` permits nothing, or is not about what is registered.
        UnavailableError: when MLflow or the database does not answer, or aliases are being moved right now.
    """
    name, version = settings.model_name, verdict.model_version
    if not verdict.passed or verdict.mode != "enforced":
        raise WwtsError(f"Version {version} of {name} did not pass an enforced gate; it cannot become {CHALLENGER}.")

    def decide(situation: Situation) -> Decided:
        if _whole(situation.client, name, version).sha256 != verdict.model_sha256:
            raise WwtsError(f"The verdict on version {version} of {name} is about another model; evaluate it again.")
        is_champion = situation.aliases[CHAMPION] == version
        return Decided({} if is_champion else {CHALLENGER: version}, {"verdict": _kept(verdict), "git_sha": git_sha()})

    done = moves.carry_out(settings, Order(run, actor, "nominate"), decide)
    return done[-1] if done else None


def withdraw(settings: Settings, verdict: Verdict, actor: str, run: str) -> Move | None:
    """Takes alias ``challenger`` from a version that failed; None when it is elsewhere.

    Raises:
        UnavailableError: when MLflow or the database does not answer, or aliases are being moved right now.
    """

    def decide(situation: Situation) -> Decided:
        named = situation.aliases[CHALLENGER] == verdict.model_version
        return Decided({CHALLENGER: None} if named else {}, {"verdict": _kept(verdict), "git_sha": git_sha()})

    done = moves.carry_out(settings, Order(run, actor, "withdraw"), decide)
    return done[-1] if done else None


def in_short(move: Move) -> str:
    """A move's evidence on one line."""
    verdict, override = move.evidence.get("verdict") or {}, move.evidence.get("override") or {}
    parts = (
        ("passed" if verdict["passed"] else "failed") + f" on {verdict['badcases']}" if verdict else None,
        f"override by {override['by']}: {override['reason']}" if override else None,
        f"approved by {move.evidence['approved_by']}" if move.evidence.get("approved_by") else None,
        move.evidence.get("reason") or None,
        ("noticed by run " if move.action == "adopt" else "run ") + str(move.evidence.get("run")),
    )
    return "; ".join(part for part in parts if part)


# ------------------------------------------------------------------ may it be promoted


def _proposal(settings: Settings, client: Any, version: str | None, override: Override | None) -> Proposal:
    name = settings.model_name
    aliases = moves.aliases(client, name)
    wanted = version or aliases[CHALLENGER]
    if wanted is None:
        raise WwtsError(f"No version of {name} is {CHALLENGER}; run evaluate_model on one, or name the version.")
    model = _whole(client, name, wanted)
    wanted = model.version  # MLflow also takes 03 for 3
    if wanted == aliases[CHAMPION]:
        raise WwtsError(f"Version {wanted} of {name} is {CHAMPION} already; there is nothing to promote.")
    verdict = _verdict(client, model)
    champion = ModelVersion.of(client.get_model_version(name, aliases[CHAMPION])) if aliases[CHAMPION] else None
    failed = _failures(verdict)
    reasons = [*_stale(model, champion, verdict), *_other_cases(settings, verdict), *([] if override else failed)]
    if override:
        reasons += _incomplete(override)
    if reasons:
        raise WwtsError("\n- ".join([f"{name} 的版本 {wanted} 不能上线：", *reasons]))
    used = override if failed else None
    return Proposal(
        version=wanted,
        sha256=model.sha256,
        champion_version=verdict.champion_version,
        champion_sha256=verdict.champion_sha256,
        override_by=used.by.strip() if used else None,
        override_reason=used.reason.strip() if used else None,
        summary="\n".join(
            [*_head(settings, client, verdict), *_notes(settings, wanted), *_overridden(used, failed), ""]
        ),
        evidence={
            "verdict": _kept(verdict),
            "override": {"by": used.by.strip(), "reason": used.reason.strip()} if used else None,
        },
        rules=_rules(verdict.rules),
    )


def _whole(client: Any, name: str, version: str) -> ModelVersion:
    """The version, when wwts registered it and its upload was finished."""
    entry = tracking.entry(client, name, version)
    model = ModelVersion.of(entry)
    if str(entry.status) != "READY" or not _uploaded(client, str(entry.source)):
        raise WwtsError(f"Version {version} of {name} was not uploaded to its end; register it again.")
    return model


def _uploaded(client: Any, source: str) -> bool:
    """Whether the logged model behind a version is complete; half-uploaded ones can be registered by hand."""
    from mlflow.entities import LoggedModelStatus

    if not source.startswith("models:/"):
        return False
    logged = tracking.found(client.get_logged_model, source.removeprefix("models:/"))
    return logged is not None and bool(logged.status == LoggedModelStatus.READY)


def _verdict(client: Any, model: ModelVersion) -> Verdict:
    text = client.get_model_version(model.name, model.version).tags.get(verdicts.TAG)
    if text is None:
        raise WwtsError(
            f"Version {model.version} of {model.name} was never judged; run evaluate_model on it first. "
            "Without a verdict not even an override lets it pass."
        )
    return Verdict.from_tag(text)


def _stale(model: ModelVersion, champion: ModelVersion | None, verdict: Verdict) -> list[str]:
    """Why ``verdict`` says nothing of what is registered now; no override helps."""
    reasons = []
    if verdict.mode != "enforced":
        reasons.append(f"它的门禁结论来自演练，不能作为上线依据；{_AGAIN}，不要勾选“仅演练”。")
    if (verdict.model_version, verdict.model_sha256) != (model.version, model.sha256):
        reasons.append(f"它的门禁结论说的不是现在登记的这个模型；{_AGAIN}。")
    compared = f"评测时对比的是版本 {verdict.champion_version}"
    if champion is None:
        reasons.append(f"{compared}，而现在没有启用的模型；请先在 MLflow 里设好别名 {CHAMPION}，再{_AGAIN[1:]}。")
    elif champion.version != verdict.champion_version:
        reasons.append(f"{compared}，而现在启用的是版本 {champion.version}，对比已经过时；{_AGAIN}。")
    elif champion.sha256 != verdict.champion_sha256:
        reasons.append(f"{compared}，它的 SHA-256 后来变了；{_AGAIN}。")
    return reasons


def _other_cases(settings: Settings, verdict: Verdict) -> list[str]:
    """Why ``verdict`` says nothing of the bad cases in force: some were added or retired after it."""
    found = badcases.current(Store.of(settings))
    if found is None or found.sha256 == verdict.badcases_sha256:
        return []
    return [f"评测用的是坏例快照 {verdict.badcases}，而现在生效的是 {found.name}；{_AGAIN}。"]


def _failures(verdict: Verdict) -> list[str]:
    """Why ``verdict`` does not permit a promotion; an override does."""
    if verdict.passed:
        return []
    return [*verdict.reasons, f"未通过的门禁规则：{'、'.join(_against(verdict)) or '无记录'}"]


def _against(verdict: Verdict) -> list[str]:
    """What the rules are called that stand against the version."""
    return [rule.title for rule in verdict.rules if rule.outcome in ("failed", "insufficient")]


def _incomplete(override: Override) -> list[str]:
    given = (("责任人（override_by）", override.by), ("理由（override_reason）", override.reason))
    missing = [what for what, text in given if not text.strip()]
    told = [f"强制上线要写明{'和'.join(missing)}。"] if missing else []
    # MLflow refuses longer tags, and no database takes half a character: not to be found out after the aliases moved.
    if any(len(text) > _OVERRIDE_CHARS or _UNWRITABLE.search(text) for _, text in given):
        told.append(f"强制上线的责任人和理由只能是普通文字，各不超过 {_OVERRIDE_CHARS} 字。")
    return told


def _kept(verdict: Verdict) -> dict[str, Any]:
    """What the audit keeps of a verdict; the rest is in the MLflow run."""
    names = ("run_id", "judged_at", "passed", "badcases", "badcases_sha256", "rules_sha256", "git_sha")
    kept: dict[str, Any] = verdict.model_dump(mode="json", include=set(names))
    return kept


def _override(proposal: Proposal) -> Override | None:
    if proposal.override_by is None:
        return None
    return Override(proposal.override_by, proposal.override_reason or "")


def _check_unchanged(proposal: Proposal, fresh: Proposal) -> None:
    """What a person agreed to must be what happens."""
    if fresh.evidence["verdict"] != proposal.evidence["verdict"]:
        raise WwtsError(
            f"Version {proposal.version} was judged again after it was proposed; trigger promote_model again."
        )
    wording: dict[str, Any] = {"summary": "", "rules": ""}  # of whatever wwts wrote it
    if replace(fresh, **wording) != replace(proposal, **wording):
        raise WwtsError(f"Version {proposal.version} changed after it was proposed; trigger promote_model again.")


def _check_arrived(done: Sequence[Move], version: str | None) -> None:
    champion = [move.to_version for move in done if move.alias == CHAMPION]
    if not champion or champion[-1] != (version or champion[-1]):
        raise WwtsError(
            f"Somebody moved {CHAMPION} in MLflow itself while this run was interrupted; theirs was left as it is. "
            "See `wwts models history`, and trigger a new run."
        )


# ------------------------------------------------------------------ the way back


def _check_way_back(name: str, situation: Situation, target: str | None) -> None:
    if target is None:
        raise WwtsError(
            f"There is nothing to go back to: no version of {name} is {PREVIOUS}. "
            "To go to an older champion, name its version; `wwts models history` shows them."
        )
    if target == situation.aliases[CHAMPION]:
        raise WwtsError(f"Version {target} of {name} is {CHAMPION} already; there is nothing to roll back.")
    if target not in {move.to_version for move in situation.history if move.alias == CHAMPION}:
        raise WwtsError(f"Version {target} of {name} never was {CHAMPION}; promote it instead.")
    _whole(situation.client, name, target)


def _below(recorded: Iterable[Move], target: str | None) -> list[str]:
    """The champions that further rollbacks would go to after one to ``target``; the next one last."""
    stack: list[str] = []
    for move in recorded:
        if move.alias != CHAMPION or move.to_version is None:
            continue
        # Promoting a version again makes it the newest; going back to one, by us or in MLflow, forgets what came after.
        if move.action == "promote":
            stack = [*(entry for entry in stack if entry != move.to_version), move.to_version]
        else:
            stack = [*_before(stack, move.to_version), move.to_version]
    return _before(stack, target)


def _before(stack: list[str], version: str | None) -> list[str]:
    return stack[: stack.index(version)] if version in stack else stack


@contextmanager
def _refusals_told(action: str, version: str | None) -> Iterator[None]:
    try:
        yield
    except UnavailableError:
        raise
    except WwtsError as error:
        log.warning("promotion_refused", action=action, version=version, reason=str(error))
        raise


# ------------------------------------------------------------------ what a person reads


def _head(settings: Settings, client: Any, verdict: Verdict) -> list[str]:
    judged = verdict.judged_at.astimezone(ZoneInfo(settings.timezone))
    return [
        f"### 上线候选模型：{cell(settings.model_name)} 版本 {verdict.model_version}",
        "",
        f"- **当前启用**：版本 {verdict.champion_version}（`{verdict.champion_sha256[:12]}`）",
        f"- **候选**：{_page(settings, verdict.model_version)}（`{verdict.model_sha256[:12]}`）",
        f"- **结论**：{'通过' if verdict.passed else '未通过，**由人强制上线**'}（{judged:%Y-%m-%d %H:%M} 评测）",
        f"- **坏例快照**：`{verdict.badcases}`",
        f"- **评测记录**：{_evaluation(settings, client, verdict.run_id)}",
    ]


def _page(settings: Settings, version: str) -> str:
    """A version by its number, with a link to its page where MLflow has pages."""
    address = addresses.model_version(settings, version)
    return f"[版本 {version}]({address})" if address else f"版本 {version}"


def _evaluation(settings: Settings, client: Any, run_id: str) -> str:
    found = tracking.found(client.get_run, run_id) if addresses.mlflow(settings) else None
    return f"[在 MLflow 里打开]({addresses.run(settings, found)})" if found else f"MLflow 运行 `{run_id}`"


def _notes(settings: Settings, version: str) -> list[str]:
    """When the version was last rolled back; whoever approves should know."""
    left = [
        move
        for move in history(settings)
        if (move.alias, move.action, move.from_version) == (CHAMPION, "rollback", version)
    ]
    if not left:
        return []
    at = left[-1].moved_at.astimezone(ZoneInfo(settings.timezone))
    return [f"- **注意**：这个版本上线过，{at:%Y-%m-%d %H:%M} 被回退"]


def _overridden(override: Override | None, failed: Sequence[str]) -> list[str]:
    if not override:
        return []
    told = f"- **强制上线**：{cell(override.by)}，理由：{cell(override.reason)}"
    return [told, "", "未通过的原因：", "", *(f"- {cell(reason)}" for reason in failed)]


def _rules(rules: Sequence[RuleOutcome]) -> str:
    """A table; the outcome is its first column, where its words are not broken."""
    order = list(OUTCOMES)
    ordered = sorted(rules, key=lambda rule: order.index(rule.outcome))
    shown = [
        f"| {_outcome(rule)} | {cell(rule.title)} | {cell(rule.value)} | {cell(rule.threshold)} |"
        for rule in ordered[:_SHOWN]
    ]
    more = [f"\n另有 {len(ordered) - _SHOWN} 条门禁规则，见 MLflow 的模型版本页。"] if len(ordered) > _SHOWN else []
    head = ["### 门禁规则", "", "| 结\u2060论 | 门禁规则 | 候选 | 要求 |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *shown, *more]) + "\n"


def _outcome(rule: RuleOutcome) -> str:
    """Joined by signs that keep a narrow column from breaking it."""
    return "\u2060".join((SIGNS[rule.outcome], "\u00a0", *OUTCOMES[rule.outcome]))
