// Documents out of raw corpus bytes: the string under one key of each JSON line, or lines or blocks of lines of plain text.
//
// What is decided here is decided as Python's json.loads and str.decode would: everything else (a broken line, a lone
// surrogate, NaN, an escaped key, very deep nesting) is handed back to the caller, who asks Python.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace megatron_adapt {

// The documents of one batch, UTF-8, back to back.
struct Documents {
  struct Free {
    void operator()(void* pointer) const { std::free(pointer); }
  };
  std::unique_ptr<char, Free> text;
  std::size_t size = 0;
  std::vector<std::int64_t> offsets{0};  // [documents + 1] into text
  std::vector<std::int64_t> lines;       // [documents] number of the first line of each, counted from 0
};

class DocumentScanner {
 public:
  struct Odd {
    std::size_t begin, end;  // of what was not decided; both are the size of the data when everything was
  };

  // What is a document: the text under a key in a line of JSON, a line of text, a run of lines of it. None is of blank lines.
  enum class Kind { json, lines, blocks };

  // `key`: of the text in a JSON line.
  DocumentScanner(std::string key, Kind kind) : key_(std::move(key)), kind_(kind) {}

  // Reads whole lines (the last may lack its end) from `begin` up to what it cannot decide; resume behind that.
  Odd scan(std::string_view data, std::size_t begin);
  // Adds a document that the caller has decided, at the current line.
  void push(std::string_view text);
  // Moves over the lines of something the caller has decided or skipped.
  void pass(std::string_view odd);
  // Lines passed since this scanner was made.
  std::int64_t lines() const { return lines_; }
  std::size_t count() const { return documents_.lines.size(); }
  Documents take();

 private:
  void reserve(std::size_t bytes);
  void finish(std::size_t size, std::int64_t line);
  Odd scan_json(std::string_view data, std::size_t begin);
  Odd scan_text(std::string_view data, std::size_t begin);

  const std::string key_;
  const Kind kind_;
  std::int64_t lines_ = 0;
  std::size_t capacity_ = 0;
  Documents documents_;
};

}  // namespace megatron_adapt
