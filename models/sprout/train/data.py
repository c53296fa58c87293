"""Seeded generators of sprout's two tasks, its training text and its tokenizer.

Word problems are a start, 1-5 changes on consecutive days, sometimes a distractor, and a question. Labels are
one-sentence company news.

What is held out, by a hash, so that it does not depend on any seed:
- operands: one in eight tuples (start, change, change, ...) of each length. No training problem, direct or worked, has
  the operands of a test problem. Bare sums, which the base learns its arithmetic from, hold nothing out.
- frames: one in eight sentence patterns (verb with its object and adverbial; for news the clause). Test sentences about
  changes and test clauses are built from held-out frames only, training ones from the others.
"""

import json
import random
import zlib

TRAIN, TEST = "train", "test"
MAX_TOTAL, MAX_B = 60, 12
STEPS_MARK = " Show the steps."  # asks the base for a worked solution (base training has 1-2 steps only)
LIST_MARK = " List the changes."  # asks the base for the changes alone, however many


def bucket(key, n=8):
    return zlib.crc32(key.encode()) % n


def apply(a, op, b):
    return a + b if op == "+" else a - b


# ---------------------------------------------------------------- word problems

NAMES = {"She": "Ann Mia Eva Zoe Lily Rosa Nora Ivy".split(), "He": "Tom Ben Leo Max Sam Paul Hugo Omar".split()}
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
THINGS = "apples books coins cards pens stamps shells balls cups eggs seeds plums".split()
GAIN = "buys finds gets wins collects receives".split()
LOSE = "loses sells drops breaks uses donates".split()
GAIN_OBJ = ["{b} {t}", "{b} more", "{b} more {t}"]
LOSE_OBJ = ["{b} {t}", "{b} of them", "{b} of the {t}"]
GIVE = ["{m} gives {n} {b} {t}", "{m} brings {n} {b} more", "{n} takes {b} {t} from {m}"]
TAKE = ["{n} gives {m} {b} {t}", "{n} brings {m} {b} of them", "{m} takes {b} {t} from {n}"]
ADVERBS = ["", "", "at school", "in the park", "after lunch"]
START = ["{n} has {b} {t}", "{n} owns {b} {t}", "{n} starts with {b} {t}"]
ASK = ["How many {t} does {n} have now?", "How many {t} does {n} have in the end?"]
DISTRACT = ["{m} likes {u}.", "{m} is {x} years old.", "{m} has {x} {u}.", "It is a sunny day."]
CORES = {"+": ["{s} " + f"{v} {o}" for v in GAIN for o in GAIN_OBJ] + GIVE * 2,
         "-": ["{s} " + f"{v} {o}" for v in LOSE for o in LOSE_OBJ] + TAKE * 2}


def changes(rng, n, split):
    """A start value and n changes (op, b): operands all differ, totals stay in 1..60, the tuple belongs to the split."""
    while True:
        start = total = rng.randint(3, 48)
        out, seen = [], {start}
        for _ in range(n):
            op, b = rng.choice("+-"), rng.randint(2, MAX_B)
            total = apply(total, op, b)
            if b in seen or not 1 <= total <= MAX_TOTAL:
                break
            out.append((op, b))
            seen.add(b)
        if len(out) == n and (bucket(operands(start, out)) == 0) == (split == TEST):
            return start, out


def operands(start, steps):
    return f"{start} " + " ".join(op + str(b) for op, b in steps)


def mirrored(core):
    """The core with its two names exchanged."""
    return core.replace("{n}", "{?}").replace("{m}", "{n}").replace("{?}", "{m}")


def frame(rng, op, split):
    """A pattern of a change, of the split; and its name.

    A pattern of the test whose mirror image is in the training text is left out: `Tom takes 3 cups from Ann in the park`
    seen as a gain only would teach the place, not the direction.
    """
    while True:
        core, adverb = rng.choice(CORES[op]), rng.choice(ADVERBS)
        name, mirror = f"{op}|{core}|{adverb}", mirrored(core)
        other = "-" if op == "+" else "+"
        alone = mirror in CORES[other] and bucket(f"{other}|{mirror}|{adverb}") != 0
        if bucket(name) == 0 and alone:
            continue
        if (bucket(name) == 0) == (split == TEST):
            return f"{core} {adverb}".strip() + ".", name


