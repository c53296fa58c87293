"""Make sprout: `python train.py` trains the base and the adapter `reason`, evaluates both and writes all files.

Stages (each can be run alone with --stage): base, adapter, files. All of them draw their text from data.py by seed and
chunk number, so a run repeats on the same machine and versions.
"""

import argparse
import json
import os
import random
import shutil
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import torch
import torch.nn.functional as F

import data
from model import CONFIG, Llama, Muon

HERE = Path(__file__).resolve().parent
RANK, ALPHA = 16, 32
DIRECT_WEIGHT = 4
# (tokens, share of the peak rate). The base's later, shorter cycles are for its direct answers, which come last.
BASE_SCHEDULE = [(0, 0.0), (2e5, 1.0), (8.4e6, 1.0), (14e6, 0.0), (14e6, 0.4), (17.5e6, 0.0), (17.5e6, 0.5), (21e6, 0.0)]
ADAPTER_SCHEDULE = [(0, 0.0), (1e5, 1.0), (1.5e6, 1.0), (5e6, 0.0)]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


# ---------------------------------------------------------------- batches


def encode(tok, pairs):
    """(prompt, response) pairs -> [(ids, mark)]: mark is the weight in the loss of a token of the response (closed by
    eos), 0 on the prompt.

    In bare equations, which have no prompt, only the results are marked: their operands cannot be foreseen. A direct
    answer weighs more, for it is one token to learn from where a list or a worked solution has ten.
    """
    eos, equals = tok.token_to_id(data.EOS), tok.token_to_id("Ġ=")
    a = tok.encode_batch([p for p, _ in pairs])
    b = tok.encode_batch([r for _, r in pairs])
    out = []
    for x, y, (_, response) in zip(a, b, pairs):
        ids = x.ids + y.ids + [eos]
        if x.ids:
            weight = DIRECT_WEIGHT if response.startswith(" Answer:") else 1
            mark = [0] * len(x.ids) + [weight] * (len(ids) - len(x.ids))
        else:
            mark = [0] + [int(t == equals) for t in ids[:-1]]
        out.append((ids, mark))
    return out


def collate(items, pad):
    """ids [b, t] and resp [b, t]: the marks, 0 on padding."""
    t = max(len(ids) for ids, _ in items)
    ids = torch.full((len(items), t), pad)
    resp = torch.zeros(len(items), t)
    for i, (x, mark) in enumerate(items):
        ids[i, : len(x)] = torch.tensor(x)
        resp[i, : len(x)] = torch.tensor(mark)
    return ids, resp


def batches(tok, make, seed, tokens, same_prompt):
    """Endless batches of about `tokens` tokens, of like lengths, so that padding is rare; chunk by chunk from the seed.

    same_prompt: all prompts of a batch are of one length.
    """
    chunk = 0
    pad = tok.token_to_id(data.PAD)
    while True:
        rng = random.Random(f"{seed} {chunk}")
        def prompt(item):
            return item[1].count(0) if same_prompt else 0

        items = encode(tok, [make(rng, chunk) for _ in range(8192)])
        items.sort(key=lambda x: (prompt(x), len(x[0])))
        groups, group = [], []
        for item in items:
            if group and ((len(group) + 1) * len(item[0]) > tokens or prompt(item) != prompt(group[0])):
                groups.append(group)
                group = []
            group.append(item)
        rng.shuffle(groups)
        for group in groups:
            yield collate(group, pad)
        chunk += 1


# ---------------------------------------------------------------- training


def lr_factor(seen, schedule):
    """What the peak rate is multiplied with after `seen` tokens: straight lines between the schedule's points."""
    for (start, low), (end, high) in zip(schedule, schedule[1:]):
        if seen < end:
            return low + (high - low) * (seen - start + 1) / (end - start)
    return 0.0


def train(net, tok, make, optimizers, args, schedule, adapter, log, save=None, resume=None):
    total = schedule[-1][0]
    peak = [[g["lr"] for g in o.param_groups] for o in optimizers]
    seen = step = 0
    if resume:
        state = torch.load(resume)
        net.load_state_dict(state["net"])
        for o, s in zip(optimizers, state["optimizers"]):
            o.load_state_dict(s)
        seen, step = state["seen"], state["step"]
        log[:] = [point for point in log if point["step"] <= step]
    source = batches(tok, make, f"sprout {'adapter' if adapter else 'base'} {args.seed}", args.batch, adapter)
    for _ in range(step):
        next(source)
    pad = tok.token_to_id(data.PAD)
    t0, seen0, losses = time.time(), seen, []
    before = log[-1]["seconds"] if log else 0
    while seen < total:
        if save and step % args.check_every == 0:
            torch.save(dict(net=net.state_dict(), optimizers=[o.state_dict() for o in optimizers], seen=seen, step=step),
                       save)
        ids, resp = next(source)
        factor = lr_factor(seen, schedule)
        for o, lrs in zip(optimizers, peak):
            for g, lr in zip(o.param_groups, lrs):
                g["lr"] = lr * factor
        if adapter:  # masked LoRA: keys and values of the prompt are the base's, the rest is the adapter's
            n = int(resp[0].argmax())
            with torch.no_grad():
                past = net.hidden(ids[:, :n])[1]
            logits = net(ids[:, n:-1], torch.ones(()), past)
            # The first response token is read off the prompt, so it is the base's and bears no loss.
            target, weight = ids[:, n + 1 :], resp[:, n + 1 :]
        else:  # a little on the prompt
            logits = net(ids[:, :-1])
            target, weight = ids[:, 1:], resp[:, 1:] + args.prompt_loss * ((resp[:, 1:] == 0) & (ids[:, 1:] != pad))
        ce = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(weight)
        loss = (ce * weight).sum() / weight.sum()
        for o in optimizers:
            o.zero_grad()
        loss.backward()
        for o in optimizers:
            o.step()
        hard = weight if adapter else resp[:, 1:]
        losses.append(((ce.detach() * hard).sum() / hard.sum()).item())
        seen += ids.numel()
        step += 1
        if step % args.log_every == 0 or seen >= total:
            point = dict(step=step, tokens=seen, seconds=round(before + time.time() - t0),
                         response_loss=round(sum(losses) / len(losses), 4))
            losses = []
            if step % args.check_every == 0 or seen >= total:
                point |= quick(net, tok, adapter)
            print(point, f"{(seen - seen0) / (time.time() - t0):.0f} tok/s", flush=True)
            log.append(point)


