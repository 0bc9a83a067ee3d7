"""The MLflow model of a bundle. This file is logged with each model version, as its code, and MLflow runs it there.

It is not part of the package that the product imports: the scorer comes from the copy of the code that is stored with
the version, under a name of its own (`model_config["package"]`). So several versions can be loaded into one process,
and an installed Encore does not get in the way.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

DEFAULT_K = 500


class EncoreModel(PythonModel):  # type: ignore[misc]
    """Rows with `tracks`, URIs or ids of a playlist, and perhaps `title`; parameter `k`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Map the arrays of the bundle."""
        self._code = import_module(f"{context.model_config['package']}.serving.scorer")
        self._scorer = self._code.Scorer.open(Path(context.artifacts["bundle"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """For each row, {"tracks": URIs, best first, "scores": numbers}."""
        rows = model_input.to_dict(orient="records")
        playlists = [self._code.Playlist([str(uri) for uri in row["tracks"]], _text(row.get("title"))) for row in rows]
        found = self._scorer.recommend(playlists, int((params or {}).get("k", DEFAULT_K)))
        return [self._code.shown(row, self._scorer.catalogue) for row in found]


def _text(value: Any) -> str | None:
    # pandas represents a missing text as NaN
    return value if isinstance(value, str) else None


set_model(EncoreModel())
