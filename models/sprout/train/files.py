"""Write sprout's files, then judge them as any user would: loaded from disk by transformers and PEFT, decoded greedily."""

import json
import platform
import random
import shutil
import time
from collections import Counter, defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers

import data
from model import CONFIG

HERE = Path(__file__).resolve().parent
CHAT = "{% for m in messages %}{{ m['content'] | trim }}{% if not loop.last %} {% endif %}{% endfor %}"
MAX_NEW = 48


def extract(text):
    """The answer of a generated text: what follows its last `Answer:`."""
    return text.rsplit("Answer:", 1)[-1].strip()


# ---------------------------------------------------------------- files


def write_model(out, tok, state):
    config = transformers.LlamaConfig(
        vocab_size=tok.get_vocab_size(), tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tok.token_to_id(data.EOS), pad_token_id=tok.token_to_id(data.PAD), **CONFIG)
    net = transformers.LlamaForCausalLM(config).bfloat16()
    missing, extra = net.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not extra, (missing, extra)
    net.tie_weights()
    net.generation_config = transformers.GenerationConfig(
        eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id, max_new_tokens=MAX_NEW)
    net.save_pretrained(out)
    tok.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps(dict(
        tokenizer_class="PreTrainedTokenizerFast", eos_token=data.EOS, pad_token=data.PAD,
        model_max_length=CONFIG["max_position_embeddings"], clean_up_tokenization_spaces=False,
        chat_template=CHAT), indent=2) + "\n")


def write_adapter(out, lora):
    from peft import LoraConfig, get_peft_model
    from train import ALPHA, RANK, TARGETS
    base = transformers.LlamaForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, lora_dropout=0.0, bias="none",
                        task_type="CAUSAL_LM", inference_mode=True)
    model = get_peft_model(base, config)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, v in lora.items():  # model.layers.0.mlp.up_proj.lora_A
            own[f"base_model.model.{name}.default.weight"].copy_(v)
    model.bfloat16()
    model.peft_config["default"].base_model_name_or_path = "sprout"
    model.save_pretrained(out / "reason")
    (out / "reason" / "README.md").unlink(missing_ok=True)  # PEFT's empty template


# ---------------------------------------------------------------- judging


@torch.no_grad()
def generate(model, tokenizer, prompts, mode, max_new=MAX_NEW):
    """Greedy texts. mode: base (adapter off), masked (off on the prompt, on from the first new token), everywhere."""
    eos = tokenizer.eos_token_id
    out, tokens = [None] * len(prompts), 0
    groups = defaultdict(list)
    for i, p in enumerate(prompts):
        groups[len(tokenizer(p)["input_ids"])].append(i)
    for rows in groups.values():
        ids = torch.tensor([tokenizer(prompts[i])["input_ids"] for i in rows])
        new, cache, x = [], None, ids
        done = torch.zeros(len(rows), dtype=torch.bool)
        for _ in range(max_new):
            on = mode == "everywhere" or (mode == "masked" and cache is not None)
            if on:
                y = model(x, past_key_values=cache, use_cache=True)
            else:
                with model.disable_adapter():
                    y = model(x, past_key_values=cache, use_cache=True)
            cache = y.past_key_values
            x = y.logits[:, -1:].argmax(-1)
            tokens += int((~done).sum())
            new.append(x.masked_fill(done[:, None], eos))
            done |= x[:, 0] == eos
            if done.all():
                break
        new = torch.cat(new, 1).tolist()
        for i, seq in zip(rows, new):
            out[i] = tokenizer.decode(seq[: seq.index(eos)] if eos in seq else seq)
    return out, tokens


def judge(model, tokenizer, lines, mode):
    t0 = time.time()
    texts, tokens = generate(model, tokenizer, [x["prompt"] for x in lines], mode)
    right = [extract(t) == x["answer"] for t, x in zip(texts, lines)]
    result = dict(accuracy=sum(right) / len(right), items=len(right), new_tokens=tokens,
                  seconds=round(time.time() - t0, 1))
    if "steps" in lines[0]:
        by = defaultdict(list)
        for x, r in zip(lines, right):
            by[x["steps"]].append(r)
        result["by_steps"] = {n: round(sum(r) / len(r), 4) for n, r in sorted(by.items())}
    else:
        said = Counter(extract(t) for t in texts)
        for label in data.LABELS:
            hit = sum(r for x, r in zip(lines, right) if x["answer"] == label)
            gold = sum(x["answer"] == label for x in lines)
            p, r = hit / max(1, said[label]), hit / gold
            result[label] = dict(precision=round(p, 4), recall=round(r, 4), f1=round(2 * p * r / max(1e-9, p + r), 4))
    return result, texts


