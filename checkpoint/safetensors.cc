#include "checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "checkpoint/file_bytes.h"
#include "checkpoint/json_input.h"
#include "shm/base/types.h"

namespace stoker {

using nlohmann::json;

namespace {

struct DTypeName {
  std::string_view name;
  DType dtype;
  std::uint32_t bytes;  ///< per element, also for types we only carry along as `other`
};

constexpr DTypeName kDTypes[] = {
    {"F8_E4M3", DType::f8_e4m3, 1}, {"BF16", DType::bf16, 2},  {"F16", DType::f16, 2},
    {"F32", DType::f32, 4},         {"I32", DType::i32, 4},    {"I64", DType::i64, 8},
    {"U8", DType::u8, 1},           {"F64", DType::other, 8},  {"I16", DType::other, 2},
    {"I8", DType::other, 1},        {"U16", DType::other, 2},  {"U32", DType::other, 4},
    {"U64", DType::other, 8},       {"BOOL", DType::other, 1}, {"F8_E5M2", DType::other, 1},
    {"F8_E8M0", DType::other, 1},
};

constexpr std::size_t kNameMax = 1024;
constexpr std::size_t kRankMax = 16;

/// Collects tensors while the parser walks the header. The container has three levels at most:
/// { name: { "dtype": s, "shape": [n..], "data_offsets": [b, e] }, "__metadata__": { s: s } }.
class HeaderSax final : public nlohmann::json_sax<json> {
 public:
  HeaderSax(std::uint64_t data_start, std::uint64_t data_bytes)
      : data_start_(data_start), data_bytes_(data_bytes) {}

  bool null() override { return refuse("a null"); }
  bool boolean(bool) override { return refuse("a boolean"); }
  bool number_integer(number_integer_t) override { return refuse("a negative number"); }
  bool number_float(number_float_t, const string_t&) override {
    return refuse("a fraction or a number beyond 64 bits");
  }
  bool binary(binary_t&) override { return refuse("binary data"); }

  bool number_unsigned(number_unsigned_t n) override {
    if (list_ == nullptr) return refuse("a number");
    if (list_->size() >= kRankMax) return refuse("a list longer than " + std::to_string(kRankMax));
    list_->push_back(n);
    return true;
  }

  bool string(string_t& text) override {
    if (in_metadata_) return true;
    if (depth_ != 2 || field_ != Field::dtype || list_ != nullptr) return refuse("a string");
    for (const DTypeName& known : kDTypes) {
      if (known.name != text) continue;
      tensor_.dtype = known.dtype;
      element_bytes_ = known.bytes;
      return true;
    }
    return stop(Errc::unsupported, "has the unknown dtype \"" + printable(text, 40) + "\"");
  }

  bool start_object(std::size_t) override {
    if (list_ != nullptr || depth_ == 2) return refuse("an object");
    if (depth_ == 1) {
      in_metadata_ = tensor_.name == "__metadata__";
      element_bytes_ = 0;
      shape_seen_ = false;
      tensor_.shape.clear();
      offsets_.clear();
      field_ = Field::none;
    }
    ++depth_;
    return true;
  }

  bool key(string_t& name) override {
    if (depth_ == 2) return in_metadata_ || set_field(name);
    if (name.empty() || name.size() > kNameMax) {
      problem_ = Error{Errc::corrupt, 0,
                       "a tensor name is empty or longer than " + std::to_string(kNameMax) + " bytes"};
      return false;
    }
    if (name == "__metadata__" && std::exchange(metadata_seen_, true)) {
      problem_ = Error{Errc::corrupt, 0, "__metadata__ appears twice"};
      return false;
    }
    tensor_.name = std::move(name);
    return true;
  }

  bool end_object() override {
    --depth_;
    if (depth_ == 0) return true;
    if (std::exchange(in_metadata_, false)) return true;
    return add_tensor();
  }

  bool start_array(std::size_t) override {
    if (depth_ != 2 || in_metadata_ || list_ != nullptr) return refuse("a list");
    if (field_ == Field::shape && !std::exchange(shape_seen_, true))
      list_ = &tensor_.shape;
    else if (field_ == Field::offsets && offsets_.empty())
      list_ = &offsets_;
    else
      return refuse("a list");
    return true;
  }

  bool end_array() override {
    list_ = nullptr;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const json::exception& e) override {
    problem_ = Error{Errc::corrupt, 0,
                     "not valid JSON at byte " + std::to_string(position) + ": " + printable(e.what())};
    return false;
  }

