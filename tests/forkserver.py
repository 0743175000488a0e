"""Processes of their own that begin at once: each is forked from one that has imported what they need.

There is one such process in a test session, and what is told to it once it runs comes too late: so the list is one for
all. It finds installed modules only, none of these tests'.
"""

from __future__ import annotations

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "alembic.command",
        "alembic.ddl.postgresql",
        "alembic.ddl.sqlite",
        "cv2",
        "hypothesis.strategies",
        "mlflow.store.model_registry.sqlalchemy_store",
        "mlflow.store.model_registry.sqlalchemy_workspace_store",
        "mlflow.store.tracking.sqlalchemy_store",
        "mlflow.store.tracking.sqlalchemy_workspace_store",
        "mlflow.tracing.export",
        "mlflow.tracking.client",
        "onnx",
        "onnxruntime",
        "openpyxl",
        "opentelemetry.sdk.metrics",
        "psycopg",
        "pytest",
        "safetensors.numpy",
        "scipy.linalg",
        "sqlalchemy.dialects.postgresql.psycopg",
        "sqlalchemy.dialects.sqlite",
        "torch",
        "wwts_ops.backbones.base",
        "wwts_ops.badcases",
        "wwts_ops.corrections",
        "wwts_ops.night",
        "wwts_ops.promotion",
        "wwts_ops.publish",
        "wwts_ops.retagging",
        "wwts_ops.review.answering",
        "wwts_ops.review.bulk",
        "wwts_ops.taxonomy_changes",
    ]
)
