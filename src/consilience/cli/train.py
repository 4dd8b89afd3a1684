"""`consilience train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from consilience.cli.output import show_json, show_table


def train(
    base: Annotated[str, typer.Option(help="Encoder to start from: a folder, package:..., org/name, base+adapter.")],
    data: Annotated[
        list[Path],
        typer.Option(help="Dataset folder: corpus, queries and qrels, or scored pairs, as parquet (repeatable)."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write the expert to.")],
    method: Annotated[str, typer.Option(help="lora (a PEFT adapter) or full (a whole model).")] = "lora",
    rank: Annotated[int, typer.Option(help="Rank of the adapter.")] = 16,
    alpha: Annotated[float, typer.Option(help="The adapter is scaled by alpha / rank.")] = 32.0,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 180,
    batch: Annotated[int, typer.Option(help="Pairs per step.")] = 32,
    learning_rate: Annotated[float | None, typer.Option(help="Default: 5e-4 for lora, 2e-5 for full.")] = None,
    schedule: Annotated[str, typer.Option(help="linear (to zero) or constant, after the warm-up.")] = "linear",
    warmup: Annotated[float, typer.Option(help="Share of the steps over which the learning rate rises.")] = 0.1,
    weight_decay: Annotated[float, typer.Option(help="AdamW's weight decay.")] = 0.01,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 1.0,
    scale: Annotated[float, typer.Option(help="Cosines are multiplied by this in the loss.")] = 20.0,
    dropout: Annotated[bool, typer.Option("--dropout", help="Use the base model's own dropout.")] = False,
    target: Annotated[
        list[str] | None, typer.Option(help="Ending of linear layers to adapt (repeatable; default: all in layers).")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Type of the written weights.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest input.")] = 64,
    seed: Annotated[int, typer.Option(help="Order of the data and first adapter.")] = 0,
    checkpoints: Annotated[
        list[int] | None, typer.Option("--checkpoint", help="Also keep the expert after this step (repeatable).")
    ] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="Datasets whose dev and test queries must not be trained on (repeatable).")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the data, for the record.")] = None,
    objective: Annotated[
        str | None, typer.Option(help="Of several datasets: codiemb (each task its own loss; the default) or infonce.")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="Of several datasets: dynamic (the default), single or mixed.")
    ] = None,
    positives: Annotated[int | None, typer.Option(help="Of several datasets: positives per query.")] = None,
    negatives: Annotated[int | None, typer.Option(help="Of several datasets: hard negatives per query.")] = None,
    similarity_batch: Annotated[int | None, typer.Option(help="Scored pairs per step (default: --batch).")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... (default: the best there is).")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads on a CPU.")] = None,
    budget: Annotated[float | None, typer.Option(help="Stop after this many seconds; run again to resume.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Fine-tune an encoder on a dataset's train split. The same command resumes after an interruption."""
    from consilience.core.jobs import Budget
    from consilience.training import Joint, train_encoder

    asked: dict[str, Any] = {
        "objective": objective,
        "sampler": sampler,
        "positives": positives,
        "negatives": negatives,
        "similarity_batch": similarity_batch,
    }
    chosen = {name: value for name, value in asked.items() if value is not None}
    record = train_encoder(
        base,
        data[0] if len(data) == 1 else data,
        out,
        joint=Joint(**chosen) if chosen else None,
        method=method,
        rank=rank,
        alpha=alpha,
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        schedule=schedule,
        warmup=warmup,
        weight_decay=weight_decay,
        clip=clip,
        scale=scale,
        dropout=dropout,
        targets=tuple(target) if target else None,
        dtype=dtype,
        max_tokens=max_tokens,
        seed=seed,
        checkpoints=tuple(checkpoints or ()),
        against=tuple(against or ()),
        licence=licence,
        device=device,
        threads=threads,
        budget=Budget(wall_seconds=budget) if budget is not None else None,
        progress=False if as_json else None,
    )
    if as_json:
        show_json(record)
        return
    dev = record["dev"]
    measured = [("dev nDCG@10", "not measured: the dataset has no dev split")]
    if isinstance(dev["expert"], dict):
        names = {name: f"dev {metric.removesuffix(' x 100')}, {name}" for name, metric in dev["metric"].items()}
        measured = [(names[name], _change(dev["base"][name], dev["expert"][name])) for name in names]
    elif dev["expert"] is not None:
        measured = [("dev nDCG@10", _change(dev["base"], dev["expert"]))]
    rows = [("steps", f"{steps} of {batch} pairs"), *measured, ("record", out / "expert.json")]
    show_table(str(out), ("", ""), rows)


def _change(base: float, expert: float) -> str:
    return f"{base:.1f} (base) -> {expert:.1f} (expert)"
