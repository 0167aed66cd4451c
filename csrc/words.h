// Cuts text as the regular expression of GPT-2 does (Radford et al., 2019, encoder.py of the release):
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace megatron_adapt {

class Words {
 public:
  Words();
  // The end of the word that begins at `p`, in front of `end`; the text is UTF-8, and broken characters are symbols.
  const char* next(const char* p, const char* end) const;

 private:
  enum Class : std::uint8_t { kSymbol, kLetter, kNumber, kSpace, kNoAscii };

  Class class_at(const char* p, const char* end, int& bytes) const;

  std::vector<std::uint8_t> classes_;      // by code point
  std::array<std::uint8_t, 256> of_byte_;  // of ASCII, kNoAscii of all other bytes
};

}  // namespace megatron_adapt
