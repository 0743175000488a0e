"""Settings from the environment (``WWTS_*``), frozen, every error reported at once.

Nothing here is read at import: call :func:`load` where a process starts. Only pydantic is imported,
because DAG files and the plugin read settings too.
"""

from __future__ import annotations

import re
from datetime import date, datetime, time
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from wwts_ops.errors import WwtsError

CommaList = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """Everything a run needs to know about its surroundings.

    Field ``store`` is read from ``WWTS_STORE`` and so on; ``mlflow_tracking_uri`` from
    ``MLFLOW_TRACKING_URI``, the name MLflow itself uses.
    """

    model_config = SettingsConfigDict(
        env_prefix="WWTS_", frozen=True, extra="ignore", env_ignore_empty=True, allow_inf_nan=False
    )

    catalog: str = Field(
        "", description="a folder of images, or a CSV/Parquet/XLSX manifest; a path or s3://, a manifest also https://"
    )
    catalog_mode: Literal["full", "delta"] = Field(
        "full", description="full: what is missing from the catalog is delisted; delta: nothing ever is"
    )
    image_root: str = Field("", description="what relative URIs of a manifest resolve against; default: its folder")
    store: str = Field(".wwts/store", description="folder or s3://bucket/prefix that holds everything we write")
    database_url: str = Field(
        "", validate_default=True, description="SQLAlchemy URL; default: SQLite beside a local store"
    )
    mlflow_tracking_uri: str = Field("", validation_alias="MLFLOW_TRACKING_URI", description="default: local SQLite")
    s3_endpoint: str = Field("", description="S3-compatible endpoint, such as Alibaba OSS; default: AWS's")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    timezone: str = Field("Asia/Shanghai", description="IANA name; a night's date is today's there")
    model_name: str = Field("wwts-tagger", pattern=r"^[\w.-]+$", description="registered model in MLflow")
    release: Literal["shadow", "live"] | None = Field(
        None,
        description="shadow: everything is computed, nothing is live; live: auto tags are; "
        "default: as it was last set for this store, at first shadow",
    )
    thumbnails: Literal["all", "review", "none"] = Field("all", description="which images get a 320 px thumbnail")
    reviewers: CommaList = Field((), description="Airflow users who may answer")
    review_admins: CommaList = Field(
        (), description="Airflow users who may also change the taxonomy and take back what others answered"
    )
    audit_rate: float = Field(0.02, ge=0, le=1, description="share of sure images that a person looks at nevertheless")
    second_looks: float = Field(0.02, ge=0, le=1, description="share of items that get a blind second answer")
    forced_answers: int = Field(1, ge=1, le=2, description="people who must agree on what a person always sees")
    lease_minutes: float = Field(5.0, gt=0, le=60, description="minutes an item that somebody looks at is theirs")
    reminder_schedule: str = Field("30 7 * * *", description="cron of the message to the reviewers; or 'none'")
    notify: CommaList = Field((), description="Apprise URLs for messages: dingtalk://…, wecombot://…, feishu://…")
    public_url: str = Field("", description="Airflow's address as people type it; makes the link of a message")
    mlflow_public_url: str = Field("", description="MLflow's address as people type it; default: its tracking URI")

    approvers: CommaList = Field((), description="Airflow users who may approve a promotion; default: all who may act")
    approval_hours: float = Field(24.0, gt=0, description="hours a promotion waits for a person; then it is rejected")
    gate_rules: str = Field("", description="YAML file of the gate's rules; default: the one that is shipped")
    holdout_share: float = Field(
        0.05, ge=0, le=0.5, description="share of all contents, chosen by hash, kept from training for the audit"
    )

    backbone: str = Field("efficientnet-lite0", min_length=1, description="backbone that a new shop starts with")
    retrain_answers: int = Field(200, ge=1, description="new answers from which the head is trained before its day")
    retrain_schedule: str = Field("0 5 * * 1", description="cron of the weekly training; 'none' for answers only")
    publish_schedule: str = Field("*/5 * * * *", description="cron that looks for new answers to publish; or 'none'")
    target_precision: float = Field(0.95, gt=0, lt=1, description="precision that learned thresholds aim at")
    rehearsal: int = Field(20_000, ge=0, description="catalog contents by which a new head keeps what the old one knew")
    weak_weight: float = Field(0.2, ge=0, le=1, description="what an imported old tag counts beside an answer")
    training_views: int = Field(4, ge=0, le=16, description="further views of each answered image, for training only")
    keep_days: int = Field(30, ge=1, description="days that `wwts store prune` keeps of what is no longer needed")

    threshold: float = Field(0.60, gt=0, le=1, description="score from which the embedded default is sure")
    top_k: int = Field(5, ge=1, le=50, description="tags kept per image")
    forced_review: CommaList = Field(
        ("武器", "医药 > 药品", "饮料 > 酒类", "烟草", "成人"),
        description="categories (path prefixes) or label ids a person always sees; used for the first taxonomy",
    )

    deadline: time | None = Field(None, description="HH:MM; images that do not fit before it wait a night")
    images_per_second: float = Field(20.0, gt=0, description="assumed until a night was measured, for the deadline")
    shard_size: int = Field(1000, ge=1, description="images per shard; more when that would make over 128 shards")
    max_delist_share: float = Field(0.20, ge=0, le=1, description="a full catalog may delist no more than this share")
    max_image_bytes: int = Field(64 * 2**20, ge=1, description="larger files are quarantined unread")
    max_pixels: int = Field(100_000_000, ge=1, description="larger pictures are quarantined undecoded")
    https_hosts: CommaList = Field((), description="hosts that https:// images may come from; default: none")
    https_timeout: float = Field(15.0, gt=0, description="seconds for one https:// image")
    workers: int | None = Field(None, ge=1, description="threads that decode and embed; default: the cores we may use")

    dag_prefix: str = Field("", pattern=r"^[\w.-]*$", description="put before every DAG id")
    schedule: str = Field("0 2 * * *", description="cron of the night, in the time zone above; 'none' for manual only")
    owner: str = Field("wwts", description="owner shown in Airflow")
    tags: CommaList = Field(("wwts",), description="tags shown in Airflow")
    pool: str = Field("wwts_gpu", min_length=1, description="Airflow pool of the shard tasks")
    pool_slots: int = Field(1, ge=1, description="slots `wwts init` gives that pool when it creates it")
    queue: str = Field("default", description="Airflow queue of the shard tasks")
    run_timeout_hours: float = Field(
        12.0, gt=0, description="a night that takes longer is failed, unpublished; keep it well past the deadline"
    )
    retries: int = Field(2, ge=0, description="tries after the first, for what may pass")
    retry_seconds: float = Field(60.0, ge=0, description="seconds between tries")
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal, else json")

    @field_validator(
        "reviewers", "review_admins", "notify", "approvers", "forced_review", "https_hosts", "tags", mode="before"
    )
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in re.split("[,，]", value) if part.strip())
        return value

    @field_validator("timezone")
    @classmethod
    def _timezone_exists(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:  # OSError: a folder of zones, such as Asia
            raise ValueError(f"{value!r} is no IANA time zone; try Asia/Shanghai") from error
        return value

    @field_validator("store")
    @classmethod
    def _store_absolute(cls, value: str) -> str:
        if "://" not in value:
            return str(Path(value).expanduser().absolute())
        if not re.match("s3://[^/]", value):
            raise ValueError(f"{value!r} is neither a folder nor s3://bucket/prefix")
        return value.rstrip("/")

    @field_validator("database_url")
    @classmethod
    def _database_for_s3(cls, value: str, info: ValidationInfo) -> str:
        # A field's validator, not the model's: that one would wait until all fields are right.
        if not value and str(info.data.get("store", "")).startswith("s3://"):
            raise ValueError(
                "is required when WWTS_STORE is on s3:// (for example postgresql+psycopg://user:password@host/wwts)"
            )
        return value

    @property
    def state_dir(self) -> Path:
        """Local folder for what is not shared: SQLite files, the model cache, `wwts run`'s Airflow home."""
        if self.store.startswith("s3://"):
            slug = re.sub(r"[^\w.-]+", "-", self.store.removeprefix("s3://"))
            return Path.cwd() / ".wwts" / f"{slug}.state"
        return Path(f"{self.store}.state")

    @property
    def resolved_database_url(self) -> str:
        """The database's SQLAlchemy URL, the default filled in."""
        return self.database_url or f"sqlite:///{self.state_dir / 'wwts.db'}"

    @property
    def resolved_tracking_uri(self) -> str:
        """MLflow's tracking URI, the default filled in."""
        return self.mlflow_tracking_uri or f"sqlite:///{self.state_dir / 'mlflow.db'}"

    def now(self) -> datetime:
        """The time in the shop's time zone, aware."""
        return datetime.now(ZoneInfo(self.timezone))

    def today(self) -> date:
        """Today's date in the shop's time zone: at 02:00 in Shanghai, UTC is still yesterday."""
        return self.now().date()


def load(**overrides: object) -> Settings:
    """Settings from the environment, ``overrides`` (by field name, ``None`` ignored) on top.

    Raises:
        WwtsError: with one line per wrong setting, all of them at once.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    if "mlflow_tracking_uri" in given:
        given["MLFLOW_TRACKING_URI"] = given.pop("mlflow_tracking_uri")
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        raise WwtsError("\n".join(_sentence(detail) for detail in error.errors())) from error


def _sentence(detail: object) -> str:
    where = "_".join(str(part) for part in detail["loc"])  # type: ignore[index]
    name = where if where.isupper() else f"WWTS_{where}".upper()
    message = detail["msg"].removeprefix("Value error, ")  # type: ignore[index]
    return f"{name}: {message} (got {detail['input']!r})" if where else message  # type: ignore[index]
