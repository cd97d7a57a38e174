// A step on the GPU, from top to bottom; the experts of a layer are in moe.cc.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>

#include "gpu-worker/cpu/rope.h"
#include "gpu-worker/cuda/model.h"
#include "shm/base/check.h"

namespace stoker {
namespace {

std::uint32_t longest_of(const Step& step) {
  std::uint32_t longest = 1;
  for (const Row& row : step.rows) longest = std::max(longest, row.position + 1);
  return longest;
}

}  // namespace

Result<StepStats> CudaModel::step(std::span<const Segment> segments, Access access, ExpertSource& source,
                                  RoutingObserver* observer, std::span<SegmentResult> results) {
  const Duration start = clock_.now();
  Step step = begin_step(segments, access, source, observer, results, start);
  if (auto bound = device_result(api_.bind_thread(), "binding the thread to the device"); !bound)
    return tl::unexpected<Error>(abandon(step, std::move(bound).error()));
  STOKER_CHECK(segments.size() <= options_.sequences);
  rows_.lay_out(step, config_.vocab_size);
  grow_sequences(step);
  step.announce(options_.lookahead);
  const LaneCounts before = lane_counts_;
  if (auto done = run(step); !done) return tl::unexpected<Error>(abandon(step, std::move(done).error()));
  for (const Segment& segment : segments) {
    static_cast<CudaSequence*>(segment.sequence)
        ->set_length(segment.sequence->length() + static_cast<std::uint32_t>(segment.tokens.size()));
  }
  step.stats.copied = lane_counts_.copied - before.copied;
  step.stats.on_cpu = lane_counts_.cpu - before.cpu;
  step.stats.copied_ahead = lane_counts_.ahead - before.ahead;
  step.stats.total = clock_.now() - start;
  return step.stats;
}

Result<void> CudaModel::run(Step& step) {
  STOKER_TRY_VOID(upload(step));
  if (step.access == Access::decode) vram_->begin_step();
  STOKER_TRY_VOID(run_layers(step));
  return logits(step);
}

/// What makes every further call fail, or nothing. CUDA tells an error of one operation once; one that has
/// broken the device's context (an illegal address, a launch timeout, ECC, a card that fell off the bus)
/// comes back from every call until the process ends.
std::string CudaModel::device_trouble() {
  for (device::Stream* stream : {copy_.get(), compute_.get()}) {
    if (api_.synchronize(stream) == nullptr) continue;
    if (const device::Status again = api_.synchronize(stream); again != nullptr) return again;
  }
  return {};
}

/// After an error: nothing is under way any more, no lease is held, and no slot is believed. Returns the
/// error for the caller, Errc::device_lost if no later step can go better.
Error CudaModel::abandon(Step& step, Error why) {
  const std::string trouble = device_trouble();
  for (Batch& batch : batches_) {
    for (const LeasedExpert& leased : batch.leases) step.source->release(leased);
    batch.leases.clear();
  }
  for (const LeasedExpert& leased : cpu_ready_) step.source->release(leased);
  cpu_ready_.clear();
  cpu_pairs_ = 0;
  vram_->clear();
  if (trouble.empty()) return why;
  return {Errc::device_lost, 0,
          "GPU " + std::to_string(options_.device) + " (" + info_.name +
              ") cannot be used any more: " + why.text() + (why.code == Errc::io ? "" : "; " + trouble) +
              ". The worker ends, and opens the GPU again when it is restarted; if that fails too, the "
              "kernel's log (dmesg, NVRM: Xid) says what happened to the card"};
}

void CudaModel::grow_sequences(Step& step) {
  for (std::size_t s = 0; s < step.segments.size(); ++s) {
    auto* sequence = static_cast<CudaSequence*>(step.segments[s].sequence);
    STOKER_CHECK(sequence->model() == this);
    const std::uint64_t length = std::uint64_t{sequence->length()} + step.segments[s].tokens.size();
    if (length > std::uint64_t{pages_max_} * device::kPagePositions) {
      step.fail(static_cast<std::uint32_t>(s), {Errc::too_large, 0,
                                                std::to_string(length) + " tokens do not fit a context of " +
                                                    std::to_string(options_.context)});
    } else if (auto grown = sequence->reserve(length); !grown) {
      step.fail(static_cast<std::uint32_t>(s), std::move(grown).error());
    }
  }
}

/// Where each table lies in a block that begins at `base`; the end too.
CudaModel::Tables CudaModel::tables_at(std::byte* base) const {
  const auto take = [&](std::size_t bytes) { return std::exchange(base, base + (bytes + 255) / 256 * 256); };
  const std::size_t rows = options_.step_tokens;
  Tables t{};
  t.rows = reinterpret_cast<device::Row*>(take(rows * sizeof(device::Row)));
  t.segments = reinterpret_cast<device::Segment*>(take(options_.sequences * sizeof(device::Segment)));
  t.pages = reinterpret_cast<float**>(take(std::size_t{options_.sequences} * pages_max_ * sizeof(float*)));
  t.rope = reinterpret_cast<float*>(take(rows * config_.rotary_dim * sizeof(float)));
  t.x = reinterpret_cast<float*>(take(rows * config_.hidden_size * sizeof(float)));
  t.end = base;
  return t;
}

CudaModel::Choice CudaModel::choice_at(std::byte* base, std::size_t rows, bool h, bool ahead) const {
  const auto take = [&]<class T>(T*& array, std::size_t count) {
    array = reinterpret_cast<T*>(std::exchange(base, base + count * sizeof(T)));
  };
  const std::size_t chosen = rows * config_.experts_per_token;
  const std::size_t candidates = ahead ? rows * std::min(options_.lookahead, config_.experts) : 0;
  Choice c{};
  take(c.h, h ? rows * config_.hidden_size : 0);
  take(c.flags, rows * device::combine_slots(config_.hidden_size));
  take(c.ids, chosen);
  take(c.weights, chosen);
  take(c.ahead_ids, candidates);
  take(c.ahead_scores, candidates);
  c.end = base;
  return c;
}

device::StepTables CudaModel::device_tables(const Step& step) const {
  const Tables t = tables_at(down_device_.data());
  return {t.rows, t.segments, static_cast<std::uint32_t>(step.rows.size()),
          static_cast<std::uint32_t>(step.segments.size())};
}

/// A segment that failed already has no rows of its own, and its rows write to the spare page.
void CudaModel::fill_tables(const Step& step) {
  const Tables host = tables_at(down_.data());
  const Tables on_device = tables_at(down_device_.data());
  for (std::size_t s = 0; s < step.segments.size(); ++s) {
    const auto* sequence = static_cast<const CudaSequence*>(step.segments[s].sequence);
    const bool dead = step.results[s].error.has_value();
    const std::size_t first_page = s * pages_max_;
    float** pages = host.pages + first_page;
    if (dead) {
      std::fill_n(pages, pages_max_, spare_page_.data());
    } else {
      std::copy(sequence->pages().begin(), sequence->pages().end(), pages);
    }
    host.segments[s] = {step.first_row[s], dead ? 0 : step.first_row[s + 1] - step.first_row[s],
                        dead ? nullptr : sequence->recurrent(), dead ? nullptr : sequence->conv(),
                        on_device.pages + first_page};
  }
  const std::size_t half = inv_freq_.size();
  for (std::size_t r = 0; r < step.rows.size(); ++r) {
    const Row& row = step.rows[r];
    // A dead row has no page at its position if it is beyond the table.
    host.rows[r] = {row.segment, step.row_alive(r) ? row.position : 0};
    kernels_->decode_row(host_.embed, row.token, host.x + r * config_.hidden_size);
    rope_angles(inv_freq_, row.position, host.rope + r * 2 * half);
  }
}

Result<void> CudaModel::upload(const Step& step) {
  fill_tables(step);
  const Tables from = tables_at(down_.data());
  const Tables to = tables_at(down_device_.data());
  const std::size_t rows = step.rows.size();
  const auto send = [&](void* device, const void* host, std::size_t bytes) {
    return device_result(api_.to_device(device, host, bytes, compute_.get()), "sending a step's tables");
  };
  STOKER_TRY_VOID(send(to.rows, from.rows, rows * sizeof(device::Row)));
  STOKER_TRY_VOID(send(to.segments, from.segments, step.segments.size() * sizeof(device::Segment)));
  STOKER_TRY_VOID(send(to.pages, from.pages, step.segments.size() * pages_max_ * sizeof(float*)));
  STOKER_TRY_VOID(send(to.rope, from.rope, rows * 2 * inv_freq_.size() * sizeof(float)));
  return send(to.x, from.x, rows * config_.hidden_size * sizeof(float));
}

Result<void> CudaModel::run_layers(Step& step) {
  for (std::size_t layer = 0; layer < weights_.layers.size() && step.any_alive(); ++layer) {
    STOKER_TRY_VOID(front(step, layer));
    STOKER_DEVICE("recording an event", api_.record(chosen_.get(), compute_.get()));
    // Runs while the host hears of the choice and looks for the experts.
    STOKER_TRY_VOID(shared_expert(step, layer));
    STOKER_DEVICE("waiting for the router of layer " + std::to_string(layer), api_.wait_host(chosen_.get()));
    if (layer > 0) take_flags(step, layer - 1, choice_of(step, layer).flags);
    STOKER_TRY_VOID(moe(step, layer));
  }
  return {};
}

/// Decode steps repeat the same launches: they are captured once and launched as one.
bool CudaModel::captures(const Step& step) const {
  return options_.graphs && step.access == Access::decode && step.rows.size() == step.segments.size();
}

/// A worker without graphs computes the same bits, later; one that insists on them answers nothing.
void CudaModel::give_up_graphs(const Error& why) {
  options_.graphs = false;
  graphs_.clear();
  options_.warn("steps are not captured as graphs any more, which makes them slower: " + why.text());
}

/// Mixer and router of a layer, after the sum of the layer before.
Result<void> CudaModel::front(const Step& step, std::size_t layer) {
  const bool decoding = step.access == Access::decode;
  const bool ahead = computes_ahead(step, layer);
  const bool captured = captures(step);
  std::uint32_t longest = 0;
  if (weights_.layers[layer].mixer == MixerType::full_attention) {
    longest = longest_of(step);
    // Few graphs for all lengths: pages in powers of two.
    if (captured)
      longest = std::bit_ceil((longest + device::kPagePositions - 1) / device::kPagePositions) *
                device::kPagePositions;
  }
  const device::StepTables tables = device_tables(step);
  const GraphKey key{.piece = Piece::front,
                     .layer = static_cast<std::uint32_t>(layer),
                     .rows = tables.row_count,
                     .longest = longest,
                     .ahead = ahead};
  return run_piece(captured, key, [&] { return enqueue_front(layer, tables, longest, decoding, ahead); });
}

Result<void> CudaModel::enqueue_front(std::size_t layer, const device::StepTables& tables,
                                      std::uint32_t longest, bool decoding, bool ahead) {
  const DeviceLayer& w = weights_.layers[layer];
  const std::uint32_t rows = tables.row_count;
  float* x = tables_at(down_device_.data()).x;
  if (layer > 0) STOKER_TRY_VOID(combine(rows));
  STOKER_TRY_VOID(norm(x, w.input_norm, h(), rows));
  if (w.mixer == MixerType::full_attention) {
    STOKER_TRY_VOID(attention(w, tables, longest));
  } else {
    STOKER_TRY_VOID(delta_net(w, tables));
  }
  STOKER_TRY_VOID(norm(x, w.post_norm, h(), rows));
  return router(layer, rows, decoding, ahead);
}

Result<void> CudaModel::delta_net(const DeviceLayer& layer, const device::StepTables& tables) {
  const DeviceDeltaNet& w = layer.delta;
  const std::uint32_t rows = tables.row_count;
  const std::uint32_t hidden = config_.hidden_size;
  const std::uint32_t proj = dims_.conv_dim + dims_.value_dim;
  STOKER_TRY_VOID(matmuls(
      {product(w.qkvz, h(), hidden, proj_.data(), proj, rows, weights_.qkvz_scatter),
       product(w.ba, h(), hidden, side_.data(), 2 * config_.linear_value_heads, rows, weights_.ba_scatter)}));
  STOKER_DEVICE("convolution", api_.convolution({.step = tables,
                                                 .in = proj_.data(),
                                                 .w = w.conv,
                                                 .out = conv_.data(),
                                                 .in_stride = proj,
                                                 .channels = dims_.conv_dim,
                                                 .taps = config_.conv_kernel,
                                                 .layer = layer.index},
                                                compute_.get()));
  STOKER_DEVICE(
      "delta rule",
      api_.delta_rule(
          {.step = tables,
           .qkv = conv_.data(),
           .ba = side_.data(),
           .z = proj_.data() + dims_.conv_dim,
           .neg_exp_a = w.neg_exp_a,
           .dt_bias = w.dt_bias,
           .norm = w.norm,
           .out = core_.data(),
           .z_stride = proj,
           .key_heads = config_.linear_key_heads,
           .value_heads = config_.linear_value_heads,
           .dk = config_.linear_key_dim,
           .dv = config_.linear_value_dim,
           .q_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.linear_key_dim))),
           .l2_eps = kL2Eps,
           .norm_eps = config_.rms_norm_eps,
           .layer = layer.index},
          compute_.get()));
  return matmul(w.out, core_.data(), dims_.value_dim, tables_at(down_device_.data()).x, hidden, rows, nullptr,
                true);
}

