"""A compact Llama with the parameter names of Hugging Face's LlamaForCausalLM, and a masked LoRA in PEFT's arithmetic."""

import torch
import torch.nn.functional as F
from torch import nn

CONFIG = dict(hidden_size=128, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4, head_dim=32,
              intermediate_size=384, rms_norm_eps=1e-5, rope_theta=10000.0, max_position_embeddings=1024)


class Linear(nn.Linear):
    """y = W x + mask * (alpha / r) * B A x; mask is 0 on prompt tokens and 1 on response tokens."""

    def __init__(self, n_in, n_out):
        super().__init__(n_in, n_out, bias=False)
        self.lora_A = self.lora_B = None
        self.scale = 0.0

    def add_lora(self, r, alpha):
        self.lora_A = nn.Parameter(torch.randn(r, self.in_features) / self.in_features**0.5)
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, r))
        self.scale = alpha / r

    def forward(self, x, mask=None):
        y = F.linear(x, self.weight)
        if mask is None:
            return y
        return y + F.linear(F.linear(x, self.lora_A) * (mask * self.scale), self.lora_B)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, self.hd = c["hidden_size"], c["head_dim"]
        self.h, self.kv = c["num_attention_heads"], c["num_key_value_heads"]
        self.q_proj, self.o_proj = Linear(d, self.h * self.hd), Linear(self.h * self.hd, d)
        self.k_proj, self.v_proj = Linear(d, self.kv * self.hd), Linear(d, self.kv * self.hd)

    def forward(self, x, rope, mask, past):
        b, t, _ = x.shape
        q = self.q_proj(x, mask).view(b, t, self.h, self.hd).transpose(1, 2)
        k = self.k_proj(x, mask).view(b, t, self.kv, self.hd).transpose(1, 2)
        v = self.v_proj(x, mask).view(b, t, self.kv, self.hd).transpose(1, 2)
        q, k = rotate(q, rope), rotate(k, rope)
        if past:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
            allowed = torch.ones(t, k.shape[2], dtype=torch.bool).tril(k.shape[2] - t)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1), mask), (k, v)


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, f = c["hidden_size"], c["intermediate_size"]
        self.gate_proj, self.up_proj, self.down_proj = Linear(d, f), Linear(d, f), Linear(f, d)

    def forward(self, x, mask):
        return self.down_proj(F.silu(self.gate_proj(x, mask)) * self.up_proj(x, mask), mask)


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.self_attn, self.mlp = Attention(c), MLP(c)
        self.input_layernorm = nn.RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.post_attention_layernorm = nn.RMSNorm(c["hidden_size"], c["rms_norm_eps"])

    def forward(self, x, rope, mask, past=None):
        y, kv = self.self_attn(self.input_layernorm(x), rope, mask, past)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x), mask), kv


class Llama(nn.Module):
    """Head tied to the embedding."""

    def __init__(self, vocab, c=CONFIG):
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(vocab, c["hidden_size"])
        self.model.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.model.norm = nn.RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.c = c
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)
        for layer in self.model.layers:
            for w in (layer.self_attn.o_proj, layer.mlp.down_proj):
                nn.init.normal_(w.weight, std=0.02 / (2 * c["num_hidden_layers"]) ** 0.5)

    @torch.no_grad()
    def number_start(self, tokens):
        """Start the embeddings of numbers (value -> id) from waves of the value, so that sums are learned sooner."""
        n = torch.tensor(sorted(tokens))
        angle = 2 * torch.pi * n[:, None] / torch.tensor([2.0, 4, 5, 10, 20, 25, 50, 100, 200, 400])
        waves = torch.cat([angle.cos(), angle.sin()], 1)
        basis = torch.linalg.qr(torch.randn(self.c["hidden_size"], waves.shape[1]))[0]
        std = 0.02 * (self.c["hidden_size"] / waves.shape[1] * 2) ** 0.5
        rows = torch.tensor([tokens[int(v)] for v in n])
        self.model.embed_tokens.weight[rows] = waves @ basis.T * std + 0.01 * torch.randn(len(n), basis.shape[0])

    def linears(self):
        return {n: m for n, m in self.named_modules() if isinstance(m, Linear)}

    def add_lora(self, r, alpha):
        self.requires_grad_(False)
        for m in self.linears().values():
            m.add_lora(r, alpha)

    def hidden(self, ids, mask=None, past=None):
        """Final hidden states of ids, which follow the keys and values in `past`; and all keys and values."""
        p, t, hd = past[0][0].shape[2] if past else 0, ids.shape[1], self.c["head_dim"]
        freq = self.c["rope_theta"] ** (-torch.arange(0, hd, 2).float() / hd)
        angle = torch.arange(p, p + t).float()[:, None] * torch.cat([freq, freq])
        rope = (angle.cos(), angle.sin())
        x, kvs = self.model.embed_tokens(ids), []
        for i, layer in enumerate(self.model.layers):
            x, kv = layer(x, rope, mask, past[i] if past else None)
            kvs.append(kv)
        return self.model.norm(x), kvs

    def forward(self, ids, mask=None, past=None):
        return F.linear(self.hidden(ids, mask, past)[0], self.model.embed_tokens.weight)


def rotate(x, rope):
    cos, sin = (r.to(x.dtype) for r in rope)
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class Muon(torch.optim.Optimizer):
    """Momentum, then orthogonalisation by Newton-Schulz steps (Jordan et al. 2024); equal shapes share one batch."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.01):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for g in self.param_groups:
            shapes = {}
            for p in g["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.mul_(g["momentum"]).add_(p.grad)
                shapes.setdefault(tuple(p.shape), []).append((p, p.grad + g["momentum"] * m))
            for (rows, cols), items in shapes.items():
                x = torch.stack([u for _, u in items])
                if rows > cols:
                    x = x.mT
                x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
                for _ in range(5):
                    s = x @ x.mT
                    x = 3.4445 * x + (-4.7750 * s + 2.0315 * (s @ s)) @ x
                if rows > cols:
                    x = x.mT
                for (p, _), u in zip(items, x):
                    p.mul_(1 - g["lr"] * g["weight_decay"])
                    p.add_(u.float(), alpha=-g["lr"] * max(1, rows / cols) ** 0.5)
