#include "checkpoint/checkpoint.h"

#include <dirent.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <optional>
#include <set>

#include "checkpoint/file_bytes.h"
#include "checkpoint/json_input.h"
#include "checkpoint/tensor_list.h"

namespace stoker {

using nlohmann::json;

namespace {

constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr const char* kSingleName = "model.safetensors";
constexpr std::uint64_t kConfigBytesMax = 4_MiB;
constexpr std::uint64_t kIndexBytesMax = 256_MiB;
constexpr std::size_t kFilesMax = 4096;

/// weight_map of the index: tensor name -> number in `files`. 148,383 entries in Qwen3-Coder-Next-FP8.
struct Index {
  std::vector<std::string> files;  ///< sorted
  std::unordered_map<std::string, std::uint32_t> file_of;
};

/// Walks { ..., "weight_map": { tensor: file, ... } } without building a document in memory.
class IndexSax final : public nlohmann::json_sax<json> {
 public:
  bool null() override { return scalar(); }
  bool boolean(bool) override { return scalar(); }
  bool number_integer(number_integer_t) override { return scalar(); }
  bool number_unsigned(number_unsigned_t) override { return scalar(); }
  bool number_float(number_float_t, const string_t&) override { return scalar(); }
  bool binary(binary_t&) override { return scalar(); }
  bool string(string_t& text) override {
    if (!in_map()) return scalar();
    entries.emplace_back(std::move(key_), std::move(text));
    return true;
  }
  bool start_object(std::size_t) override {
    if (in_map()) return stop("weight_map contains an object where a file name must be");
    if (depth_ == 1 && key_ == "weight_map") {
      if (std::exchange(map_seen, true)) return stop("weight_map appears twice");
      map_depth_ = 2;
    }
    return deeper();
  }
  bool key(string_t& name) override {
    key_ = std::move(name);
    return true;
  }
  bool end_object() override {
    if (in_map()) map_depth_ = 0;
    --depth_;
    return true;
  }
  bool start_array(std::size_t) override { return in_map() ? scalar() : deeper(); }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const json::exception& e) override {
    return stop("not valid JSON at byte " + std::to_string(position) + ": " + printable(e.what()));
  }

  std::vector<std::pair<std::string, std::string>> entries;
  std::string problem;
  bool map_seen = false;

