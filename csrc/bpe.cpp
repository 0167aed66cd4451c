#include "bpe.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <queue>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "utf8.h"

namespace megatron_adapt {

namespace {

constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();
constexpr char kSpace[] = "\xE2\x96\x81";  // U+2581
constexpr std::size_t kShort = 64;         // symbols up to which looking at all of them beats a heap

constexpr unsigned kIdBits = 21;  // of ids and of ranks: a pair and its rank are one word
constexpr std::uint32_t kRankMask = (std::uint32_t{1} << kIdBits) - 1;

std::uint64_t key_of(std::uint32_t left, std::uint32_t right) { return std::uint64_t{left} << kIdBits | right; }

std::uint64_t mix(std::uint64_t x) {
  x ^= x >> 32;
  x *= 0x9E3779B97F4A7C15;
  return x ^ x >> 29;
}

// What the cuts know of a token's first or last character.
unsigned char class_of(std::string_view character) {
  if (character == kSpace) return ' ';
  const unsigned char c = static_cast<unsigned char>(character[0]);
  return c < 128 ? c : 128;
}

// The byte that a token <0x00> to <0xFF> stands for, -1 of others.
int byte_of(std::string_view token) {
  if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return -1;
  const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; };
  const int high = digit(token[3]), low = digit(token[4]);
  return high < 0 || low < 0 ? -1 : 16 * high + low;
}

bool is_space_at(const char* p, const char* end) { return end - p >= 3 && std::memcmp(p, kSpace, 3) == 0; }

}  // namespace

BpeEncoder::BpeEncoder(const std::vector<std::string_view>& tokens, const std::vector<Merge>& merges, Prefix prefix, bool words)
    : prefix_(prefix) {
  bytes_.fill(kNone);
  if (words) {
    words_.emplace();
    learn_bytes(tokens);
  } else {
    learn_characters(tokens);
  }
  std::size_t capacity = 16;
  while (capacity < 2 * merges.size()) capacity *= 2;
  if ((tokens.size() >> kIdBits) != 0 || (merges.size() + 1) >> kIdBits != 0) throw std::invalid_argument("it is too large");
  pairs_ = WideArray<std::uint64_t>(capacity);
  results_.assign(1, kNone);
  present_.assign(capacity / 16, 0);
  for (std::uint32_t rank = 0; rank < merges.size(); ++rank) {
    const Merge& merge = merges[rank];
    if (merge.left >= tokens.size() || merge.right >= tokens.size() || merge.result >= tokens.size() ||
        tokens[merge.left].empty() || tokens[merge.right].empty()) {
      throw std::invalid_argument("a merge of tokens that do not exist");
    }
    if (!words && (byte_of(tokens[merge.left]) >= 0 || byte_of(tokens[merge.right]) >= 0)) {
      throw std::invalid_argument("bytes are merged");
    }
    const std::uint64_t key = key_of(merge.left, merge.right), hashed = mix(key);
    present_[hashed >> 6 & (present_.size() - 1)] |= std::uint64_t{1} << (hashed & 63);
    std::size_t at = hashed & (capacity - 1);
    for (; pairs_[at] != 0; at = (at + 1) & (capacity - 1)) {
      if (pairs_[at] >> kIdBits == key) throw std::invalid_argument("a merge is there twice");
    }
    pairs_[at] = key << kIdBits | (rank + 1);
    results_.push_back(merge.result);
  }
  if (!words) learn_cuts(tokens, merges);
}

void BpeEncoder::learn_characters(const std::vector<std::string_view>& tokens) {
  for (std::uint32_t id = 0; id < tokens.size(); ++id) {
    const std::string_view token = tokens[id];
    if (const int byte = byte_of(token); byte >= 0) bytes_[static_cast<std::size_t>(byte)] = id;
    if (token.empty() || token.size() > 4 || character_width(token) != token.size()) continue;
    const std::uint32_t point = code_point(token);
    if (point >= characters_.size()) characters_.resize(point + 1, kNone);
    characters_[point] = id;
  }
  if (const auto missing = std::find(bytes_.begin(), bytes_.end(), kNone); missing != bytes_.end()) {
    char spelling[8];
    std::snprintf(spelling, sizeof spelling, "<0x%02X>", static_cast<unsigned>(missing - bytes_.begin()) & 0xFF);
    throw std::invalid_argument(std::string("no token ") + spelling);
  }
  const std::uint32_t space = code_point(std::string_view(kSpace, 3));
  if (space >= characters_.size() || characters_[space] == kNone) throw std::invalid_argument("no token U+2581");
  characters_[' '] = characters_[space];
}

void BpeEncoder::learn_bytes(const std::vector<std::string_view>& tokens) {
  std::array<int, 512> byte_by_point;  // printable characters stand for themselves, the other bytes for 256, 257, ...
  byte_by_point.fill(-1);
  for (int byte = 0, other = 256; byte < 256; ++byte) {
    const bool is_printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    byte_by_point[static_cast<std::size_t>(is_printable ? byte : other++)] = byte;
  }
  for (std::uint32_t id = 0; id < tokens.size(); ++id) {
    if (tokens[id].empty() || character_width(tokens[id]) != tokens[id].size()) continue;
    const std::uint32_t point = code_point(tokens[id]);
    if (point < byte_by_point.size() && byte_by_point[point] >= 0) bytes_[static_cast<std::size_t>(byte_by_point[point])] = id;
  }
  if (std::find(bytes_.begin(), bytes_.end(), kNone) != bytes_.end()) throw std::invalid_argument("no token for some byte");
}

