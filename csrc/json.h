// JSON text read as Python's json.loads reads it, or not at all: whatever could be read in two ways is left to Python.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "utf8.h"

namespace megatron_adapt {

inline constexpr int kDeepest = 64;            // Python's own limit depends on the stack it has left
inline constexpr std::ptrdiff_t kLongestNumber = 4000;  // characters of a number; Python refuses integers of more than 4300 digits

inline bool is_json_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
inline bool is_digit(char c) { return c >= '0' && c <= '9'; }
inline constexpr std::uint64_t kOnes = 0x0101010101010101;
inline constexpr std::uint64_t kTops = 0x8080808080808080;

// Top bit of every byte that is not plain inside a JSON string: below 0x20, '"', '\\' or above 0x7F. The lowest such
// bit is exact; higher ones may be set by borrows.
inline std::uint64_t special(std::uint64_t word) {
  const std::uint64_t quote = word ^ (kOnes * '"'), slash = word ^ (kOnes * '\\');
  return ((word - kOnes * 0x20) | (quote - kOnes) | (slash - kOnes) | word) & kTops;
}

inline int hex(const char* p) {
  int value = 0;
  for (int i = 0; i < 4; ++i) {
    const char c = p[i];
    const int digit = is_digit(c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

// Reads JSON text from its begin to its end. Every function returns false where Python has to decide; nothing is to be read
// after that.
class JsonScanner {
 public:
  JsonScanner(const char* begin, const char* end) : p_(begin), end_(end) {}

  const char* position() const { return p_; }
  bool at_end() {
    skip();
    return p_ == end_;
  }
  void skip() {
    while (p_ < end_ && is_json_space(*p_)) ++p_;
  }
  bool peek(char c) {
    skip();
    return p_ < end_ && *p_ == c;
  }
  bool open(char c) {
    if (!peek(c)) return false;
    ++p_;
    return true;
  }
  // A list: `element` reads each.
  template <typename Element>
  bool elements(Element element) {
    if (!open('[')) return false;
    if (open(']')) return true;
    do {
      if (!element()) return false;
    } while (open(','));
    return open(']');
  }
  // An object: `key` reads each key from its quote on, `entry` what is behind it.
  template <typename Key, typename Entry>
  bool entries(Key key, Entry entry) {
    if (!open('{')) return false;
    if (open('}')) return true;
    do {
      skip();
      if (!key() || !open(':')) return false;
      skip();
      if (!entry()) return false;
    } while (open(','));
    return open('}');
  }
  // A string without escapes, as it stands in the text.
  bool plain_string(std::string_view& text) {
    skip();
    const char* const begin = p_ + 1;
    bool escaped = false;
    char* unused = nullptr;
    if (!string<false>(unused, escaped) || escaped) return false;
    text = {begin, static_cast<std::size_t>(p_ - 1 - begin)};
    return true;
  }
  bool skip_string() {
    bool escaped = false;
    char* unused = nullptr;
    return string<false>(unused, escaped);
  }
  // A string from its quote on, copied to `out` if asked for.
  template <bool copy>
  bool string(char*& out, bool& escaped) {
    if (p_ >= end_ || *p_ != '"') return false;
    ++p_;
    for (;;) {
      while (end_ - p_ >= 8) {
        std::uint64_t word;
        std::memcpy(&word, p_, 8);
        const std::uint64_t bits = special(word);
        if (copy) std::memcpy(out, &word, 8);  // the output has room for what the input still holds
        const int plain = bits == 0 ? 8 : __builtin_ctzll(bits) / 8;
        p_ += plain;
        if (copy) out += plain;
        if (plain < 8) break;
      }
      if (p_ >= end_) return false;
      const unsigned char c = static_cast<unsigned char>(*p_);
      if (c == '"') {
        ++p_;
        return true;
      }
      if (c == '\\') {
        escaped = true;
        if (!escape<copy>(out)) return false;
      } else if (c < 0x20) {
        return false;
      } else if (c < 0x80) {
        if (copy) *out++ = *p_;
        ++p_;
      } else {
        do {
          const int bytes = sequence(p_, end_);
          if (bytes == 0) return false;
          for (int i = 0; copy && i < bytes; ++i) *out++ = p_[i];
          p_ += bytes;
        } while (p_ < end_ && static_cast<unsigned char>(*p_) >= 0x80);
      }
    }
  }

  // A whole number from 0 on.
  bool integer(std::uint32_t& value) {
    skip();
    const char* const begin = p_;
    std::uint64_t found = 0;
    while (p_ < end_ && is_digit(*p_) && p_ - begin < 10) found = found * 10 + static_cast<std::uint64_t>(*p_++ - '0');
    value = static_cast<std::uint32_t>(found);
    const bool ended = p_ == end_ || (!is_digit(*p_) && *p_ != '.' && *p_ != 'e' && *p_ != 'E');
    return p_ > begin && ended && found == value && (*begin != '0' || p_ - begin == 1);
  }
  // Anything, and moves behind it.
  bool value(int depth) {
    skip();
    if (p_ >= end_ || depth > kDeepest) return false;
    switch (*p_) {
      case '"': return skip_string();
      case 't': return word("true", 4);
      case 'f': return word("false", 5);
      case 'n': return word("null", 4);
      case '[': return elements([this, depth] { return value(depth + 1); });
      case '{': return entries([this] { return skip_string(); }, [this, depth] { return value(depth + 1); });
      default: return (*p_ == '-' || is_digit(*p_)) && number();
    }
  }

 private:
  bool word(const char* text, std::size_t size) {
    if (static_cast<std::size_t>(end_ - p_) < size || std::memcmp(p_, text, size) != 0) return false;
    p_ += size;
    return true;
  }

  template <bool copy>
  bool escape(char*& out) {
    if (end_ - p_ < 2) return false;
    const char c = p_[1];
    p_ += 2;
    std::uint32_t point;
    switch (c) {
      case '"': case '\\': case '/': point = static_cast<std::uint32_t>(c); break;
      case 'b': point = '\b'; break;
      case 'f': point = '\f'; break;
      case 'n': point = '\n'; break;
      case 'r': point = '\r'; break;
      case 't': point = '\t'; break;
      case 'u': {
        const int high = end_ - p_ >= 4 ? hex(p_) : -1;
        if (high < 0 || (high >= 0xDC00 && high <= 0xDFFF)) return false;
        p_ += 4;
        point = static_cast<std::uint32_t>(high);
        if (high >= 0xD800 && high <= 0xDBFF) {
          const int low = end_ - p_ >= 6 && p_[0] == '\\' && p_[1] == 'u' ? hex(p_ + 2) : -1;
          if (low < 0xDC00 || low > 0xDFFF) return false;
          p_ += 6;
          point = 0x10000 + ((point - 0xD800) << 10) + (static_cast<std::uint32_t>(low) - 0xDC00);
        }
        break;
      }
      default: return false;
    }
    if (copy) out = put(out, point);
    return true;
  }

  bool number() {
    const char* const begin = p_;
    const auto digits = [this] {
      const char* const first = p_;
      while (p_ < end_ && is_digit(*p_)) ++p_;
      return p_ > first;
    };
    if (*p_ == '-') ++p_;
    if (p_ < end_ && *p_ == '0') {
      ++p_;
    } else if (!digits()) {
      return false;
    }
    if (p_ < end_ && *p_ == '.') {
      ++p_;
      if (!digits()) return false;
    }
    if (p_ < end_ && (*p_ == 'e' || *p_ == 'E')) {
      ++p_;
      if (p_ < end_ && (*p_ == '+' || *p_ == '-')) ++p_;
      if (!digits()) return false;
    }
    return p_ - begin <= kLongestNumber;
  }

  const char* p_;
  const char* const end_;
};

}  // namespace megatron_adapt