  std::vector<TensorInfo> tensors;
  [[nodiscard]] std::optional<Error>& problem() { return problem_; }

 private:
  enum class Field { none, dtype, shape, offsets };

  bool set_field(const std::string& name) {
    if (name == "dtype" && element_bytes_ == 0)
      field_ = Field::dtype;
    else if (name == "shape" && !shape_seen_)
      field_ = Field::shape;
    else if (name == "data_offsets" && offsets_.empty())
      field_ = Field::offsets;
    else
      return stop(Errc::corrupt, "has an unknown or repeated key \"" + printable(name, 40) + "\"");
    return true;
  }

  bool add_tensor() {
    if (element_bytes_ == 0 || !shape_seen_ || offsets_.size() != 2)
      return stop(Errc::corrupt, "lacks dtype, shape or a pair of data_offsets");
    std::uint64_t bytes = element_bytes_;
    for (std::uint64_t d : tensor_.shape)
      if (__builtin_mul_overflow(bytes, d, &bytes)) return stop(Errc::corrupt, "has a shape beyond 64 bits");
    const std::uint64_t begin = offsets_[0], end = offsets_[1];
    if (begin > end || end - begin != bytes)
      return stop(Errc::corrupt, "has data_offsets [" + std::to_string(begin) + ", " + std::to_string(end) +
                                     "], but its shape and dtype need " + std::to_string(bytes) + " bytes");
    std::uint64_t file_end = 0;
    if (__builtin_add_overflow(data_start_, end, &file_end))
      return stop(Errc::corrupt, "has data_offsets beyond 64 bits");
    if (end > data_bytes_)
      return stop(Errc::corrupt, "ends at byte " + std::to_string(file_end) + ", but the file has " +
                                     std::to_string(data_start_ + data_bytes_) +
                                     " bytes: truncated, download it again");
    tensor_.begin = data_start_ + begin;
    tensor_.bytes = bytes;
    tensors.push_back(std::move(tensor_));
    tensor_ = TensorInfo{};
    return true;
  }

  bool stop(Errc code, const std::string& what) {
    problem_ = Error{code, 0, "tensor \"" + printable(tensor_.name) + "\" " + what};
    return false;
  }
  bool refuse(const std::string& what) {
    if (depth_ == 0) {
      problem_ = Error{Errc::corrupt, 0, "the header is " + what + ", not a JSON object"};
      return false;
    }
    return stop(Errc::corrupt, "contains " + what + " where the format has none");
  }