Result<void> CudaModel::attention(const DeviceLayer& layer, const device::StepTables& tables,
                                  std::uint32_t longest) {
  const DeviceAttention& w = layer.attention;
  const std::uint32_t rows = tables.row_count;
  const std::uint32_t hidden = config_.hidden_size;
  const Tables t = tables_at(down_device_.data());
  STOKER_TRY_VOID(matmuls({product(w.q, h(), hidden, proj_.data(), 2 * dims_.q_dim, rows, weights_.q_scatter),
                           product(w.k, h(), hidden, side_.data(), 2 * dims_.kv_dim, rows),
                           product(w.v, h(), hidden, side_.data() + dims_.kv_dim, 2 * dims_.kv_dim, rows)}));
  STOKER_DEVICE("storing keys and values", api_.attention_store({.step = tables,
                                                                 .q = proj_.data(),
                                                                 .kv = side_.data(),
                                                                 .cos_sin = t.rope,
                                                                 .q_norm = w.q_norm,
                                                                 .k_norm = w.k_norm,
                                                                 .q_stride = 2 * dims_.q_dim,
                                                                 .heads = config_.attention_heads,
                                                                 .kv_heads = config_.kv_heads,
                                                                 .head_dim = config_.head_dim,
                                                                 .rotary = config_.rotary_dim,
                                                                 .eps = config_.rms_norm_eps,
                                                                 .layer = layer.index,
                                                                 .layers = weights_.attention_layers},
                                                                compute_.get()));
  STOKER_DEVICE(
      "attention",
      api_.attention({.step = tables,
                      .q = proj_.data(),
                      .gate = proj_.data() + dims_.q_dim,
                      .out = core_.data(),
                      .q_stride = 2 * dims_.q_dim,
                      .heads = config_.attention_heads,
                      .kv_heads = config_.kv_heads,
                      .head_dim = config_.head_dim,
                      .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.head_dim))),
                      .layer = layer.index,
                      .layers = weights_.attention_layers,
                      .longest = longest,
                      .workspace = attention_.data(),
                      .workspace_floats = attention_.size()},
                     compute_.get()));
  return matmul(w.o, core_.data(), dims_.q_dim, t.x, hidden, rows, nullptr, true);
}