void BpeEncoder::learn_cuts(const std::vector<std::string_view>& tokens, const std::vector<Merge>& merges) {
  for (auto& row : cut_) row.fill(true);
  const auto keep = [this](unsigned char before, unsigned char from) { std::fill(&cut_[before][from], cut_[before].end(), false); };
  keep(128, 128);  // inside characters, and between them
  for (const Merge& merge : merges) {
    const std::string_view left = tokens[merge.left], right = tokens[merge.right];
    std::size_t last = left.size() - 1;
    while (last > 0 && is_tail(static_cast<unsigned char>(left[last]))) --last;
    const unsigned char a = class_of(left.substr(last)), b = class_of(right.substr(0, character_width(right)));
    if (b < 128) {
      cut_[a][b] = false;
    } else {
      keep(a, 128);
    }
  }
}

// 0 where the two are never merged.
std::uint32_t BpeEncoder::rank(std::uint32_t left, std::uint32_t right) const {
  const std::uint64_t key = key_of(left, right), hashed = mix(key);
  if ((present_[hashed >> 6 & (present_.size() - 1)] >> (hashed & 63) & 1) == 0) return 0;
  for (std::size_t at = hashed & (pairs_.size() - 1);; at = (at + 1) & (pairs_.size() - 1)) {
    if (pairs_[at] == 0) return 0;
    if (pairs_[at] >> kIdBits == key) return static_cast<std::uint32_t>(pairs_[at]) & kRankMask;
  }
}

// The first cut from p on; `before` is the class of the character in front of it.
const char* BpeEncoder::next_cut(const char* begin, const char* p, const char* end, unsigned char before) const {
  for (; p < end; ++p) {
    const unsigned char c = static_cast<unsigned char>(*p);
    if (cut_[before][c]) {
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
  words_ ? encode_words(text, out) : encode_cut(text, out);
  flush(out);
}

void BpeEncoder::encode_words(std::string_view text, std::vector<std::uint32_t>& out) {
  if (prefix_ == Prefix::always || (prefix_ == Prefix::unless_space && text[0] != ' ')) {
    text = head_.assign(1, ' ').append(text);
  }
  const char* const end = text.data() + text.size();
  for (const char* p = text.data(); p < end;) {
    const char* const stop = words_->next(p, end);
    add(p, stop, end, out);
    p = stop;
  }
}

void BpeEncoder::encode_cut(std::string_view text, std::vector<std::uint32_t>& out) {
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
    cache_.expect(begin, size, waiting_[waiting_count_++]);
  } else {
    std::array<char, PieceCache::kLongest> padded{};
    std::memcpy(padded.data(), begin, size);
    cache_.expect(padded.data(), size, waiting_[waiting_count_]);
    waiting_[waiting_count_++].piece = begin;
  }
  if (waiting_count_ == waiting_.size()) flush(out);
}

void BpeEncoder::flush(std::vector<std::uint32_t>& out) {
  constexpr std::size_t kFew = 4;  // ids that can be read wherever a cached piece has them, and are copied without counting
  std::array<std::uint32_t, std::tuple_size_v<decltype(waiting_)> * PieceCache::kLongest + kFew> found;
  std::size_t size = 0;
  for (std::size_t i = 0; i < waiting_count_; ++i) {
    const PieceKey& key = waiting_[i];
    std::uint32_t count = 0;
    if (const std::uint32_t* const ids = cache_.find(key, count)) {
      std::memcpy(&found[size], ids, kFew * sizeof *ids);
      if (count > kFew) std::copy(ids + kFew, ids + count, &found[size + kFew]);
    } else {
      merge({key.piece, key.size});
      count = static_cast<std::uint32_t>(ids_.size());
      cache_.insert(key, ids_.data(), count);
      std::copy(ids_.begin(), ids_.end(), &found[size]);
    }
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
  if (words_) {
    for (const char c : piece) ids_.push_back(bytes_[static_cast<unsigned char>(c)]);
    return;
  }
  while (!piece.empty()) {
    const std::string_view character = piece.substr(0, character_width(piece));
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
  std::array<std::uint32_t, kShort> ranks;  // of the pair that begins here, less one
  std::array<std::uint8_t, kShort + 1> next, previous;
  std::uint32_t* const ids = ids_.data();
  const auto look = [&](std::size_t at) __attribute__((always_inline)) {
    const std::uint32_t found = next[at] < count ? rank(ids[at], ids[next[at]]) : 0;
    ranks[at] = found - 1;  // kNone where there is none
    __builtin_prefetch(&results_[found]);
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
    ids[at] = results_[lowest + 1];
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
    if (const std::uint32_t found = rank(left, right)) heap.push({found, at, left, right});
  };
  for (std::uint32_t i = 0; i < count; ++i) next[i] = i + 1, previous[i] = i - 1;  // of the first: kNone
  for (std::uint32_t i = 0; i + 1 < count; ++i) push(i);
  while (!heap.empty()) {
    const Candidate best = heap.top();
    heap.pop();
    // Merged since then: the left id has changed, or is gone (kNone), or what is right of it is another.
    if (ids_[best.at] != best.left || next[best.at] >= count || ids_[next[best.at]] != best.right) continue;
    const std::uint32_t gone = next[best.at];
    ids_[best.at] = results_[best.rank];
    ids_[gone] = kNone;
    next[best.at] = next[gone];
    if (next[gone] < count) previous[next[gone]] = best.at;
    if (previous[best.at] != kNone) push(previous[best.at]);
    push(best.at);
  }
  ids_.erase(std::remove(ids_.begin(), ids_.end(), kNone), ids_.end());
}

}  // namespace megatron_adapt
