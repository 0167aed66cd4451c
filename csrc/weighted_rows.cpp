#include "weighted_rows.h"

#include <algorithm>
#include <type_traits>

#include "parallel.h"

namespace megatron_adapt {

namespace {

constexpr std::int64_t kTile = 16;  // values summed up at a time: they stay in registers, and are a line of the cache

template <typename Size>
void add_tile(const float* source, std::int64_t width, Size size, const std::int64_t* ids, const float* weights,
              std::int64_t entries, float* target) {
  float sums[kTile] = {};
  for (std::int64_t k = 0; k < entries; ++k) {
    const float* const row = source + ids[k] * width;
    for (std::int64_t j = 0; j < size; ++j) sums[j] += weights[k] * row[j];
  }
  std::copy_n(sums, size, target);
}

}  // namespace

void weighted_rows(const float* source, std::int64_t width, const std::int64_t* starts, const std::int64_t* ids,
                   const float* weights, std::int64_t rows, const std::int64_t* places, float* target,
                   std::int64_t threads) {
  in_parts(rows, threads, [&](std::int64_t, std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      const std::int64_t begin = starts[i], entries = starts[i + 1] - begin;
      float* const out = target + places[i] * width;
      std::int64_t j = 0;
      for (; j + kTile <= width; j += kTile) {
        add_tile(source + j, width, std::integral_constant<std::int64_t, kTile>(), ids + begin, weights + begin, entries, out + j);
      }
      if (j < width) add_tile(source + j, width, width - j, ids + begin, weights + begin, entries, out + j);
    }
  });
}

void add_columns(const float* source, std::int64_t rows, std::int64_t width, const double* centre, double* totals,
                 std::int64_t threads) {
  in_parts(width, threads, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = 0; i < rows; ++i) {
      const float* const row = source + i * width;
      if (centre == nullptr) {
        for (std::int64_t j = begin; j < end; ++j) totals[j] += row[j];
      } else {
        for (std::int64_t j = begin; j < end; ++j) totals[j] += (row[j] - centre[j]) * (row[j] - centre[j]);
      }
    }
  });
}

}  // namespace megatron_adapt
