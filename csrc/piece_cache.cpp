#include "piece_cache.h"

#include <algorithm>
#include <utility>

namespace megatron_adapt {

namespace {

constexpr std::size_t kFirstSets = std::size_t{1} << 14;  // what a large page holds
constexpr std::size_t kMostSets = std::size_t{1} << 19;  // 32 MB of short pieces, and as much of half as many long ones
constexpr std::size_t kGrowth = 4;
constexpr std::size_t kMostIds = std::size_t{2} << 20;  // of pieces with more than fit into an entry, 8 MB in each table

}  // namespace

template <std::size_t kWords, std::size_t kIds>
PieceTable<kWords, kIds>::PieceTable(std::size_t most_sets) : most_sets_(most_sets) {
  clear(std::min(kFirstSets, most_sets));
}

template <std::size_t kWords, std::size_t kIds>
void PieceTable<kWords, kIds>::clear(std::size_t sets) {
  entries_ = WideArray<Entry>(2 * sets);
  sets_ = sets, used_ = 0;
  ids_.clear();
}

template <std::size_t kWords, std::size_t kIds>
const std::uint32_t* PieceTable<kWords, kIds>::find(const PieceKey& key, std::uint32_t& count) {
  const auto is = [&key](const Entry& entry) {
    std::uint64_t differs = key.size ^ entry.size;
    for (std::size_t i = 0; i < kWords; ++i) differs |= key.words[i] ^ entry.words[i];
    return differs == 0;
  };
  Entry* const set = &entries_[2 * (key.hash & (sets_ - 1))];
  if (!is(set[0])) {
    if (!is(set[1])) return nullptr;
    std::swap(set[0], set[1]);
  }
  count = set->count;
  return count <= kIds ? set->ids.data() : &ids_[set->ids[0]];
}

template <std::size_t kWords, std::size_t kIds>
void PieceTable<kWords, kIds>::insert(const PieceKey& key, const std::uint32_t* ids, std::uint32_t count) {
  if (count > kIds && ids_.size() + count > kMostIds) clear(sets_);
  if (4 * used_ >= 3 * sets_ && sets_ < most_sets_) grow();
  Entry* const set = &entries_[2 * (key.hash & (sets_ - 1))];
  Entry& entry = set[set[0].size != 0];
  used_ += entry.size == 0;
  std::copy_n(key.words.begin(), kWords, entry.words.begin());
  entry.size = static_cast<std::uint8_t>(key.size);
  entry.count = static_cast<std::uint8_t>(count);
  if (count <= kIds) {
    std::copy(ids, ids + count, entry.ids.begin());
  } else {
    entry.ids[0] = static_cast<std::uint32_t>(ids_.size());
    ids_.insert(ids_.end(), ids, ids + count);
  }
}

template <std::size_t kWords, std::size_t kIds>
void PieceTable<kWords, kIds>::grow() {
  const WideArray<Entry> old = std::move(entries_);
  sets_ = std::min(sets_ * kGrowth, most_sets_);
  entries_ = WideArray<Entry>(2 * sets_);
  used_ = 0;
  PieceKey key{};
  for (std::size_t i = 0; i < old.size(); ++i) {
    if (old[i].size == 0) continue;
    std::copy_n(old[i].words.begin(), kWords, key.words.begin());
    key.size = old[i].size;
    expect(key);
    Entry* const set = &entries_[2 * (key.hash & (sets_ - 1))];
    set[set[0].size != 0] = old[i];
    ++used_;
  }
}

template class PieceTable<2, 3>;
template class PieceTable<4, 7>;

const std::array<unsigned char, 64> PieceCache::kKeep = PieceCache::keep_mask();

PieceCache::PieceCache() : short_(kMostSets), long_(kMostSets / 2) {}

}  // namespace megatron_adapt
