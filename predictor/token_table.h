// Which experts a token id chose, layer by layer: known before its forward pass begins.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "predictor/top_row.h"

namespace stoker {

/// A cache of token ids, four ways per set; the id that was not seen for longest goes. Memory is bounded and
/// touched only as ids come.
class TokenTable {
 public:
  using Row = TopRow<24>;

  void resize(std::uint32_t layers, std::size_t bytes_max);
  /// Null if the id is not known.
  [[nodiscard]] const Row* find(std::uint32_t token, std::uint32_t layer) const;
  Row& at(std::uint32_t token, std::uint32_t layer);

 private:
  static constexpr std::uint32_t kWays = 4;
  struct Tag {
    std::uint32_t token = 0;
    std::uint32_t used = 0;  ///< tick of the last use; 0: empty
  };
  [[nodiscard]] std::size_t set_of(std::uint32_t token) const;

  std::uint32_t layers_ = 0;
  std::size_t sets_ = 0;
  std::uint32_t tick_ = 0;
  std::vector<Tag> tags_;
  std::unique_ptr<Row[]> rows_;  ///< [slot][layer]; a slot's rows are cleared when an id takes it
};

}  // namespace stoker