/// The choice of experts, and what the next layer's router makes of the same input; both go up, with the
/// flags of the layer before and, where the CPU may compute experts, their input.
Result<void> CudaModel::router(std::size_t layer, std::uint32_t rows, bool decoding, bool ahead) {
  const DeviceMoe& moe = weights_.layers[layer].moe;
  const std::uint32_t hidden = config_.hidden_size;
  // Those that are not wanted have no rows. The shared expert's gate is ready for it then.
  const std::uint32_t shared_rows = config_.shared_intermediate != 0 ? rows : 0;
  const device::Matrix& next = ahead ? weights_.layers[layer + 1].moe.router : moe.router;
  STOKER_TRY_VOID(matmuls({product(moe.router, h(), hidden, router_.data(), config_.experts, rows),
                           product(next, h(), hidden, ahead_.data(), config_.experts, ahead ? rows : 0),
                           product(moe.shared_scale, h(), hidden, shared_sigma_.data(), 1, shared_rows)}));
  const auto choose = [&](float* p, std::uint32_t* ids, float* weights, std::uint32_t k, bool normalise) {
    return device_result(api_.top_k({.p = p,
                                     .ids = ids,
                                     .weights = weights,
                                     .rows = rows,
                                     .experts = config_.experts,
                                     .k = k,
                                     .normalise = normalise},
                                    compute_.get()),
                         "router");
  };
  const Choice at = choice_on_device(rows);
  STOKER_TRY_VOID(
      choose(router_.data(), at.ids, at.weights, config_.experts_per_token, config_.norm_topk_prob));
  if (ahead)
    STOKER_TRY_VOID(choose(ahead_.data(), at.ahead_ids, at.ahead_scores,
                           std::min(options_.lookahead, config_.experts), false));
  std::byte* to = choice_[layer % 2].data();
  const bool with_h = sends_h(decoding, rows);
  const Choice up = choice_at(to, rows, with_h, ahead);
  const void* from = with_h ? static_cast<const void*>(at.h) : at.flags;
  return device_result(api_.to_host(to, from, static_cast<std::uint64_t>(up.end - to), compute_.get()),
                       "reading the choice");
}

