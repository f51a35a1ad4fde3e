"""Labels by a language model, and their scores: features in, labels and scores in the store.

For each feature:

1. explain     a label from its examples, unless the store has one by this model and these prompts;
2. detect      which of 14 shuffled texts does it fire in: 6 with a firing, 4 with one of a near feature, 4 quiet;
3. fuzz        in which of 10 shuffled texts are the right tokens marked;
4. baseline    both again, for the label of another feature.

Whatever was answered is stored at once, so that nothing is asked twice: not after Ctrl-C, not after the endpoint died.
A person's label of the feature is tested too. It shows where it stands by `tell`, and runs in one event loop with
others; the store is asked in threads.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from sae_core.errors import AnswerError
from sae_core.explain import prompts
from sae_core.explain.bench import Bench, label_score
from sae_core.explain.client import CHARACTERS_PER_TOKEN, Client
from sae_core.explain.material import Material
from sae_core.explain.records import METHODS, Trial
from sae_core.explain.scoring import answered, detection_trials, fuzzing_trials, shuffled
from sae_core.records import FeatureDetail, Label

POSITIVES, NEGATIVES = 6, 8  # of a detection's 14 texts
MARKED_EACH = 5  # of a fuzzing's 10
ESTIMATED_FROM = 8  # features whose questions are put together for an estimate
EXPECTED_ANSWER = 40  # tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Of a million tokens, in any currency."""

    asked: float = 0.0
    answered: float = 0.0

    def cost(self, asked: float, answered: float) -> float:
        return (asked * self.asked + answered * self.answered) / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a job will take, before it asks anything. A feature takes up to five requests."""

    features: int  # that are not done yet
    done: int
    requests: int
    prompt_tokens: int
    answer_tokens: int
    cost: float


@dataclass(slots=True, kw_only=True)
class Progress:
    """What a job has done so far."""

    labelled: int = 0
    scored: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    cost: float = 0.0
    problems: list[str] = field(default_factory=list)  # features without a label, a sentence each
    stopped_by_cost: bool = False


Scored = dict[tuple[int, str, str], tuple[str, str, str | None]]  # as `Store.scored_texts` gives it


class Labelling:
    """A language model at work on one index."""

    def __init__(
        self, bench: Bench, client: Client, *, prices: Prices | None = None, max_cost: float | None = None
    ) -> None:
        self.bench, self.client = bench, client
        self.prices, self.max_cost = prices or Prices(), max_cost
        self.progress = Progress()
        self._model, self._version = client.endpoint.model, prompts.version()

    def unfinished(self, feature_indexes: Sequence[int]) -> list[int]:
        """Those that lack a label by this model and these prompts, or a score of one that there are texts for."""
        own, scored = self._own_labels(), self._scored()
        return [
            number
            for number in feature_indexes
            if number not in own or any(self._untested(number, own[number], scored).values())
        ]

    def estimate(self, feature_indexes: Sequence[int]) -> Estimate:
        """From the questions for a few of the features."""
        left, own, scored = self.unfinished(feature_indexes), self._own_labels(), self._scored()
        some = left[:: max(1, len(left) // ESTIMATED_FROM)][:ESTIMATED_FROM]
        n_requests = n_characters = 0
        for number in some:
            detail, found = self.bench.feature(number)
            if not found.positives:
                continue
            questions = [] if number in own else [prompts.explaining(detail.feature, found)]
            for method, trials in self._untested(number, own.get(number), scored, found).items():
                questions += [_question(method, "a short phrase of words", trials)] * 2 if trials else []
            n_requests += len(questions)
            n_characters += sum(len(message["content"]) for question in questions for message in question)
        share = len(left) / len(some) if some else 0
        requests = round(n_requests * share)
        asked, answers = round(n_characters * share / CHARACTERS_PER_TOKEN), EXPECTED_ANSWER * requests
        return Estimate(
            features=len(left),
            done=len(feature_indexes) - len(left),
            requests=requests,
            prompt_tokens=asked,
            answer_tokens=answers,
            cost=self.prices.cost(asked, answers),
        )

    async def run(
        self, feature_indexes: Sequence[int], *, tell: Callable[[int], None] = lambda done: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:  # fmt: skip
        """Labels and scores these features, as many at a time as the endpoint takes; False if it was asked to `stop`.

        `tell` hears how many are done. Raises EndpointError when the endpoint gives up; what was answered is stored.
        """
        waiting = list(reversed(feature_indexes))

        async def work() -> None:
            while waiting and not self._is_spent():
                await self.label(waiting.pop())
                tell(1)

        tasks = [asyncio.create_task(work()) for _ in range(min(self.client.endpoint.concurrency, len(waiting)))]
        try:
            while not all(task.done() for task in tasks):
                done, _ = await asyncio.wait(tasks, timeout=0.1, return_when=asyncio.FIRST_EXCEPTION)
                for task in done:
                    task.result()  # raises what it met
                if stop():
                    return False
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return True

    async def label(self, feature_index: int) -> None:
        """One feature, as far as it is not done."""
        detail, found = await asyncio.to_thread(self.bench.feature, feature_index)
        try:
            label = next((own for own in detail.labels if self._is_mine(own)), None)
            if label is None:
                if not found.positives:
                    raise AnswerError("It has no examples to explain it by.")
                label = await self._explained(detail, found)
                self.progress.labelled += 1
            persons = [own for own in detail.labels if own.kind == "human"]
            for own in (label, *persons):
                await self._score(feature_index, own, found)
        except AnswerError as error:
            self.progress.problems.append(f"Feature {feature_index}: {error}")

    async def _explained(self, detail: FeatureDetail, found: Material) -> Label:
        answer = await self._ask(prompts.explaining(detail.feature, found))
        text, certainty = prompts.read_explanation(answer)
        label = Label(
            text=text, kind="model", author=self._model, score=None, created_at=datetime.now(UTC), certainty=certainty,
            prompt_version=self._version,
        )  # fmt: skip
        await self._keep(detail.feature.feature_index, label)
        return label

    async def _score(self, feature_index: int, label: Label, found: Material) -> None:
        """Tests a label by the methods by which it has not been tested yet."""
        bench = self.bench
        known = await asyncio.to_thread(bench.store.scores, bench.slug, [feature_index], corpus=bench.corpus)
        wanted = (label.kind, label.text, self._model, self._version)
        done = {s.method for s in known if (s.kind, s.text, s.scorer, s.prompt_version) == wanted}
        other = await asyncio.to_thread(self._other_label, feature_index)
        for method, trials in self._trials(feature_index, found).items():
            if method in done or not trials:
                continue
            own = await self._answered(method, label.text, trials)
            baseline = await self._answered(method, other, trials) if other is not None else None
            score = label_score(
                own, feature_index=feature_index, kind=label.kind, method=method, text=label.text, scorer=self._model,
                prompt_version=self._version, baseline=baseline,
            )  # fmt: skip
            await asyncio.to_thread(bench.store.add_scores, bench.slug, [score], corpus=bench.corpus)
            self.progress.scored += 1
            if method == "detection" and label.kind == "model":
                await self._keep(feature_index, replace(label, score=score.balanced_accuracy))

    async def _answered(self, method: str, label: str, trials: list[Trial]) -> list[Trial]:
        answer = await self._ask(_question(method, label, trials))
        return answered(trials, prompts.read_choice(answer, len(trials)))

    async def _ask(self, question: list[prompts.Message]) -> str:
        if self._is_spent():
            raise AnswerError("The cost that was allowed is spent.")
        reply = await self.client.ask(question)
        progress = self.progress
        progress.requests += 1
        progress.prompt_tokens += reply.prompt_tokens
        progress.answer_tokens += reply.answer_tokens
        progress.cost += self.prices.cost(reply.prompt_tokens, reply.answer_tokens)
        return reply.text

    def _is_spent(self) -> bool:
        if self.max_cost is not None and self.progress.cost >= self.max_cost:
            self.progress.stopped_by_cost = True
        return self.progress.stopped_by_cost

    async def _keep(self, feature_index: int, label: Label) -> None:
        await asyncio.to_thread(self.bench.store.add_labels, self.bench.slug, {feature_index: label})

    def _trials(self, feature_index: int, found: Material) -> dict[str, list[Trial]]:
        """The texts of each method, shuffled; none where there are too few."""
        seed = self.bench.seed + feature_index
        detection = detection_trials(found, positives=POSITIVES, negatives=NEGATIVES)
        fuzzing = fuzzing_trials(found, each=MARKED_EACH, seed=seed)
        return {"detection": shuffled(detection, seed=seed), "fuzzing": shuffled(fuzzing, seed=seed)}

    def _untested(
        self, feature_index: int, mine: Label | None, scored: Scored, found: Material | None = None
    ) -> dict[str, list[Trial]]:
        """The texts of the methods by which its label has not been tested yet, all of them where it has none."""
        wanted = (mine.text, self._model, self._version) if mine else None
        left = [m for m in METHODS if mine is None or scored.get((feature_index, "model", m)) != wanted]
        if left and found is None:
            _, found = self.bench.feature(feature_index)
        trials = self._trials(feature_index, found) if left and found else {}
        return {method: trials[method] for method in left if method in trials}

    def _scored(self) -> Scored:
        return self.bench.store.scored_texts(self.bench.slug, corpus=self.bench.corpus)

    def _other_label(self, feature_index: int) -> str | None:
        """What another feature is called: what a label says that has nothing to do with this one."""
        other = self.bench.another(feature_index)
        found = [] if other is None else self.bench.store.labels_of_feature(self.bench.slug, other)
        return found[0].text if found else None

    def _own_labels(self) -> dict[int, Label]:
        """By feature, those by this model and these prompts."""
        return {number: label for number, label in self.bench.store.all_labels(self.bench.slug) if self._is_mine(label)}

    def _is_mine(self, label: Label) -> bool:
        return (label.kind, label.author, label.prompt_version) == ("model", self._model, self._version)


def _question(method: str, label: str, trials: list[Trial]) -> list[prompts.Message]:
    ask = prompts.detecting if method == "detection" else prompts.fuzzing
    return ask(label, trials)
