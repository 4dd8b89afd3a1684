"""Make a sequence-to-sequence expert: one text-to-text model for many tasks, told by instructions what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from consilience.core.jobs import Budget
from consilience.data.instructions import InstructionData
from consilience.data.prompting import Prompting
from consilience.training.run import TrainingRun, weight_checksums
from consilience.training.settings import LEARNING_RATES, CommonSettings

if TYPE_CHECKING:
    from consilience.models.seq2seq import Seq2SeqModel
    from consilience.training.artefact import Trainee
    from consilience.training.fitting import TrainingState
    from consilience.training.seq2seq_steps import Mixing, TaskExamples

__all__ = ["train_seq2seq"]


@dataclass(frozen=True)
class Seq2SeqSettings(CommonSettings):
    """Everything that decides what `train_seq2seq` makes."""

    fields: tuple[str, ...]
    examples: int | None
    shots: int | None
    mixing: Mixing
    dev_instances: int
    new_tokens: int

    def lowest(self) -> dict[str, int]:
        """Return the least value of each setting that counts something."""
        return {**super().lowest(), "examples": 0, "shots": 1, "dev_instances": 0, "new_tokens": 1}


def train_seq2seq(
    base: str | Path,
    data: str | Path | InstructionData,
    out: str | Path,
    *,
    fields: Sequence[str] = ("definition", "examples"),
    examples: int | None = None,
    shots: int | None = None,
    mixing: Mixing = "proportional",
    method: str = "full",
    rank: int = 8,
    alpha: float = 16.0,
    targets: Sequence[str] | None = None,
    steps: int | None = None,
    batch: int = 8,
    learning_rate: float | None = None,
    schedule: str = "linear",
    warmup: float = 0.1,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    dropout: bool = False,
    max_tokens: int | None = None,
    seed: int = 0,
    dtype: str | None = None,
    checkpoints: Sequence[int] = (),
    dev_instances: int = 50,
    new_tokens: int = 32,
    against: Sequence[str | Path | InstructionData] = (),
    licence: str | None = None,
    state_every: int = 50,
    device: str | None = None,
    threads: int | None = None,
    budget: Budget | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Train the sequence-to-sequence model `base` on all tasks of `data`, write it to `out`, return its record.

    >>> import tempfile
    >>> from consilience.data.instructions import InstructionTask, TaskInstance
    >>> from consilience.data.rendering import Instruction
    >>> from consilience.models.seq2seq_loading import create_seq2seq, word_tokenizer
    >>> task = InstructionTask("next", Instruction("Say the next number."), {"train": [TaskInstance("one", ("two",))]})
    >>> words = word_tokenizer(["Instruction: Definition: Say the next number. ; Instance: input: , output: ? one two"])
    >>> place = Path(tempfile.mkdtemp())
    >>> _ = create_seq2seq(place / "base", {"model_type": "t5", "d_model": 16}, words)
    >>> settings = {"steps": 30, "batch": 1, "learning_rate": 0.01, "progress": False}
    >>> record = train_seq2seq(place / "base", InstructionData.of("numbers", [task]), place / "out", **settings)
    >>> record["loss"]["every_step"][0] > record["loss"]["last_20"]
    True

    Every input stands under its task's instruction. fields: which parts of it, of definition, prompt and examples;
    () trains without instructions. examples: at most as many demonstrations (None: all). A text longer than
    `max_tokens` (the model's limit) loses demonstrations first, then the end of the instance's input; the record counts
    them. shots: at most as many training instances per task, drawn by seed (None: all). mixing: "proportional" to the
    instances of a task, "equal", or a temperature T (tasks of n instances in proportion to n ** (1 / T)). The first
    right answer is trained on. Instances that are held out by any task, here or in `against`, and reserved ones, are
    dropped and counted.

    method: "full" writes a model folder, "lora" a PEFT adapter. steps: None is one epoch. dev_instances: how many of
    each task's dev split are answered, with at most `new_tokens` tokens, by the base, at each of `checkpoints` and by
    the expert (weights as written); the record holds the mean score of every task. The other settings, resuming and
    errors are those of `train_encoder`; the default learning rate, 5e-4 for lora and 2e-5 for full, suits large
    models, a small one takes a hundred times that.

    Source: In-BoXBART, arXiv 2204.07600 (batches of 8).
    """
    from consilience.models.seq2seq_loading import load_seq2seq
    from consilience.training.seq2seq_steps import check_mixing, task_examples

    opened = data if isinstance(data, InstructionData) else InstructionData.open(data)
    others = [other if isinstance(other, InstructionData) else InstructionData.open(other) for other in against]
    prompting = Prompting(tuple(fields), examples)
    check_mixing(mixing)
    given = opened.training(against=others).few(shots, seed=seed)
    settings = Seq2SeqSettings(
        method=method,
        rank=rank,
        alpha=alpha,
        targets=None if targets is None else tuple(targets),
        steps=max(1, len(given) // max(1, batch)) if steps is None else steps,
        batch=batch,
        learning_rate=LEARNING_RATES.get(method, 1.0) if learning_rate is None else learning_rate,
        schedule=schedule,
        warmup=warmup,
        weight_decay=weight_decay,
        clip=clip,
        dropout=dropout,
        max_tokens=max_tokens,
        seed=seed,
        dtype="bfloat16" if dtype is None and method == "lora" else dtype,
        checkpoints=tuple(sorted(set(checkpoints))),
        fields=prompting.fields,
        examples=examples,
        shots=shots,
        mixing=mixing,
        dev_instances=dev_instances,
        new_tokens=new_tokens,
    )
    settings.check()
    model = load_seq2seq(base, device=device, max_tokens=max_tokens)
    found = task_examples(model, opened, given, prompting)
    run = _Run(str(base), opened, found, Path(out), settings, model)
    run.facts = {
        "data": {
            "path": str(opened.folder or opened.name),
            "split": "train",
            "licence": licence,
            **given.describe(),
            "fewer_examples": found.fewer_examples,
            "cut_inputs": found.cut_inputs,
            "instructions": opened.content_hash,
        }
    }
    finished = run.finished()
    if finished is not None:
        return finished
    return run.train(state_every=max(1, state_every), threads=threads, budget=budget, shown=progress)


class _Run(TrainingRun):
    """Training on instances of many tasks."""

    settings: Seq2SeqSettings

    def __init__(
        self,
        base: str,
        data: InstructionData,
        examples: TaskExamples,
        out: Path,
        settings: Seq2SeqSettings,
        model: Seq2SeqModel,
    ) -> None:
        super().__init__(base, out, settings, weight_checksums(model.checkpoint))
        self.data, self.examples, self.model = data, examples, model
        self.facts: dict[str, Any] = {}

    def request(self) -> dict[str, Any]:
        """Return what identifies the run."""
        return {"base": self.base, "base_files": self.base_files, "settings": asdict(self.settings), **self.facts}

    def trainee(self) -> Trainee:
        """Return the model's weights, or an adapter of them."""
        from consilience.training.seq2seq_artefact import Seq2SeqAdapter, Seq2SeqWeights

        if self.settings.method == "full":
            return Seq2SeqWeights(self.model, dtype=self.settings.dtype)
        return Seq2SeqAdapter(self.model, self.base, **self.adapter_options())

    def measure(self) -> dict[str, float] | None:
        """Return the mean score of every task's dev instances; None without any."""
        from consilience.training.seq2seq_steps import answer_tasks

        settings = self.settings
        if not settings.dev_instances or not any(task.splits.get("dev") for task in self.data.tasks.values()):
            return None
        found = answer_tasks(
            self.model,
            self.data,
            split="dev",
            prompting=Prompting(settings.fields, settings.examples),
            limit=settings.dev_instances,
            new_tokens=settings.new_tokens,
        )
        return {name: round(scores.mean, 4) for name, scores in found.items()}

    def descend(self, trainee: Trainee, **how: Any) -> TrainingState:
        """Take all steps on the tasks' mixture."""
        from consilience.training.fitting import fit
        from consilience.training.seq2seq_steps import Seq2SeqSteps

        settings, sizes = self.settings, tuple(self.examples.sizes.values())
        steps = Seq2SeqSteps(self.model, self.examples.pairs, settings, sizes=sizes, mixing=settings.mixing)
        self.model.module.train(settings.dropout)
        state = fit(steps, trainee.parameters, settings, **how)
        self.model.module.eval()
        return state

    def described(self, dev: Mapping[str, Any], state: TrainingState) -> dict[str, Any]:
        """Return the record's own part."""
        tasks = self.data.tasks.values()
        limit = self.settings.dev_instances
        return {
            **self.facts,
            "settings": asdict(self.settings),
            "loss": {
                "kind": "cross-entropy, mean over the target tokens",
                "first": round(state.losses[0], 4),
                "last_20": round(fmean(state.losses[-20:]), 4),
                "every_step": [round(loss, 4) for loss in state.losses],
            },
            "dev": {
                "metric": {task.name: task.metric for task in tasks},
                "instances": {task.name: len(task.splits.get("dev", ())[:limit]) for task in tasks},
                "base": dev["base"],
                "expert": dev["expert"],
                "checkpoints": {
                    key: {name: entry[name] for name in ("loss", "dev")} for key, entry in dev["checkpoints"].items()
                },
            },
        }