/// What combine() of `layer` found; its choice is still the current one.
void CudaModel::take_flags(Step& step, std::size_t layer, const std::uint32_t* flags) {
  const std::uint32_t k = config_.experts_per_token;
  const std::uint32_t slots = device::combine_slots(config_.hidden_size);
  for (std::uint32_t r = 0; r < step.rows.size(); ++r) {
    const std::uint32_t* of_row = flags + std::size_t{r} * slots;
    const std::uint32_t found = std::accumulate(of_row, of_row + slots, 0U, std::bit_or<>());
    if (found == 0 || !step.row_alive(r)) continue;
    const auto rank = static_cast<std::uint32_t>(std::countr_zero(found));
    if (rank < k) {
      uses_.not_finite(step, layer, r * k + rank);
    } else {
      step.fail(step.rows[r].segment, not_finite_error());
    }
  }
}

/// Final norm and lm_head, for the rows that were asked for only. A row that is not finite takes its segment
/// out, and the others are done again: rare, so no wait is spent on it before.
Result<void> CudaModel::logits(Step& step) {
  const std::uint32_t rows = static_cast<std::uint32_t>(step.rows.size());
  STOKER_TRY_VOID(combine(rows));
  const std::size_t flags = rows * device::combine_slots(config_.hidden_size);
  STOKER_DEVICE("reading flags", api_.to_host(last_flags_.data(), choice_on_device(rows).flags,
                                              flags * sizeof(std::uint32_t), compute_.get()));
  for (bool first = true;; first = false) {
    STOKER_TRY(const std::uint32_t failed, try_logits(step, first));
    if (failed == 0) return {};
  }
}