  std::uint64_t data_start_, data_bytes_;
  int depth_ = 0;
  bool in_metadata_ = false, metadata_seen_ = false, shape_seen_ = false;
  Field field_ = Field::none;
  TensorInfo tensor_;
  std::uint32_t element_bytes_ = 0;
  std::vector<std::uint64_t> offsets_;
  std::vector<std::uint64_t>* list_ = nullptr;
  std::optional<Error> problem_;
};

Result<void> check_names(const std::vector<TensorInfo>& tensors) {
  std::vector<std::string_view> names;
  names.reserve(tensors.size());
  for (const TensorInfo& t : tensors) names.push_back(t.name);
  std::sort(names.begin(), names.end());
  const auto twin = std::adjacent_find(names.begin(), names.end());
  if (twin != names.end()) return fail(Errc::corrupt, "tensor \"" + printable(*twin) + "\" appears twice");
  return {};
}

Result<void> check_overlaps(const std::vector<TensorInfo>& sorted) {
  const TensorInfo* last = nullptr;
  for (const TensorInfo& t : sorted) {
    if (t.bytes == 0) continue;
    if (last != nullptr && t.begin < last->begin + last->bytes)
      return fail(Errc::corrupt, "tensors \"" + printable(last->name) + "\" and \"" + printable(t.name) +
                                     "\" overlap at byte " + std::to_string(t.begin));
    last = &t;
  }
  return {};
}

}  // namespace

std::string_view dtype_name(DType t) {
  for (const DTypeName& known : kDTypes)
    if (known.dtype == t && t != DType::other) return known.name;
  return "an unsupported dtype";
}

Result<std::vector<TensorInfo>> parse_safetensors_header(std::string_view text, std::uint64_t header_bytes,
                                                         std::uint64_t file_bytes) {
  if (header_bytes > kSafetensorsHeaderMax)
    return fail(Errc::corrupt, "the header claims " + std::to_string(header_bytes) +
                                   " bytes, more than the limit of " + std::to_string(kSafetensorsHeaderMax));
  const std::uint64_t data_start = 8 + header_bytes;
  if (file_bytes < data_start)
    return fail(Errc::corrupt, "the header claims " + std::to_string(header_bytes) +
                                   " bytes, but the file has " + std::to_string(file_bytes) +
                                   ": truncated, download it again");
  HeaderSax sax(data_start, file_bytes - data_start);
  bool complete = false;
  try {
    complete = json::sax_parse(text.begin(), text.end(), &sax);
  } catch (const json::exception& e) {
    return fail(Errc::corrupt, "the header is not valid JSON: " + printable(e.what()));
  }
  if (sax.problem()) return tl::unexpected<Error>(std::move(*sax.problem()));
  if (!complete) return fail(Errc::corrupt, "the header is not valid JSON");
  std::vector<TensorInfo> tensors = std::move(sax.tensors);
  const auto by_begin = [](const TensorInfo& a, const TensorInfo& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.bytes < b.bytes;
  };
  if (!std::is_sorted(tensors.begin(), tensors.end(), by_begin))
    std::sort(tensors.begin(), tensors.end(), by_begin);
  STOKER_TRY_VOID(check_names(tensors));
  STOKER_TRY_VOID(check_overlaps(tensors));
  return tensors;
}

Result<SafetensorsFile> open_safetensors(const std::string& path) {
  STOKER_TRY(const OpenedFile file, open_regular(path));
  SafetensorsFile out;
  out.file_bytes = file.bytes;
  out.mtime_ns = file.mtime_ns;
  if (file.bytes < 8)
    return fail(Errc::corrupt,
                path + " has " + std::to_string(file.bytes) +
                    " bytes, too few for a safetensors header (truncated, or a pointer file of git-lfs)");
  unsigned char length[8];
  STOKER_TRY_VOID(read_exactly(file, path, 0, length, sizeof length));
  std::uint64_t header_bytes = 0;
  for (unsigned i = 0; i < 8; ++i) header_bytes |= std::uint64_t{length[i]} << (8 * i);
  if (header_bytes > kSafetensorsHeaderMax)
    return fail(Errc::corrupt, path + ": the first 8 bytes give a header of " + std::to_string(header_bytes) +
                                   " bytes; this is not a safetensors file");
  if (file.bytes - 8 < header_bytes)
    return fail(Errc::corrupt, path + ": the header claims " + std::to_string(header_bytes) +
                                   " bytes, but the file has " + std::to_string(file.bytes) +
                                   ": truncated, download it again");
  out.header.resize(header_bytes);
  STOKER_TRY_VOID(read_exactly(file, path, 8, out.header.data(), out.header.size()));
  auto tensors = parse_safetensors_header(out.header, header_bytes, file.bytes);
  if (!tensors) return fail(std::move(tensors).error(), path);
  out.tensors = *std::move(tensors);
  return out;
}

Result<std::vector<TensorInfo>> read_safetensors_header(const std::string& path) {
  STOKER_TRY(SafetensorsFile file, open_safetensors(path));
  return std::move(file.tensors);
}

namespace {

std::string quoted(const std::string& text) {
  return json(text).dump(-1, ' ', false, json::error_handler_t::replace);
}

void append_tensor(std::string& out, const TensorInfo& tensor) {
  if (out.size() > 1) out += ',';
  out += quoted(tensor.name);
  out += ":{\"dtype\":\"";
  out += dtype_name(tensor.dtype);
  out += "\",\"shape\":[";
  for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
    if (i > 0) out += ',';
    out += std::to_string(tensor.shape[i]);
  }
  out += "],\"data_offsets\":[" + std::to_string(tensor.begin) + ',' +
         std::to_string(tensor.begin + tensor.bytes) + "]}";
}

}  // namespace

std::string write_safetensors_header(const std::vector<TensorInfo>& tensors, std::uint64_t align,
                                     const std::vector<std::pair<std::string, std::string>>& metadata) {
  std::string text = "{";
  if (!metadata.empty()) {
    text += "\"__metadata__\":{";
    for (std::size_t i = 0; i < metadata.size(); ++i) {
      if (i > 0) text += ',';
      text += quoted(metadata[i].first) + ':' + quoted(metadata[i].second);
    }
    text += '}';
  }
  for (const TensorInfo& tensor : tensors) append_tensor(text, tensor);
  text += '}';
  text.resize(align_up(8 + text.size(), align) - 8, ' ');
  std::string out(8, '\0');
  for (unsigned i = 0; i < 8; ++i) out[i] = static_cast<char>((std::uint64_t{text.size()} >> (8 * i)) & 0xFF);
  return out + text;
}

}  // namespace stoker
