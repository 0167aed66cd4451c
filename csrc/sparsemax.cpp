#include "sparsemax.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "parallel.h"

namespace megatron_adapt {

namespace {

constexpr std::int64_t kLanes = 64;  // scores compared at a time
constexpr float kLowest = -std::numeric_limits<float>::infinity();

struct Entry {
  float score;
  std::int64_t column;
};

struct Projection {
  std::int64_t support;  // so many entries weigh something
  double largest, tau;   // tau is relative to the largest entry, so that large scores do not swallow the 1
};

// Moves the entries that weigh something to the front. Michelot (1986): those at or below (sum - 1) / count weigh nothing;
// without them that grows, until all that are left are above it.
Projection project(Entry* entries, std::int64_t count) {
  Projection found{count, kLowest, 0};
  for (std::int64_t i = 0; i < count; ++i) found.largest = std::max<double>(found.largest, entries[i].score);
  for (std::int64_t left = -1; left != found.support;) {
    left = found.support;
    double sum = -1;
    for (std::int64_t i = 0; i < left; ++i) sum += entries[i].score - found.largest;
    found.tau = sum / static_cast<double>(left);
    found.support = 0;
    for (std::int64_t i = 0; i < left; ++i) {
      const Entry entry = entries[i];
      entries[found.support] = entry;
      found.support += static_cast<std::int64_t>(entry.score - found.largest > found.tau);
    }
  }
  return found;
}

// What scores have to be above to weigh anything, or a little less: that of a part of the row, the largest of each
// kLanes-th column. A whole has no smaller tau than its parts.
float lower_bound(const float* scores, std::int64_t columns) {
  if (columns < kLanes) return kLowest;
  float most[kLanes];
  std::fill_n(most, kLanes, kLowest);
  for (std::int64_t begin = 0; begin + kLanes <= columns; begin += kLanes) {
    for (std::int64_t k = 0; k < kLanes; ++k) most[k] = scores[begin + k] > most[k] ? scores[begin + k] : most[k];
  }
  Entry entries[kLanes];
  for (std::int64_t k = 0; k < kLanes; ++k) entries[k] = {most[k], k};
  const Projection part = project(entries, kLanes);
  return std::nextafter(static_cast<float>(part.largest + part.tau), kLowest);
}

// Columns whose score is above the bound, into `entries` [columns]; returns their number.
std::int64_t collect(const float* scores, std::int64_t columns, float bound, Entry* entries) {
  std::int64_t count = 0;
  for (std::int64_t begin = 0; begin < columns; begin += kLanes) {
    const std::int64_t end = std::min(begin + kLanes, columns);
    if (end - begin == kLanes) {
      int above = 0;
      for (std::int64_t k = 0; k < kLanes; ++k) above |= static_cast<int>(scores[begin + k] > bound);
      if (above == 0) continue;
    }
    for (std::int64_t column = begin; column < end; ++column) {
      entries[count] = {scores[column], column};
      count += static_cast<std::int64_t>(scores[column] > bound);
    }
  }
  return count;
}

template <typename T>
void append(std::vector<T>& all, const std::vector<T>& part) {
  all.insert(all.end(), part.begin(), part.end());
}

}  // namespace

Weights sparsemax(const float* scores, std::int64_t rows, std::int64_t columns, std::int64_t threads) {
  std::vector<Weights> parts(static_cast<std::size_t>(threads));
  in_parts(rows, threads, [&](std::int64_t part, std::int64_t begin, std::int64_t end) {
    std::vector<Entry> entries(static_cast<std::size_t>(columns));
    Weights& found = parts[static_cast<std::size_t>(part)];
    for (std::int64_t row = begin; row < end; ++row) {
      const float* const here = scores + row * columns;
      const std::int64_t count = collect(here, columns, lower_bound(here, columns), entries.data());
      const Projection all = project(entries.data(), count);
      for (std::int64_t i = 0; i < all.support; ++i) {
        found.rows.push_back(row);
        found.columns.push_back(entries[static_cast<std::size_t>(i)].column);
        found.weights.push_back(entries[static_cast<std::size_t>(i)].score - all.largest - all.tau);
      }
    }
  });
  Weights all = std::move(parts[0]);
  for (std::size_t part = 1; part < parts.size(); ++part) {
    append(all.rows, parts[part].rows);
    append(all.columns, parts[part].columns);
    append(all.weights, parts[part].weights);
  }
  return all;
}

}  // namespace megatron_adapt
