#include "bpe.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <queue>
#include <stdexcept>
#include <tuple>
#include <unordered_map>
#include <utility>

namespace megatron_adapt {

namespace {

constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();
constexpr char kSpace[] = "\xE2\x96\x81";  // U+2581
constexpr std::size_t kShort = 64;         // symbols up to which looking at all of them beats a heap

std::uint64_t mix(std::uint64_t x) {
  x ^= x >> 32;
  x *= 0x9E3779B97F4A7C15;
  return x ^ x >> 29;
}

bool is_tail(unsigned char c) { return (c & 0xC0) == 0x80; }

// Bytes of the UTF-8 character at the begin of a text.
std::size_t width(std::string_view text) {
  const unsigned char first = static_cast<unsigned char>(text[0]);
  const std::size_t expected = first < 0xC0 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  return std::min(expected, text.size());
}

std::uint32_t code_point(std::string_view character) {
  const auto tail = [character](std::size_t i) { return static_cast<unsigned char>(character[i]) & 0x3Fu; };
  const std::uint32_t first = static_cast<unsigned char>(character[0]);
  switch (character.size()) {
    case 1: return first;
    case 2: return (first & 0x1F) << 6 | tail(1);
    case 3: return (first & 0xF) << 12 | tail(1) << 6 | tail(2);
    default: return (first & 7) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3);
  }
}

// What the cuts know of a token's first or last character.
unsigned char class_of(std::string_view character) {
  if (character == kSpace) return ' ';
  const unsigned char c = static_cast<unsigned char>(character[0]);
  return c < 128 ? c : 128;
}

bool is_space_at(const char* p, const char* end) { return end - p >= 3 && std::memcmp(p, kSpace, 3) == 0; }

}  // namespace

BpeEncoder::BpeEncoder(const std::vector<std::string>& tokens, const std::vector<Merge>& merges, Prefix prefix)
    : prefix_(prefix) {
  std::unordered_map<std::string_view, std::uint32_t> by_spelling;
  for (std::uint32_t id = 0; id < tokens.size(); ++id) {
    const std::string& token = tokens[id];
    if (token.size() == 6 && token[0] == '<') by_spelling[token] = id;
    if (token.empty() || token.size() > 4 || width(token) != token.size()) continue;
    const std::uint32_t point = code_point(token);
    if (point >= characters_.size()) characters_.resize(point + 1, kNone);
    characters_[point] = id;
  }
  for (unsigned byte = 0; byte < 256; ++byte) {
    char spelling[8];
    std::snprintf(spelling, sizeof spelling, "<0x%02X>", byte);
    const auto found = by_spelling.find(std::string_view(spelling, 6));
    if (found == by_spelling.end()) throw std::invalid_argument(std::string("no token ") + spelling);
    bytes_[byte] = found->second;
  }
  const std::uint32_t space = code_point(std::string_view(kSpace, 3));
  if (space >= characters_.size() || characters_[space] == kNone) throw std::invalid_argument("no token U+2581");
  characters_[' '] = characters_[space];

  std::size_t capacity = 16;
  while (capacity < 2 * merges.size()) capacity *= 2;
  pairs_ = WideArray<Pair>(capacity);
  present_.assign(capacity / 16, 0);
  for (std::uint32_t rank = 0; rank < merges.size(); ++rank) {
    const Merge& merge = merges[rank];
    if (merge.left >= tokens.size() || merge.right >= tokens.size() || merge.result >= tokens.size() ||
        tokens[merge.left].empty() || tokens[merge.right].empty()) {
      throw std::invalid_argument("a merge of tokens that do not exist");
    }
    for (const std::uint32_t id : {merge.left, merge.right}) {
      const auto byte = by_spelling.find(tokens[id]);
      if (byte != by_spelling.end() && std::find(bytes_.begin(), bytes_.end(), id) != bytes_.end()) {
        throw std::invalid_argument("bytes are merged");
      }
    }
    const std::uint64_t key = std::uint64_t{merge.left} << 32 | merge.right, hashed = mix(key);
    present_[hashed >> 6 & (present_.size() - 1)] |= std::uint64_t{1} << (hashed & 63);
    std::size_t at = hashed & (capacity - 1);
    for (; pairs_[at].rank != 0; at = (at + 1) & (capacity - 1)) {
      if (pairs_[at].key == key) throw std::invalid_argument("a merge is there twice");
    }
    pairs_[at] = Pair{key, rank + 1, merge.result};
  }
  learn_cuts(tokens, merges);
}

