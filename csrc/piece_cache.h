// What the byte pair encoder remembers.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "wide_array.h"

namespace megatron_adapt {

// Ids of pieces met before, in a table of fixed size: what is met once makes room for others, what comes again stays.
class PieceCache {
 public:
  static constexpr std::size_t kLongest = 32;  // bytes of a piece worth remembering

  struct Key {
    std::array<std::uint64_t, 4> words;  // the piece, zeros behind
    std::uint64_t hash;
    const char* piece;
    std::uint32_t size;
  };

  PieceCache();
  // Of a piece of 1 to kLongest bytes, of which kLongest can be read; what it needs in `find` is fetched meanwhile.
  Key key(const char* piece, std::size_t size) const;
  // Its ids; nullptr where it has to be encoded.
  const std::uint32_t* find(const Key& key, std::uint32_t& count);
  void insert(const Key& key, const std::uint32_t* ids, std::uint32_t count);

 private:
  struct alignas(64) Entry {
    std::array<std::uint64_t, 4> words;
    std::array<std::uint32_t, 7> ids;  // above seven: where they lie
    std::uint8_t size;                 // 0: free
    std::uint8_t count;
  };

  static std::uint64_t hash(const std::array<std::uint64_t, 4>& words, std::uint32_t size);
  void clear(std::size_t sets);
  void grow();

  WideArray<Entry> entries_;  // two to a set, of which the first has been asked for again
  std::size_t sets_ = 0, used_ = 0;
  std::vector<std::uint32_t> ids_;
};

}  // namespace megatron_adapt
