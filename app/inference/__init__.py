"""The model worker: one process that owns the models, so that pages answer at once and never load torch.

    route ── answer(job) ──> one dispatcher thread ──pipe──> worker process: job.run(what is loaded)
      ^      stream(job)     (first come, first served)                │
      └── answer, or parts of one, or SaescopeError <──────────────────┘

An operation is a frozen job record (`jobs`) whose `run` says which method of what is loaded answers it; it crosses the
pipe, runs in the worker, and its answer comes back as records. A `Stream` is a job whose answer comes in parts: each
part is asked for in its turn, so that other jobs are answered between two of them and a reader who leaves ends it.
To add an operation, write such a record in a module that imports no torch at its top: nothing here needs to know it.

`worker` is the app's side of the pipe, `process` the other one, and `shelf` what that one holds. `shared` lends one
worker to several server processes.
"""

from app.inference.jobs import (
    DecomposeJob,
    EmbedJob,
    Job,
    Loaded,
    LoadedProber,
    LoadJob,
    PredictJob,
    ProbeJob,
    Stream,
    TextsJob,
)
from app.inference.worker import Inference, ModelWorker, WorkerState

__all__ = [
    "DecomposeJob",
    "EmbedJob",
    "Inference",
    "Job",
    "LoadJob",
    "Loaded",
    "LoadedProber",
    "ModelWorker",
    "PredictJob",
    "ProbeJob",
    "Stream",
    "TextsJob",
    "WorkerState",
]
