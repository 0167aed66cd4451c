// Byte pair encoding of tokenizers that write spaces as U+2581 and split nothing before merging (sentencepiece's kind).
//
// A text is cut wherever no merge can ever join what is left and right of the cut: merging then goes on independently on
// both sides, in the same order as on the whole, so the ids are those of the whole text. Pieces between cuts are words
// or less, which come again and again: their ids are remembered.

#pragma once

#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace megatron_adapt {

struct Merge {
  std::uint32_t left, right, result;
};

// Ids of pieces met before. Bounded: full, it is emptied and fills again.
class PieceCache {
 public:
  static constexpr std::size_t kLongest = 64;  // bytes of a piece worth remembering

  struct Key {
    std::uint64_t first, second;  // the piece itself up to 16 bytes, else two hashes
    std::uint64_t hash;
    std::string_view piece;
  };

  PieceCache();
  // Of a piece of 1 to kLongest bytes; what it needs in `find` is fetched meanwhile.
  Key key(std::string_view piece) const;
  // Its ids; nullptr where it has to be encoded.
  const std::uint32_t* find(const Key& key, std::uint32_t& count) const;
  void insert(const Key& key, const std::uint32_t* ids, std::uint32_t count);

 private:
  struct Entry {  // 32 bytes
    std::uint64_t first = 0, second = 0;  // of the key; of a long piece its second hash gives way to where it lies
    std::uint32_t ids[3] = {0, 0, 0};     // above three: where they lie
    std::uint8_t size = 0;                // 0: free
    std::uint8_t count = 0;
  };

  static std::uint64_t hash(std::uint64_t first, std::uint64_t second, std::size_t size);
  void clear(std::size_t entries);
  void grow();
  Entry& free_entry(std::uint64_t hash);

  std::vector<Entry> entries_;
  std::size_t used_ = 0;
  std::vector<char> bytes_;
  std::vector<std::uint32_t> ids_;
};

class BpeEncoder {
 public:
  enum class Prefix { none, always, unless_space };  // of U+2581 before a text that is not empty

  // `tokens`: spelling by id, empty where there is none. `merges` by rank. The tokens <0x00> to <0xFF> must exist, take no
  // part in merges, and U+2581 must be a token: std::invalid_argument otherwise.
  BpeEncoder(const std::vector<std::string>& tokens, const std::vector<Merge>& merges, Prefix prefix);

  // Appends the ids of texts (UTF-8) that lie back to back from offsets[0] to offsets[texts], and to `starts` where those
  // of each begin. One thread at a time; others wait.
  void encode(const char* text, const std::int64_t* offsets, std::size_t texts, std::vector<std::uint32_t>& out,
              std::vector<std::int64_t>& starts);

 private:
  static constexpr std::size_t kClasses = 129;  // ASCII (space stands for U+2581), everything else

  struct Pair {
    std::uint64_t key;
    std::uint32_t rank, result;
  };

  void encode(std::string_view text, std::vector<std::uint32_t>& out);
  const Pair* find(std::uint32_t left, std::uint32_t right) const;
  void learn_cuts(const std::vector<std::string>& tokens, const std::vector<Merge>& merges);
  const char* next_cut(const char* begin, const char* p, const char* end, unsigned char before) const;
  void add(std::string_view piece, std::vector<std::uint32_t>& out);
  void flush(std::vector<std::uint32_t>& out);
  void merge(std::string_view piece);
  void symbols(std::string_view piece);
  void merge_short();
  void merge_long();

  Prefix prefix_;
  std::vector<Pair> pairs_;  // open addressing
  std::array<std::uint32_t, 256> bytes_;
  std::array<std::uint32_t, 128> ascii_;
  std::unordered_map<std::uint32_t, std::uint32_t> characters_;  // UTF-8 as a number -> id
  std::array<std::bitset<256>, kClasses> cut_;
  PieceCache cache_;
  std::array<PieceCache::Key, 32> waiting_;  // pieces on their way from memory
  std::size_t waiting_count_ = 0;
  std::string head_;
  std::vector<std::uint32_t> ids_, ranks_;
  std::mutex mutex_;
};

}  // namespace megatron_adapt
