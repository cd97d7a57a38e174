// `stoker synth`: synthetic checkpoints in the published format, of any size.
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "checkpoint/synth.h"
#include "cli/context.h"
#include "cli/interrupts.h"
#include "daemons/common/size.h"

namespace stoker::cli {
namespace {

struct SynthOptions {
  std::string out, preset = "tiny", like, format, tokenizer;
  bool sparse = false, force = false, json = false, dry_run = false;
  bool locality = false, no_locality = false;
  bool tie_embeddings = false, no_norm_topk = false, no_shared_expert = false;
  std::optional<std::uint32_t> layers, experts, experts_per_token, hidden, vocab, context, moe_intermediate,
      heads, kv_heads, head_dim, rotary_dim, key_heads, value_heads, key_dim, value_dim, shards,
      full_attention_every, routing_tokens;
  std::vector<std::uint32_t> eos;
  std::optional<double> real_share;
  std::uint64_t seed = 1;
  unsigned threads = 0;
};

template <class T, class U>
void put(T& target, const std::optional<U>& value) {
  if (value) target = static_cast<T>(*value);
}

void apply_dimensions(const SynthOptions& o, ModelConfig& c) {
  put(c.experts, o.experts);
  put(c.experts_per_token, o.experts_per_token);
  put(c.hidden_size, o.hidden);
  put(c.vocab_size, o.vocab);
  put(c.max_position_embeddings, o.context);
  put(c.moe_intermediate, o.moe_intermediate);
  put(c.attention_heads, o.heads);
  put(c.kv_heads, o.kv_heads);
  put(c.head_dim, o.head_dim);
  put(c.rotary_dim, o.rotary_dim);
  put(c.linear_key_heads, o.key_heads);
  put(c.linear_value_heads, o.value_heads);
  put(c.linear_key_dim, o.key_dim);
  put(c.linear_value_dim, o.value_dim);
  if (!o.eos.empty()) c.eos_token_ids = o.eos;
  if (o.tie_embeddings) c.tie_word_embeddings = true;
  if (o.no_norm_topk) c.norm_topk_prob = false;
  if (o.no_shared_expert) c.shared_intermediate = 0;
  if (!o.layers && !o.full_attention_every) return;
  put(c.layers, o.layers);
  const std::uint32_t every = o.full_attention_every.value_or(4);
  c.mixers.clear();
  for (std::uint32_t i = 0; i < c.layers; ++i) {
    c.mixers.push_back((i + 1) % every == 0 ? MixerType::full_attention : MixerType::linear_attention);
  }
}

/// tokenizer.json, tokenizer_config.json and chat_template.jinja of a directory, as far as they exist.
Result<void> apply_tokenizer(const std::string& directory, SynthSpec& spec) {
  if (directory.empty()) return {};
  const auto take = [&](const char* name, std::string& path) {
    std::error_code error;
    const std::string candidate = directory + "/" + name;
    if (std::filesystem::is_regular_file(candidate, error)) path = candidate;
  };
  take("tokenizer.json", spec.tokenizer_path);
  take("tokenizer_config.json", spec.tokenizer_config_path);
  take("chat_template.jinja", spec.template_path);
  if (spec.tokenizer_path.empty()) return fail(Errc::missing, "there is no tokenizer.json in " + directory);
  return {};
}

Result<SynthSpec> make_spec(const SynthOptions& o) {
  STOKER_TRY(SynthSpec spec, synth_preset(o.like.empty() ? o.preset : o.like));
  spec.directory = o.out;
  apply_dimensions(o, spec.config);
  if (o.format == "fp8-bf16") spec.format = SynthFormat::fp8_bf16_scales;
  if (o.format == "fp8-f32") spec.format = SynthFormat::fp8_f32_scales;
  if (o.format == "bf16") spec.format = SynthFormat::bf16;
  if (o.format == "f32") spec.format = SynthFormat::f32;
  put(spec.shards, o.shards);
  put(spec.real_share, o.real_share);
  if (o.locality || o.no_locality) spec.locality = o.locality;
  put(spec.routing_tokens, o.routing_tokens);
  if (spec.routing_vocab > spec.config.vocab_size) spec.routing_vocab = 0;
  spec.seed = o.seed;
  spec.threads = o.threads;
  spec.force = o.force;
  spec.sparse = o.sparse;
  STOKER_TRY_VOID(apply_tokenizer(o.tokenizer, spec));
  return spec;
}

int print(const SynthReport& r, bool locality, const SynthOptions& o, Context& context) {
  if (!o.json) {
    context.terminal.note((o.dry_run ? "would write " : "wrote ") + o.out + ": " + std::to_string(r.tensors) +
                          " tensors, " + format_bytes(r.tensor_bytes) + " in " + std::to_string(r.files) +
                          " shard(s), " + std::to_string(r.real_experts) + " of " +
                          std::to_string(r.experts) + " experts with data");
    return kOk;
  }
  const nlohmann::ordered_json out{{"directory", o.out},
                                   {"tensors", r.tensors},
                                   {"tensor_bytes", r.tensor_bytes},
                                   {"written_bytes", r.written_bytes},
                                   {"files", r.files},
                                   {"experts", r.experts},
                                   {"real_experts", r.real_experts},
                                   {"planted_locality", locality}};
  return context.terminal.write_answer(out.dump() + "\n") ? kOk : kFailure;
}

int synth(const SynthOptions& options, Context& context) {
  const auto spec = make_spec(options);
  if (!spec) return report(spec.error(), "synth");
  if (options.dry_run) {
    const auto plan = synth_plan(*spec);
    return plan ? print(*plan, spec->locality, options, context) : report(plan.error(), "synth");
  }
  auto interrupts = Interrupts::open();
  if (!interrupts) return report(interrupts.error(), "synth");
  int signal = 0;
  const auto written = synthesize(*spec, [&](const SynthProgress& progress) {
    if (signal == 0) signal = interrupts->take();
    context.terminal.progress("writing " + options.out + " · " + format_bytes(progress.done_bytes) + " of " +
                              format_bytes(progress.total_bytes));
    return signal == 0;
  });
  context.terminal.clear_progress();
  if (signal != 0) return report(exit_code_of_signal(signal), "synth", "interrupted, nothing was kept");
  if (!written) return report(written.error(), "synth");
  return print(*written, spec->locality, options, context);
}

void add_dimensions(CLI::App& verb, SynthOptions& o) {
  const char* group = "Dimensions (default: the preset's)";
  const auto add = [&](const char* flag, std::optional<std::uint32_t>& target, const char* help) {
    verb.add_option(flag, target, help)->check(CLI::PositiveNumber)->group(group);
  };
  add("--layers", o.layers, "Layers");
  add("--full-attention-every", o.full_attention_every,
      "Every Nth layer has full attention, the others DeltaNet");
  add("--experts", o.experts, "Experts per layer");
  add("--experts-per-token", o.experts_per_token, "Experts chosen per token");
  add("--hidden", o.hidden, "Hidden size");
  add("--vocab", o.vocab, "Vocabulary size");
  add("--context", o.context, "max_position_embeddings");
  add("--moe-intermediate", o.moe_intermediate, "Width of an expert");
  add("--heads", o.heads, "Attention heads");
  add("--kv-heads", o.kv_heads, "Key/value heads");
  add("--head-dim", o.head_dim, "Size of an attention head");
  add("--rotary-dim", o.rotary_dim, "Rotated part of a head");
  add("--key-heads", o.key_heads, "DeltaNet key heads");
  add("--value-heads", o.value_heads, "DeltaNet value heads");
  add("--key-dim", o.key_dim, "Size of a DeltaNet key head");
  add("--value-dim", o.value_dim, "Size of a DeltaNet value head");
  verb.add_option("--eos", o.eos, "End-of-text ids: 4096,4098")->delimiter(',')->group(group);
  verb.add_flag("--tie-embeddings", o.tie_embeddings, "lm_head is the embedding")->group(group);
  verb.add_flag("--no-norm-topk", o.no_norm_topk, "norm_topk_prob false")->group(group);
  verb.add_flag("--no-shared-expert", o.no_shared_expert, "No shared expert")->group(group);
}

}  // namespace

void add_synth(CLI::App& app, Action& action) {
  auto options = std::make_shared<SynthOptions>();
  SynthOptions& o = *options;
  CLI::App* verb = app.add_subcommand("synth", "Write a synthetic checkpoint for tests and benchmarks");
  verb->add_option("-o,--out", o.out, "Directory to make")->required();
  auto* preset =
      verb->add_option("--preset", o.preset, "tiny or bench")->check(CLI::IsMember({"tiny", "bench"}));
  verb->add_option("--like", o.like, "Exactly a published model: Qwen3-Coder-Next-FP8")->excludes(preset);
  verb->add_option("--format", o.format, "fp8-bf16, fp8-f32 (dtype of the scales), bf16 or f32")
      ->check(CLI::IsMember({"fp8-bf16", "fp8-f32", "bf16", "f32"}));
  verb->add_option("--shards", o.shards, "Number of files")->check(CLI::PositiveNumber);
  auto* sparse = verb->add_flag("--sparse", o.sparse, "Most experts are file holes (zeros)");
  verb->add_option("--real-share", o.real_share, "With --sparse: share of experts that are written")
      ->check(CLI::Range(0.0, 1.0))
      ->needs(sparse);
  auto* locality =
      verb->add_flag("--locality", o.locality, "Plant topics in the routing (default: the preset's)");
  verb->add_flag("--no-locality", o.no_locality, "Random routers")->excludes(locality);
  verb->add_option("--routing-tokens", o.routing_tokens, "Length of the walk in routing_tokens.txt");
  verb->add_option("--tokenizer", o.tokenizer, "Directory to copy tokenizer.json and the chat template from")
      ->check(CLI::ExistingDirectory);
  verb->add_option("--seed", o.seed, "The same seed gives the same bytes");
  verb->add_option("--threads", o.threads, "Writers (default: all CPUs)");
  verb->add_flag("--force", o.force, "Replace an existing checkpoint");
  verb->add_flag("--dry-run", o.dry_run, "Only say what would be written");
  verb->add_flag("--json", o.json, "Print the report as JSON");
  add_dimensions(*verb, o);
  verb->callback([options, &action] { action = [options](Context& c) { return synth(*options, c); }; });
}

}  // namespace stoker::cli