@torch.no_grad()
def quick(net, tok, adapter, n=60, seed=7):
    """Share of held-out items whose whole response is the likeliest, token by token (not the items of tasks/)."""
    rng = random.Random(f"sprout check {seed}")
    out = {}
    pad = tok.token_to_id(data.PAD)
    for k in (1, 2, 3, 4, 5, "labels", "steps1", "steps2", "lists3"):
        if adapter and str(k).startswith(("steps", "lists")):
            continue
        items = []
        for i in range(n):
            if k == "labels":
                item = data.news(rng, data.TEST, data.LABELS[i % 3])
                items.append((data.news_prompt(item), data.direct(item["answer"])))
            else:
                p = data.problem(rng, int(str(k)[-1]), data.TEST)
                if str(k).startswith("lists"):
                    items.append((p["text"] + data.LIST_MARK, data.in_list(p)))
                elif str(k).startswith("steps"):
                    items.append((p["text"] + data.STEPS_MARK, data.in_steps(p)))
                else:
                    items.append((p["text"], data.in_steps(p) if adapter else data.direct(p["answer"])))
        ids, resp = collate(encode(tok, items), pad)
        best = net(ids[:, :-1], (resp[:, :-1, None] > 0).float() if adapter else None).argmax(-1)
        wrong = (best != ids[:, 1:]) & (resp[:, 1:] > 0)
        out[f"acc_{k}"] = round(1 - wrong.any(1).float().mean().item(), 3)
    return out


def train_base(tok, args, log):
    torch.manual_seed(args.seed)
    net = Llama(tok.get_vocab_size())
    net.number_start({int(w[1:]): i for w, i in tok.get_vocab().items() if w[1:].isdigit() and w[0] == "Ġ"})
    matrices = [m.weight for m in net.linears().values()]
    ids = {id(p) for p in matrices}
    rest = [p for p in net.parameters() if id(p) not in ids]
    opts = [Muon(matrices, lr=args.muon_lr),
            torch.optim.AdamW(rest, lr=args.adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)]
    train(net, tok, data.base_example, opts, args, BASE_SCHEDULE, False, log, args.work / "last.pt", args.resume)
    # The files hold bf16; the adapter is trained on exactly these weights.
    state = {k: v.detach().bfloat16().contiguous() for k, v in net.state_dict().items()}
    torch.save(state, args.work / "base.pt")


def train_adapter(tok, args, log):
    torch.manual_seed(args.seed + 1)
    net = Llama(tok.get_vocab_size())
    net.load_state_dict({k: v.float() for k, v in torch.load(args.work / "base.pt").items()})
    net.add_lora(RANK, ALPHA)
    params = [p for p in net.parameters() if p.requires_grad]
    opts = [torch.optim.AdamW(params, lr=args.lora_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)]
    train(net, tok, data.adapter_example, opts, args, ADAPTER_SCHEDULE, True, log)
    torch.save({k: v.detach() for k, v in net.state_dict().items() if "lora_" in k}, args.work / "adapter.pt")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--stage", choices=["all", "base", "adapter", "files"], default="all")
    a.add_argument("--out", type=Path, default=HERE.parent)
    a.add_argument("--work", type=Path, default=HERE / "work", help="checkpoints between stages")
    a.add_argument("--batch", type=int, default=4096, help="tokens per step")
    a.add_argument("--muon-lr", type=float, default=0.012)
    a.add_argument("--adam-lr", type=float, default=3e-3)
    a.add_argument("--lora-lr", type=float, default=3e-3)
    a.add_argument("--prompt-loss", type=float, default=0.05)
    a.add_argument("--seed", type=int, default=0)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--log-every", type=int, default=50)
    a.add_argument("--check-every", type=int, default=200)
    a.add_argument("--resume", type=Path, help="a work/last.pt: continue the base from there")
    args = a.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    tok = data.build_tokenizer()
    log_file = args.work / "log.json"
    log = json.loads(log_file.read_text()) if log_file.exists() and (args.stage != "all" or args.resume) else {}
    for stage, run in (("base", train_base), ("adapter", train_adapter)):
        if args.stage in ("all", stage):
            points = log.get(stage, {}).get("curve", []) if args.resume else []
            run(tok, args, points)
            log[stage] = dict(seconds=points[-1]["seconds"], curve=points)
            log_file.write_text(json.dumps(log))
    if args.stage in ("all", "files"):
        from files import write_files
        write_files(tok, args, log)


if __name__ == "__main__":
    main()
