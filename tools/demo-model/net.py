"""The model that is trained: transformers' own Qwen3NextForCausalLM. The experts' sum and the short convolution are
computed in another way here, because the stock ones take most of a CPU's time; evaluate.py uses the stock ones."""

import json
import math
import pathlib

import torch
import torch.nn.functional as F
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.models.qwen3_next import modeling_qwen3_next

CONFIG = pathlib.Path(__file__).resolve().parent / "config.json"


def sorted_experts(self, hidden, top_k_index, top_k_weights):
    """Experts in order, each on one contiguous block of its rows: a gather, two matrix products per expert, one
    scatter. The stock loop gathers and scatters once per expert, which costs a CPU more than the products."""
    flat = top_k_index.reshape(-1)
    order = flat.argsort(stable=True)
    token = order // top_k_index.shape[-1]
    counts = torch.bincount(flat, minlength=self.num_experts).tolist()
    rows = hidden.index_select(0, token).split(counts)
    hidden_out = [F.linear(x, w) for x, w in zip(rows, self.gate_up_proj.unbind(0))]
    gate, up = torch.cat(hidden_out).chunk(2, dim=-1)
    rows = (F.silu(gate) * up).split(counts)
    outs = [F.linear(x, w) for x, w in zip(rows, self.down_proj.unbind(0))]
    weighted = torch.cat(outs) * top_k_weights.reshape(-1)[order, None]
    return torch.zeros_like(hidden).index_add(0, token, weighted.to(hidden.dtype))


ALL_EXPERTS_FUNCTIONS.register("stoker_sorted", sorted_experts)


def shifted_conv(x, weight, bias, activation, **_):
    """Causal depthwise convolution of x [batch, channels, time] with few taps, as a sum of shifted products."""
    assert bias is None and activation == "silu"
    taps, length = weight.shape[-1], x.shape[-1]
    padded = F.pad(x, (taps - 1, 0))
    return F.silu(sum(padded[..., i:i + length] * weight[:, i, None] for i in range(taps)))


def build(dtype=torch.float32):
    modeling_qwen3_next.causal_conv1d_fn = shifted_conv
    config = Qwen3NextConfig.from_dict(json.loads(CONFIG.read_text()))
    return Qwen3NextForCausalLM._from_config(
        config, attn_implementation="sdpa", experts_implementation="stoker_sorted", dtype=dtype
    )


def initialise(net):
    """Width-scaled normal; what is added to the residual stream starts smaller by the number of additions."""
    config = net.config
    residual = (2 * config.num_hidden_layers) ** -0.5
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("embed_tokens.weight"):
                p.normal_(0, 0.02 * math.sqrt(config.hidden_size) / 4)
            elif name.endswith(("o_proj.weight", "out_proj.weight", "down_proj", "down_proj.weight")):
                p.normal_(0, residual * p.shape[-1] ** -0.5)
            elif "conv1d" in name:
                p.normal_(0, 0.3)
                p[:, :, -1] += 0.5
            elif name.endswith("lm_head.weight"):
                p.normal_(0, 0.3 * p.shape[-1] ** -0.5)
            elif p.dim() >= 2:
                p.normal_(0, p.shape[-1] ** -0.5)
            elif name.endswith("dt_bias"):  # memories from two to a few hundred tokens
                p.copy_(torch.linspace(-5.0, -0.5, p.numel()))
            elif name.endswith("A_log"):
                p.copy_(torch.log(torch.linspace(1.0, 4.0, p.numel())))


class RouterProbe:
    """Sums every layer's load-balancing loss of one forward: experts * sum_e(share of rows * mean probability),
    Shazeer et al. 2017 / Fedus et al. 2021, per layer (over all layers at once, as the library has it, one layer's
    collapse could hide behind another's)."""

    def __init__(self, net):
        self.loss, self.shares = 0.0, []
        for layer in net.model.layers:
            layer.mlp.gate.register_forward_hook(self._hook)

    def _hook(self, module, inputs, outputs):
        logits, _, index = outputs
        probabilities = logits.float().softmax(-1).mean(0)
        share = torch.bincount(index.reshape(-1), minlength=module.num_experts) / index.numel()
        self.loss = self.loss + module.num_experts * (share * probabilities).sum()
        self.shares.append(share)

    def take(self):
        loss, shares = self.loss, self.shares
        self.loss, self.shares = 0.0, []
        return loss / len(shares), torch.stack(shares)


def compile_parts(net):
    """Everything whose shapes do not depend on the routing."""
    for layer in net.model.layers:
        mixer = layer.linear_attn if hasattr(layer, "linear_attn") else layer.self_attn
        for part in (layer.input_layernorm, mixer, layer.post_attention_layernorm, layer.mlp.shared_expert):
            part.compile()
