// The model on a GPU, driven through a device module (device_api.h). One layer of a decode step:
//   - compute stream: mixer, router, choice to the host; shared expert; experts in VRAM; copied experts;
//   their sum;
//   - copy stream: pool slot -> VRAM slot, expert by expert;
//   - host: waits for the choice, leases, starts copies, computes the CPU lane's experts from their slots.
//
// Everything that does not depend on which experts are where is a captured graph per layer. Results have the
// bits of the CPU backend, whatever lane or tier an expert had.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "gpu-worker/cpu/expert_batch.h"
#include "gpu-worker/cpu/thread_pool.h"
#include "gpu-worker/cuda/device.h"
#include "gpu-worker/cuda/device_module.h"
#include "gpu-worker/cuda/device_weights.h"
#include "gpu-worker/cuda/lanes.h"
#include "gpu-worker/cuda/sequence.h"
#include "gpu-worker/cuda/vram_cache.h"
#include "gpu-worker/decode.h"
#include "gpu-worker/expert_uses.h"
#include "gpu-worker/step.h"

namespace stoker {

/// Rows of logits that go up at once.
inline constexpr std::uint32_t kLogitRows = 16;

struct CudaOptions {
  std::string kind = "cuda";  ///< which module: "cuda", or "emulation" in tests
  std::string module_path;    ///< "" = beside the program
  std::uint32_t device = 0;
  std::uint64_t vram = 0;             ///< budget in bytes; never more than what is free, less a margin
  double vram_percent = 0;            ///< or of the card's memory; both 0: all of that
  std::uint64_t sequence_memory = 0;  ///< of the budget, for all sequences' state: in bytes
  double sequence_percent = 0;        ///< or as a share of it
  std::uint32_t step_tokens = 512;    ///< most tokens in one step
  std::uint32_t context = 32768;      ///< longest sequence: sizes page tables and attention's workspace
  std::uint32_t sequences = 8;        ///< most segments in one step
  std::uint32_t lookahead = 16;       ///< as CpuOptions
  Lane lane = Lane::automatic;
  bool copy_ahead = false;  ///< while a read is awaited: copies for the next layer, as its router guesses
  double cpu_rate = 0, copy_rate = 0;                      ///< bytes/s of the lanes; 0: measured at load
  Duration measure_time = std::chrono::milliseconds(200);  ///< for each of the rates
  std::uint32_t vram_slots = 0;  ///< experts in device memory; 0: what the budget leaves
  bool graphs = true;
  CpuOptions cpu;  ///< threads and instruction set of the CPU lane
  /// Memory that experts are leased from: pinned, so that copies need no detour. No copy may leave a pinned
  /// range, so ranges end where a slot does.
  std::span<std::byte> pool = {};
  std::uint64_t pool_slot_bytes = 1;
  std::function<void(const std::string&)> warn = [](const std::string&) {};
};

class CudaModel final : public Model {
 public:
  /// As Model::load_cpu. Errors name what is missing: module, driver, device, memory (with both numbers).
  static Result<std::unique_ptr<CudaModel>> load(const ModelConfig& config, const WeightsImage& image,
                                                 const CudaOptions& options, const Clock& clock);
  ~CudaModel() override;

  [[nodiscard]] const ModelConfig& config() const override { return config_; }
  [[nodiscard]] std::unique_ptr<Sequence> new_sequence() override;
  [[nodiscard]] std::uint64_t sequence_bytes(std::uint64_t length) const override {
    return sequences_->bytes_for(length);
  }
  [[nodiscard]] std::uint64_t mark_bytes() const override { return sequences_->state_bytes(); }
  [[nodiscard]] std::uint32_t step_tokens_max() const override { return options_.step_tokens; }
  Result<StepStats> step(std::span<const Segment> segments, Access access, ExpertSource& source,
                         RoutingObserver* observer, std::span<SegmentResult> results) override;
  [[nodiscard]] DeviceRates rates() const override { return rates_; }
  [[nodiscard]] std::string describe() const override;