def bag_of_words(test, count=20000, steps=300):
    """Accuracy of a logistic regression on the words of the news sentence, trained on `count` training sentences."""
    rng = random.Random("sprout bag of words")
    items = [data.news(rng, data.TRAIN, data.LABELS[i % 3]) for i in range(count)]
    train = [(data.news_prompt(x), x["answer"]) for x in items]
    split = lambda s: s.lower().replace(",", " ").replace(".", " ").replace("'s", " ").split()
    vocab = {w: i for i, w in enumerate(sorted({w for s, _ in train for w in split(s)}))}

    def features(pairs):
        x = torch.zeros(len(pairs), len(vocab))
        for i, (s, _) in enumerate(pairs):
            for w in split(s):
                if w in vocab:
                    x[i, vocab[w]] = 1
        return x, torch.tensor([data.LABELS.index(y) for _, y in pairs])

    x, y = features(train)
    w, b = torch.zeros(len(vocab), 3, requires_grad=True), torch.zeros(3, requires_grad=True)
    opt = torch.optim.LBFGS([w, b], max_iter=steps)

    def closure():
        opt.zero_grad()
        loss = F.cross_entropy(x @ w + b, y) + 1e-4 * w.square().sum()
        loss.backward()
        return loss

    opt.step(closure)
    xt, yt = features([(i["prompt"], i["answer"]) for i in test])
    with torch.no_grad():
        return dict(train=((x @ w + b).argmax(-1) == y).float().mean().item(),
                    test=((xt @ w + b).argmax(-1) == yt).float().mean().item())


def agreement(tok, out, state, lora, lines):
    """Largest |logit| difference between the training model and transformers + PEFT, base and adapter everywhere on."""
    from peft import PeftModel
    from model import Llama
    from train import ALPHA, RANK
    net = Llama(tok.get_vocab_size())
    net.load_state_dict({k: v.float() for k, v in state.items()})
    net.add_lora(RANK, ALPHA)
    net.load_state_dict({k: v.bfloat16().float() for k, v in lora.items()}, strict=False)
    hf = transformers.LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
    hf = PeftModel.from_pretrained(hf, out / "reason").float().eval()
    worst = 0.0
    with torch.no_grad():
        for x in lines:
            ids = torch.tensor([tok.encode(x["prompt"]).ids])
            with hf.disable_adapter():
                worst = max(worst, (hf(ids).logits - net(ids)).abs().max().item())
            worst = max(worst, (hf(ids).logits - net(ids, torch.ones(*ids.shape, 1))).abs().max().item())
    return hf, worst


def readme(text, figures):
    """README.md with its figures section filled."""
    runs = {(r["task"], r["mode"]): r for r in figures["runs"]}
    pc = lambda x: f"{100 * x:.1f}"
    rows = ["| | base | adapter, off on the prompt | adapter, on everywhere |", "|---|---|---|---|"]

    def row(name, pick):
        rows.append(f"| {name} | " + " | ".join(pc(pick(m)) for m in ("base", "masked", "everywhere")) + " |")

    row("problems, 1 step, %", lambda m: runs["problems-1step", m]["accuracy"])
    for n in (2, 3, 4, 5):
        row(f"problems, {n} steps, %", lambda m: runs["problems", m]["by_steps"][n])
    row("**problems, 2-5 steps, %**", lambda m: runs["problems", m]["accuracy"])
    row("**labels, %**", lambda m: runs["labels", m]["accuracy"])
    for label in data.LABELS:
        row(f"labels, F1 of {label}, %", lambda m: runs["labels", m][label]["f1"])
    rows.append("| new tokens, 500 problems | "
                + " | ".join(str(runs["problems", m]["new_tokens"]) for m in ("base", "masked", "everywhere")) + " |")
    base, adapter = (figures["training"][k] for k in ("base", "adapter"))
    words, marked = figures["bag_of_words"], figures["runs"][-1]["by_steps"]
    notes = [
        f"- Labels by a bag of words (logistic regression on the words of 20,000 training sentences): {pc(words['test'])} % "
        f"on the test, {pc(words['train'])} % on its own training sentences.",
        "- Base asked to `Show the steps.`: " + ", ".join(f"{pc(a)} % on {n}" for n, a in marked.items()) + " steps.",
        f"- {figures['parameters']:,} parameters, {figures['bytes']['model.safetensors']:,} bytes; adapter "
        f"{figures['adapter_parameters']:,} parameters, {figures['bytes']['reason/adapter_model.safetensors']:,} bytes.",
        f"- Trained on two cores: base {base['curve'][-1]['tokens'] / 1e6:.1f} M tokens in {base['seconds'] / 60:.0f} min, "
        f"adapter {adapter['curve'][-1]['tokens'] / 1e6:.1f} M tokens in {adapter['seconds'] / 60:.0f} min "
        "(the machine was shared with other work).",
        f"- Largest logit difference between the training code and transformers + PEFT: {figures['largest_logit_difference']:.1e}."]
    head, rest = text.split("<!-- figures -->")
    tail = rest.split("<!-- /figures -->")[1]
    return head + "<!-- figures -->\n" + "\n".join(rows) + "\n\n" + "\n".join(notes) + "\n<!-- /figures -->" + tail


