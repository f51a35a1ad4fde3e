"""Steering and attribution in the real worker process, with a tiny model."""

import asyncio
from contextlib import aclosing

import pytest

from app.causal.jobs import AblateJob, AttributeJob, SteerStream
from app.inference import ModelWorker
from sae_core.causal.records import Push, Steering, SteerRequest, SteerStart, SteerStep
from sae_core.errors import NotFoundError
from sae_core.records import SAEInfo

pytestmark = pytest.mark.slow
TEXT = "The whale sang all night"
ASKED = SteerRequest(prompt=TEXT, pushes=(Push(feature_index=3, mode="clamp", value=9.0),), n_tokens=5)


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> SAEInfo:
    from sae_core.loading import load_model
    from tests.planted import random_sae, save_sae
    from tests.tiny import save_tiny_model

    folder = tmp_path_factory.mktemp("steered")
    model = load_model(str(save_tiny_model(folder / "model")))
    sae = random_sae(model.info.d_model, 48, 6, seed=5)
    return save_sae(sae, folder / "sae", model, layer=1, hook="resid_post", context_size=32)


def test_parts_come_from_the_worker_and_leaving_ends_the_writing(sae: SAEInfo) -> None:
    async def run() -> None:
        worker = ModelWorker(timeout=120)
        try:
            parts = [part async for part in worker.stream(SteerStream(sae=sae, asked=ASKED, max_seconds=60))]
            assert [type(part) for part in parts] == [SteerStart, *[SteerStep] * 5, Steering]
            long = SteerRequest(prompt=TEXT, pushes=ASKED.pushes, n_tokens=400)
            async with aclosing(worker.stream(SteerStream(sae=sae, asked=long, max_seconds=60))) as found:  # type: ignore[type-var]
                seen = [await anext(found) for _ in range(3)]
                # Between two tokens the worker has time for others.
                question = AttributeJob(sae=sae, text=TEXT)
                explained = await worker.answer(question)
                seen.append(await anext(found))
            assert [type(part) for part in seen] == [SteerStart, SteerStep, SteerStep, SteerStep]
            top = explained.features[0].feature_index
            cut = await worker.answer(AblateJob(question=question, features=(top,)))
            assert cut.before == pytest.approx(explained.explained, abs=1e-4)
            assert cut.predicted == pytest.approx(-explained.features[0].total, rel=1e-4)
            with pytest.raises(NotFoundError):
                await worker.answer(AblateJob(question=question, features=(48,)))
            for _ in range(100):
                if worker.state().pending == 0:
                    break
                await asyncio.sleep(0.05)
            assert worker.state().pending == 0
        finally:
            await worker.close()

    asyncio.run(run())
