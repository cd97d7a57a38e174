#include "gpu-worker/dims.h"

namespace stoker {

Dims::Dims(const ModelConfig& c)
    : key_dim(c.linear_key_heads * c.linear_key_dim),
      value_dim(c.linear_value_heads * c.linear_value_dim),
      conv_dim(2 * key_dim + value_dim),
      v_per_k(c.linear_key_heads == 0 ? 0 : c.linear_value_heads / c.linear_key_heads),
      q_dim(c.attention_heads * c.head_dim),
      kv_dim(c.kv_heads * c.head_dim),
      q_per_kv(c.kv_heads == 0 ? 0 : c.attention_heads / c.kv_heads) {}

std::vector<std::uint32_t> qkvz_columns(const ModelConfig& c, const Dims& dims) {
  std::vector<std::uint32_t> columns;
  const std::uint32_t values = dims.v_per_k * c.linear_value_dim;
  for (std::uint32_t head = 0; head < c.linear_key_heads; ++head) {
    const auto append = [&](std::uint32_t from, std::uint32_t count) {
      for (std::uint32_t i = 0; i < count; ++i) columns.push_back(from + head * count + i);
    };
    append(0, c.linear_key_dim);
    append(dims.key_dim, c.linear_key_dim);
    append(2 * dims.key_dim, values);
    append(dims.conv_dim, values);
  }
  return columns;
}

std::vector<std::uint32_t> ba_columns(const ModelConfig& c, const Dims& dims) {
  std::vector<std::uint32_t> columns;
  for (std::uint32_t head = 0; head < c.linear_key_heads; ++head) {
    for (std::uint32_t part = 0; part < 2; ++part) {
      for (std::uint32_t i = 0; i < dims.v_per_k; ++i) {
        columns.push_back(part * c.linear_value_heads + head * dims.v_per_k + i);
      }
    }
  }
  return columns;
}

std::vector<std::uint32_t> q_columns(const ModelConfig& c, const Dims& dims) {
  std::vector<std::uint32_t> columns;
  for (std::uint32_t head = 0; head < c.attention_heads; ++head) {
    for (std::uint32_t part = 0; part < 2; ++part) {
      for (std::uint32_t i = 0; i < c.head_dim; ++i)
        columns.push_back(part * dims.q_dim + head * c.head_dim + i);
    }
  }
  return columns;
}

}  // namespace stoker
