#include "tokenizer_json.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "json.h"
#include "utf8.h"

namespace megatron_adapt {

namespace {

constexpr std::uint32_t kMostIds = std::uint32_t{1} << 24;  // a mistaken id must not take all memory

[[noreturn]] void refuse(const char* reason) { throw std::invalid_argument(reason); }

std::size_t hash(std::string_view text) {
  std::uint64_t sum = text.size();
  for (std::size_t i = 0; i < text.size(); i += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, text.data() + i, std::min<std::size_t>(8, text.size() - i));
    sum = (sum ^ word) * 0x9E3779B97F4A7C15;
    sum ^= sum >> 32;
  }
  return sum;
}

void quote(std::string_view text, std::string& out) {
  constexpr char kHex[] = "0123456789abcdef";
  const auto unit = [&out, &kHex](std::uint32_t value) {
    out += "\\u";
    for (int shift = 12; shift >= 0; shift -= 4) out += kHex[value >> shift & 15];
  };
  out += '"';
  const auto is_plain = [](char c) { return c >= ' ' && c < 0x7F && c != '"' && c != '\\'; };
  for (std::size_t i = 0; i < text.size();) {
    const char* const stop = std::find_if_not(text.data() + i, text.data() + text.size(), is_plain);
    out.append(text.data() + i, stop);
    i = static_cast<std::size_t>(stop - text.data());
    if (i == text.size()) break;
    const char c = text[i];
    if (static_cast<unsigned char>(c) >= 0x80) {
      const std::string_view character = text.substr(i, character_width(text.substr(i)));
      const std::uint32_t point = code_point(character);
      if (point >= 0x10000) {
        unit(0xD800 + ((point - 0x10000) >> 10)), unit(0xDC00 + ((point - 0x10000) & 0x3FF));
      } else {
        unit(point);
      }
      i += character.size();
      continue;
    }
    ++i;
    switch (c) {
      case '"': out += "\\\""; break;
      case '\\': out += "\\\\"; break;
      case '\n': out += "\\n"; break;
      case '\r': out += "\\r"; break;
      case '\t': out += "\\t"; break;
      case '\b': out += "\\b"; break;
      case '\f': out += "\\f"; break;
      default: unit(static_cast<unsigned char>(c));
    }
  }
  out += '"';
}

}  // namespace

TokenizerJson::TokenizerJson(std::string text) : text_(std::move(text)), spellings_(new char[text_.size() + 8]) {
  JsonScanner scanner(text_.data(), text_.data() + text_.size());
  char* out = spellings_.get();
  const auto string = [&](std::string_view& read) {
    scanner.skip();
    const char* const begin = out;
    bool escaped = false;
    if (!scanner.string<true>(out, escaped)) return false;
    read = {begin, static_cast<std::size_t>(out - begin)};
    return true;
  };
  const auto since = [&](const char* begin) {
    return std::string_view(begin, static_cast<std::size_t>(scanner.position() - begin));
  };
  tokens_.reserve(text_.size() / 16), pairs_.reserve(text_.size() / 16);  // about right, and unused room is no memory
  std::string_view token;
  const auto numbered = [&] {
    std::uint32_t id = 0;
    if (!scanner.integer(id) || id >= kMostIds) return false;
    if (id >= tokens_.size()) tokens_.resize(id + 1);
    if (tokens_[id].data() != nullptr) refuse("two tokens have one id");
    tokens_[id] = token;
    return true;
  };
  const auto merge = [&] {
    std::string_view left, right;
    if (!scanner.peek('[')) {
      if (!string(left)) return false;
      const std::size_t space = left.find(' ');
      if (space == left.npos || left.find(' ', space + 1) != left.npos) refuse("a merge is not of two tokens");
      pairs_.emplace_back(left.substr(0, space), left.substr(space + 1));
      return true;
    }
    if (!scanner.open('[') || !string(left) || !scanner.open(',') || !string(right) || !scanner.open(']')) return false;
    pairs_.emplace_back(left, right);
    return true;
  };
  std::string_view key;
  const auto in_model = [&] {
    const char* const begin = scanner.position();
    if (key == "vocab") {
      if (!vocabulary_.empty() || !scanner.entries([&] { return string(token); }, numbered)) return false;
      vocabulary_ = since(begin);
      return true;
    }
    if (key == "merges") {
      if (!merges_.empty() || !scanner.elements(merge)) return false;
      merges_ = since(begin);
      return true;
    }
    return scanner.value(2);
  };
  const auto any_key = [&] { return scanner.plain_string(key); };
  bool has_model = false;
  const auto in_file = [&] {
    if (key != "model") return scanner.value(1);
    return !std::exchange(has_model, true) && scanner.entries(any_key, in_model);
  };
  if (!scanner.entries(any_key, in_file) || !scanner.at_end()) refuse("it is not a plain tokenizer.json");
  if (tokens_.empty() || pairs_.empty()) refuse("it is no byte pair encoding");
  index();
}