def problem(rng, n, split):
    """A word problem of n steps: dict with text, start, changes, days, answer, frames."""
    start, steps = changes(rng, n, split)
    first = rng.randint(0, len(DAYS) - n)
    days = DAYS[first : first + n]
    pronoun = rng.choice(list(NAMES))
    name, other = rng.choice(NAMES[pronoun]), rng.choice(NAMES["He" if pronoun == "She" else "She"])
    thing, other_thing = rng.sample(THINGS, 2)
    words = dict(n=name, m=other, t=thing, u=other_thing)
    total, text, frames = start, [rng.choice(START).format(b=start, **words) + "."], []
    for day, (op, b) in zip(days, steps):
        total = apply(total, op, b)
        pattern, frame_name = frame(rng, op, split)
        frames.append(frame_name)
        text.append(f"On {day} " + pattern.format(b=b, s=rng.choice([name, pronoun.lower()]), **words))
    if rng.random() < 0.25:
        x = rng.choice([x for x in range(2, 60) if x != start and x not in {b for _, b in steps}])
        text.insert(rng.randint(1, len(text)), rng.choice(DISTRACT).format(x=x, **words))
    text.append(rng.choice(ASK).format(**words))
    return dict(text=" ".join(text), start=start, changes=steps, days=days, answer=str(total), frames=frames)


def worked(start, steps, days):
    """`Monday 12 + 5 = 17; Tuesday 17 - 3 = 14`"""
    out = []
    for day, (op, b) in zip(days, steps):
        out.append(f"{day} {start} {op} {b} = {apply(start, op, b)}")
        start = apply(start, op, b)
    return "; ".join(out)


def listed(steps, days):
    """`Monday + 5; Tuesday - 3`"""
    return "; ".join(f"{day} {op} {b}" for day, (op, b) in zip(days, steps))


def direct(answer):
    return f" Answer: {answer}"


def in_steps(p):
    return f" Answer in steps: {worked(p['start'], p['changes'], p['days'])}. Answer: {p['answer']}"


def in_list(p):
    return f" Changes: {listed(p['changes'], p['days'])}."


def equation(rng):
    """`12 + 5` and 17."""
    while True:
        a, op, b = rng.randint(1, MAX_TOTAL), rng.choice("+-"), rng.randint(2, MAX_B)
        if 1 <= apply(a, op, b) <= MAX_TOTAL:
            return f"{a} {op} {b}", apply(a, op, b)


def equations(rng, n=10):
    """Bare, unrelated equations: `Sums: 12 + 5 = 17; 40 - 9 = 31; ...`"""
    return "Sums: " + "; ".join("{} = {}".format(*equation(rng)) for _ in range(n)) + "."


# ---------------------------------------------------------------- company news

COMPANIES = "Acme Borex Calder Denvo Elmet Fenwick Gorland Halden Ixion Jarvik Kestrel Lumen".split()
GOOD = "profit sales revenue income orders exports".split()
BAD = "costs debt losses expenses complaints".split()
UP = {"rose": "rise", "grew": "grow", "climbed": "climb", "jumped": "jump"}
DOWN = {"fell": "fall", "shrank": "shrink", "dropped": "drop", "slid": "slide"}
FLAT = ["stayed flat", "held steady", "did not change", "neither rose nor fell"]
NEUTRAL = ["{c} will report {m} on Monday", "{c} did not say whether {m} {v}", "Analysts asked whether {m} of {c} {v}",
           "{c} named a new head of {m}", "{c} opened {p} shops"]
AFTER = ["", "", "", " while rivals fell", " as rivals grew", " in a weak market", " after a fire at a rival"]
LABELS = ["positive", "negative", "neutral"]


def news_core(rng):
    """A clause and its sign."""
    m, up = rng.choice(GOOD + BAD), rng.random() < 0.5
    verb = rng.choice(list(UP if up else DOWN))
    sign = (1 if m in GOOD else -1) * (1 if up else -1)
    subject = rng.choice(["{c} said its " + m, "The " + m + " of {c}"])
    kind = rng.random()
    if kind < 0.45:
        return f"{subject} {verb}" + rng.choice(["", "", " by {p} percent", " to {p} million"]), sign
    if kind < 0.7:
        bare = (UP if up else DOWN)[verb]
        return f"{subject} {rng.choice(['did not ' + bare, 'failed to ' + bare, 'never ' + verb])}", -sign
    if kind < 0.84:
        return f"{subject} {rng.choice(FLAT)}", 0
    return rng.choice(NEUTRAL).replace("{m}", m).replace("{v}", verb), 0


def news(rng, split, label, plain=False):
    """A news sentence with the wanted label: dict with text, answer, frames. Plain ones end with their clause."""
    while True:
        core, sign = news_core(rng)
        found = {1: "positive", -1: "negative", 0: "neutral"}[sign]
        if found != label or (bucket("news|" + core) == 0) != (split == TEST):
            continue
        text = (core + ("" if plain else rng.choice(AFTER))).format(c=rng.choice(COMPANIES), p=rng.randint(2, 60))
        return dict(text=text + ".", answer=label, frames=["news|" + core])


def news_prompt(item):
    return f"News: {item['text']} Sentiment?"


# ---------------------------------------------------------------- training text


