#include "filter_bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <string>

#include "arrays.h"
#include "duplicates.h"
#include "substrings.h"
#include "text_rules.h"

namespace py = pybind11;

namespace megatron_adapt {

namespace {

using Bytes = py::array_t<std::uint8_t, py::array::c_style>;
using Table = py::array_t<std::uint32_t, py::array::c_style>;

Texts texts_of(const Bytes& text, const Offsets& begins, const Offsets& ends, std::int64_t threads) {
  if (text.ndim() != 1 || begins.ndim() != 1 || ends.ndim() != 1 || begins.size() != ends.size()) {
    throw py::value_error("text, begins and ends must have one dimension, begins and ends as many elements");
  }
  if (threads < 1) throw py::value_error("threads must be at least 1");
  std::int64_t behind = 0;
  for (py::ssize_t i = 0; i < begins.size(); ++i) {
    if (begins.data()[i] < behind || ends.data()[i] < begins.data()[i]) throw py::value_error("documents must ascend and not overlap");
    behind = ends.data()[i];
  }
  if (behind > text.size()) throw py::value_error("a document ends behind the text");
  return {reinterpret_cast<const char*>(text.data()), begins.data(), ends.data(), begins.size()};
}

Folding folding_of(const Table& table) { return Folding(table.data(), static_cast<std::uint32_t>(table.size())); }

py::array_t<std::uint64_t> find_fingerprints(const Bytes& text, const Offsets& begins, const Offsets& ends, const Table& table,
                                             const std::string& compared, std::int64_t threads) {
  const Texts texts = texts_of(text, begins, ends, threads);
  if (compared != "bytes" && compared != "spaces" && compared != "letters") throw py::value_error("bytes, spaces or letters");
  const Compared kind = compared == "bytes" ? Compared::bytes : compared == "spaces" ? Compared::spaces : Compared::letters;
  py::array_t<std::uint64_t> found({static_cast<py::ssize_t>(texts.count), py::ssize_t{2}});
  std::uint64_t* const out = found.mutable_data();
  const Folding folding = folding_of(table);
  const py::gil_scoped_release released;
  fingerprints(texts, folding, kind, threads, out);
  return found;
}

py::tuple find_near(const Bytes& text, const Offsets& begins, const Offsets& ends, const Table& table, std::int64_t size,
                    bool of_characters, std::int64_t bands, std::int64_t rows, std::uint64_t seed, double threshold,
                    std::int64_t known, std::int64_t threads) {
  const Texts texts = texts_of(text, begins, ends, threads);
  if (size < 1 || bands < 1 || rows < 1 || !(threshold > 0 && threshold <= 1)) {
    throw py::value_error("sizes are at least 1, threshold is in (0, 1]");
  }
  NearDuplicates found;
  {
    const Folding folding = folding_of(table);
    const py::gil_scoped_release released;
    found = near_duplicates(texts, folding, {size, of_characters}, {bands, rows, seed}, threshold, known, threads);
  }
  return py::make_tuple(as_array(std::move(found.kept)), as_array(std::move(found.similarity)), found.verified, found.cut_short);
}

Search search_of(std::int64_t characters, std::int64_t memory, std::int64_t threads) {
  if (characters < 2 || characters > 100000) throw py::value_error("characters must be 2 to 100000");
  return {characters, memory, threads};
}

py::array_t<std::int64_t> find_spans(const Bytes& text, const Offsets& begins, const Offsets& ends, const Table& table,
                                     std::int64_t characters, bool whole_words, std::int64_t memory, std::int64_t threads) {
  const Texts texts = texts_of(text, begins, ends, threads);
  const Search search = search_of(characters, memory, threads);
  const Folding folding = folding_of(table);
  std::vector<Span> found;
  {
    const py::gil_scoped_release released;
    found = repeated_spans(texts, folding, search, whole_words);
  }
  py::array_t<std::int64_t> spans({static_cast<py::ssize_t>(found.size()), py::ssize_t{3}});
  std::int64_t* out = spans.mutable_data();
  for (const Span& span : found) *out++ = span.document, *out++ = span.begin, *out++ = span.end;
  return spans;
}

py::array_t<std::int64_t> find_repeating(const Bytes& text, const Offsets& begins, const Offsets& ends, std::int64_t characters,
                                         std::int64_t memory, std::int64_t known, std::int64_t threads) {
  const Texts texts = texts_of(text, begins, ends, threads);
  const Search search = search_of(characters, memory, threads);
  std::vector<std::int64_t> found;
  {
    const py::gil_scoped_release released;
    found = repeating_documents(texts, search, known);
  }
  return as_array(std::move(found));
}

py::array_t<std::int8_t> find_with_repeats(const Bytes& text, const Offsets& begins, const Offsets& ends, std::int64_t characters,
                                    std::int64_t memory, std::int64_t threads) {
  const Texts texts = texts_of(text, begins, ends, threads);
  const Search search = search_of(characters, memory, threads);
  std::vector<std::int8_t> found;
  {
    const py::gil_scoped_release released;
    found = documents_with_repeats(texts, search);
  }
  return as_array(std::move(found));
}

py::array_t<double> measure(const Bytes& text, const Offsets& begins, const Offsets& ends, const Table& table,
                            const py::bytes& stop_words, std::int64_t threads) {
  const Texts texts = texts_of(text, begins, ends, threads);
  const Folding folding = folding_of(table);
  const std::vector<std::uint64_t> stops = word_set(static_cast<std::string_view>(stop_words), folding);
  py::array_t<double> found({static_cast<py::ssize_t>(texts.count), static_cast<py::ssize_t>(kRuleColumns)});
  double* const out = found.mutable_data();
  const py::gil_scoped_release released;
  text_rules(texts, folding, stops, threads, out);
  return found;
}

}  // namespace

void bind_filters(py::module_& module) {
  const auto text = py::arg("text"), begins = py::arg("begins"), ends = py::arg("ends");
  module.def("fingerprints", &find_fingerprints, text, begins, ends, py::arg("table"), py::kw_only(), py::arg("compared"),
             py::arg("threads"), "[documents, 2] uint64, see csrc/duplicates.h; text uint8, begins and ends int64 [documents].");
  module.def("near_duplicates", &find_near, text, begins, ends, py::arg("table"), py::kw_only(), py::arg("size"),
             py::arg("of_characters"), py::arg("bands"), py::arg("rows"), py::arg("seed"), py::arg("threshold"),
             py::arg("known") = 0, py::arg("threads"),
             "(document that each repeats or -1, their similarity, pairs verified, documents cut short); see csrc/duplicates.h.");
  module.def("repeated_spans", &find_spans, text, begins, ends, py::arg("table"), py::kw_only(), py::arg("characters"),
             py::arg("whole_words"), py::arg("memory"), py::arg("threads"),
             "[spans, 3] int64 of document, begin and end in text; see csrc/substrings.h.");
  module.def("repeating_documents", &find_repeating, text, begins, ends, py::kw_only(), py::arg("characters"), py::arg("memory"),
             py::arg("known") = 0, py::arg("threads"),
             "For each document the kept one that it shares a substring with, or -1; see csrc/substrings.h.");
  module.def("documents_with_repeats", &find_with_repeats, text, begins, ends, py::kw_only(), py::arg("characters"),
             py::arg("memory"), py::arg("threads"), "int8 [documents]; see csrc/substrings.h.");
  module.def("text_rules", &measure, text, begins, ends, py::arg("table"), py::kw_only(), py::arg("stop_words"), py::arg("threads"),
             "[documents, 24] float64; see csrc/text_rules.h.");
}

}  // namespace megatron_adapt
