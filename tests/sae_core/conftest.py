"""One tiny model on disk for all tests of the core."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    if torch := sys.modules.get("torch"):  # else no test of this run needs it, or OMP_NUM_THREADS still holds
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama with its tokenizer: only for tests that read."""
    from tests.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture
def refuses() -> Callable[..., AbstractContextManager[None]]:
    """`with refuses(SomeError, "words", …)`: the error is raised, as one sentence with these words in it."""

    @contextmanager
    def context(kind: type[Exception], *words: str) -> Iterator[None]:
        with pytest.raises(kind) as caught:
            yield
        sentence = str(caught.value)
        assert type(caught.value) is kind
        assert sentence.endswith(".") and not sentence.endswith(".."), sentence
        assert "\n" not in sentence and len(sentence) < 500, sentence
        assert [word for word in words if word not in sentence] == [], sentence

    return context
