#!/usr/bin/env python3
"""Goldens: checkpoints of small random models with the logits that PyTorch computes for them.

    goldens.py check FOLDER ...            recompute the logits of goldens that are there, and compare
    goldens.py make FOLDER CONFIG [SEED]   make one: random weights for a config.json, tokens, lengths, logits

Needs torch, numpy and safetensors. The models are written token by token in float64, as the recurrences of the papers
(arXiv 2403.00818, 2312.00752, 2410.05355): slow, and close enough to the page to be compared with it.
"""
import json
import math
import pathlib
import sys

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import rms_norm, silu, softplus

TOLERANCE = 2e-5


def dense_mamba(config, w, ids):
    """Logits [tokens, V] of one row of tokens."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    d, n = config.get("intermediate_size", config.get("expand", 2) * hidden), config["state_size"]
    rank = config["time_step_rank"]
    rank = math.ceil(hidden / 16) if rank == "auto" else rank
    eps = config.get("layer_norm_epsilon", 1e-5)
    dense = config.get("dense_block_layers", 2) if config["model_type"] == "dense_mamba" else 0
    mixer_eps = config.get("mixer_rms_eps", 1e-6) if config["model_type"] == "falcon_mamba" else None
    table = w["backbone.embeddings.weight" if "backbone.embeddings.weight" in w else "backbone.embedding.weight"]
    head = table if config.get("tie_word_embeddings", True) else w["lm_head.weight"]

    def linear(name, x):
        y = x @ w[f"{name}.weight"].T
        return y + w[f"{name}.bias"] if f"{name}.bias" in w else y

    def gate(name, x, width):
        if f"{name}.fc1.weight" not in w:
            return torch.ones(width, dtype=x.dtype)
        return silu(linear(f"{name}.fc2", silu(linear(f"{name}.fc1", x))))

    taps = config["conv_kernel"]
    inputs = [torch.zeros(taps, d, dtype=torch.float64) for _ in range(layers)]  # the last K, oldest first
    states = [torch.zeros(d, n, dtype=torch.float64) for _ in range(layers)]
    logits = []
    for token in ids:
        x = table[token]
        for l in range(layers):
            p = f"backbone.layers.{l}.mixer"
            normed = rms_norm(x, (hidden,), w[f"backbone.layers.{l}.norm.weight"], eps)
            u, z = linear(f"{p}.in_proj", normed).chunk(2)
            inputs[l] = torch.cat([inputs[l][1:], u[None]])
            u = (w[f"{p}.conv1d.weight"][:, 0].T * inputs[l]).sum(0)
            u = silu(u + w[f"{p}.conv1d.bias"] if f"{p}.conv1d.bias" in w else u)
            delta, b, c = (u @ w[f"{p}.x_proj.weight"].T).split([rank, n, n])
            if mixer_eps is not None:
                delta, b, c = (rms_norm(part, part.shape, None, mixer_eps) for part in (delta, b, c))
            delta = softplus(linear(f"{p}.dt_proj", delta), threshold=1e9)
            decay = torch.exp(delta[:, None] * -torch.exp(w[f"{p}.A_log"]))
            states[l] = decay * states[l] + torch.outer(delta * u, b)
            fused = states[l]
            if l > 0 and dense > 0:
                gates = torch.outer(gate(f"{p}.dense.channel_gate", normed, d), gate(f"{p}.dense.state_gate", normed, n))
                for i in range(min(dense, l)):
                    projection = w.get(f"{p}.dense.projections.{i}.weight")
                    h = states[l - 1 - i]
                    fused = fused + gates * (h if projection is None else h @ projection.T)
            y = fused @ c + w[f"{p}.D"] * u
            x = x + linear(f"{p}.out_proj", y * silu(z))
        logits.append(rms_norm(x, (hidden,), w["backbone.norm_f.weight"], eps) @ head.T)
    return torch.stack(logits)


def dense_retnet(config, w, ids):
    """Logits [tokens, V] of one row of tokens."""
    hidden, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
    keys, values = config["query_key_dim"], int(config["v_factor"] * hidden)
    dk, dv, eps, dense = keys // heads, values // heads, config["rms_norm_eps"], config["dense_block_layers"]
    table = w["model.embed_tokens.weight"]
    head = table if config.get("tie_word_embeddings", False) else w["lm_head.weight"]
    theta = 10000 ** -torch.linspace(0, 1, dk // 2, dtype=torch.float64)
    gamma = 1 - 2.0 ** (-5 - torch.arange(heads, dtype=torch.float64))

    def rotate(x, position):
        a, b = x.view(heads, dk // 2, 2).unbind(-1)
        cos, sin = torch.cos(position * theta), torch.sin(position * theta)
        return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).view(heads, dk)

    states = [torch.zeros(heads, dk, dv, dtype=torch.float64) for _ in range(layers)]
    s = torch.zeros(heads, dtype=torch.float64)  # the sum of the powers of gamma, also where gamma rounds to 1
    logits = []
    for t, token in enumerate(ids):
        x, handed = table[token], []
        s = gamma * s + 1
        for l in range(layers):
            p = f"model.layers.{l}.self_attn"
            normed = rms_norm(x, (hidden,), w[f"model.layers.{l}.input_layernorm.weight"], eps)
            linear = lambda name, x: x @ w[f"{p}.{name}.weight"].T
            q, k = silu(linear("q_proj", normed)), silu(linear("k_proj", normed)) * dk**-0.5
            v, g = silu(linear("to_hidden.0", normed)).chunk(2)
            own = (k, v)
            if l > 0:
                near = handed[max(0, l - dense):]
                for which, (name, width) in enumerate((("k", keys), ("v", values))):
                    x_own = own[which]
                    if near:
                        gate = silu(linear(f"{name}_select.fc2", silu(linear(f"{name}_select.fc1", normed))))
                        x_own = x_own + gate * sum(pair[which] for pair in near)
                    normed_own = rms_norm(x_own, (width,), w[f"{p}.{name}_norm.weight"], eps)
                    k, v = (normed_own, v) if name == "k" else (k, normed_own)
            handed.append(own)
            q, k = rotate(q, t), rotate(k, t)
            states[l] = gamma[:, None, None] * states[l] + k[:, :, None] * v.view(heads, 1, dv)
            o = torch.einsum("hk,hkv->hv", q, states[l]) / s.sqrt()[:, None]
            o = rms_norm(o, (dv,), w[f"{p}.group_norm.weight"], eps).reshape(values)
            x = x + linear("to_out.0", o * g)
        logits.append(rms_norm(x, (hidden,), w["model.norm.weight"], eps) @ head.T)
    return torch.stack(logits)


def weights(folder):
    """All tensors in float64."""
    files = sorted(folder.glob("model*.safetensors"))
    found = [load_file(file) for file in files] if files else [torch.load(folder / "pytorch_model.bin", weights_only=True)]
    return {name: tensor.double() for part in found for name, tensor in part.items()}


def logits_of(config, w, ids):
    return (dense_retnet if "query_key_dim" in config else dense_mamba)(config, w, ids)


def check(folder):
    golden, config = load_file(folder / "golden.safetensors"), json.loads((folder / "config.json").read_text())
    w, worst = weights(folder), 0.0
    for ids, length, expected in zip(golden["input_ids"], golden["sequence_lengths"], golden["logits"]):
        got = logits_of(config, w, ids[:length].tolist())
        worst = max(worst, ((got - expected[:length]).abs().max() / max(1, expected[:length].abs().max())).item())
    print(f"{'ok  ' if worst <= TOLERANCE else 'FAIL'} {folder.name}: off by {worst:.1e} of the largest logit")
    return worst <= TOLERANCE


def shapes(config):
    """Names and shapes of a config's tensors."""
    hidden, layers, vocabulary = config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]
    if "query_key_dim" in config:
        keys, values = config["query_key_dim"], int(config["v_factor"] * hidden)
        k_gate = max(1, hidden // config.get("intermediate_k_select_scale", 32))
        v_gate = max(1, hidden // config.get("intermediate_v_select_scale", 32))
        yield from (("model.embed_tokens", [vocabulary, hidden]), ("model.norm", [hidden]))
        for l in range(layers):
            yield f"model.layers.{l}.input_layernorm", [hidden]
            for name, shape in {
                "q_proj": [keys, hidden], "k_proj": [keys, hidden], "to_hidden.0": [2 * values, hidden],
                "to_out.0": [hidden, values], "group_norm": [values // config["num_attention_heads"]],
                "k_select.fc1": [k_gate, hidden], "k_select.fc2": [keys, k_gate], "k_norm": [keys],
                "v_select.fc1": [v_gate, hidden], "v_select.fc2": [values, v_gate], "v_norm": [values],
            }.items():
                yield f"model.layers.{l}.self_attn.{name}", shape
    else:
        d, n = config.get("intermediate_size", config.get("expand", 2) * hidden), config["state_size"]
        rank = math.ceil(hidden / 16) if config["time_step_rank"] == "auto" else config["time_step_rank"]
        dense = config.get("dense_block_layers", 2) if config["model_type"] == "dense_mamba" else 0
        middle = max(1, hidden // config.get("dense_gate_reduction", 16))
        yield from (("backbone.embeddings", [vocabulary, hidden]), ("backbone.norm_f", [hidden]))
        for l in range(layers):
            p = f"backbone.layers.{l}"
            yield f"{p}.norm", [hidden]
            yield from ((f"{p}.mixer.{name}", shape) for name, shape in {
                "in_proj": [2 * d, hidden], "conv1d": [d, 1, config["conv_kernel"]], "x_proj": [rank + 2 * n, d],
                "dt_proj": [d, rank], "dt_proj.bias": [d], "A_log.": [d, n], "D.": [d], "out_proj": [hidden, d],
            }.items())
            if config.get("use_conv_bias", True):
                yield f"{p}.mixer.conv1d.bias", [d]
            if config.get("use_bias", False):
                yield from ((f"{p}.mixer.in_proj.bias", [2 * d]), (f"{p}.mixer.out_proj.bias", [hidden]))
            for i in range(min(dense, l) if config.get("dense_projection") == "linear" else 0):
                yield f"{p}.mixer.dense.projections.{i}", [n, n]
            for gate, width in (("channel", d), ("state", n)):
                if l > 0 and dense > 0 and gate in config.get("dense_gate", ["channel", "state"]):
                    yield f"{p}.mixer.dense.{gate}_gate.fc1", [middle, hidden]
                    yield f"{p}.mixer.dense.{gate}_gate.fc2", [width, middle]
    if not config.get("tie_word_embeddings", "query_key_dim" not in config):
        yield "lm_head", [vocabulary, hidden]


def make(folder, path, seed):
    config = json.loads(path.read_text())
    random = torch.Generator().manual_seed(seed)
    w = {}
    for name, shape in shapes(config):
        # A name that ends in a dot is whole; one of a bias is, too; all others are modules with a weight.
        full = name[:-1] if name.endswith(".") else name if name.endswith(".bias") else f"{name}.weight"
        uniform = torch.rand(shape, generator=random) * 2 - 1
        if "norm" in name or name.endswith(".D."):
            w[full] = 1 + 0.3 * uniform
        elif len(shape) == 1 or name.endswith("A_log."):
            w[full] = uniform
        else:
            w[full] = uniform * (3 / math.prod(shape[1:])) ** 0.5
    rows, width = 2, 32
    ids = torch.randint(0, config["vocab_size"], (rows, width), generator=random)
    wide = {name: tensor.double() for name, tensor in w.items()}
    logits = torch.stack([logits_of(config, wide, row.tolist()) for row in ids]).float()
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file(w, folder / "model.safetensors")
    lengths = torch.tensor([width, width // 3], dtype=torch.int32)
    save_file({"input_ids": ids, "sequence_lengths": lengths, "logits": logits}, folder / "golden.safetensors")


def main():
    match sys.argv[1:]:
        case ["check", *folders] if folders:
            return 0 if all([check(pathlib.Path(folder)) for folder in folders]) else 1
        case ["make", folder, config, *seed]:
            make(pathlib.Path(folder), pathlib.Path(config), int(*seed or ["0"]))
            return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