def settings(args):
    """What the run was told, and its schedules."""
    from train import ADAPTER_SCHEDULE, BASE_SCHEDULE, DIRECT_WEIGHT
    told = {k: str(v) for k, v in vars(args).items() if k not in ("out", "work", "stage", "resume")}
    return told | dict(base_schedule=BASE_SCHEDULE, adapter_schedule=ADAPTER_SCHEDULE, direct_weight=DIRECT_WEIGHT,
                       kinds=data.KINDS, phases=data.PHASES)


def write_files(tok, args, log):
    out = args.work / "out"
    shutil.rmtree(out, ignore_errors=True)
    (out / "tasks").mkdir(parents=True)
    (out / "train").mkdir()
    state = torch.load(args.work / "base.pt")
    lora = torch.load(args.work / "adapter.pt")
    write_model(out, tok, state)
    write_adapter(out, lora)
    sets = {}
    for name, items in data.test_sets().items():
        text = "".join(data.task_line(x) + "\n" for x in items)
        (out / "tasks" / f"{name}.jsonl").write_text(text)
        sets[name] = [json.loads(line) for line in text.splitlines()]
    model, worst = agreement(tok, out, state, lora, sets["problems"][::50])
    print("largest logit difference to transformers + PEFT", worst)
    assert worst < 1e-3
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    runs, examples = [], []
    for name, lines in sets.items():
        for mode in ("base", "masked", "everywhere"):
            result, texts = judge(model, tokenizer, lines, mode)
            runs.append(dict(task=name, mode=mode) | result)
            print(runs[-1], flush=True)
            i = len(lines) // 2
            examples.append(dict(task=name, mode=mode, prompt=lines[i]["prompt"], text=texts[i],
                                 answer=lines[i]["answer"]))
    marked = [x | {"prompt": x["prompt"] + data.STEPS_MARK} for x in sets["problems-1step"] + sets["problems"]]
    result, _ = judge(model, tokenizer, marked, "base")
    runs.append(dict(task="problems of 1-5 steps, marker `Show the steps.`", mode="base") | result)
    words = bag_of_words(sets["labels"])
    figures = dict(
        parameters=sum(v.numel() for v in state.values()), adapter_parameters=sum(v.numel() for v in lora.values()),
        config=CONFIG, settings=settings(args),
        versions=dict(python=platform.python_version(), torch=torch.__version__,
                      transformers=transformers.__version__, peft=__import__("peft").__version__,
                      tokenizers=__import__("tokenizers").__version__),
        bytes={str(p.relative_to(out)): p.stat().st_size for p in sorted(out.rglob("*")) if p.is_file()},
        largest_logit_difference=worst, bag_of_words=words, runs=runs, examples=examples, training=log)
    (out / "train" / "run.json").write_text(json.dumps(figures, indent=1) + "\n")
    (out / "README.md").write_text(readme((HERE.parent / "README.md").read_text(), figures))
    for path in sorted(out.rglob("*")):  # into place, file by file
        if path.is_file():
            path.chmod(0o644)
            target = args.out / path.relative_to(out)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target.with_suffix(target.suffix + ".new"))
            target.with_suffix(target.suffix + ".new").replace(target)
    print(json.dumps(dict(bag_of_words=words, bytes=figures["bytes"]), indent=1))
