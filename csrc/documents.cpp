#include "documents.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "json.h"

namespace megatron_adapt {

namespace {

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// Appends the string under `key` of the object in a line to `out` and moves it behind; false where Python has to decide.
bool text_of(const char* begin, const char* end, std::string_view key, char*& out) {
  JsonScanner line(begin, end);
  char* const start = out;
  bool found = false;
  std::string_view name;
  const auto entry = [&] {
    if (name != key) return line.value(1);
    out = start;  // of a repeated key the last counts
    bool escaped = false;
    found = true;
    return line.string<true>(out, escaped);
  };
  return line.entries([&] { return line.plain_string(name); }, entry) && line.at_end() && found;
}

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
  return kind_ == Kind::json ? scan_json(data, begin) : scan_text(data, begin);
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
      if (*first != '{' || !text_of(first, stop, key_, out)) {
        return {static_cast<std::size_t>(p - base), static_cast<std::size_t>(std::min(stop + 1, end) - base)};
      }
      finish(documents_.size + static_cast<std::size_t>(out - start), lines_);
    }
    lines_ += stop < end;
    p = stop + 1;
  }
  return {data.size(), data.size()};
}

DocumentScanner::Odd DocumentScanner::scan_text(std::string_view data, std::size_t begin) {
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
    do {  // one line of the document, without the carriage returns at its end
      const char* last = stop;
      while (last > next && last[-1] == '\r') --last;
      if (out > start) *out++ = '\n';
      std::memcpy(out, next, static_cast<std::size_t>(last - next));
      out += last - next;
      lines += stop < end;
      next = std::min(stop + 1, end);
      stop = find(next, end, '\n');
    } while (kind_ == Kind::blocks && next < end && !is_blank(next, stop));
    if (!is_utf8(start, out)) return {static_cast<std::size_t>(p - base), static_cast<std::size_t>(next - base)};
    finish(documents_.size + static_cast<std::size_t>(out - start), lines_);
    lines_ += lines;
    p = next;
  }
  return {data.size(), data.size()};
}

}  // namespace megatron_adapt
