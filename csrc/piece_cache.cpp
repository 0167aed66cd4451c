#include "piece_cache.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace megatron_adapt {

namespace {

constexpr std::size_t kFirstSets = std::size_t{1} << 12;  // 512 KB
constexpr std::size_t kSets = std::size_t{1} << 19;       // 64 MB
constexpr std::size_t kGrowth = 8;
constexpr std::size_t kMostIds = std::size_t{4} << 20;  // of pieces with more than seven, 16 MB

// Behind 32 ones as many zeros: what is read from `32 - n` on keeps n bytes.
constexpr std::array<unsigned char, 64> keep_mask() {
  std::array<unsigned char, 64> mask{};
  for (std::size_t i = 0; i < 32; ++i) mask[i] = 0xFF;
  return mask;
}
constexpr std::array<unsigned char, 64> kKeep = keep_mask();

std::uint64_t fold(std::uint64_t a, std::uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

}  // namespace

PieceCache::PieceCache() { clear(kFirstSets); }

void PieceCache::clear(std::size_t sets) {
  entries_ = WideArray<Entry>(2 * sets);
  sets_ = sets, used_ = 0;
  ids_.clear();
}

std::uint64_t PieceCache::hash(const std::array<std::uint64_t, 4>& words, std::uint32_t size) {
  return fold(words[0] ^ 0x9E3779B97F4A7C15 ^ size, words[1] ^ 0xC2B2AE3D27D4EB4F) ^
         fold(words[2] ^ 0xD6E8FEB86659FD93, words[3] ^ 0xA0761D6478BD642F);
}

PieceCache::Key PieceCache::key(const char* piece, std::size_t size) const {
  Key key;
  std::array<std::uint64_t, 4> keep;
  std::memcpy(key.words.data(), piece, kLongest);
  std::memcpy(keep.data(), kKeep.data() + kLongest - size, kLongest);
  for (std::size_t i = 0; i < 4; ++i) key.words[i] &= keep[i];
  key.piece = piece, key.size = static_cast<std::uint32_t>(size);
  key.hash = hash(key.words, key.size);
  __builtin_prefetch(&entries_[2 * (key.hash & (sets_ - 1))]);
  return key;
}

const std::uint32_t* PieceCache::find(const Key& key, std::uint32_t& count) {
  const auto is = [&key](const Entry& entry) {
    std::uint64_t differs = key.size ^ entry.size;
    for (std::size_t i = 0; i < 4; ++i) differs |= key.words[i] ^ entry.words[i];
    return differs == 0;
  };
  Entry* const set = &entries_[2 * (key.hash & (sets_ - 1))];
  if (!is(set[0])) {
    if (!is(set[1])) return nullptr;
    std::swap(set[0], set[1]);
  }
  count = set->count;
  return count <= set->ids.size() ? set->ids.data() : &ids_[set->ids[0]];
}

void PieceCache::insert(const Key& key, const std::uint32_t* ids, std::uint32_t count) {
  if (ids_.size() + count > kMostIds) clear(sets_);
  if (2 * used_ >= 3 * sets_ && sets_ < kSets) grow();
  Entry* const set = &entries_[2 * (key.hash & (sets_ - 1))];
  Entry& entry = set[set[0].size != 0];
  used_ += entry.size == 0;
  entry.words = key.words;
  entry.size = static_cast<std::uint8_t>(key.size);
  entry.count = static_cast<std::uint8_t>(count);
  if (count <= entry.ids.size()) {
    std::copy(ids, ids + count, entry.ids.begin());
  } else {
    entry.ids[0] = static_cast<std::uint32_t>(ids_.size());
    ids_.insert(ids_.end(), ids, ids + count);
  }
}

void PieceCache::grow() {
  const WideArray<Entry> old = std::move(entries_);
  sets_ = std::min(sets_ * kGrowth, kSets);
  entries_ = WideArray<Entry>(2 * sets_);
  used_ = 0;
  for (std::size_t i = 0; i < old.size(); ++i) {
    if (old[i].size == 0) continue;
    Entry* const set = &entries_[2 * (hash(old[i].words, old[i].size) & (sets_ - 1))];
    set[set[0].size != 0] = old[i];
    ++used_;
  }
}

}  // namespace megatron_adapt