  /// Bytes that sequences may take together.
  [[nodiscard]] std::uint64_t sequence_memory() const { return options_.sequence_memory; }
  [[nodiscard]] const VramCache& vram() const { return *vram_; }
  /// Experts computed per lane since load: from VRAM, after a copy, on the CPU.
  struct LaneCounts {
    std::uint64_t vram = 0, copied = 0, cpu = 0;
    std::uint64_t ahead = 0;  ///< copied before their layer began; if it wants them they are found in VRAM
  };
  [[nodiscard]] const LaneCounts& lane_counts() const { return lane_counts_; }

 private:
  /// A captured piece of decode steps, by what its launches depend on.
  enum class Piece : std::uint8_t { front, shared };
  struct GraphKey {
    Piece piece = Piece::front;
    std::uint32_t layer = 0, rows = 0, longest = 0;
    bool ahead = false;
    auto operator<=>(const GraphKey&) const = default;
  };

  /// Each holds memory of the device that no budget counts. A layer needs two per number of rows, and
  /// attention some more for the length.
  static constexpr std::size_t kGraphsPerLayer = 16;

  CudaModel(DeviceModule module, const ModelConfig& config, const CudaOptions& options, const Clock& clock);

  // load.cc
  Result<void> open_device();
  Result<void> set_budget();
  Result<void> bind(const WeightsImage& image);
  Result<void> make_workspace();
  Result<void> make_pinned(std::size_t tables_bytes);
  Result<void> make_slots();
  void pin_pool();
  Result<void> load_all(const WeightsImage& image);

  // measure.cc
  template <class Round>
  Result<double> best_rate(const Round& round);
  template <class Enqueue>
  Result<double> device_seconds(device::Stream* stream, const Enqueue& enqueue);
  Result<void> measure_lanes();
  Result<double> measure_memory();
  Result<void> measure_copies();
  Result<void> measure_cpu();

  // step.cc
  Result<void> run(Step& step);
  Error abandon(Step& step, Error why);
  [[nodiscard]] std::string device_trouble();
  void grow_sequences(Step& step);
  Result<void> upload(const Step& step);
  /// What `enqueue` puts on the compute stream, as a graph that is kept if it is `captured`.
  template <class Enqueue>
  Result<void> run_piece(bool captured, const GraphKey& key, const Enqueue& enqueue) {
    if (!captured) return enqueue();
    const Result<void> launched = launch_graph(key, enqueue);
    if (launched) return {};
    // How much of the device's memory a graph takes is the driver's to say, and nothing of one that was not
    // launched has run.
    STOKER_TRY_VOID(enqueue());
    give_up_graphs(launched.error());
    return {};
  }
  template <class Enqueue>
  Result<void> launch_graph(const GraphKey& key, const Enqueue& enqueue) {
    auto found = graphs_.find(key);
    if (found == graphs_.end()) {
      STOKER_DEVICE("capturing", api_.begin_capture(compute_.get()));
      Result<void> enqueued = enqueue();
      device::Graph* made = nullptr;
      const device::Status bad = api_.end_capture(compute_.get(), &made);
      DeviceGraph graph(api_, made);
      STOKER_TRY_VOID(std::move(enqueued));
      STOKER_DEVICE("capturing a layer", bad);
      // Too many shapes of steps are rare, and those in use are soon captured again.
      if (graphs_.size() >= kGraphsPerLayer * weights_.layers.size()) graphs_.clear();
      found = graphs_.emplace(key, std::move(graph)).first;
    }
    return device_result(api_.launch(found->second.get(), compute_.get()), "launching a layer");
  }
  void give_up_graphs(const Error& why);
  void fill_tables(const Step& step);
  Result<void> run_layers(Step& step);
  Result<void> front(const Step& step, std::size_t layer);
  [[nodiscard]] device::StepTables device_tables(const Step& step) const;
  [[nodiscard]] bool captures(const Step& step) const;
  Result<void> enqueue_front(std::size_t layer, const device::StepTables& tables, std::uint32_t longest,
                             bool decoding, bool ahead);
  Result<void> delta_net(const DeviceLayer& layer, const device::StepTables& tables);
  Result<void> attention(const DeviceLayer& layer, const device::StepTables& tables, std::uint32_t longest);
  Result<void> router(std::size_t layer, std::uint32_t rows, bool decoding, bool ahead);
  void take_flags(Step& step, std::size_t layer, const std::uint32_t* flags);
  Result<void> logits(Step& step);
  Result<std::uint32_t> try_logits(Step& step, bool first);
  Result<void> matmul(const device::Matrix& w, const float* x, std::uint32_t x_stride, float* y,
                      std::uint32_t y_stride, std::uint32_t rows, const std::uint32_t* scatter = nullptr,
                      bool add = false);
  [[nodiscard]] static device::Matmul product(const device::Matrix& w, const float* x, std::uint32_t x_stride,
                                              float* y, std::uint32_t y_stride, std::uint32_t rows,
                                              const std::uint32_t* scatter = nullptr, bool add = false) {
    return {w, x, y, x_stride, y_stride, scatter, rows, add};
  }
  Result<void> matmuls(std::initializer_list<device::Matmul> list);
  Result<void> norm(const float* x, const float* w, float* y, std::uint32_t rows,
                    const std::uint32_t* from = nullptr);

