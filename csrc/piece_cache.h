// What the byte pair encoder remembers.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "wide_array.h"

namespace megatron_adapt {

// A piece of text: its bytes, zeros behind, and where it stands. Of pieces of 16 bytes only the first two words count.
struct PieceKey {
  std::array<std::uint64_t, 4> words;
  std::uint64_t hash;
  const char* piece;
  std::uint32_t size;
};

// Ids of pieces of up to 8 * kWords bytes met before, in a table of fixed size: what is met once makes room for others, what
// comes again stays.
template <std::size_t kWords, std::size_t kIds>
class PieceTable {
 public:
  // `most_sets`: of two entries each, a power of two.
  explicit PieceTable(std::size_t most_sets);

  // Fills in the hash; what `find` needs is fetched meanwhile.
  void expect(PieceKey& key) const {
    std::uint64_t hash = fold(key.words[0] ^ 0x9E3779B97F4A7C15 ^ key.size, key.words[1] ^ 0xC2B2AE3D27D4EB4F);
    if constexpr (kWords == 4) hash ^= fold(key.words[2] ^ 0xD6E8FEB86659FD93, key.words[3] ^ 0xA0761D6478BD642F);
    key.hash = hash;
    __builtin_prefetch(&entries_[2 * (hash & (sets_ - 1))]);
  }
  // Its ids, of which four can be read even where there are fewer; nullptr where it has to be encoded.
  const std::uint32_t* find(const PieceKey& key, std::uint32_t& count);
  void insert(const PieceKey& key, const std::uint32_t* ids, std::uint32_t count);

 private:
  struct alignas(8 * kWords * 2) Entry {
    std::array<std::uint64_t, kWords> words;
    std::array<std::uint32_t, kIds> ids;  // where there are more: where they lie
    std::uint8_t size;                    // 0: free
    std::uint8_t count;
  };
  static_assert(sizeof(Entry) == 8 * kWords * 2, "a set is one or two cache lines");

  static std::uint64_t fold(std::uint64_t a, std::uint64_t b) {
    __extension__ using Wide = unsigned __int128;
    const Wide product = static_cast<Wide>(a) * b;
    return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
  }
  void clear(std::size_t sets);
  void grow();

  WideArray<Entry> entries_;  // two to a set, of which the first has been asked for again
  std::size_t most_sets_, sets_ = 0, used_ = 0;
  std::vector<std::uint32_t> ids_;
};

class PieceCache {
 public:
  static constexpr std::size_t kLongest = 32;  // bytes of a piece worth remembering

  PieceCache();
  // Of a piece of 1 to kLongest bytes, of which kLongest can be read; what it needs in `find` is fetched meanwhile.
  void expect(const char* piece, std::size_t size, PieceKey& key) const {
    key.piece = piece, key.size = static_cast<std::uint32_t>(size);
    if (size <= kShort) {
      take<2>(piece, size, key);
      short_.expect(key);
    } else {
      take<4>(piece, size, key);
      long_.expect(key);
    }
  }
  // As that of the tables.
  const std::uint32_t* find(const PieceKey& key, std::uint32_t& count) {
    return key.size <= kShort ? short_.find(key, count) : long_.find(key, count);
  }
  void insert(const PieceKey& key, const std::uint32_t* ids, std::uint32_t count) {
    key.size <= kShort ? short_.insert(key, ids, count) : long_.insert(key, ids, count);
  }

 private:
  template <std::size_t kWords>
  static void take(const char* piece, std::size_t size, PieceKey& key) {
    std::array<std::uint64_t, kWords> words, keep;
    std::memcpy(words.data(), piece, sizeof words);
    std::memcpy(keep.data(), kKeep.data() + kLongest - size, sizeof keep);
    for (std::size_t i = 0; i < kWords; ++i) key.words[i] = words[i] & keep[i];
  }
  // Behind 32 ones as many zeros: what is read from `32 - n` on keeps n bytes.
  static constexpr std::array<unsigned char, 64> keep_mask() {
    std::array<unsigned char, 64> mask{};
    for (std::size_t i = 0; i < 32; ++i) mask[i] = 0xFF;
    return mask;
  }
  static const std::array<unsigned char, 64> kKeep;
  static constexpr std::size_t kShort = 16;  // most pieces: a set of theirs is one cache line

  PieceTable<2, 3> short_;
  PieceTable<4, 7> long_;
};

}  // namespace megatron_adapt
