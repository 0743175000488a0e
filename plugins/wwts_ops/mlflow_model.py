"""The model as MLflow serves it: logged from this file's code, never pickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# MLflow runs this file by itself, and reads the types of `predict` while it logs the model.
import pandas as pd  # noqa: TID253
from mlflow.models import set_model  # noqa: TID253
from mlflow.pyfunc import PythonModel, PythonModelContext  # noqa: TID253

from wwts_ops.images import Rejected
from wwts_ops.recognition import Recognizer
from wwts_ops.tagger import load
from wwts_ops.taxonomy import Taxonomy, from_csv

_COLUMNS = ("label_id", "label_zh", "confidence", "decision", "error")


class TaggerModel(PythonModel):  # type: ignore[misc]
    """Column ``image`` (encoded pictures) → ``label_id, label_zh, confidence, decision, error``."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the tagger and the label names it was registered with."""
        labels = from_csv(Path(context.artifacts["labels"]).read_bytes())
        self._recognize = Recognizer(load(Path(context.artifacts["tagger"])), Taxonomy("packed", labels))

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """One row a picture; a picture that cannot be read has ``error`` and no label."""
        del context, params
        return pd.DataFrame([self._one(bytes(data)) for data in model_input["image"]], columns=_COLUMNS)

    def _one(self, data: bytes) -> dict[str, Any]:
        empty: dict[str, Any] = dict.fromkeys(_COLUMNS)
        try:
            decision = self._recognize(data).decision
        except Rejected as rejected:
            return {**empty, "error": rejected.reason}
        if not decision.tags:
            return {**empty, "decision": decision.decision}
        first = decision.tags[0]
        found = {"label_id": first.label_id, "label_zh": first.label_zh, "confidence": first.score}
        return {**empty, **found, "decision": decision.decision}


set_model(TaggerModel())
