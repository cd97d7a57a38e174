"""transformers on the exported checkpoint: every weight dequantised exactly to fp32, stock code, fp32 arithmetic."""

import json
import pathlib

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3NextConfig, Qwen3NextForCausalLM

TILE = 128


def dequantised(directory):
    """Published tensors in fp32. E4M3 times a BF16 scale has at most 12 significant bits: exact in fp32."""
    tensors = {}
    for shard in sorted(pathlib.Path(directory).glob("*.safetensors")):
        tensors |= load_file(shard)
    for name in [n for n in tensors if n.endswith("_scale_inv")]:
        scale = tensors.pop(name).float().repeat_interleave(TILE, 0).repeat_interleave(TILE, 1)
        weight = name.removesuffix("_scale_inv")
        rows, columns = tensors[weight].shape
        tensors[weight] = tensors[weight].float() * scale[:rows, :columns]
    return {name: tensor.float() for name, tensor in tensors.items()}


def fused(tensors, config):
    """transformers keeps a layer's experts in two tensors."""
    state = {n: t for n, t in tensors.items() if ".experts." not in n}
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}.mlp.experts."
        part = [{p: tensors[f"{prefix}{e}.{p}_proj.weight"] for p in ("gate", "up", "down")}
                for e in range(config.num_experts)]
        state[prefix + "gate_up_proj"] = torch.stack([torch.cat((p["gate"], p["up"])) for p in part])
        state[prefix + "down_proj"] = torch.stack([p["down"] for p in part])
    return state


def empty(directory):
    config = Qwen3NextConfig.from_dict(json.loads((pathlib.Path(directory) / "config.json").read_text()))
    return Qwen3NextForCausalLM._from_config(config, attn_implementation="eager", experts_implementation="eager",
                                             dtype=torch.float32).eval()


def exact(directory):
    net = empty(directory)
    net.load_state_dict(fused(dequantised(directory), net.config))
    return net


def unquantised(directory, trained):
    """The weights as they were trained (fp32), in the same code."""
    net = empty(directory)
    net.load_state_dict(trained)
    return net


def as_published(directory):
    """from_pretrained and nothing else; on a CPU that dequantises to BF16. Computed in fp32 afterwards."""
    return AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager",
                                                experts_implementation="eager").float().eval()


@torch.no_grad()
def nats(net, ids, window):
    """Sum of -log p of every token but the first; windows overlap by one token, as in `stoker perplexity`."""
    total = 0.0
    for begin in range(0, len(ids) - 1, window - 1):
        part = torch.tensor([ids[begin:begin + window]])
        logits = net(input_ids=part, use_cache=False).logits[0, :-1].double()
        total -= logits.log_softmax(-1).gather(1, part[0, 1:, None]).sum().item()
    return total


@torch.no_grad()
def greedy(net, prompt, count):
    """Greedy continuation, and the smallest gap between best and second logit on the way."""
    cache, feed, out, gap = None, list(prompt), [], float("inf")
    for _ in range(count):
        result = net(input_ids=torch.tensor([feed]), past_key_values=cache, use_cache=True)
        cache, logits = result.past_key_values, result.logits[0, -1]
        best = logits.topk(2).values
        gap = min(gap, (best[0] - best[1]).item())
        feed = [int(logits.argmax())]
        out += feed
    return out, gap
