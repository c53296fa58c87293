"""`python test_data.py` (or pytest): training text and test sets are disjoint by operands and by sentence frames."""

import json
import random
import re
from pathlib import Path

import data

TASKS = Path(__file__).resolve().parent.parent / "tasks"
STEP = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)")
N = 20000


def texts(name):
    """N pieces of training text of the base, and of the adapter: (prompt, response)."""
    rng = random.Random(f"sprout test_data {name}")
    for make in (data.base_example, data.adapter_example):
        for chunk, _ in data.PHASES:
            for _ in range(N):
                yield make(rng, chunk)


def steps_of(response):
    """Start and changes of a worked solution; checks its sums, and that each step goes on from the last."""
    found = [(int(a), op, int(b), int(c)) for a, op, b, c in STEP.findall(response)]
    for (a, op, b, c), after in zip(found, found[1:] + [None]):
        assert data.apply(a, op, b) == c
        assert after is None or after[0] == c
    return found[0][0], [(op, b) for _, op, b, _ in found]


def test_operands_and_frames_are_disjoint():
    sets = data.test_sets()
    test = [x for items in sets.values() for x in items]
    test_frames = {f for x in test for f in x["frames"]}
    test_operands = {data.operands(x["start"], x["changes"]) for x in test if "changes" in x}
    rng = random.Random("sprout test_data items")
    for i in range(N):
        for x in (data.problem(rng, 1 + i % 5, data.TRAIN), data.news(rng, data.TRAIN, data.LABELS[i % 3])):
            assert test_frames.isdisjoint(x["frames"]), x
            if "changes" in x:
                assert data.operands(x["start"], x["changes"]) not in test_operands, x


def test_training_text_holds_no_test_problem_and_no_test_sentence():
    sets = data.test_sets()
    prompts = {x["text"] for items in sets.values() for x in items}
    operands = {data.operands(x["start"], x["changes"]) for items in sets.values() for x in items if "changes" in x}
    for prompt, response in texts("held out"):
        text = prompt.removesuffix(data.STEPS_MARK).removesuffix(data.LIST_MARK).removeprefix("News: ").removesuffix(" Sentiment?")
        assert text not in prompts
        if "in steps" in response:
            assert data.operands(*steps_of(response)) not in operands, prompt


def test_base_sees_worked_solutions_of_two_steps_at_most():
    rng = random.Random("sprout test_data steps")
    for i in range(2 * N):
        prompt, response = data.base_example(rng, data.PHASES[i % 2][0])
        assert ("in steps" in response) == prompt.endswith(data.STEPS_MARK)
        if prompt:
            assert len(STEP.findall(response)) <= 2
        if prompt.endswith(data.LIST_MARK):
            assert "=" not in response


def test_text_round_trips():
    tok, rng = data.build_tokenizer(), random.Random(5)
    samples = ["".join(data.adapter_example(rng)) for _ in range(500)]
    for s in samples + ["Zürich — 1,234.5 \n\t naïve 東京 🙂 <b>", " Zebedee's xylophones", ""]:
        assert tok.decode(tok.encode(s).ids) == s
    assert max(len(tok.encode(s).ids) for s in samples) < 200


def test_files_are_the_generators():
    for name, items in data.test_sets().items():
        lines = (TASKS / f"{name}.jsonl").read_text().splitlines()
        assert lines == [data.task_line(x) for x in items]
        assert len({json.loads(x)["prompt"] for x in lines}) == len(lines)


if __name__ == "__main__":
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            test()
            print("ok", name)
