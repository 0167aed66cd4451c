#include "bpe.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <queue>
#include <stdexcept>
#include <tuple>

namespace megatron_adapt {

namespace {

constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();
constexpr std::uint64_t kFree = std::numeric_limits<std::uint64_t>::max();
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

std::uint32_t number(std::string_view character) {
  std::uint32_t value = 0;
  for (const char c : character) value = value << 8 | static_cast<unsigned char>(c);
  return value;
}

// What the cuts know of a token's first or last character.
unsigned char class_of(std::string_view character) {
  if (character == kSpace) return ' ';
  const unsigned char c = static_cast<unsigned char>(character[0]);
  return c < 128 ? c : 128;
}

bool is_space_at(const char* p, const char* end) { return end - p >= 3 && std::memcmp(p, kSpace, 3) == 0; }

}  // namespace

// ------------------------------------------------------------------------------------------------ remembered pieces

namespace {

constexpr std::size_t kFirstEntries = std::size_t{1} << 15;
constexpr std::size_t kEntries = std::size_t{1} << 19;  // 16 MB; with long pieces and their ids 80 MB at the very most

template <typename T>
T load(const char* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

}  // namespace

PieceCache::PieceCache() { clear(kFirstEntries); }

void PieceCache::clear(std::size_t entries) {
  entries_.assign(entries, Entry{});
  bytes_.clear();
  ids_.clear();
  used_ = 0;
}

std::uint64_t PieceCache::hash(std::uint64_t first, std::uint64_t second, std::size_t size) {
  return mix(mix(first ^ size * 0x9E3779B97F4A7C15) ^ second);
}

PieceCache::Key PieceCache::key(std::string_view piece) const {
  const char* const p = piece.data();
  const std::size_t size = piece.size();
  std::uint64_t first = 0, second = 0;
  if (size > 16) {
    for (std::size_t at = 0; at + 8 < size; at += 8) first = mix(first ^ load<std::uint64_t>(p + at)) + at;
    second = load<std::uint64_t>(p + size - 8);
  } else if (size >= 8) {  // the two may overlap
    first = load<std::uint64_t>(p), second = load<std::uint64_t>(p + size - 8);
  } else if (size >= 4) {
    first = load<std::uint32_t>(p) | std::uint64_t{load<std::uint32_t>(p + size - 4)} << 32;
  } else {
    const auto at = [p](std::size_t i) { return static_cast<std::uint64_t>(static_cast<unsigned char>(p[i])); };
    first = at(0) | at(size / 2) << 8 | at(size - 1) << 16;
  }
  const Key key{first, second, hash(first, second, size), piece};
  __builtin_prefetch(&entries_[key.hash & (entries_.size() - 1)]);
  return key;
}

const std::uint32_t* PieceCache::find(const Key& key, std::uint32_t& count) const {
  const std::size_t mask = entries_.size() - 1, size = key.piece.size();
  for (std::size_t at = key.hash & mask; entries_[at].size != 0; at = (at + 1) & mask) {
    const Entry& entry = entries_[at];
    if (entry.size != size || entry.first != key.first) continue;
    if (size <= 16 ? entry.second != key.second : std::memcmp(&bytes_[entry.second], key.piece.data(), size) != 0) continue;
    count = entry.count;
    return count <= 3 ? entry.ids : &ids_[entry.ids[0]];
  }
  return nullptr;
}

void PieceCache::insert(const Key& key, const std::uint32_t* ids, std::uint32_t count) {
  if (2 * used_ >= entries_.size()) grow();
  Entry& entry = free_entry(key.hash);
  ++used_;
  entry.first = key.first, entry.second = key.second;
  entry.size = static_cast<std::uint8_t>(key.piece.size());
  entry.count = static_cast<std::uint8_t>(count);
  if (entry.size > 16) {
    entry.second = bytes_.size();
    bytes_.insert(bytes_.end(), key.piece.begin(), key.piece.end());
  }
  if (count <= 3) {
    std::copy(ids, ids + count, entry.ids);
  } else {
    entry.ids[0] = static_cast<std::uint32_t>(ids_.size());
    ids_.insert(ids_.end(), ids, ids + count);
  }
}

void PieceCache::grow() {
  if (entries_.size() >= kEntries) return clear(kEntries);
  std::vector<Entry> old(entries_.size() * 4);
  old.swap(entries_);
  for (const Entry& entry : old) {
    if (entry.size == 0) continue;
    const std::uint64_t second = entry.size > 16 ? load<std::uint64_t>(&bytes_[entry.second + entry.size - 8]) : entry.second;
    free_entry(hash(entry.first, second, entry.size)) = entry;
  }
}

PieceCache::Entry& PieceCache::free_entry(std::uint64_t hash) {
  const std::size_t mask = entries_.size() - 1;
  std::size_t at = hash & mask;
  while (entries_[at].size != 0) at = (at + 1) & mask;
  return entries_[at];
}

// ---------------------------------------------------------------------------------------------------------- encoder

BpeEncoder::BpeEncoder(const std::vector<std::string>& tokens, const std::vector<Merge>& merges, Prefix prefix)
    : prefix_(prefix) {
  std::unordered_map<std::string_view, std::uint32_t> by_spelling;
  for (std::uint32_t id = 0; id < tokens.size(); ++id) {
    const std::string& token = tokens[id];
    if (token.size() == 6 && token[0] == '<') by_spelling[token] = id;
    if (!token.empty() && token.size() <= 4 && width(token) == token.size()) characters_[number(token)] = id;
  }
  for (unsigned byte = 0; byte < 256; ++byte) {
    char spelling[8];
    std::snprintf(spelling, sizeof spelling, "<0x%02X>", byte);
    const auto found = by_spelling.find(std::string_view(spelling, 6));
    if (found == by_spelling.end()) throw std::invalid_argument(std::string("no token ") + spelling);
    bytes_[byte] = found->second;
  }
  const auto space = characters_.find(number(std::string_view(kSpace, 3)));
  if (space == characters_.end()) throw std::invalid_argument("no token U+2581");
  for (std::uint32_t c = 0; c < 128; ++c) {
    const auto found = characters_.find(c);
    ascii_[c] = found == characters_.end() ? bytes_[c] : found->second;
  }
  ascii_[' '] = space->second;

  std::size_t capacity = 16;
  while (capacity < 2 * merges.size()) capacity *= 2;
  pairs_.assign(capacity, Pair{kFree, 0, 0});
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
    const std::uint64_t key = std::uint64_t{merge.left} << 32 | merge.right;
    std::size_t at = mix(key) & (capacity - 1);
    while (pairs_[at].key != kFree && pairs_[at].key != key) at = (at + 1) & (capacity - 1);
    if (pairs_[at].key == key) throw std::invalid_argument("a merge is there twice");
    pairs_[at] = Pair{key, rank, merge.result};
  }
  learn_cuts(tokens, merges);
}

void BpeEncoder::learn_cuts(const std::vector<std::string>& tokens, const std::vector<Merge>& merges) {
  for (auto& row : cut_) row.set();
  for (unsigned c = 128; c < 256; ++c) cut_[128].reset(c);  // inside characters, and between them
  for (const Merge& merge : merges) {
    const std::string& left = tokens[merge.left];
    const std::string_view right = tokens[merge.right];
    std::size_t last = left.size() - 1;
    while (last > 0 && is_tail(static_cast<unsigned char>(left[last]))) --last;
    const unsigned char a = class_of(std::string_view(left).substr(last)), b = class_of(right.substr(0, width(right)));
    if (b < 128) {
      cut_[a].reset(b);
    } else {
      for (unsigned c = 128; c < 256; ++c) cut_[a].reset(c);
    }
  }
}

const BpeEncoder::Pair* BpeEncoder::find(std::uint32_t left, std::uint32_t right) const {
  const std::uint64_t key = std::uint64_t{left} << 32 | right;
  for (std::size_t at = mix(key) & (pairs_.size() - 1);; at = (at + 1) & (pairs_.size() - 1)) {
    if (pairs_[at].key == key) return &pairs_[at];
    if (pairs_[at].key == kFree) return nullptr;
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
  const char* const begin = text.data();
  const char* const end = begin + text.size();
  const char* p = begin;
  const bool has_space = *p == ' ' || is_space_at(p, end);
  if (prefix_ == Prefix::always || (prefix_ == Prefix::unless_space && !has_space)) {
    p = next_cut(begin, p, end, ' ');
    head_.assign(1, ' ').append(begin, p);
    add(head_, out);
  }
  while (p < end) {
    const unsigned char first = static_cast<unsigned char>(*p);
    const char* const stop = next_cut(begin, p + 1, end, first < 128 ? first : 128);
    add({p, static_cast<std::size_t>(stop - p)}, out);
    p = stop;
  }
  flush(out);
}

void BpeEncoder::add(std::string_view piece, std::vector<std::uint32_t>& out) {
  if (piece.size() > PieceCache::kLongest) {
    flush(out);
    merge(piece);
    out.insert(out.end(), ids_.begin(), ids_.end());
    return;
  }
  waiting_[waiting_count_++] = cache_.key(piece);
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
      merge(key.piece);
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
    const unsigned char first = static_cast<unsigned char>(piece[0]);
    const std::size_t size = width(piece);
    if (first < 128) {
      ids_.push_back(ascii_[first]);
    } else if (const auto found = characters_.find(number(piece.substr(0, size))); found != characters_.end()) {
      ids_.push_back(found->second);
    } else {
      for (const char c : piece.substr(0, size)) ids_.push_back(bytes_[static_cast<unsigned char>(c)]);
    }
    piece.remove_prefix(size);
  }
}

// Again and again the merge of the lowest rank, the leftmost of several.
void BpeEncoder::merge_short() {
  const auto rank = [this](std::size_t at) {
    const Pair* const pair = find(ids_[at], ids_[at + 1]);
    return pair == nullptr ? kNone : pair->rank;
  };
  ranks_.clear();
  for (std::size_t i = 0; i + 1 < ids_.size(); ++i) ranks_.push_back(rank(i));
  while (!ranks_.empty()) {
    const std::size_t at = static_cast<std::size_t>(std::min_element(ranks_.begin(), ranks_.end()) - ranks_.begin());
    if (ranks_[at] == kNone) return;
    ids_[at] = find(ids_[at], ids_[at + 1])->result;
    ids_.erase(ids_.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    ranks_.erase(ranks_.begin() + static_cast<std::ptrdiff_t>(at));
    if (at > 0) ranks_[at - 1] = rank(at - 1);
    if (at < ranks_.size()) ranks_[at] = rank(at);
  }
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
