#include "predictor/token_table.h"

#include <algorithm>

namespace stoker {

void TokenTable::resize(std::uint32_t layers, std::size_t bytes_max) {
  layers_ = layers;
  sets_ = std::max<std::size_t>(1, bytes_max / (sizeof(Row) * layers * kWays));
  tags_.assign(sets_ * kWays, Tag{});
  rows_ = std::make_unique_for_overwrite<Row[]>(sets_ * kWays * layers);
  tick_ = 0;
}

std::size_t TokenTable::set_of(std::uint32_t token) const {
  return static_cast<std::size_t>((std::uint64_t{token} * 0x9E3779B97F4A7C15ULL) >> 32) % sets_ * kWays;
}

const TokenTable::Row* TokenTable::find(std::uint32_t token, std::uint32_t layer) const {
  const std::size_t set = set_of(token);
  for (std::size_t slot = set; slot < set + kWays; ++slot)
    if (tags_[slot].used != 0 && tags_[slot].token == token) return &rows_[slot * layers_ + layer];
  return nullptr;
}

TokenTable::Row& TokenTable::at(std::uint32_t token, std::uint32_t layer) {
  const std::size_t set = set_of(token);
  std::size_t oldest = set;
  if (++tick_ == 0) {  // wrapped: all ids become equally old
    for (Tag& tag : tags_) tag.used = std::min(tag.used, 1U);
    tick_ = 2;
  }
  for (std::size_t slot = set; slot < set + kWays; ++slot) {
    if (tags_[slot].used != 0 && tags_[slot].token == token) {
      tags_[slot].used = tick_;
      return rows_[slot * layers_ + layer];
    }
    if (tags_[slot].used < tags_[oldest].used) oldest = slot;
  }
  tags_[oldest] = {token, tick_};
  std::fill_n(&rows_[oldest * layers_], layers_, Row{});
  return rows_[oldest * layers_ + layer];
}

}  // namespace stoker
