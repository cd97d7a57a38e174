"""The tiny models that Stoker is checked with (docs/goldens.md says what each is for)."""

from dataclasses import dataclass, field

PROMPT_LENGTHS = (1, 2, 3, 4, 5, 63, 64, 65, 127, 130, 200)
GREEDY_TOKENS = 32


@dataclass(frozen=True)
class GoldenModel:
    name: str
    purpose: str
    config: dict  # written as config.json, without quantization_config
    weight_dtype: str  # "F8_E4M3" (the modules of model.md 1.2), "BF16" or "F32"
    scale_dtype: str = ""  # "BF16" or "F32" for FP8
    rules: str = "tiny"
    salt: str = ""
    shard_bytes: int = 1 << 40
    lengths: tuple[int, ...] = PROMPT_LENGTHS
    # (prompt, decoded): prefill, then one token at a time, must equal one forward.
    decode: tuple[tuple[int, int], ...] = ((3, 20), (65, 20))
    # Chunk lengths fed one after the other on the same state (model.md trap 16).
    continuations: tuple[tuple[int, ...], ...] = ((5, 2, 60, 3), (70, 64, 6))
    greedy_prompts: tuple[int, ...] = (1, 7, 40)
    extra: dict = field(default_factory=dict)


def _config(**changes) -> dict:
    """model.md 9.1's tiny configuration, spelled as the published config.json spells it."""
    config = {
        "architectures": ["Qwen3NextForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 510,
        "decoder_sparse_step": 1,
        "eos_token_id": 511,
        "full_attention_interval": 4,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 256,
        "initializer_range": 0.02,
        "intermediate_size": 256,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_value_head_dim": 128,
        "max_position_embeddings": 4096,
        "mlp_only_layers": [],
        "model_type": "qwen3_next",
        "moe_intermediate_size": 128,
        "norm_topk_prob": True,
        "num_attention_heads": 4,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 8,
        "num_key_value_heads": 2,
        "output_router_logits": False,
        "partial_rotary_factor": 0.25,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 5000000,
        "router_aux_loss_coef": 0.001,
        "shared_expert_intermediate_size": 128,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 512,
    }
    config.update(changes)
    return {k: v for k, v in config.items() if v is not ...}


MODELS = (
    GoldenModel(
        name="t0",
        purpose="model.md appendix A: the document's own numbers, F32",
        config=_config(
            vocab_size=32, hidden_size=16, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            head_dim=16, rope_theta=100, linear_num_key_heads=2, linear_key_head_dim=4, linear_num_value_heads=4,
            linear_value_head_dim=4, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=8,
            shared_expert_intermediate_size=8, intermediate_size=16, bos_token_id=31, eos_token_id=31,
            torch_dtype="float32",
        ),
        weight_dtype="F32",
        rules="appendix_a",
        greedy_prompts=(3,),
    ),
    GoldenModel(
        name="a_fp8",
        purpose="the base: FP8 with BF16 scales, experts and their scales straddle shards",
        config=_config(),
        weight_dtype="F8_E4M3",
        scale_dtype="BF16",
        salt="a:",
        shard_bytes=2_500_000,
    ),
    GoldenModel(
        name="b_bf16",
        purpose="the same generator values as a_fp8, stored as BF16",
        config=_config(),
        weight_dtype="BF16",
        salt="a:",
        shard_bytes=9_000_000,
    ),
    GoldenModel(
        name="c_real_dims",
        purpose="the real model's matrix shapes (2048/512, 16/2 heads x 256, 16/32 linear heads x 128), F32 scales",
        config=_config(
            hidden_size=2048, head_dim=256, num_attention_heads=16, num_key_value_heads=2, linear_num_key_heads=16,
            linear_num_value_heads=32, moe_intermediate_size=512, shared_expert_intermediate_size=512,
            intermediate_size=5120, num_hidden_layers=4, num_experts=16, num_experts_per_tok=10,
            max_position_embeddings=262144,
        ),
        weight_dtype="F8_E4M3",
        scale_dtype="F32",
        salt="c:",
        shard_bytes=68_000_000,
        greedy_prompts=(7,),
    ),
    GoldenModel(
        name="d_equal_heads",
        purpose="linear key heads = value heads, as many kv heads as query heads, FP8 with F32 scales",
        config=_config(
            linear_num_key_heads=4, linear_num_value_heads=4, num_attention_heads=4, num_key_value_heads=4,
            num_hidden_layers=4, rope_theta=10000000,
        ),
        weight_dtype="F8_E4M3",
        scale_dtype="F32",
        salt="d:",
        shard_bytes=1_500_000,
    ),
    GoldenModel(
        name="e_odd",
        purpose="tied embeddings, norm_topk_prob false, no shared expert, layer_types of its own, rotary factor "
        "0.5, conv kernel 3, nested rope_parameters, dimensions that leave partial scale tiles",
        config=_config(
            hidden_size=192, num_hidden_layers=5, full_attention_interval=..., layer_types=[
                "full_attention", "linear_attention", "linear_attention", "full_attention", "linear_attention"],
            num_attention_heads=6, num_key_value_heads=2, head_dim=32, linear_num_key_heads=2,
            linear_num_value_heads=6, linear_key_head_dim=64, linear_value_head_dim=32, linear_conv_kernel_dim=3,
            num_experts=12, num_experts_per_tok=3, moe_intermediate_size=96, shared_expert_intermediate_size=0,
            norm_topk_prob=False, tie_word_embeddings=True, partial_rotary_factor=..., rope_theta=...,
            rope_scaling=..., rope_parameters={"rope_type": "default", "rope_theta": 10000.0,
                                               "partial_rotary_factor": 0.5},
            torch_dtype=..., dtype="bfloat16", rms_norm_eps=1e-05,
        ),
        weight_dtype="F8_E4M3",
        scale_dtype="BF16",
        rules="tied",
        salt="e:",
        shard_bytes=300_000,
    ),
    GoldenModel(
        name="f_tied_bf16",
        purpose="tied embeddings with norm_topk_prob false and a shared expert of another width, BF16, one expert "
        "per token, conv kernel 2, a single shard",
        config=_config(
            hidden_size=128, num_hidden_layers=3, full_attention_interval=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=64, linear_num_key_heads=1, linear_num_value_heads=3,
            linear_key_head_dim=32, linear_value_head_dim=64, linear_conv_kernel_dim=2, num_experts=9,
            num_experts_per_tok=1, moe_intermediate_size=64, shared_expert_intermediate_size=160,
            norm_topk_prob=False, tie_word_embeddings=True, partial_rotary_factor=1.0,
        ),
        weight_dtype="BF16",
        rules="tied",
        salt="f:",
    ),
)


def by_name(name: str) -> GoldenModel:
    for model in MODELS:
        if model.name == name:
            return model
    raise SystemExit(f"no golden model {name!r}; there are: {', '.join(m.name for m in MODELS)}")


def mixers(config: dict) -> list[str]:
    if config.get("layer_types"):
        return config["layer_types"]
    every = config["full_attention_interval"]
    return ["linear_attention" if (i + 1) % every else "full_attention" for i in range(config["num_hidden_layers"])]


def published_config(model: GoldenModel) -> dict:
    """config.json as a publisher writes it, quantization_config included."""
    config = dict(model.config)
    if model.weight_dtype == "F8_E4M3":
        skipped = ["lm_head"]
        for i, mixer in enumerate(mixers(config)):
            layer = f"model.layers.{i}."
            skipped += [layer + "input_layernorm"]
            if mixer == "linear_attention":
                skipped += [layer + "linear_attn." + n for n in ("A_log", "conv1d", "dt_bias", "in_proj_ba", "norm")]
            skipped += [layer + "mlp.gate", layer + "mlp.shared_expert_gate", layer + "post_attention_layernorm"]
            if mixer == "full_attention":
                skipped += [layer + "self_attn.k_norm", layer + "self_attn.q_norm"]
        config["quantization_config"] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "modules_to_not_convert": skipped,
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
        }
    return config


