#include "bpe.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <new>
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

// Moves together what is left of ids; what has gone is kNone.
std::size_t without_gone(std::uint32_t* ids, std::size_t count) {
  std::size_t left = 0;
  for (std::size_t i = 0; i < count; ++i) {
    ids[left] = ids[i];
    left += ids[i] != kNone;
  }
  return left;
}

// U+2581 in the text is what spaces become, not one of the other characters outside ASCII.
void look_at_marks(const char* begin, const char* p, const char* end, unsigned, std::size_t at, Cuts& cuts) {
  if (is_space_at(p, end) || (p - begin >= 3 && is_space_at(p - 3, end))) cuts.clear(at);
}

}  // namespace

BpeEncoder::BpeEncoder(const std::vector<std::string_view>& tokens, const std::vector<Merge>& merges, Prefix prefix, bool words)
    : prefix_(prefix) {
  bytes_.fill(kNone);
  if (words) {
    words_.emplace().fill(cuts_);
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
  constexpr unsigned kWide = CutTable::kWide;
  std::array<std::array<bool, kWide + 1>, kWide + 1> joined{};  // by the classes of what is left and right
  joined[kWide][kWide] = true;                                  // inside characters, and between them
  for (const Merge& merge : merges) {
    const std::string_view left = tokens[merge.left], right = tokens[merge.right];
    std::size_t last = left.size() - 1;
    while (last > 0 && is_tail(static_cast<unsigned char>(left[last]))) --last;
    joined[class_of(left.substr(last))][class_of(right.substr(0, character_width(right)))] = true;
  }
  for (unsigned before = 0; before <= kWide; ++before) {
    for (unsigned from = 0; from < 0x100; ++from) {
      if (joined[before][std::min(from, kWide)]) continue;
      const bool is_wide = before == kWide || from >= kWide;
      cuts_.at(before, from) = static_cast<std::uint8_t>(is_wide ? CutTable::kCut | CutTable::kLook : CutTable::kCut);
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

void Ids::grow(std::size_t count) {
  const std::size_t capacity = std::max(size_ + count, 2 * capacity_);
  void* const grown = std::realloc(memory_.get(), capacity * sizeof(std::uint32_t));
  if (grown == nullptr) throw std::bad_alloc();
  memory_.release();
  memory_.reset(static_cast<std::uint32_t*>(grown));
  capacity_ = capacity;
}

void BpeEncoder::encode(const char* text, const std::int64_t* offsets, std::size_t texts, Ids& out,
                        std::vector<std::int64_t>& starts) {
  const std::lock_guard<std::mutex> locked(mutex_);
  out.room(static_cast<std::size_t>(offsets[texts] - offsets[0]) / 3 + 1);  // more is rare
  starts.reserve(starts.size() + texts + 1);
  starts.push_back(static_cast<std::int64_t>(out.size()));
  for (std::size_t i = 0; i < texts; ++i) {
    encode({text + offsets[i], static_cast<std::size_t>(offsets[i + 1] - offsets[i])}, out);
    starts.push_back(static_cast<std::int64_t>(out.size()));
  }
}

void BpeEncoder::encode(std::string_view text, Ids& out) {
  if (text.empty()) return;
  const bool has_space = text[0] == ' ' || (!words_ && is_space_at(text.data(), text.data() + text.size()));
  const bool prefixed = prefix_ == Prefix::always || (prefix_ == Prefix::unless_space && !has_space);
  if (words_) {
    const auto look = [this](auto&&... place) { words_->look(place...); };
    encode_pieces(text, prefixed, prefixed ? ' ' : Words::kBegin, look, out);
  } else {
    encode_pieces(text, prefixed, prefixed ? ' ' : CutTable::kWide, look_at_marks, out);
  }
  flush(out);
}

// `before`: what the text follows; `look` is what Words::look is.
template <typename Look>
void BpeEncoder::encode_pieces(std::string_view text, bool prefixed, unsigned before, Look look, Ids& out) {
  const char* const begin = text.data();
  const char* const end = begin + text.size();
  const char* piece = begin;
  const auto cut = [&](const char* stop) {
    if (prefixed) {
      head_.assign(1, ' ').append(piece, stop);
      add(head_.data(), head_.data() + head_.size(), head_.data() + head_.size(), out);
      prefixed = false;
    } else if (stop > piece) {
      add(piece, stop, end, out);
    }
    piece = stop;
  };
  const unsigned front = before;
  Cuts cuts(0);
  for (const char* p = begin; p < end;) {
    const std::size_t size = std::min(CutTable::kBlock, static_cast<std::size_t>(end - p));
    const CutTable::Found found = cuts_.find(p, size, before);
    cuts = cuts.next(found.cuts);
    for (std::uint64_t bits = found.looks; bits != 0; bits &= bits - 1) {
      const std::size_t at = static_cast<std::size_t>(__builtin_ctzll(bits));
      look(begin, p + at, end, front, at, cuts);
    }
    for (std::uint64_t bits = cuts.bits(); bits != 0; bits &= bits - 1) cut(p + __builtin_ctzll(bits));
    p += size;
  }
  if (prefixed || piece < end) cut(end);
}

void BpeEncoder::add(const char* begin, const char* end, const char* readable, Ids& out) {
  const std::size_t size = static_cast<std::size_t>(end - begin);
  if (size > PieceCache::kLongest) {
    flush(out);
    out.add(merge({begin, size}, out.room(size)));
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

void BpeEncoder::flush(Ids& out) {
  constexpr std::size_t kFew = 4;  // ids that can be read wherever a cached piece has them, and are copied without counting
  std::uint32_t* const begin = out.room(waiting_count_ * PieceCache::kLongest + kFew);
  std::uint32_t* found = begin;
  for (std::size_t i = 0; i < waiting_count_; ++i) {
    const PieceKey& key = waiting_[i];
    std::uint32_t count = 0;
    if (const std::uint32_t* const ids = cache_.find(key, count)) {
      std::memcpy(found, ids, kFew * sizeof *ids);
      if (count > kFew) std::copy(ids + kFew, ids + count, found + kFew);
    } else {
      count = static_cast<std::uint32_t>(merge({key.piece, key.size}, found));
      cache_.insert(key, found, count);
    }
    found += count;
  }
  waiting_count_ = 0;
  out.add(static_cast<std::size_t>(found - begin));
}

std::size_t BpeEncoder::merge(std::string_view piece, std::uint32_t* ids) const {
  const std::size_t count = symbols(piece, ids);
  return count <= kShort ? merge_short(ids, count) : merge_long(ids, count);
}

// One id for each character, or for each byte of one that the vocabulary does not have.
std::size_t BpeEncoder::symbols(std::string_view piece, std::uint32_t* ids) const {
  if (words_) {
    for (const char c : piece) *ids++ = bytes_[static_cast<unsigned char>(c)];
    return piece.size();
  }
  std::uint32_t* const begin = ids;
  while (!piece.empty()) {
    const std::string_view character = piece.substr(0, character_width(piece));
    const std::uint32_t point = code_point(character);
    if (point < characters_.size() && characters_[point] != kNone) {
      *ids++ = characters_[point];
    } else {
      for (const char c : character) *ids++ = bytes_[static_cast<unsigned char>(c)];
    }
    piece.remove_prefix(character.size());
  }
  return static_cast<std::size_t>(ids - begin);
}

// Again and again the merge of the lowest rank, the leftmost of several.
std::size_t BpeEncoder::merge_short(std::uint32_t* ids, std::size_t count) const {
  std::array<std::uint32_t, kShort> ranks;  // of the pair that begins here, less one
  std::array<std::uint8_t, kShort + 1> next, previous;
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
  return without_gone(ids, count);
}

// The same with a heap: a sentence without spaces would take quadratic time otherwise.
std::size_t BpeEncoder::merge_long(std::uint32_t* ids, std::size_t size) const {
  struct Candidate {
    std::uint32_t rank, at, left, right;
    bool operator>(const Candidate& other) const { return std::tie(rank, at) > std::tie(other.rank, other.at); }
  };
  const std::uint32_t count = static_cast<std::uint32_t>(size);
  std::vector<std::uint32_t> next(count), previous(count);
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> heap;
  const auto push = [&](std::uint32_t at) {
    if (next[at] >= count) return;
    const std::uint32_t left = ids[at], right = ids[next[at]];
    if (const std::uint32_t found = rank(left, right)) heap.push({found, at, left, right});
  };
  for (std::uint32_t i = 0; i < count; ++i) next[i] = i + 1, previous[i] = i - 1;  // of the first: kNone
  for (std::uint32_t i = 0; i + 1 < count; ++i) push(i);
  while (!heap.empty()) {
    const Candidate best = heap.top();
    heap.pop();
    // Merged since then: the left id has changed, or is gone (kNone), or what is right of it is another.
    if (ids[best.at] != best.left || next[best.at] >= count || ids[next[best.at]] != best.right) continue;
    const std::uint32_t gone = next[best.at];
    ids[best.at] = results_[best.rank];
    ids[gone] = kNone;
    next[best.at] = next[gone];
    if (next[gone] < count) previous[next[gone]] = best.at;
    if (previous[best.at] != kNone) push(previous[best.at]);
    push(best.at);
  }
  return without_gone(ids, size);
}

}  // namespace megatron_adapt