 private:
  [[nodiscard]] bool in_map() const { return map_depth_ != 0 && depth_ == map_depth_; }
  bool scalar() {
    if (depth_ == 0) return stop("is not a JSON object");
    return !in_map() || stop("weight_map of \"" + printable(key_) + "\" is not a file name");
  }
  bool deeper() { return ++depth_ <= kJsonDepthMax || stop("is nested too deeply"); }
  bool stop(const std::string& what) {
    problem = what;
    return false;
  }
  int depth_ = 0, map_depth_ = 0;
  std::string key_;
};

bool plain_file_name(const std::string& name) {
  return !name.empty() && name.size() < 256 && name[0] != '.' && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

Result<Index> parse_index(const std::string& text, const std::string& path) {
  IndexSax sax;
  const bool complete = json::sax_parse(text, &sax);
  if (!sax.problem.empty()) return fail(Errc::corrupt, path + ": " + sax.problem);
  if (!complete || !sax.map_seen) return fail(Errc::corrupt, path + " has no weight_map");
  std::set<std::string> names;
  for (const auto& [tensor, file] : sax.entries) {
    if (!plain_file_name(file))
      return fail(Errc::corrupt, path + ": tensor \"" + printable(tensor) + "\" is mapped to \"" +
                                     printable(file) +
                                     "\"; only plain file names in the same directory are allowed");
    names.insert(file);
    if (names.size() > kFilesMax)
      return fail(Errc::corrupt, path + " names more than " + std::to_string(kFilesMax) + " files");
  }
  Index index;
  index.files.assign(names.begin(), names.end());
  index.file_of.reserve(sax.entries.size());
  for (auto& [tensor, file] : sax.entries) {
    const auto at = std::lower_bound(index.files.begin(), index.files.end(), file) - index.files.begin();
    if (!index.file_of.emplace(tensor, static_cast<std::uint32_t>(at)).second)
      return fail(Errc::corrupt, path + ": tensor \"" + printable(tensor) + "\" is mapped twice");
  }
  return index;
}

bool exists(const std::string& path) {
  struct stat info {};
  return ::lstat(path.c_str(), &info) == 0;
}

Result<void> check_directory(const std::string& directory) {
  struct stat info {};
  if (::stat(directory.c_str(), &info) != 0) {
    const int error = errno;
    if (error == ENOENT || error == ENOTDIR)
      return fail(Errc::missing, "checkpoint directory " + directory + " does not exist");
    if (error == EACCES) return access_denied(directory, error);
    return fail(Errc::io, "cannot open checkpoint directory " + directory, error);
  }
  if (!S_ISDIR(info.st_mode))
    return fail(Errc::invalid, directory + " is not a directory; give the directory that holds config.json");
  return {};
}

/// The index when there is one; otherwise an index of the single file, without a tensor map.
Result<Index> find_files(const std::string& directory, bool* indexed) {
  const std::string index_path = directory + "/" + kIndexName;
  *indexed = exists(index_path);
  if (*indexed) {
    STOKER_TRY(const std::string text, read_file(index_path, kIndexBytesMax));
    return parse_index(text, index_path);
  }
  if (exists(directory + "/" + kSingleName)) return Index{{kSingleName}, {}};
  return fail(Errc::missing, directory + " holds neither " + kIndexName + " nor " + kSingleName +
                                 "; is this the directory of a published safetensors checkpoint?");
}

class Fingerprint {
 public:
  Fingerprint() : state_(XXH3_createState(), XXH3_freeState) { XXH3_64bits_reset(state_.get()); }
  void add(const void* data, std::size_t bytes) { XXH3_64bits_update(state_.get(), data, bytes); }
  void add(const std::string& text) {
    const std::uint64_t size = text.size();
    add(&size, sizeof size);
    add(text.data(), text.size());
  }
  [[nodiscard]] std::uint64_t value() const { return XXH3_64bits_digest(state_.get()); }

 private:
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state_;
};

using TensorMap = std::unordered_map<std::string, TensorRef>;

Result<void> add_tensors(TensorMap& map, std::vector<TensorInfo> tensors, std::uint32_t file,
                         const Index& index, bool indexed, const std::string& path) {
  for (TensorInfo& info : tensors) {
    if (indexed) {
      // A tensor the index places in another file, or does not list, is not part of the model.
      const auto listed = index.file_of.find(info.name);
      if (listed == index.file_of.end() || listed->second != file) continue;
    }
    std::string name = info.name;
    if (!map.emplace(std::move(name), TensorRef{FileId(file), std::move(info)}).second)
      return fail(Errc::corrupt, path + ": a tensor appears twice");
  }
  return {};
}

Result<void> check_index_complete(const TensorMap& map, const Index& index, const std::string& directory) {
  if (map.size() == index.file_of.size()) return {};
  // Name the alphabetically first one, so that the message does not depend on a hash function.
  const std::pair<const std::string, std::uint32_t>* first = nullptr;
  for (const auto& entry : index.file_of)
    if (!map.contains(entry.first) && (first == nullptr || entry.first < first->first)) first = &entry;
  return fail(Errc::corrupt, directory + "/" + kIndexName + " places tensor \"" + printable(first->first) +
                                 "\" in " + index.files[first->second] +
                                 ", but that file does not hold it (index and shards are of "
                                 "different versions, or the download is incomplete)");
}

std::string shape_text(const std::vector<std::uint64_t>& shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

/// Checks presence, shapes and dtypes of everything the config implies.
class TensorCheck {
 public:
  TensorCheck(const Checkpoint& checkpoint) : checkpoint_(checkpoint), config_(checkpoint.config()) {}

  Result<void> run() {
    for (const TensorSpec& spec : resident_tensors(config_))
      STOKER_TRY_VOID(check(spec.name, spec.shape, spec.role));
    for (std::uint32_t l = 0; l < config_.layers; ++l)
      for (std::uint32_t e = 0; e < config_.experts; ++e) {
        const std::string prefix = expert_prefix(l, e);
        for (unsigned m = 0; m < 3; ++m)
          STOKER_TRY_VOID(check(prefix + kExpertMatrices[m], expert_shape(config_, m), TensorRole::expert));
      }
    return {};
  }

  [[nodiscard]] DType expert_dtype() const { return expert_dtype_.value_or(DType::other); }

 private:
  Result<void> check(const std::string& name, const std::vector<std::uint64_t>& shape, TensorRole role) {
    const TensorRef* ref = checkpoint_.find(name);
    if (ref == nullptr) return missing(name, role);
    if (ref->info.shape != shape)
      return fail(Errc::corrupt, where(*ref) + " has shape " + shape_text(ref->info.shape) +
                                     ", but config.json implies " + shape_text(shape));
    const DType dtype = ref->info.dtype;
    if (dtype == DType::f8_e4m3 && may_be_fp8(role)) {
      STOKER_TRY_VOID(check_scales(*ref));
    } else if (dtype != DType::bf16 && dtype != DType::f32) {
      return fail(Errc::unsupported,
                  where(*ref) + " is " + std::string(dtype_name(dtype)) + "; " +
                      (may_be_fp8(role) ? "F8_E4M3, BF16 and F32 are" : "BF16 and F32 are") +
                      " supported here");
    }
    if (role != TensorRole::expert) return {};
    if (!expert_dtype_) expert_dtype_ = dtype;
    if (dtype != *expert_dtype_)
      return fail(Errc::unsupported,
                  where(*ref) + " is " + std::string(dtype_name(dtype)) + ", but other experts are " +
                      std::string(dtype_name(*expert_dtype_)) + "; all routed experts must have one dtype");
    return {};
  }

  Result<void> check_scales(const TensorRef& matrix) {
    if (config_.scale_block_rows == 0)
      return fail(Errc::corrupt, where(matrix) + " is F8_E4M3, but config.json has no quantization_config");
    const std::string name = matrix.info.name + kScaleSuffix;
    const TensorRef* scales = checkpoint_.find(name);
    if (scales == nullptr)
      return fail(Errc::missing, where(matrix) + " is F8_E4M3 but its scales \"" + name + "\" are missing");
    const auto shape = scale_shape(config_, matrix.info.shape);
    if (scales->info.shape != shape)
      return fail(Errc::corrupt, where(*scales) + " has shape " + shape_text(scales->info.shape) +
                                     ", but weight_block_size implies " + shape_text(shape));
    if (scales->info.dtype != DType::bf16 && scales->info.dtype != DType::f32)
      return fail(Errc::unsupported, where(*scales) + " is " + std::string(dtype_name(scales->info.dtype)) +
                                         "; BF16 and F32 scales are supported");
    return {};
  }

  [[nodiscard]] tl::unexpected<Error> missing(const std::string& name, TensorRole role) const {
    const std::string layer = name.substr(0, name.find('.', sizeof "model.layers") + 1);
    const auto has = [&](const std::string& suffix) { return checkpoint_.find(layer + suffix) != nullptr; };
    if (role == TensorRole::expert &&
        (has("mlp.experts.gate_up_proj") || has("mlp.experts.gate_up_proj.weight")))
      return fail(Errc::unsupported,
                  "the experts are stored fused (\"" + layer +
                      "mlp.experts.gate_up_proj\"); only one tensor per expert and matrix (\"" + name +
                      "\") is supported: use the checkpoint as published");
    if (has("linear_attn.in_proj_qkv.weight"))
      return fail(Errc::unsupported,
                  "linear attention is stored split (\"" + layer +
                      "linear_attn.in_proj_qkv.weight\"); only in_proj_qkvz and in_proj_ba are supported");
    return fail(Errc::missing,
                checkpoint_.directory() + ": tensor \"" + name +
                    "\", which config.json implies, is in no shard (incomplete download, or config.json "
                    "of another model)");
  }

  [[nodiscard]] std::string where(const TensorRef& ref) const {
    return checkpoint_.files()[ref.file.value].path + ": tensor \"" + printable(ref.info.name) + "\"";
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  std::optional<DType> expert_dtype_;
};

}  // namespace

const TensorRef* Checkpoint::find(std::string_view name) const {
  const auto it = tensors_.find(std::string(name));
  return it == tensors_.end() ? nullptr : &it->second;
}

Result<Checkpoint> Checkpoint::open(const std::string& directory) {
  STOKER_TRY_VOID(check_directory(directory));
  Checkpoint out;
  out.directory_ = directory;
  Fingerprint fingerprint;

  STOKER_TRY(const std::string config_text, read_file(directory + "/config.json", kConfigBytesMax));
  fingerprint.add(config_text);
  auto config = parse_model_config(config_text);
  if (!config) return fail(std::move(config).error(), directory);
  out.config_ = *std::move(config);
  if (const std::string path = directory + "/generation_config.json"; exists(path)) {
    STOKER_TRY(const std::string text, read_file(path, kConfigBytesMax));
    auto generation = parse_generation_config(text);
    if (!generation) return fail(std::move(generation).error(), directory);
    out.generation_ = *std::move(generation);
  }

  bool indexed = false;
  STOKER_TRY(const Index index, find_files(directory, &indexed));
  out.tensors_.reserve(index.file_of.size());
  for (std::uint32_t i = 0; i < index.files.size(); ++i) {
    const std::string path = directory + "/" + index.files[i];
    auto file = open_safetensors(path);
    if (!file && file.error().code == Errc::missing && indexed)
      return fail(std::move(file).error(), std::string("named by ") + kIndexName);
    if (!file) return tl::unexpected<Error>(std::move(file).error());
    fingerprint.add(index.files[i]);
    fingerprint.add(&file->file_bytes, sizeof file->file_bytes);
    fingerprint.add(&file->mtime_ns, sizeof file->mtime_ns);
    fingerprint.add(file->header);
    out.files_.push_back({path, file->file_bytes});
    STOKER_TRY_VOID(add_tensors(out.tensors_, std::move(file->tensors), i, index, indexed, path));
  }
  if (indexed) STOKER_TRY_VOID(check_index_complete(out.tensors_, index, directory));

  TensorCheck check(out);
  STOKER_TRY_VOID(check.run());
  out.expert_dtype_ = check.expert_dtype();
  out.fingerprint_ = fingerprint.value();
  return out;
}

}  // namespace stoker