Result<std::uint32_t> CudaModel::try_logits(Step& step, bool first) {
  const std::size_t vocab = config_.vocab_size;
  std::uint32_t wanted = 0;
  for (std::size_t s = 0; s < step.segments.size(); ++s)
    for (auto [r, end] = step.logits_rows(s); r < end; ++r)
      from_down_[wanted++] = static_cast<std::uint32_t>(r);
  float* out = logits_up_.data();
  if (wanted > kLogitRows) {
    if (logits_many_.size() < wanted * vocab) logits_many_.resize(wanted * vocab);
    out = logits_many_.data();
  }
  STOKER_DEVICE("sending row numbers", api_.to_device(from_device_.data(), from_down_.data(),
                                                      wanted * sizeof(std::uint32_t), compute_.get()));
  for (std::uint32_t at = 0; at < wanted; at += kLogitRows) {
    const std::uint32_t count = std::min(kLogitRows, wanted - at);
    STOKER_TRY_VOID(norm(tables_at(down_device_.data()).x, weights_.final_norm, normed_.data(), count,
                         from_device_.data() + at));
    STOKER_DEVICE("checking the final norm", api_.not_finite({.x = normed_.data(),
                                                              .flags = logit_flags_device_.data(),
                                                              .rows = count,
                                                              .n = config_.hidden_size},
                                                             compute_.get()));
    STOKER_DEVICE("reading flags", api_.to_host(logit_flags_.data() + at, logit_flags_device_.data(),
                                                count * sizeof(std::uint32_t), compute_.get()));
    STOKER_TRY_VOID(matmul(weights_.lm_head, normed_.data(), config_.hidden_size, logits_device_.data(),
                           config_.vocab_size, count));
    STOKER_DEVICE("reading logits", api_.to_host(out + at * vocab, logits_device_.data(),
                                                 count * vocab * sizeof(float), compute_.get()));
  }
  STOKER_DEVICE("the end of a step", api_.synchronize(compute_.get()));
  if (first && step.any_alive()) take_flags(step, weights_.layers.size() - 1, last_flags_.data());
  std::uint32_t failed = 0;
  for (std::uint32_t i = 0; i < wanted; ++i) {
    const Row& row = step.rows[from_down_[i]];
    if (logit_flags_[i] == 0 && !step.results[row.segment].error) continue;
    step.fail(row.segment, not_finite_error());
    ++failed;
  }
  if (failed == 0) step.hand_out(out, vocab);
  return failed;
}

Result<void> CudaModel::matmul(const device::Matrix& w, const float* x, std::uint32_t x_stride, float* y,
                               std::uint32_t y_stride, std::uint32_t rows, const std::uint32_t* scatter,
                               bool add) {
  return matmuls({product(w, x, x_stride, y, y_stride, rows, scatter, add)});
}

Result<void> CudaModel::matmuls(std::initializer_list<device::Matmul> list) {
  return device_result(api_.matmuls(list.begin(), static_cast<std::uint32_t>(list.size()), compute_.get()),
                       "matrix product");
}

Result<void> CudaModel::norm(const float* x, const float* w, float* y, std::uint32_t rows,
                             const std::uint32_t* from) {
  return device_result(api_.rms_norm({.x = x,
                                      .from = from,
                                      .w = w,
                                      .y = y,
                                      .rows = rows,
                                      .n = config_.hidden_size,
                                      .eps = config_.rms_norm_eps},
                                     compute_.get()),
                       "norm");
}

std::unique_ptr<Sequence> CudaModel::new_sequence() {
  return std::make_unique<CudaSequence>(*sequences_, this);
}

}  // namespace stoker