def tensors(config: dict) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of model.md 2, in the order in which they are put into shards."""
    h, inter = config["hidden_size"], config["moe_intermediate_size"]
    shared, experts = config["shared_expert_intermediate_size"], config["num_experts"]
    heads, kv, dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    kh, vh = config["linear_num_key_heads"], config["linear_num_value_heads"]
    kd, vd = kh * config["linear_key_head_dim"], vh * config["linear_value_head_dim"]

    def mlp(prefix: str, width: int) -> list[tuple[str, tuple[int, ...]]]:
        return [(prefix + "gate_proj.weight", (width, h)), (prefix + "up_proj.weight", (width, h)),
                (prefix + "down_proj.weight", (h, width))]  # fmt: skip

    out = [("model.embed_tokens.weight", (config["vocab_size"], h))]
    for i, mixer in enumerate(mixers(config)):
        p = f"model.layers.{i}."
        out.append((p + "input_layernorm.weight", (h,)))
        if mixer == "linear_attention":
            a = p + "linear_attn."
            out += [
                (a + "in_proj_qkvz.weight", (2 * kd + 2 * vd, h)),
                (a + "in_proj_ba.weight", (2 * vh, h)),
                (a + "conv1d.weight", (2 * kd + vd, 1, config["linear_conv_kernel_dim"])),
                (a + "A_log", (vh,)),
                (a + "dt_bias", (vh,)),
                (a + "norm.weight", (config["linear_value_head_dim"],)),
                (a + "out_proj.weight", (h, vd)),
            ]
        else:
            a = p + "self_attn."
            out += [
                (a + "q_proj.weight", (2 * heads * dim, h)),
                (a + "k_proj.weight", (kv * dim, h)),
                (a + "v_proj.weight", (kv * dim, h)),
                (a + "o_proj.weight", (h, heads * dim)),
                (a + "q_norm.weight", (dim,)),
                (a + "k_norm.weight", (dim,)),
            ]
        out += [(p + "post_attention_layernorm.weight", (h,)), (p + "mlp.gate.weight", (experts, h))]
        if shared:
            out.append((p + "mlp.shared_expert_gate.weight", (1, h)))
            out += mlp(p + "mlp.shared_expert.", shared)
        for e in range(experts):
            out += mlp(f"{p}mlp.experts.{e}.", inter)
    out.append(("model.norm.weight", (h,)))
    if not config["tie_word_embeddings"]:
        out.append(("lm_head.weight", (config["vocab_size"], h)))
    return out
