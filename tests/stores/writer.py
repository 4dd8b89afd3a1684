"""A process that changes an index step by step, and says so when a step is durable: `python -m tests.stores.writer`."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import numpy as np

from consilience.data.documents import Document
from consilience.stores.embedded import EmbeddedStores
from consilience.stores.protocol import Batch
from consilience.stores.table import Edge

IDS = [f"d{number}" for number in range(40)]
WORDS = ("lists", "files", "dogs", "rivers")

State = dict[str, tuple[str, int]]


def step(number: int, state: State) -> tuple[str, State, list[str]]:
    """Return what step `number` does, the state after it, and the ids it touches."""
    draw = random.Random(number)
    if number % 11 == 10:
        return "compact", state, []
    if number % 5 == 4 and len(state) > 5:
        gone = draw.sample(sorted(state), 3)
        return "delete", {name: held for name, held in state.items() if name not in gone}, gone
    ids = draw.sample(IDS, 6)
    return "upsert", state | {name: (draw.choice(WORDS), number) for name in ids}, ids


def state_after(count: int) -> State:
    """Return the documents after so many steps: id -> word and the number of the step that wrote it."""
    state: State = {}
    for number in range(count):
        state = step(number, state)[1]
    return state


def document(name: str, held: tuple[str, int]) -> Document:
    """Return the document of an id in a state."""
    return Document(name, f"{held[0]} of step {held[1]}", fields={"step": held[1]})


def vector(name: str, held: tuple[str, int]) -> np.ndarray:
    """Return the vector of a document: any function of id and step."""
    return np.random.default_rng([held[1], IDS.index(name)]).normal(size=16).astype(np.float32)


def main(folder: str, told: str) -> None:
    """Go on from the state that the index is in, for ever."""
    acknowledged = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with EmbeddedStores(Path(folder), write=True) as stores:
        number = stores.table.snapshot().generation
        state = state_after(number)
        while True:
            kind, state, ids = step(number, state)
            if kind == "compact":
                stores.compact()
            elif kind == "delete":
                stores.delete(ids)
            else:
                documents = [document(name, state[name]) for name in ids]
                edges = [Edge(name, "has", state[name][0], name) for name in ids]
                vectors = {"s": np.stack([vector(name, state[name]) for name in ids])}
                stores.write(Batch(documents, vectors, edges), replace=True)
            number += 1
            os.write(acknowledged, f"{number}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
