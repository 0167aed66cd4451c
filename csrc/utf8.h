// Characters in UTF-8.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace megatron_adapt {

inline bool is_tail(unsigned char c) { return (c & 0xC0) == 0x80; }

// Length of the UTF-8 sequence of a character outside ASCII at `p`, 0 where there is none (Unicode 15, table 3-7).
inline int sequence(const char* p, const char* end) {
  const auto at = [p](int i) { return static_cast<unsigned char>(p[i]); };
  const unsigned char first = at(0);
  const std::ptrdiff_t left = end - p;
  if (first < 0xC2) return 0;
  if (first < 0xE0) return left >= 2 && is_tail(at(1)) ? 2 : 0;
  if (first < 0xF0) {
    if (left < 3 || !is_tail(at(1)) || !is_tail(at(2))) return 0;
    if ((first == 0xE0 && at(1) < 0xA0) || (first == 0xED && at(1) > 0x9F)) return 0;
    return 3;
  }
  if (first > 0xF4 || left < 4 || !is_tail(at(1)) || !is_tail(at(2)) || !is_tail(at(3))) return 0;
  return (first == 0xF0 && at(1) < 0x90) || (first == 0xF4 && at(1) > 0x8F) ? 0 : 4;
}

// Bytes of the character that a text begins with; the text is UTF-8 and not empty.
inline std::size_t character_width(std::string_view text) {
  const unsigned char first = static_cast<unsigned char>(text[0]);
  const std::size_t expected = first < 0xC0 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  return std::min(expected, text.size());
}

// Of one whole character.
inline std::uint32_t code_point(std::string_view character) {
  const auto tail = [character](std::size_t i) { return static_cast<unsigned char>(character[i]) & 0x3Fu; };
  const std::uint32_t first = static_cast<unsigned char>(character[0]);
  switch (character.size()) {
    case 1: return first;
    case 2: return (first & 0x1F) << 6 | tail(1);
    case 3: return (first & 0xF) << 12 | tail(1) << 6 | tail(2);
    default: return (first & 7) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3);
  }
}

// Writes a character; returns what is behind it.
inline char* put(char* out, std::uint32_t point) {
  const auto byte = [&out](std::uint32_t value) { *out++ = static_cast<char>(value); };
  if (point < 0x80) {
    byte(point);
  } else if (point < 0x800) {
    byte(0xC0 | point >> 6), byte(0x80 | (point & 0x3F));
  } else if (point < 0x10000) {
    byte(0xE0 | point >> 12), byte(0x80 | (point >> 6 & 0x3F)), byte(0x80 | (point & 0x3F));
  } else {
    byte(0xF0 | point >> 18), byte(0x80 | (point >> 12 & 0x3F)), byte(0x80 | (point >> 6 & 0x3F)), byte(0x80 | (point & 0x3F));
  }
  return out;
}

}  // namespace megatron_adapt
