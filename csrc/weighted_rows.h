// Sums over the rows of a matrix: weighted ones of a few rows each, and of all.

#pragma once

#include <cstdint>

namespace megatron_adapt {

// Row places[i] of `target` becomes the sum of weights[k] * source[ids[k]] for k from starts[i] to starts[i + 1], added
// up in this order in float32; zeros where there is no k. Rows have `width` values; ids, places and starts are in range.
// The same on any number of threads.
void weighted_rows(const float* source, std::int64_t width, const std::int64_t* starts, const std::int64_t* ids,
                   const float* weights, std::int64_t rows, const std::int64_t* places, float* target, std::int64_t threads);

// Adds to totals[j] column j of all rows, or its squared distances from centre[j] where there is a centre. Rows are added
// in order, so that neither the number of threads shows nor how many rows come at a time.
void add_columns(const float* source, std::int64_t rows, std::int64_t width, const double* centre, double* totals,
                 std::int64_t threads);

}  // namespace megatron_adapt
