// Cuts text as the regular expression of GPT-2 does (Radford et al., 2019, encoder.py of the release):
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//
// That is to say: in front of a character of another class than the one before (letter, number, space, anything else); not behind
// a space U+0020 that a word follows; in a run of spaces, in front of its last one where a word follows; and behind an
// apostrophe that is cut off from what precedes it and begins 's, 't, 're ... only after these letters.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuts.h"

namespace megatron_adapt {

class Words {
 public:
  static constexpr unsigned kBegin = '\n';  // stands in front of a text: the same cuts follow it

  Words();
  void fill(CutTable& table) const;
  // Of a place with the sign kLook: `p` in a text from `begin` to `end` that follows the ASCII character `front`, number `at`
  // of its block. The text is UTF-8, and broken characters are symbols.
  void look(const char* begin, const char* p, const char* end, unsigned front, std::size_t at, Cuts& cuts) const;

 private:
  enum Class : std::uint8_t { kSymbol, kLetter, kNumber, kSpace };

  Class class_at(const char* p, const char* end, std::ptrdiff_t& bytes) const;
  bool is_cut(const char* begin, const char* p, const char* end, unsigned front) const;

  std::vector<std::uint8_t> classes_;  // by code point
};

}  // namespace megatron_adapt
