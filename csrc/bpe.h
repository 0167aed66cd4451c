// Byte pair encoding of tokenizers that write spaces as U+2581 and split nothing before merging (sentencepiece's kind), and of
// those that merge the bytes of words (GPT-2's kind, words.h).
//
// Of the first kind a text is cut wherever no merge can ever join what is left and right of the cut: merging then goes on independently on
// both sides, in the same order as on the whole, so the ids are those of the whole text. Pieces between cuts are words
// or less, which come again and again: their ids are remembered.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cuts.h"
#include "piece_cache.h"
#include "wide_array.h"
#include "words.h"

namespace megatron_adapt {

struct Merge {
  std::uint32_t left, right, result;
};

// Ids one behind another, in memory that is not set before.
class Ids {
 public:
  std::size_t size() const { return size_; }
  // Room for `count` more, of which `add` keeps the first ones.
  std::uint32_t* room(std::size_t count) {
    if (capacity_ - size_ < count) grow(count);
    return memory_.get() + size_;
  }
  void add(std::size_t count) { size_ += count; }
  const std::uint32_t* data() const { return memory_.get(); }
  // The memory now belongs to the caller, for std::free.
  std::uint32_t* release() {
    size_ = capacity_ = 0;
    return memory_.release();
  }

 private:
  struct Free {
    void operator()(void* pointer) const { std::free(pointer); }
  };
  void grow(std::size_t count);

  std::unique_ptr<std::uint32_t, Free> memory_;
  std::size_t size_ = 0, capacity_ = 0;
};

class BpeEncoder {
 public:
  enum class Prefix { none, always, unless_space };  // of a space (U+2581) before a text that is not empty

  // `tokens`: spelling by id, empty where there is none. `merges` by rank. The tokens <0x00> to <0xFF> must exist, take no
  // part in merges, and U+2581 must be a token; of `words`, the characters that stand for bytes must be tokens:
  // std::invalid_argument otherwise.
  BpeEncoder(const std::vector<std::string_view>& tokens, const std::vector<Merge>& merges, Prefix prefix, bool words);

  // Appends the ids of texts (UTF-8) that lie back to back from offsets[0] to offsets[texts], and to `starts` where those
  // of each begin. One thread at a time; others wait.
  void encode(const char* text, const std::int64_t* offsets, std::size_t texts, Ids& out,
              std::vector<std::int64_t>& starts);

 private:
  void encode(std::string_view text, Ids& out);
  template <typename Look>
  void encode_pieces(std::string_view text, bool prefixed, unsigned before, Look look, Ids& out);
  std::uint32_t rank(std::uint32_t left, std::uint32_t right) const;
  void learn_characters(const std::vector<std::string_view>& tokens);
  void learn_bytes(const std::vector<std::string_view>& tokens);
  void learn_cuts(const std::vector<std::string_view>& tokens, const std::vector<Merge>& merges);
  // `readable`: up to here there are bytes that may be read.
  void add(const char* begin, const char* end, const char* readable, Ids& out);
  void flush(Ids& out);
  // These write at most as many ids as the piece has bytes, or change ids in place, and return how many there are.
  std::size_t merge(std::string_view piece, std::uint32_t* ids) const;
  std::size_t symbols(std::string_view piece, std::uint32_t* ids) const;
  std::size_t merge_short(std::uint32_t* ids, std::size_t count) const;
  std::size_t merge_long(std::uint32_t* ids, std::size_t count) const;

  Prefix prefix_;
  std::optional<Words> words_;
  WideArray<std::uint64_t> pairs_;      // left, right and rank, 0 where free; open addressing
  std::vector<std::uint32_t> results_;  // by rank, which counts from 1; 0 is no pair
  std::vector<std::uint64_t> present_;  // bits at some of the hashes of the pairs: most of what is asked for is no pair
  std::array<std::uint32_t, 256> bytes_;
  std::vector<std::uint32_t> characters_;  // ids by code point, kNone where there is none; the space has that of U+2581
  CutTable cuts_;                          // the space stands for U+2581, too
  PieceCache cache_;
  std::array<PieceKey, 32> waiting_;  // pieces on their way from memory
  std::size_t waiting_count_ = 0;
  std::string head_;
  std::mutex mutex_;
};

}  // namespace megatron_adapt
