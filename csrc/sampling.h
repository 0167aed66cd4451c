// In which order the documents of a corpus are read, and where the n-th token of that order lies.
//
// Nothing is stored for each document: the order is a permutation that is computed, and an index holds one number for
// every 64 documents. Positions are 64-bit throughout.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace megatron_adapt {

// A permutation of 0 ... size - 1 for each key, evaluated at one place at a time without a table.
//
// A Feistel network on the row and column of a place in a grid: each round shifts the row by a hash of the column, or the
// column by a hash of the row, cyclically, which permutes the cells of the grid. Where it leaves the first `size` cells
// it is applied again until it returns (cycle walking), which permutes those.
class Permutation {
 public:
  // size: 1 to 2^62.
  Permutation(std::uint64_t size, std::uint64_t key);
  std::uint64_t operator()(std::uint64_t place) const;
  // out[i] = (*this)(first + i) for i below count, at most kMany; faster, no step waits for one of another place.
  static constexpr std::size_t kMany = 64;
  void many(std::uint64_t first, std::size_t count, std::uint64_t* out) const;
  std::uint64_t size() const { return size_; }

 private:
  // Enough for a large grid; in a small one, whose hashes have few values, more are needed and cost nothing.
  static constexpr std::size_t kRounds = 6, kRoundsOfFew = 12;
  static constexpr std::uint64_t kFew = 4096;
  // 32 bits of a number below 2^32.
  struct Hash {
    std::uint64_t mask, factor;
    std::uint64_t operator()(std::uint64_t value) const {
      std::uint64_t z = (value ^ mask) * factor;
      z ^= z >> 32;
      return z * 0x94D049BB133111EBu >> 32;
    }
  };
  std::uint64_t shift(std::uint64_t place) const;

  std::uint64_t size_;
  int column_bits_;
  std::uint64_t column_mask_;
  std::uint64_t rows_;
  std::size_t rounds_;
  std::array<Hash, kRoundsOfFew> hashes_;
};

// The number of tokens of each document: int32 or int64, not necessarily aligned.
class Sizes {
 public:
  Sizes(const void* data, std::size_t count, bool is_wide)
      : data_(static_cast<const char*>(data)), count_(count), is_wide_(is_wide) {}
  std::int64_t operator[](std::uint64_t document) const;
  std::uint64_t count() const { return count_; }

 private:
  const char* data_;
  std::uint64_t count_;
  bool is_wide_;
};

// The documents that are read at all: `documents` of them, the last one cut after `last_size` tokens.
struct Subset {
  std::uint64_t documents = 0;
  std::int64_t last_size = 0;
};

// A run of tokens [begin, end) of one document.
struct Piece {
  std::int64_t document;
  std::int64_t begin;
  std::int64_t end;
};

// Documents, each `copies` times, in a random order, as one stream of tokens.
class DocumentOrder {
 public:
  // One number in the index for so many documents.
  static constexpr std::uint64_t kBlock = 64;

  // The first documents of a permutation of all, exactly `tokens` (1 to all) together: of two subsets with one key the
  // larger contains the smaller.
  static Subset subset(const Sizes& sizes, std::uint64_t key, std::int64_t tokens);

  // With a subset, those of its documents; without, every document.
  DocumentOrder(const Sizes& sizes, std::uint64_t copies, std::uint64_t key);
  DocumentOrder(const Sizes& sizes, std::uint64_t copies, std::uint64_t key, const Subset& subset,
                std::uint64_t subset_key);

  // The index: [i] is the number of tokens before document 64 i of the order, the last one that of all.
  std::vector<std::int64_t> starts() const;
  // The tokens [begin, end) of the stream, in pieces that are not empty. ValueError: the index is of another order.
  std::vector<Piece> pieces(const std::int64_t* starts, std::size_t count, std::int64_t begin, std::int64_t end) const;

 private:
  std::uint64_t blocks() const { return (order_.size() + kBlock - 1) / kBlock; }
  std::uint64_t document(std::uint64_t place, std::int64_t& size) const;

  Sizes sizes_;
  std::uint64_t copies_;
  bool is_subset_;
  Subset subset_;
  Permutation chosen_;  // of all documents; its first ones are the subset
  Permutation order_;
};

}  // namespace megatron_adapt
