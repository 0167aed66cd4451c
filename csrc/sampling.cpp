#include "sampling.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "indexed_dataset.h"

namespace megatron_adapt {

namespace {

// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit integers that scatters them.
std::uint64_t scatter(std::uint64_t z) {
  z += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

}  // namespace

// ---------------------------------------------------------------------------------------------- Permutation

Permutation::Permutation(std::uint64_t size, std::uint64_t key)
    : size_(size), column_bits_(0), rounds_(size < kFew ? kRoundsOfFew : kRounds) {
  if (size == 0 || size > std::uint64_t{1} << 62) {
    throw ValueError("a permutation of " + std::to_string(size) + " places; it must have 1 to 2^62");
  }
  // Columns are a power of two, so that no place is divided; about as many as rows.
  while (column_bits_ < 31 && std::uint64_t{1} << (2 * (column_bits_ + 1)) <= size) ++column_bits_;
  column_mask_ = (std::uint64_t{1} << column_bits_) - 1;
  rows_ = (size + column_mask_) >> column_bits_;
  for (Hash& hash : hashes_) {
    hash.mask = key = scatter(key);
    hash.factor = (key = scatter(key)) | 1;  // an odd factor loses no bit
  }
}

inline std::uint64_t Permutation::shift(std::uint64_t place) const {
  std::uint64_t row = place >> column_bits_, column = place & column_mask_;
  for (std::size_t round = 0; round < rounds_; round += 2) {
    row += hashes_[round](column) * rows_ >> 32;  // by a number below rows
    row -= row >= rows_ ? rows_ : 0;
    column = (column + hashes_[round + 1](row)) & column_mask_;
  }
  return row << column_bits_ | column;
}

std::uint64_t Permutation::operator()(std::uint64_t place) const {
  do {
    place = shift(place);
  } while (place >= size_);
  return place;
}

void Permutation::many(std::uint64_t first, std::size_t count, std::uint64_t* out) const {
  std::uint64_t row[kMany], column[kMany];
  for (std::size_t i = 0; i < count; ++i) {
    row[i] = (first + i) >> column_bits_;
    column[i] = (first + i) & column_mask_;
  }
  for (std::size_t round = 0; round < rounds_; round += 2) {
    for (std::size_t i = 0; i < count; ++i) {
      row[i] += hashes_[round](column[i]) * rows_ >> 32;
      row[i] -= row[i] >= rows_ ? rows_ : 0;
      column[i] = (column[i] + hashes_[round + 1](row[i])) & column_mask_;
    }
  }
  for (std::size_t i = 0; i < count; ++i) {
    out[i] = row[i] << column_bits_ | column[i];
    if (out[i] >= size_) out[i] = (*this)(out[i]);
  }
}

// ---------------------------------------------------------------------------------------------- DocumentOrder

inline std::int64_t Sizes::operator[](std::uint64_t document) const {
  if (is_wide_) {
    std::int64_t size;
    std::memcpy(&size, data_ + document * sizeof size, sizeof size);
    return size;
  }
  std::int32_t size;
  std::memcpy(&size, data_ + document * sizeof size, sizeof size);
  return size;
}

Subset DocumentOrder::subset(const Sizes& sizes, std::uint64_t key, std::int64_t tokens) {
  const Permutation chosen(sizes.count(), key);
  Subset found;
  std::int64_t before = 0;
  while (found.documents < sizes.count()) {
    const std::int64_t size = sizes[chosen(found.documents++)];
    if (before + size >= tokens) {
      found.last_size = tokens - before;
      return found;
    }
    before += size;
  }
  throw ValueError("a subset of " + std::to_string(tokens) + " tokens of a corpus of " + std::to_string(before));
}

DocumentOrder::DocumentOrder(const Sizes& sizes, std::uint64_t copies, std::uint64_t key)
    : sizes_(sizes), copies_(copies), is_subset_(false), subset_{sizes.count(), 0}, chosen_(sizes.count(), 0),
      order_(sizes.count() * copies, key) {}

DocumentOrder::DocumentOrder(const Sizes& sizes, std::uint64_t copies, std::uint64_t key, const Subset& subset,
                             std::uint64_t subset_key)
    : sizes_(sizes), copies_(copies), is_subset_(true), subset_(subset), chosen_(sizes.count(), subset_key),
      order_(subset.documents * copies, key) {
  if (subset.documents > sizes.count()) throw ValueError("a subset of more documents than there are");
}

inline std::uint64_t DocumentOrder::document(std::uint64_t place, std::int64_t& size) const {
  std::uint64_t document = order_(place);
  if (copies_ > 1) document %= subset_.documents;
  if (!is_subset_) {
    size = sizes_[document];
    return document;
  }
  const bool is_last = document + 1 == subset_.documents;
  document = chosen_(document);
  size = is_last ? subset_.last_size : sizes_[document];
  return document;
}

std::vector<std::int64_t> DocumentOrder::starts() const {
  std::vector<std::int64_t> starts;
  starts.reserve(blocks() + 1);
  std::int64_t before = 0;
  std::uint64_t documents[kBlock];
  for (std::uint64_t first = 0; first < order_.size(); first += kBlock) {
    starts.push_back(before);
    const std::uint64_t count = std::min(kBlock, order_.size() - first);
    if (!is_subset_ && copies_ == 1) {  // the common case, several times faster
      order_.many(first, count, documents);
      for (std::uint64_t i = 0; i < count; ++i) before += sizes_[documents[i]];
      continue;
    }
    for (std::uint64_t place = first; place < first + count; ++place) {
      std::int64_t size;
      document(place, size);
      before += size;
    }
  }
  starts.push_back(before);
  return starts;
}

std::vector<Piece> DocumentOrder::pieces(const std::int64_t* starts, std::size_t count, std::int64_t begin,
                                         std::int64_t end) const {
  const ValueError foreign("the index of the order of documents is damaged or belongs to another corpus");
  if (count != blocks() + 1 || starts[0] != 0) throw foreign;
  if (begin < 0 || begin > end || end > starts[count - 1]) {
    throw ValueError("tokens " + std::to_string(begin) + " to " + std::to_string(end) + " of a stream of " +
                     std::to_string(starts[count - 1]));
  }
  std::vector<Piece> found;
  if (begin == end) return found;
  std::uint64_t block = static_cast<std::uint64_t>(std::upper_bound(starts, starts + count, begin) - starts) - 1;
  std::int64_t before = starts[block];
  for (std::uint64_t place = block * kBlock; place < order_.size() && before < end; ++place) {
    if (place % kBlock == 0 && before != starts[block++]) throw foreign;
    std::int64_t size;
    const std::uint64_t number = document(place, size);
    const std::int64_t first = std::max<std::int64_t>(begin - before, 0), last = std::min(end - before, size);
    if (first < last) found.push_back({static_cast<std::int64_t>(number), first, last});
    before += size;
  }
  if (before < end) throw foreign;
  return found;
}

}  // namespace megatron_adapt
