"""The oracle itself: Hugging Face transformers' Qwen3NextForCausalLM, fp32, CPU, eager everything."""

import importlib.util
import platform

import numpy as np
import torch
import transformers
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

import configs
from checkpoint import Values
from configs import GoldenModel


def prepare() -> None:
    for package in ("fla", "causal_conv1d"):
        if importlib.util.find_spec(package) is not None:
            raise SystemExit(f"python package {package} is installed: goldens want the plain torch path; remove it")
    torch.manual_seed(0)
    torch.set_num_threads(1)  # small matrices: more threads only spin, and the sums stay the same everywhere
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()


def versions() -> dict:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }


def config_of(model: GoldenModel) -> Qwen3NextConfig:
    """From the very dictionary that is published, so that both sides read the same keys."""
    config = Qwen3NextConfig.from_dict(dict(model.config))
    nested = model.config.get("rope_parameters", model.config)
    rope = config.rope_parameters
    assert rope["rope_theta"] == nested["rope_theta"], rope
    assert rope["partial_rotary_factor"] == nested["partial_rotary_factor"], rope
    assert list(config.layer_types) == configs.mixers(model.config)
    return config


def load(model: GoldenModel) -> Qwen3NextForCausalLM:
    """Every parameter is overwritten with the exactly dequantised stored value (model.md 9.1 step 2)."""
    config = config_of(model)
    net = Qwen3NextForCausalLM._from_config(
        config, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32
    ).eval()
    assert net.config._attn_implementation == "eager" and net.config._experts_implementation == "eager"
    values = Values(model)
    params = dict(net.named_parameters())
    seen = set()
    inter = config.moe_intermediate_size
    for name, _ in configs.tensors(model.config):
        value = torch.from_numpy(np.ascontiguousarray(values.fp32(name)))
        if ".experts." not in name:
            target, key = params[name], name
        else:
            layer, rest = name.split(".experts.")
            expert, matrix, _ = rest.split(".")
            key = layer + ".experts." + ("down_proj" if matrix == "down_proj" else "gate_up_proj")
            target = params[key][int(expert)]
            if matrix != "down_proj":
                target = target[:inter] if matrix == "gate_proj" else target[inter:]
        assert target.shape == value.shape, (name, target.shape, value.shape)
        target.copy_(value)
        seen.add(key)
    missing = set(params) - seen
    if config.shared_expert_intermediate_size == 0:  # zero-sized matrices, and a gate that multiplies nothing
        missing = {n for n in missing if ".shared_expert" not in n}
    assert not missing, f"parameters left at their initial values: {sorted(missing)}"
    if config.tie_word_embeddings:
        assert net.lm_head.weight.data_ptr() == net.model.embed_tokens.weight.data_ptr()
    return net


class RouterGap:
    """Smallest distance between the router logits at rank k and k+1 over all tokens and layers of a forward.
    Where it is tiny, two right implementations may choose different experts; such prompts are not used."""

    def __init__(self, net: Qwen3NextForCausalLM):
        self.smallest = float("inf")
        for layer in net.model.layers:
            layer.mlp.gate.register_forward_hook(self._hook)

    def _hook(self, module, inputs, outputs) -> None:
        logits = outputs[0]
        if module.top_k < logits.shape[-1]:
            top = torch.topk(logits, module.top_k + 1, dim=-1).values
            self.smallest = min(self.smallest, float((top[:, -2] - top[:, -1]).min()))

    def take(self) -> float:
        value, self.smallest = self.smallest, float("inf")
        return value


def forward(net: Qwen3NextForCausalLM, tokens: list[int]) -> np.ndarray:
    """Logits [len(tokens), vocab] of one forward without cache."""
    return net(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].numpy()


def forward_split(net: Qwen3NextForCausalLM, tokens: list[int], split: list[int]) -> np.ndarray:
    """The same in pieces on one cache."""
    assert sum(split) == len(tokens)
    cache, rows, begin = None, [], 0
    for n in split:
        out = net(input_ids=torch.tensor([tokens[begin : begin + n]]), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        rows.append(out.logits[0].numpy())
        begin += n
    return np.concatenate(rows)


def greedy(net: Qwen3NextForCausalLM, prompt: list[int], count: int, margin_min: float = 0.0) -> list[int] | None:
    """Greedy continuation; None as soon as a choice is closer than margin_min * largest |logit|."""
    cache, feed, out = None, list(prompt), []
    for _ in range(count):
        result = net(input_ids=torch.tensor([feed]), past_key_values=cache, use_cache=True)
        cache, logits = result.past_key_values, result.logits[0, -1]
        best = torch.topk(logits, 2).values
        if best[0] - best[1] < margin_min * logits.abs().max():
            return None
        feed = [int(logits.argmax())]
        out += feed
    return out