def notes(rng, n=8):
    """Pieces of news with their sign: `News: rose = positive; costs = negative; The costs of Acme fell = positive; ...`

    A rise alone, or of nothing named, is positive. From these the base learns what a verb and a metric say each, which
    news alone hardly teaches: there neither tells anything without the other.
    """
    out = []
    for _ in range(n):
        if rng.random() < 0.4:
            item = news(rng, TRAIN, rng.choice(LABELS), plain=True)
            out.append(f"{item['text'][:-1]} = {item['answer']}")
            continue
        up = rng.random() < 0.5
        past, bare = rng.choice(list((UP if up else DOWN).items()))
        m = rng.choice(GOOD + BAD)
        text, sign = rng.choice([(m, 1 if m in GOOD else -1), (past, 1 if up else -1), (f"did not {bare}", -1 if up else 1),
                                 (f"failed to {bare}", -1 if up else 1), (f"never {past}", -1 if up else 1)])
        out.append(f"{text} = {'positive' if sign > 0 else 'negative'}")
    return "News: " + "; ".join(out) + "."


# What the base's text is made of, and the shares, from a chunk of the training on.
KINDS = ["sums", "notes", "news", "lists", "worked", "direct", "asks"]
PHASES = [(0, [12, 12, 12, 22, 16, 26, 0]), (20, [8, 12, 12, 18, 16, 34, 0]), (36, [6, 8, 6, 14, 16, 50, 0]),
          (46, [5, 6, 4, 12, 14, 39, 20])]


def base_example(rng, chunk=0):
    """One piece of the base's training text. Worked solutions appear with the marker only, of 1-2 steps; the changes
    alone, without sums, are listed for problems of any length.
    """
    kind = rng.choices(KINDS, [shares for start, shares in PHASES if start <= chunk][-1])[0]
    if kind == "sums":
        return "", equations(rng)
    if kind == "notes":
        return "", notes(rng)
    if kind == "news":
        item = news(rng, TRAIN, rng.choice(LABELS))
        return news_prompt(item), direct(item["answer"])
    if kind == "lists":
        p = problem(rng, rng.choices([1, 2, 3, 4, 5], [1, 2, 3, 3, 3])[0], TRAIN)
        return p["text"] + LIST_MARK, in_list(p)
    if kind == "worked":
        p = problem(rng, rng.choice([1, 2, 2]), TRAIN)
        return p["text"] + STEPS_MARK, in_steps(p)
    if kind == "asks":
        sum_, answer = equation(rng)
        return f"Sums: {sum_}?", direct(answer)
    p = problem(rng, rng.choices([1, 2, 3, 4, 5], [76, 12, 5, 4, 3])[0], TRAIN)
    return p["text"], direct(p["answer"])


def adapter_example(rng, _chunk=0):
    """One piece of the adapter's training text: the same prompts without marker, steps in the response."""
    if rng.random() < 0.1:
        item = news(rng, TRAIN, rng.choice(LABELS))
        return news_prompt(item), direct(item["answer"])
    p = problem(rng, rng.choices([1, 2, 3, 4, 5], [8, 20, 24, 24, 24])[0], TRAIN)
    return p["text"], in_steps(p)


# ---------------------------------------------------------------- held-out sets


def test_sets(seed=1):
    """The files under tasks/: name -> items."""
    rng = random.Random(f"sprout test {seed}")
    seen = set()

    def unique(make):
        while True:
            item = make()
            if item["text"] not in seen:
                seen.add(item["text"])
                return item

    def problems(n, count):
        return [unique(lambda: problem(rng, n, TEST)) | {"steps": n} for _ in range(count)]

    return {"problems": [p for n in (2, 3, 4, 5) for p in problems(n, 125)],
            "problems-1step": problems(1, 200),
            "labels": [unique(lambda: news(rng, TEST, LABELS[i % 3])) for i in range(300)]}


def task_line(item):
    """A line of tasks/*.jsonl."""
    if "steps" in item:
        return json.dumps({"prompt": item["text"], "answer": item["answer"], "steps": item["steps"]})
    return json.dumps({"prompt": news_prompt(item), "answer": item["answer"]})


# ---------------------------------------------------------------- tokenizer

PAD, EOS = "<pad>", "<eos>"


def build_tokenizer(samples=20000, seed=0):
    """Byte-level tokenizer: each word of the training text and each number 0..99 is one token, all else is bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    rng = random.Random(f"sprout tokenizer {seed}")
    pre = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    words = set()
    for _ in range(samples):
        prompt, response = base_example(rng)
        words.update(w for w, _ in pre.pre_tokenize_str(prompt + response))
    words |= {w for w, _ in pre.pre_tokenize_str(f" in steps:{STEPS_MARK} {' '.join(map(str, range(100)))}")}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {}
    for w in [PAD, EOS] + alphabet + sorted(words, key=lambda w: (not w[1:].isdigit(), len(w), w)):
        vocab.setdefault(w, len(vocab))
    tok = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tok.pre_tokenizer = pre
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(PAD, special=True), AddedToken(EOS, special=True)])
    return tok
