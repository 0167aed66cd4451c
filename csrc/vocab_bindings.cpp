#include "vocab_bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "arrays.h"
#include "sparsemax.h"
#include "weighted_rows.h"

namespace py = pybind11;

namespace megatron_adapt {

namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Ids = py::array_t<std::int64_t, py::array::c_style>;

void check_threads(std::int64_t threads) {
  if (threads < 1) throw py::value_error("there must be at least one thread");
}

py::tuple sparsemax_of(const Floats& scores, std::int64_t threads) {
  if (scores.ndim() != 2) throw py::value_error("scores must have two dimensions");
  check_threads(threads);
  const float* const data = scores.data();
  Weights found;
  {
    const py::gil_scoped_release released;
    found = sparsemax(data, scores.shape(0), scores.shape(1), threads);
  }
  return py::make_tuple(as_array(std::move(found.rows)), as_array(std::move(found.columns)), as_array(std::move(found.weights)));
}

void check_range(const Ids& values, std::int64_t size, const char* name) {
  const std::int64_t* const data = values.data();
  std::int64_t wrong = 0;
  for (py::ssize_t i = 0; i < values.size(); ++i) wrong |= static_cast<std::int64_t>(data[i] < 0 || data[i] >= size);
  if (values.ndim() != 1 || wrong != 0) throw py::value_error(std::string(name) + " must be rows of the matrix");
}

void weighted_rows_into(Floats& target, const Ids& places, const Floats& source, const Ids& starts, const Ids& ids,
                        const Floats& weights, std::int64_t threads) {
  if (source.ndim() != 2 || target.ndim() != 2 || source.shape(1) != target.shape(1)) {
    throw py::value_error("source and target must be matrices of the same width");
  }
  check_threads(threads);
  check_range(ids, source.shape(0), "ids");
  check_range(places, target.shape(0), "places");
  if (weights.ndim() != 1 || weights.size() != ids.size()) throw py::value_error("every id needs a weight");
  if (starts.ndim() != 1 || starts.size() != places.size() + 1) throw py::value_error("starts must be one more than places");
  check_offsets(starts, ids.size(), "starts");
  const std::int64_t width = source.shape(1), rows = places.size();
  float* const out = target.mutable_data();  // throws where it must not be written to
  const float *const from = source.data(), *const by = weights.data();
  const std::int64_t *const begins = starts.data(), *const chosen = ids.data(), *const where = places.data();
  const py::gil_scoped_release released;
  weighted_rows(from, width, begins, chosen, by, rows, where, out, threads);
}

using Doubles = py::array_t<double, py::array::c_style>;

void add_columns_to(Doubles& totals, const Floats& source, const std::optional<Doubles>& centre, std::int64_t threads) {
  const auto fits = [&](const Doubles& values) { return values.ndim() == 1 && values.size() == source.shape(1); };
  if (source.ndim() != 2 || !fits(totals) || (centre && !fits(*centre))) {
    throw py::value_error("totals and centre must have a value for each column of the matrix");
  }
  check_threads(threads);
  double* const out = totals.mutable_data();
  const double* const from = centre ? centre->data() : nullptr;
  const float* const data = source.data();
  const std::int64_t rows = source.shape(0), width = source.shape(1);
  const py::gil_scoped_release released;
  add_columns(data, rows, width, from, out, threads);
}

}  // namespace

void bind_vocab(py::module_& module) {
  module.def("sparsemax", &sparsemax_of, py::arg("scores").noconvert(), py::kw_only(), py::arg("threads"),
             "(rows int64, columns int64, weights float64) of the positive weights; see csrc/sparsemax.h.");
  module.def("weighted_rows", &weighted_rows_into, py::arg("target").noconvert(), py::arg("places").noconvert(),
             py::arg("source").noconvert(), py::arg("starts").noconvert(), py::arg("ids").noconvert(),
             py::arg("weights").noconvert(), py::kw_only(), py::arg("threads"),
             "Weighted sums of rows of source into the rows `places` of target, float32; see csrc/weighted_rows.h.");
  module.def("add_columns", &add_columns_to, py::arg("totals").noconvert(), py::arg("source").noconvert(),
             py::arg("centre").noconvert(), py::kw_only(), py::arg("threads"),
             "Adds the columns of a float32 matrix, or their squared distances from a centre, to float64 totals; see "
             "csrc/weighted_rows.h.");
}

}  // namespace megatron_adapt
