#include "gpu-worker/text/bpe.h"

#include <algorithm>
#include <bit>

namespace stoker {
namespace {

constexpr std::size_t kShortPiece = 48;  // up to here scanning for the best pair beats a heap
constexpr std::uint32_t kNone = 0xFFFFFFFF;

}  // namespace

Bpe::Bpe(const std::array<std::uint32_t, 256>& byte_ids, const std::vector<Merge>& merges)
    : byte_ids_(byte_ids) {
  const std::size_t capacity = std::bit_ceil(std::max<std::size_t>(merges.size() * 2, 16));
  table_.resize(capacity);
  shift_ = 64 - static_cast<unsigned>(std::countr_zero(capacity));
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const Merge& merge = merges[rank];
    std::size_t place = first_place(merge.left, merge.right);
    while (table_[place].rank != kNoRank) place = (place + 1) & (capacity - 1);
    table_[place] = {merge.left, merge.right, static_cast<std::uint32_t>(rank), merge.result};
  }
}

std::size_t Bpe::first_place(std::uint32_t left, std::uint32_t right) const {
  const std::uint64_t key = (std::uint64_t{left} << 32) | right;
  return static_cast<std::size_t>((key * 0x9E3779B97F4A7C15u) >> shift_);
}

const Bpe::Entry& Bpe::find(std::uint32_t left, std::uint32_t right) const {
  std::size_t place = first_place(left, right);
  while (table_[place].rank != kNoRank && (table_[place].left != left || table_[place].right != right)) {
    place = (place + 1) & (table_.size() - 1);
  }
  return table_[place];
}

void Bpe::encode(std::string_view piece, std::vector<std::uint32_t>& out, Scratch& scratch) const {
  if (piece.size() <= kShortPiece) {
    encode_short(piece, out);
  } else {
    encode_long(piece, out, scratch);
  }
}

void Bpe::encode_short(std::string_view piece, std::vector<std::uint32_t>& out) const {
  std::array<std::uint32_t, kShortPiece> ids{};
  std::array<std::uint32_t, kShortPiece> ranks{};  // ranks[i]: merge of ids[i] with ids[i + 1]
  std::size_t count = piece.size();
  if (count == 0) return;
  for (std::size_t i = 0; i < count; ++i) ids[i] = byte_ids_[static_cast<unsigned char>(piece[i])];
  for (std::size_t i = 0; i + 1 < count; ++i) ranks[i] = find(ids[i], ids[i + 1]).rank;
  while (count > 1) {
    std::size_t best = 0;
    for (std::size_t i = 1; i + 1 < count; ++i) {
      if (ranks[i] < ranks[best]) best = i;
    }
    if (ranks[best] == kNoRank) break;
    ids[best] = find(ids[best], ids[best + 1]).result;
    for (std::size_t i = best + 1; i + 1 < count; ++i) {
      ids[i] = ids[i + 1];
      ranks[i] = ranks[i + 1];
    }
    --count;
    if (best + 1 < count) ranks[best] = find(ids[best], ids[best + 1]).rank;
    if (best > 0) ranks[best - 1] = find(ids[best - 1], ids[best]).rank;
  }
  out.insert(out.end(), ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(count));
}

// A doubly linked list of symbols and a heap of candidate merges; a candidate whose symbols have changed
// since it was pushed is stale and dropped when it comes up.
void Bpe::encode_long(std::string_view piece, std::vector<std::uint32_t>& out, Scratch& scratch) const {
  auto& symbols = scratch.symbols;
  auto& heap = scratch.heap;
  symbols.clear();
  heap.clear();
  const auto count = static_cast<std::uint32_t>(piece.size());
  for (std::uint32_t i = 0; i < count; ++i) {
    symbols.push_back({byte_ids_[static_cast<unsigned char>(piece[i])], i == 0 ? kNone : i - 1,
                       i + 1 == count ? kNone : i + 1});
  }
  const auto later = [](const Scratch::Candidate& a, const Scratch::Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  const auto push = [&](std::uint32_t position) {
    const std::uint32_t next = symbols[position].next;
    if (next == kNone) return;
    const Entry& entry = find(symbols[position].id, symbols[next].id);
    if (entry.rank == kNoRank) return;
    heap.push_back({entry.rank, position, symbols[position].id, symbols[next].id});
    std::push_heap(heap.begin(), heap.end(), later);
  };
  for (std::uint32_t i = 0; i < count; ++i) push(i);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const Scratch::Candidate candidate = heap.back();
    heap.pop_back();
    auto& left = symbols[candidate.position];
    if (left.id != candidate.left || left.next == kNone) continue;  // kNone never is a token id
    auto& right = symbols[left.next];
    if (right.id != candidate.right) continue;
    left.id = find(left.id, right.id).result;
    right.id = kNone;
    left.next = right.next;
    if (left.next != kNone) symbols[left.next].previous = candidate.position;
    push(candidate.position);
    if (left.previous != kNone) push(left.previous);
  }
  for (std::uint32_t i = 0; i != kNone; i = symbols[i].next) out.push_back(symbols[i].id);
}

}  // namespace stoker
