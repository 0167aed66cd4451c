// Projection of rows of scores onto the simplex (Martins & Astudillo 2016) without sorting them.

#pragma once

#include <cstdint>
#include <vector>

namespace megatron_adapt {

struct Weights {
  std::vector<std::int64_t> rows, columns;
  std::vector<double> weights;
};

// The positive entries of max(z - tau, 0) for every row z of `scores` [rows, columns], with tau such that they sum to 1;
// by row, then by column. Computed in float64, and the same on any number of threads. Values that are not finite weigh
// nothing, nor do others beside positive infinity.
Weights sparsemax(const float* scores, std::int64_t rows, std::int64_t columns, std::int64_t threads);

}  // namespace megatron_adapt