  // moe.cc
  /// Experts that go to the device together: through one half of the staging slots, or their own slots.
  struct Batch {
    DeviceEvent copied, computed;
    bool in_use = false;               ///< `computed` was recorded
    std::vector<LeasedExpert> leases;  ///< until `copied` fired
    std::uint32_t staged = 0;          ///< of its staging slots
    std::uint32_t first = 0;           ///< of the layer's expert list
  };
  Result<void> moe(Step& step, std::size_t layer);
  void look_ahead(const Step& step, std::size_t layer);
  Result<void> shared_expert(const Step& step, std::size_t layer);
  Result<void> enqueue_shared(std::size_t layer, std::uint32_t rows);
  Result<void> serve(Step& step, std::size_t layer);
  Result<SourceEvent::Kind> take(Step& step, std::size_t layer, bool wait);
  [[nodiscard]] Lane lane_of(const Step& step, const LeasedExpert& expert);
  Result<void> copy_in(const Step& step, std::size_t layer, const LeasedExpert& expert);
  Result<void> launch_batch(Step& step);
  Result<void> settle(Step& step, Batch& batch);
  Result<void> run_cpu(Step& step, std::size_t layer);
  void guess_next(const Step& step, std::size_t layer);
  Result<bool> copy_ahead(Step& step, std::size_t layer);
  Result<void> copy_expert(const LeasedExpert& expert, std::size_t layer, std::byte* to);
  [[nodiscard]] bool computes_ahead(const Step& step, std::size_t layer) const {
    const bool wanted = options_.copy_ahead && options_.lookahead > 0 && step.access == Access::decode;
    return (wanted || step.looks_ahead(options_.lookahead)) && layer + 1 < weights_.layers.size();
  }
  Result<void> combine(std::uint32_t rows);
  void list(std::size_t layer, ExpertId expert, const std::byte* slot);
  Result<void> send_list(std::uint32_t first, std::uint32_t count, device::Stream* stream);
  Result<void> launch_experts(std::uint32_t first, std::uint32_t count);

  [[nodiscard]] std::byte* slot(std::uint32_t index) const {
    return slots_.data() + std::uint64_t{index} * slot_bytes_;
  }
  [[nodiscard]] std::byte* staging(std::uint32_t half, std::uint32_t index) const {
    return slot(vram_->slots() + half * static_cast<std::uint32_t>(kExpertBatch) + index);
  }

  /// Closes the device after everything that lies in its memory is gone.
  struct Session {
    const device::Api* api = nullptr;
    ~Session() {
      if (api != nullptr) api->close();
    }
  };

  DeviceModule module_;
  const device::Api& api_;
  Session session_;
  ModelConfig config_;
  Dims dims_;
  CudaOptions options_;
  const Clock& clock_;
  device::Info info_{};
  std::vector<std::span<std::byte>> pinned_;

  // The host's half: bound weights (embedding, CPU lane), threads.
  const Kernels* kernels_ = nullptr;
  std::unique_ptr<ThreadPool> threads_;
  ModelWeights host_;
  std::vector<float> inv_freq_;