void BpeEncoder::learn_cuts(const std::vector<std::string>& tokens, const std::vector<Merge>& merges) {
  constexpr std::uint64_t kAll = ~std::uint64_t{0};
  for (auto& row : cut_) row.fill(kAll);
  cut_[128][2] = cut_[128][3] = 0;  // inside characters, and between them
  for (const Merge& merge : merges) {
    const std::string& left = tokens[merge.left];
    const std::string_view right = tokens[merge.right];
    std::size_t last = left.size() - 1;
    while (last > 0 && is_tail(static_cast<unsigned char>(left[last]))) --last;
    const unsigned char a = class_of(std::string_view(left).substr(last)), b = class_of(right.substr(0, width(right)));
    if (b < 128) {
      cut_[a][b / 64] &= ~(std::uint64_t{1} << b % 64);
    } else {
      cut_[a][2] = cut_[a][3] = 0;
    }
  }
}

const BpeEncoder::Pair* BpeEncoder::find(std::uint32_t left, std::uint32_t right) const {
  const std::uint64_t key = std::uint64_t{left} << 32 | right, hashed = mix(key);
  if ((present_[hashed >> 6 & (present_.size() - 1)] >> (hashed & 63) & 1) == 0) return nullptr;
  for (std::size_t at = hashed & (pairs_.size() - 1);; at = (at + 1) & (pairs_.size() - 1)) {
    if (pairs_[at].rank == 0) return nullptr;
    if (pairs_[at].key == key) return &pairs_[at];
  }
}

// The first cut from p on; `before` is the class of the character in front of it.
const char* BpeEncoder::next_cut(const char* begin, const char* p, const char* end, unsigned char before) const {
  for (; p < end; ++p) {
    const unsigned char c = static_cast<unsigned char>(*p);
    if (cut_[before][c / 64] >> c % 64 & 1) {
      // U+2581 in the text is what spaces become, not one of the other characters outside ASCII.
      const bool is_marked = (c >= 128 && is_space_at(p, end)) || (before == 128 && p - begin >= 3 && is_space_at(p - 3, p));
      if (!is_marked) return p;
    }
    before = c < 128 ? c : 128;
  }
  return end;
}

void BpeEncoder::encode(const char* text, const std::int64_t* offsets, std::size_t texts, std::vector<std::uint32_t>& out,
                        std::vector<std::int64_t>& starts) {
  const std::lock_guard<std::mutex> locked(mutex_);
  out.reserve(out.size() + static_cast<std::size_t>(offsets[texts] - offsets[0]) / 3);
  starts.reserve(starts.size() + texts + 1);
  starts.push_back(static_cast<std::int64_t>(out.size()));
  for (std::size_t i = 0; i < texts; ++i) {
    encode({text + offsets[i], static_cast<std::size_t>(offsets[i + 1] - offsets[i])}, out);
    starts.push_back(static_cast<std::int64_t>(out.size()));
  }
}

void BpeEncoder::encode(std::string_view text, std::vector<std::uint32_t>& out) {
  if (text.empty()) return;
  const char* const begin = text.data();
  const char* const end = begin + text.size();
  const char* p = begin;
  const bool has_space = *p == ' ' || is_space_at(p, end);
  if (prefix_ == Prefix::always || (prefix_ == Prefix::unless_space && !has_space)) {
    p = next_cut(begin, p, end, ' ');
    head_.assign(1, ' ').append(begin, p);
    add(head_.data(), head_.data() + head_.size(), head_.data() + head_.size(), out);
  }
  while (p < end) {
    const unsigned char first = static_cast<unsigned char>(*p);
    const char* const stop = next_cut(begin, p + 1, end, first < 128 ? first : 128);
    add(p, stop, end, out);
    p = stop;
  }
  flush(out);
}

void BpeEncoder::add(const char* begin, const char* end, const char* readable, std::vector<std::uint32_t>& out) {
  const std::size_t size = static_cast<std::size_t>(end - begin);
  if (size > PieceCache::kLongest) {
    flush(out);
    merge({begin, size});
    out.insert(out.end(), ids_.begin(), ids_.end());
    return;
  }
  if (readable - begin >= static_cast<std::ptrdiff_t>(PieceCache::kLongest)) {
    waiting_[waiting_count_++] = cache_.key(begin, size);
  } else {
    std::array<char, PieceCache::kLongest> padded{};
    std::memcpy(padded.data(), begin, size);
    waiting_[waiting_count_] = cache_.key(padded.data(), size);
    waiting_[waiting_count_++].piece = begin;
  }
  if (waiting_count_ == waiting_.size()) flush(out);
}

