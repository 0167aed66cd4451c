// Documents that lie in one piece of memory, and their characters as filters of a corpus see them.

#pragma once

#include <atomic>
#include <cstdint>
#include <string_view>

#include "parallel.h"
#include "utf8.h"

namespace megatron_adapt {

// Document i is data[begins[i], ends[i]), UTF-8; begins ascend and documents do not overlap.
struct Texts {
  const char* data;
  const std::int64_t* begins;
  const std::int64_t* ends;
  std::int64_t count;

  std::string_view operator[](std::int64_t i) const {
    return {data + begins[i], static_cast<std::size_t>(ends[i] - begins[i])};
  }
};

// Calls work(i) for every document, on `threads` threads that take a few at a time; make() gives each thread its own work.
template <typename Make>
void for_each_text(const Texts& texts, std::int64_t threads, const Make& make) {
  constexpr std::int64_t kTogether = 64;
  std::atomic<std::int64_t> next{0};
  in_parts(threads, threads, [&](std::int64_t, std::int64_t first, std::int64_t last) {
    for (; first < last; ++first) {
      auto work = make();
      for (std::int64_t begin; (begin = next.fetch_add(kTogether)) < texts.count;) {
        for (std::int64_t i = begin; i < std::min(begin + kTogether, texts.count); ++i) work(i);
      }
    }
  });
}

// Takes the character that a text begins with off it.
inline std::uint32_t next_character(const char*& at, const char* end) {
  const unsigned char first = static_cast<unsigned char>(*at);
  if (first < 0x80) return ++at, first;
  const std::string_view rest(at, static_cast<std::size_t>(end - at));
  const std::size_t width = character_width(rest);
  at += width;
  return code_point(rest.substr(0, width));
}

// What a character is: made by data/folding.py, which says what the bits mean.
class Folding {
 public:
  static constexpr std::uint32_t kPoint = (1u << 21) - 1;  // the character in lower case
  static constexpr std::uint32_t kWord = 1u << 21;         // part of a word
  static constexpr std::uint32_t kAlone = 1u << 22;        // a word of its own: the script has no spaces
  static constexpr std::uint32_t kSpace = 1u << 23;
  static constexpr std::uint32_t kNothing = 1u << 24;      // invisible, inside words, too
  static constexpr std::uint32_t kLetter = 1u << 25;
  static constexpr std::uint32_t kDigit = 1u << 26;

  Folding(const std::uint32_t* table, std::uint32_t size) : table_(table), size_(size) {}

  std::uint32_t operator()(std::uint32_t point) const {
    if (point < size_) return table_[point];
    return point < 0x40000 ? point | kWord | kAlone | kLetter : point;  // planes 2 and 3 are ideographs
  }

 private:
  const std::uint32_t* table_;
  std::uint32_t size_;
};

// Finalizer of a 64-bit hash: every bit of the result depends on every bit given.
inline std::uint64_t mixed(std::uint64_t x) {
  x = (x ^ x >> 32) * 0xD6E8FEB86659FD93u;
  x = (x ^ x >> 32) * 0xD6E8FEB86659FD93u;
  return x ^ x >> 32;
}

// Calls word(hash, characters, has_letter, is_alone) for every word of a text: runs of letters, digits and marks.
template <typename Word>
void each_word(std::string_view text, const Folding& folding, const Word& word) {
  std::uint64_t hash = 0;
  std::uint32_t length = 0, kinds = 0;
  const auto done = [&] {
    if (length != 0) word(mixed(hash), length, (kinds & Folding::kLetter) != 0, (kinds & Folding::kAlone) != 0);
    hash = length = kinds = 0;
  };
  for (const char *at = text.data(), *end = at + text.size(); at != end;) {
    const std::uint32_t folded = folding(next_character(at, end));
    if (folded & Folding::kNothing) continue;
    if (!(folded & Folding::kWord) || (folded & Folding::kAlone)) done();
    if (!(folded & Folding::kWord)) continue;
    hash = (hash + (folded & Folding::kPoint) + 1) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 29;
    ++length;
    kinds |= folded;
    if (folded & Folding::kAlone) done();
  }
  done();
}

}  // namespace megatron_adapt
