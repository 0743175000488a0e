"""The stages of a promotion or a rollback: functions of settings, the form, and what the stage before returned."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import structlog

from wwts_ops import isolation, promotion, provenance, registry, tagdiff, tracking
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.settings import Settings
from wwts_ops.tracking import ModelVersion

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Order:
    """What a run of ``promote_model`` is asked to do; the form of a trigger.

    Attributes:
        action: ``promote`` or ``rollback``.
        version: instead of the alias ``challenger`` or ``previous``.
        require_approval: a person must agree to a promotion.
        override: who promotes what failed, and why.
        actor: who triggered the run.
        run: Airflow's id of the run; the same when a task is tried again.
    """

    action: str
    version: str | None
    require_approval: bool
    override: promotion.Override | None
    actor: str
    run: str

    @property
    def needs_approval(self) -> bool:
        """Whether a person is asked: going back never waits."""
        return self.action == "promote" and self.require_approval


def order(context: Mapping[str, Any]) -> Order:
    """Reads the form and the run from Airflow's context.

    Raises:
        WwtsError: when an override lacks its person or its reason.
    """
    form = context["params"]
    who, why = (str(form.get(name) or "").strip() for name in ("override_by", "override_reason"))
    if who and not why:
        raise WwtsError(f"override_by names {who}, but override_reason is empty; say why a failed version may go live.")
    who = who or _airflow_user(context) or ""
    if why and not who:
        raise WwtsError("override_reason is given, but override_by is empty; name the person who answers for it.")
    return Order(
        action=form["action"],
        version=str(form["version"]).strip() if form.get("version") else None,
        require_approval=bool(form["require_approval"]),
        override=promotion.Override(by=who, reason=why) if why else None,
        actor=person(context),
        run=run(context),
    )


def person(context: Mapping[str, Any]) -> str:
    """Who triggered this run: the Airflow user, or whoever runs the process where there is none."""
    return _airflow_user(context) or provenance.user()


def _airflow_user(context: Mapping[str, Any]) -> str | None:
    """None when nobody signed in: `wwts run` runs as Airflow's own ``dag_test``."""
    name = getattr(context["dag_run"], "triggering_user_name", None)
    return None if name in (None, "", "dag_test") else str(name)


def run(context: Mapping[str, Any]) -> str:
    """Airflow's name of this run, as records keep it."""
    return f"{context['dag_run'].dag_id}/{context['dag_run'].run_id}"


def goes_on(settings: Settings, form: Mapping[str, Any], version: str) -> bool:
    """Whether a training that was asked to ``promote`` goes on to do so; where not, a line of the log says why.

    Raises: as :func:`wwts_ops.promotion.hindrance`.
    """
    if not form["promote"]:
        return False
    reason = promotion.hindrance(settings, version)
    if reason:
        log.info("promotion_skipped", version=version, reason=reason)
    return reason is None


def prepare(settings: Settings, wanted: Order) -> dict[str, Any]:
    """Checks whether a promotion may go ahead, in the registry and in a fresh process.

    Returns:
        Plain JSON values: ``version``, ``summary`` (Markdown), ``token`` and, of a promotion, ``proposal``.

    Raises:
        WwtsError: when it may not; with the reasons.
    """
    # New each time this stage runs: a run that is cleared in Airflow, days later, is another act.
    token = f"{wanted.run}#{secrets.token_hex(4)}"
    if wanted.action == "rollback":
        return {"version": wanted.version, "summary": "", "token": token}
    proposal = promotion.propose(settings, wanted.version, wanted.override)
    _check_infrastructure(settings, proposal.version)
    log.info(
        "promotion_prepared",
        version=proposal.version,
        champion=proposal.champion_version,
        override_by=proposal.override_by,
        override_reason=proposal.override_reason,
    )
    # Whoever agrees sees first what would change; the proposal itself stands without it.
    parts = (proposal.summary, tagdiff.told(settings, proposal.version), proposal.rules)
    told = {"version": proposal.version, "summary": "\n".join(parts), "token": token}
    return {**told, "proposal": asdict(proposal)}


def _check_infrastructure(settings: Settings, version: str) -> None:
    """Whether the version works by itself, with the code that was packed with it; told on its page too."""
    model = registry.resolve(settings, version)
    try:
        registry.code(settings, model)
        isolation.check(settings, model)
    except UnavailableError:
        raise
    except WwtsError:
        _tell(settings, model, "failed")
        raise
    _tell(settings, model, "passed")


def _tell(settings: Settings, model: ModelVersion, outcome: str) -> None:
    with tracking.connected(settings) as client:
        client.set_model_version_tag(model.name, model.version, "gate.infrastructure", outcome)


def move(settings: Settings, wanted: Order, prepared: Mapping[str, Any], approval: Mapping[str, Any] | None) -> str:
    """Moves the aliases; the version that is champion now.

    Raises:
        WwtsError: when somebody else moved them meanwhile.
    """
    if wanted.action == "rollback":
        done = promotion.rollback(settings, wanted.version, wanted.actor, "rollback", prepared["token"])
    else:
        proposal = promotion.Proposal(**prepared["proposal"])
        done = promotion.promote(settings, proposal, wanted.actor, _approver(approval), prepared["token"])
    champion = registry.resolve(settings, None)
    if champion.version not in {move.to_version for move in done if move.alias == registry.CHAMPION}:
        raise WwtsError(
            f"This run moved the aliases before, and somebody moved them since: {champion.version} is champion. "
            "Trigger a new run."
        )
    log.info("rollout_done", action=wanted.action, version=champion.version)
    return champion.version


def _approver(approval: Mapping[str, Any] | None) -> str | None:
    """Who agreed, as Airflow tells it; None when nobody was asked."""
    if not approval:
        return None
    user = approval.get("responded_by_user") or {}
    return str(user.get("name") or user.get("id") or "unknown")