void BpeEncoder::flush(std::vector<std::uint32_t>& out) {
  std::array<std::uint32_t, std::tuple_size_v<decltype(waiting_)> * PieceCache::kLongest> found;
  std::size_t size = 0;
  for (std::size_t i = 0; i < waiting_count_; ++i) {
    const PieceCache::Key& key = waiting_[i];
    std::uint32_t count = 0;
    const std::uint32_t* ids = cache_.find(key, count);
    if (ids == nullptr) {
      merge({key.piece, key.size});
      count = static_cast<std::uint32_t>(ids_.size());
      cache_.insert(key, ids_.data(), count);
      ids = ids_.data();
    }
    for (std::uint32_t j = 0; j < count; ++j) found[size + j] = ids[j];
    size += count;
  }
  waiting_count_ = 0;
  out.insert(out.end(), found.begin(), found.begin() + static_cast<std::ptrdiff_t>(size));
}

// ids_: of a piece.
void BpeEncoder::merge(std::string_view piece) {
  symbols(piece);
  ids_.size() <= kShort ? merge_short() : merge_long();
}

// ids_: one for each character, or for each byte of one that the vocabulary does not have.
void BpeEncoder::symbols(std::string_view piece) {
  ids_.clear();
  while (!piece.empty()) {
    const std::string_view character = piece.substr(0, width(piece));
    const std::uint32_t point = code_point(character);
    if (point < characters_.size() && characters_[point] != kNone) {
      ids_.push_back(characters_[point]);
    } else {
      for (const char c : character) ids_.push_back(bytes_[static_cast<unsigned char>(c)]);
    }
    piece.remove_prefix(character.size());
  }
}

// Again and again the merge of the lowest rank, the leftmost of several.
void BpeEncoder::merge_short() {
  const std::size_t count = ids_.size();
  std::array<std::uint32_t, kShort> ranks, results;  // of the pair that begins here
  std::array<std::uint8_t, kShort + 1> next, previous;
  std::uint32_t* const ids = ids_.data();
  const auto look = [&](std::size_t at) {
    const Pair* const pair = next[at] < count ? find(ids[at], ids[next[at]]) : nullptr;
    ranks[at] = pair == nullptr ? kNone : pair->rank;
    if (pair != nullptr) results[at] = pair->result;
  };
  for (std::size_t i = 0; i < count; ++i) {
    next[i] = static_cast<std::uint8_t>(i + 1), previous[i] = static_cast<std::uint8_t>(i - 1);
    look(i);
  }
  for (;;) {
    std::uint32_t lowest = kNone;
    std::size_t at = 0;
    for (std::size_t i = 0; i < count; ++i) {
      at = ranks[i] < lowest ? i : at;
      lowest = ranks[i] < lowest ? ranks[i] : lowest;
    }
    if (lowest == kNone) break;
    const std::size_t gone = next[at];
    ids[at] = results[at];
    ids[gone] = ranks[gone] = kNone;
    next[at] = next[gone];
    previous[next[gone]] = static_cast<std::uint8_t>(at);
    if (at > 0) look(previous[at]);
    look(at);
  }
  ids_.erase(std::remove(ids_.begin(), ids_.end(), kNone), ids_.end());
}

// The same with a heap: a sentence without spaces would take quadratic time otherwise.
void BpeEncoder::merge_long() {
  struct Candidate {
    std::uint32_t rank, at, left, right;
    bool operator>(const Candidate& other) const { return std::tie(rank, at) > std::tie(other.rank, other.at); }
  };
  const std::uint32_t count = static_cast<std::uint32_t>(ids_.size());
  std::vector<std::uint32_t> next(count), previous(count);
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> heap;
  const auto push = [&](std::uint32_t at) {
    if (next[at] >= count) return;
    const std::uint32_t left = ids_[at], right = ids_[next[at]];
    if (const Pair* const pair = find(left, right)) heap.push({pair->rank, at, left, right});
  };
  for (std::uint32_t i = 0; i < count; ++i) next[i] = i + 1, previous[i] = i - 1;  // of the first: kNone
  for (std::uint32_t i = 0; i + 1 < count; ++i) push(i);
  while (!heap.empty()) {
    const Candidate best = heap.top();
    heap.pop();
    // Merged since then: the left id has changed, or is gone (kNone), or what is right of it is another.
    if (ids_[best.at] != best.left || next[best.at] >= count || ids_[next[best.at]] != best.right) continue;
    const std::uint32_t gone = next[best.at];
    ids_[best.at] = find(best.left, best.right)->result;
    ids_[gone] = kNone;
    next[best.at] = next[gone];
    if (next[gone] < count) previous[next[gone]] = best.at;
    if (previous[best.at] != kNone) push(previous[best.at]);
    push(best.at);
  }
  ids_.erase(std::remove(ids_.begin(), ids_.end(), kNone), ids_.end());
}

}  // namespace megatron_adapt