  DeviceStream compute_, copy_;
  DeviceEvent chosen_, measured_from_, measured_to_;
  DeviceWeights weights_;
  std::unique_ptr<SequenceMemory> sequences_;
  std::uint64_t matrix_bytes_ = 0, part_bytes_ = 0,
                slot_bytes_ = 0;  ///< a matrix, with its padding, three of them
  DeviceArray<std::byte> slots_;  ///< cache slots, then two halves of staging slots
  std::unique_ptr<VramCache> vram_;

  // What a step sends down: one block each, the same offsets on both sides.
  struct Tables {
    device::Row* rows;
    device::Segment* segments;
    float** pages;
    float* rope;
    float* x;
    std::byte* end;
  };
  [[nodiscard]] Tables tables_at(std::byte* base) const;
  std::uint32_t pages_max_ = 0;  ///< per segment
  PinnedArray<std::byte> down_;
  DeviceArray<std::byte> down_device_;
  DeviceArray<float> spare_page_;  ///< where rows without a sequence write

  // Workspace in device memory, [row][...].
  DeviceArray<float> proj_, side_, conv_, core_, router_, ahead_, gate_, expert_out_, shared_gate_,
      shared_up_, shared_out_, shared_sigma_, attention_, normed_, logits_device_;
  DeviceArray<std::uint32_t> logit_flags_device_, pairs_device_, from_device_;
  DeviceArray<device::Expert> experts_device_;

  // What comes up after the router of a layer: one block, as long as the step's rows make it. The host waits
  // for it in every layer, and copies of a few bytes cost what they cost by their number.
  struct Choice {
    float* h;              ///< [row][hidden], the experts' input; where the CPU computes experts
    std::uint32_t* flags;  ///< [row][combine_slots], of the layer before
    std::uint32_t* ids;    ///< [row][k]
    float* weights;
    std::uint32_t* ahead_ids;  ///< [row][lookahead], if the router looks ahead
    float* ahead_scores;
    std::byte* end;
  };
  [[nodiscard]] Choice choice_at(std::byte* base, std::size_t rows, bool h, bool ahead) const;
  /// On the device all of it has its place; on the host nothing has that is not sent.
  [[nodiscard]] Choice choice_on_device(std::size_t rows) const {
    return choice_at(choice_device_.data(), rows, true, true);
  }
  [[nodiscard]] Choice choice_of(const Step& step, std::size_t layer) const {
    const std::size_t rows = step.rows.size();
    const bool decoding = step.access == Access::decode;
    return choice_at(choice_[layer % 2].data(), rows, sends_h(decoding, rows), computes_ahead(step, layer));
  }
  [[nodiscard]] bool sends_h(bool decoding, std::size_t rows) const {
    return decoding && options_.lane != Lane::gpu && rows <= options_.sequences;
  }
  [[nodiscard]] float* h() const { return reinterpret_cast<float*>(choice_device_.data()); }
  DeviceArray<std::byte> choice_device_;
  PinnedArray<std::byte> choice_[2];  ///< a layer's is read until its successor's flags were

  PinnedArray<std::uint32_t> last_flags_, logit_flags_;
  PinnedArray<float> logits_up_, cpu_out_;
  PinnedArray<device::Expert> experts_down_;
  PinnedArray<std::uint32_t> pairs_down_, from_down_;
  std::vector<float> logits_many_;

  RowTable rows_;
  ExpertUses uses_;
  std::unique_ptr<ExpertBatch> cpu_batch_;
  LaneSplit lanes_{1, 1};
  LaneCounts lane_counts_;
  DeviceRates rates_;
  std::vector<ExpertId> missing_;
  std::vector<ExpertId> guess_;  ///< experts of the next layer, likeliest first
  std::size_t next_guess_ = 0;
  std::vector<LeasedExpert> cpu_ready_;
  std::size_t cpu_pairs_ = 0;  ///< of cpu_ready_
  Batch batches_[2];
  std::uint32_t filling_ = 0;  ///< batches_[filling_] takes copies
  std::uint32_t listed_ = 0;   ///< of the layer's expert list

  std::map<GraphKey, DeviceGraph> graphs_;
};

}  // namespace stoker