void TokenizerJson::index() {
  std::size_t capacity = 16;
  while (capacity < 2 * tokens_.size()) capacity *= 2;
  by_spelling_.assign(capacity, kNone);
  for (std::uint32_t id = 0; id < tokens_.size(); ++id) {
    if (tokens_[id].data() == nullptr) continue;
    std::size_t at = hash(tokens_[id]) & (capacity - 1);
    for (; by_spelling_[at] != kNone; at = (at + 1) & (capacity - 1)) {
      if (tokens_[by_spelling_[at]] == tokens_[id]) refuse("a token is there twice");
    }
    by_spelling_[at] = id;
  }
}

std::uint32_t TokenizerJson::find(std::string_view token) const {
  const std::size_t last = by_spelling_.size() - 1;
  for (std::size_t at = hash(token) & last;; at = (at + 1) & last) {
    if (by_spelling_[at] == kNone || tokens_[by_spelling_[at]] == token) return by_spelling_[at];
  }
}

std::string TokenizerJson::rest() const {
  std::string rest;
  const char* done = text_.data();
  const bool in_order = vocabulary_.data() < merges_.data();
  for (const std::string_view part : {in_order ? vocabulary_ : merges_, in_order ? merges_ : vocabulary_}) {
    rest.append(done, part.data()).append("null");
    done = part.data() + part.size();
  }
  return rest.append(done, text_.data() + text_.size());
}

std::string TokenizerJson::compact() const {
  for (const auto& [left, right] : pairs_) {
    // A merge that begins with #version is passed over where merges are strings, as that of a merges.txt is.
    if (left.find(' ') != left.npos || right.find(' ') != right.npos || left.substr(0, 8) == "#version") return text_;
  }
  std::string out;
  out.reserve(text_.size());
  out.append(text_.data(), merges_.data()).append("[");
  const char* const end = merges_.data() + merges_.size();
  bool is_pair = false;
  for (const char* p = merges_.data() + 1; p < end; ++p) {
    if (*p == '[') {
      is_pair = true;
      out += '"';
    } else if (*p == ']') {
      out += is_pair ? '"' : ']';
      is_pair = false;
    } else if (*p == ',') {
      out += is_pair ? ' ' : ',';
    } else if (*p == '"') {
      const char* stop = p + 1;
      while (*stop != '"') stop += *stop == '\\' ? 2 : 1;
      out.append(p + is_pair, stop + !is_pair);
      p = stop;
    }
  }
  return out.append(end, text_.data() + text_.size());
}

std::vector<Merge> TokenizerJson::numbered_merges() const {
  std::vector<Merge> merges;
  merges.reserve(pairs_.size());
  std::string result;
  std::uint32_t next = 0;  // most often merges make tokens in the order of their ids
  for (const auto& [left, right] : pairs_) {
    result.assign(left).append(right);
    const bool is_next = next < tokens_.size() && tokens_[next] == result;
    merges.push_back(Merge{find(left), find(right), is_next ? next : find(result)});
    next = merges.back().result + 1;
    const Merge& found = merges.back();
    if (found.left == kNone || found.right == kNone || found.result == kNone) refuse("a merge has a token that the vocabulary lacks");
  }
  return merges;
}

std::string TokenizerJson::canonical_vocabulary() const {
  std::string out = "[";
  out.reserve(text_.size());
  for (std::size_t id = 0; id < tokens_.size(); ++id) {
    if (tokens_[id].data() == nullptr) continue;
    out.append(out.size() > 1 ? ", [" : "[").append(std::to_string(id)).append(", ");
    quote(tokens_[id], out);
    out += ']';
  }
  return out += ']';
}

std::string TokenizerJson::canonical_merges() const {
  std::string out = "[";
  out.reserve(text_.size());
  for (const auto& [left, right] : pairs_) {
    out += out.size() > 1 ? ", [" : "[";
    quote(left, out);
    out += ", ";
    quote(right, out);
    out += ']';
  }
  return out += ']';
}

}  // namespace megatron_adapt
