"""A scorer as one would write it with FastAPI, to compare with.

`python -m tests.serving.fastapi_server BUNDLE PORT`
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from encore.serving.scorer import Playlist, Scorer, shown


class Table(BaseModel):
    columns: list[str]
    data: list[tuple[list[str], str | None]]


class Params(BaseModel):
    k: int = 500


class Body(BaseModel):
    dataframe_split: Table
    params: Params = Params()


class Prediction(BaseModel):
    tracks: list[str]
    scores: list[float]


class Predictions(BaseModel):
    predictions: list[Prediction]


def main() -> None:
    scorer = Scorer.open(Path(sys.argv[1]))
    scorer.warm_up()
    app = FastAPI()

    @app.get("/ping")
    def ping() -> str:
        return "\n"

    @app.post("/invocations")
    def invocations(body: Body) -> Predictions:
        playlists = [Playlist(tracks, title) for tracks, title in body.dataframe_split.data]
        rows = scorer.recommend(playlists, body.params.k)
        return Predictions(predictions=[Prediction(**shown(row, scorer.catalogue)) for row in rows])

    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")


if __name__ == "__main__":
    main()
