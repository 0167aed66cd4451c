#include "documents.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace megatron_adapt {

namespace {

constexpr int kDeepest = 64;            // Python's own limit depends on the stack it has left
constexpr std::ptrdiff_t kLongest = 4000;  // characters of a number; Python refuses integers of more than 4300 digits

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_json_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_tail(unsigned char c) { return (c & 0xC0) == 0x80; }

// Length of the UTF-8 sequence of a character outside ASCII at `p`, 0 where there is none (Unicode 15, table 3-7).
int sequence(const char* p, const char* end) {
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

constexpr std::uint64_t kOnes = 0x0101010101010101;
constexpr std::uint64_t kTops = 0x8080808080808080;

// Top bit of every byte that is not plain inside a JSON string: below 0x20, '"', '\\' or above 0x7F. The lowest such
// bit is exact; higher ones may be set by borrows.
std::uint64_t special(std::uint64_t word) {
  const std::uint64_t quote = word ^ (kOnes * '"'), slash = word ^ (kOnes * '\\');
  return ((word - kOnes * 0x20) | (quote - kOnes) | (slash - kOnes) | word) & kTops;
}

int hex(const char* p) {
  int value = 0;
  for (int i = 0; i < 4; ++i) {
    const char c = p[i];
    const int digit = is_digit(c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

char* put(char* out, std::uint32_t point) {
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

// One line of JSON. Every function returns false where Python has to decide.
class Line {
 public:
  Line(const char* begin, const char* end) : p_(begin), end_(end) {}

  // Appends the string under `key` of the object to `out` and moves it behind.
  bool object(std::string_view key, char*& out) {
    char* const start = out;
    bool found = false;
    if (!open('{')) return false;
    if (!peek('}')) {
      do {
        skip();
        const char* const name = p_ + 1;
        bool escaped = false;
        char* unused = nullptr;
        if (!string<false>(unused, escaped) || escaped) return false;
        const bool wanted = std::string_view(name, static_cast<std::size_t>(p_ - 1 - name)) == key;
        if (!open(':')) return false;
        skip();
        if (wanted) {
          out = start;  // of a repeated key the last counts
          if (!string<true>(out, escaped)) return false;
          found = true;
        } else if (!value(1)) {
          return false;
        }
      } while (open(','));
    }
    if (!open('}')) return false;
    skip();
    return found && p_ == end_;
  }

 private:
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
  bool word(const char* text, std::size_t size) {
    if (static_cast<std::size_t>(end_ - p_) < size || std::memcmp(p_, text, size) != 0) return false;
    p_ += size;
    return true;
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
    return p_ - begin <= kLongest;
  }

  bool value(int depth) {
    skip();
    if (p_ >= end_ || depth > kDeepest) return false;
    bool escaped = false;
    char* unused = nullptr;
    switch (*p_) {
      case '"': return string<false>(unused, escaped);
      case 't': return word("true", 4);
      case 'f': return word("false", 5);
      case 'n': return word("null", 4);
      case '[':
        ++p_;
        if (open(']')) return true;
        do {
          if (!value(depth + 1)) return false;
        } while (open(','));
        return open(']');
      case '{':
        ++p_;
        if (open('}')) return true;
        do {
          skip();
          if (!string<false>(unused, escaped) || !open(':') || !value(depth + 1)) return false;
        } while (open(','));
        return open('}');
      default: return (*p_ == '-' || is_digit(*p_)) && number();
    }
  }

  const char* p_;
  const char* const end_;
};

const char* find(const char* begin, const char* end, char c) {
  const void* const found = std::memchr(begin, c, static_cast<std::size_t>(end - begin));
  return found == nullptr ? end : static_cast<const char*>(found);
}

bool is_utf8(const char* p, const char* end) {
  while (p < end) {
    std::uint64_t word;
    if (end - p >= 8 && (std::memcpy(&word, p, 8), (word & kTops) == 0)) {
      p += 8;
    } else if (static_cast<unsigned char>(*p) < 0x80) {
      ++p;
    } else {
      const int bytes = sequence(p, end);
      if (bytes == 0) return false;
      p += bytes;
    }
  }
  return true;
}

}  // namespace

void DocumentScanner::reserve(std::size_t bytes) {
  const std::size_t needed = documents_.size + bytes + 8;  // strings are copied in words of 8
  if (needed <= capacity_) return;
  const std::size_t capacity = std::max(needed, capacity_ + capacity_ / 2);
  void* const grown = std::realloc(documents_.text.get(), capacity);
  if (grown == nullptr) throw std::bad_alloc();
  documents_.text.release();
  documents_.text.reset(static_cast<char*>(grown));
  capacity_ = capacity;
}

void DocumentScanner::finish(std::size_t size, std::int64_t line) {
  documents_.size = size;
  documents_.offsets.push_back(static_cast<std::int64_t>(size));
  documents_.lines.push_back(line);
}

void DocumentScanner::push(std::string_view text) {
  reserve(text.size());
  if (!text.empty()) std::memcpy(documents_.text.get() + documents_.size, text.data(), text.size());
  finish(documents_.size + text.size(), lines_);
}

void DocumentScanner::pass(std::string_view odd) { lines_ += std::count(odd.begin(), odd.end(), '\n'); }

Documents DocumentScanner::take() {
  capacity_ = 0;
  return std::exchange(documents_, Documents{});
}

DocumentScanner::Odd DocumentScanner::scan(std::string_view data, std::size_t begin) {
  reserve(data.size() - begin);
  return is_json_ ? scan_json(data, begin) : scan_blocks(data, begin);
}

DocumentScanner::Odd DocumentScanner::scan_json(std::string_view data, std::size_t begin) {
  const char* const base = data.data();
  const char* const end = base + data.size();
  for (const char* p = base + begin; p < end;) {
    const char* const stop = find(p, end, '\n');
    const char* first = p;
    while (first < stop && is_space(*first)) ++first;
    if (first < stop) {
      char* const start = documents_.text.get() + documents_.size;
      char* out = start;
      if (*first != '{' || !Line(first, stop).object(key_, out)) {
        return {static_cast<std::size_t>(p - base), static_cast<std::size_t>(std::min(stop + 1, end) - base)};
      }
      finish(documents_.size + static_cast<std::size_t>(out - start), lines_);
    }
    lines_ += stop < end;
    p = stop + 1;
  }
  return {data.size(), data.size()};
}

DocumentScanner::Odd DocumentScanner::scan_blocks(std::string_view data, std::size_t begin) {
  const char* const base = data.data();
  const char* const end = base + data.size();
  const auto is_blank = [](const char* p, const char* stop) { return std::all_of(p, stop, is_space); };
  for (const char* p = base + begin; p < end;) {
    const char* stop = find(p, end, '\n');
    if (is_blank(p, stop)) {
      lines_ += stop < end;
      p = stop + 1;
      continue;
    }
    char* const start = documents_.text.get() + documents_.size;
    char* out = start;
    std::int64_t lines = 0;
    const char* next = p;
    do {  // one line of the block, without the carriage returns at its end
      const char* last = stop;
      while (last > next && last[-1] == '\r') --last;
      if (out > start) *out++ = '\n';
      std::memcpy(out, next, static_cast<std::size_t>(last - next));
      out += last - next;
      lines += stop < end;
      next = std::min(stop + 1, end);
      stop = find(next, end, '\n');
    } while (next < end && !is_blank(next, stop));
    if (!is_utf8(start, out)) return {static_cast<std::size_t>(p - base), static_cast<std::size_t>(next - base)};
    finish(documents_.size + static_cast<std::size_t>(out - start), lines_);
    lines_ += lines;
    p = next;
  }
  return {data.size(), data.size()};
}

}  // namespace megatron_adapt
