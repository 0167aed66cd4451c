// megatron_adapt._C: numpy in, GIL released during the work, C++ exceptions as Python ones.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cerrno>
#include <optional>

#include "crc32.h"
#include "filter_bindings.h"
#include "indexed_dataset.h"
#include "merge.h"
#include "sampling.h"
#include "text_bindings.h"
#include "vocab_bindings.h"

namespace py = pybind11;
using megatron_adapt::FileError;
using megatron_adapt::IndexedWriter;

namespace {

// Raised together with INTERFACE of megatron_adapt/__init__.py whenever a name, an argument or a meaning below or in the
// other *bindings.cpp changes: an extension that is older than the Python files is recognised by it.
constexpr int kInterface = 6;

using Lengths = py::array_t<std::int64_t, py::array::c_style>;

// False where the array does not hold Id.
template <typename Id>
bool add_as(IndexedWriter& writer, const py::array& ids, const Lengths& lengths) {
  if (!py::isinstance<py::array_t<Id>>(ids)) return false;
  const Id* data = static_cast<const Id*>(ids.data());
  const std::size_t count = static_cast<std::size_t>(ids.size());
  const std::int64_t* length_data = lengths.data();
  const std::size_t documents = static_cast<std::size_t>(lengths.size());
  const py::gil_scoped_release released;
  writer.add(data, count, length_data, documents);
  return true;
}

void add(IndexedWriter& writer, const py::array& ids, const Lengths& lengths) {
  constexpr int kNeeded = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if (ids.ndim() != 1 || lengths.ndim() != 1 || (ids.flags() & kNeeded) != kNeeded) {
    throw py::value_error("ids and lengths must be one-dimensional, contiguous and aligned arrays");
  }
  const bool added = add_as<std::int32_t>(writer, ids, lengths) || add_as<std::int64_t>(writer, ids, lengths) ||
                     add_as<std::uint16_t>(writer, ids, lengths) || add_as<std::uint32_t>(writer, ids, lengths) ||
                     add_as<std::int16_t>(writer, ids, lengths) || add_as<std::uint64_t>(writer, ids, lengths) ||
                     add_as<std::int8_t>(writer, ids, lengths) || add_as<std::uint8_t>(writer, ids, lengths);
  if (!added) throw py::type_error("ids must be integers in native byte order");
}

std::pair<std::uint64_t, std::uint64_t> merge_indexed(const std::vector<std::string>& prefixes,
                                                      const std::string& output, bool masked) {
  const py::gil_scoped_release released;
  const auto pause = [] {
    const py::gil_scoped_acquire acquired;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  };
  const megatron_adapt::Merged merged = megatron_adapt::merge_indexed(prefixes, output, masked, pause);
  return {merged.documents, merged.tokens};
}

// ---------------------------------------------------------------------------------------------- sampling

using megatron_adapt::DocumentOrder;
using megatron_adapt::Sizes;
using Positions = py::array_t<std::int64_t, py::array::c_style>;

// The array must outlive what is returned. It may be unaligned: a view into an index file is.
Sizes sizes_of(const py::array& sizes) {
  const bool is_wide = py::isinstance<py::array_t<std::int64_t>>(sizes);
  const bool is_known = is_wide || py::isinstance<py::array_t<std::int32_t>>(sizes);
  if (sizes.ndim() != 1 || !is_known || (sizes.flags() & py::array::c_style) == 0) {
    throw py::type_error("sizes must be one contiguous dimension of int32 or int64");
  }
  return Sizes(sizes.data(), static_cast<std::size_t>(sizes.size()), is_wide);
}

Positions to_array(const std::vector<std::int64_t>& values) {
  return Positions(static_cast<py::ssize_t>(values.size()), values.data());
}

Positions starts(const DocumentOrder& order) {
  std::vector<std::int64_t> found;
  {
    const py::gil_scoped_release released;
    found = order.starts();
  }
  return to_array(found);
}

Positions pieces(const DocumentOrder& order, const Positions& starts, std::int64_t begin, std::int64_t end) {
  const auto found = order.pieces(starts.data(), static_cast<std::size_t>(starts.size()), begin, end);
  Positions array({static_cast<py::ssize_t>(found.size()), py::ssize_t{3}});
  std::int64_t* out = array.mutable_data();
  for (const megatron_adapt::Piece& piece : found) {
    *out++ = piece.document;
    *out++ = piece.begin;
    *out++ = piece.end;
  }
  return array;
}

DocumentOrder make_order(const py::array& sizes, std::uint64_t copies, std::uint64_t key,
                         const std::optional<std::pair<std::uint64_t, std::int64_t>>& subset, std::uint64_t subset_key) {
  if (!subset) return DocumentOrder(sizes_of(sizes), copies, key);
  return DocumentOrder(sizes_of(sizes), copies, key, {subset->first, subset->second}, subset_key);
}

std::pair<std::uint64_t, std::int64_t> find_subset(const py::array& sizes, std::uint64_t key, std::int64_t tokens) {
  const Sizes view = sizes_of(sizes);
  const py::gil_scoped_release released;
  const megatron_adapt::Subset found = DocumentOrder::subset(view, key, tokens);
  return {found.documents, found.last_size};
}

Positions permute(const Positions& places, std::uint64_t size, std::uint64_t key) {
  const megatron_adapt::Permutation permutation(size, key);
  std::vector<std::int64_t> found(static_cast<std::size_t>(places.size()));
  for (std::size_t i = 0; i < found.size(); ++i) {
    const std::uint64_t place = static_cast<std::uint64_t>(places.data()[i]);
    if (place >= size) throw py::index_error("a place outside the permutation");
    found[i] = static_cast<std::int64_t>(permutation(place));
  }
  return to_array(found);
}

std::uint32_t crc32(const py::buffer& data, std::uint32_t value) {
  const py::buffer_info info = data.request();
  if (PyBuffer_IsContiguous(info.view(), 'C') == 0) throw py::value_error("data must be contiguous");
  const auto size = static_cast<std::size_t>(info.size) * static_cast<std::size_t>(info.itemsize);
  const py::gil_scoped_release released;
  return megatron_adapt::crc32(info.ptr, size, value);
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "The compiled part of megatron_adapt.";
  module.attr("interface") = kInterface;
  megatron_adapt::bind_text(module);
  megatron_adapt::bind_vocab(module);
  megatron_adapt::bind_filters(module);

  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const FileError& error) {
      errno = error.code;
      PyErr_SetFromErrnoWithFilename(PyExc_OSError, error.path.c_str());
    } catch (const megatron_adapt::ValueError& error) {
      PyErr_SetString(PyExc_ValueError, error.what());
    }
  });

  py::class_<IndexedWriter>(module, "IndexedWriter", "Writer of PREFIX.bin and PREFIX.idx; see csrc/indexed_dataset.h.")
      .def(py::init<std::string, std::uint64_t>(), py::arg("prefix"), py::arg("vocab_size"),
           py::call_guard<py::gil_scoped_release>())
      .def("add", &add, py::arg("ids"), py::arg("lengths"),
           "Append documents: ids is one flat integer array, lengths (int64) the number of ids of each document.")
      .def("sync", &IndexedWriter::sync, py::call_guard<py::gil_scoped_release>(),
           "Complete the files on disk, still under their temporary names.")
      .def("finish", &IndexedWriter::finish, py::call_guard<py::gil_scoped_release>(),
           "Give the files their final names.")
      .def("abandon", &IndexedWriter::abandon, py::call_guard<py::gil_scoped_release>(), "Remove what was written.")
      .def_property_readonly("num_documents", &IndexedWriter::num_documents)
      .def_property_readonly("num_tokens", &IndexedWriter::num_tokens)
      .def_property_readonly("is_uint16", &IndexedWriter::is_uint16);

  module.def("crc32", &crc32, py::arg("data"), py::arg("value") = 0,
             "zlib.crc32; see csrc/crc32.h.");
  module.def("crc32_is_fast", &megatron_adapt::crc32_is_fast, "Whether it is faster than zlib.crc32.");

  module.def("merge_indexed", &merge_indexed, py::arg("prefixes"), py::arg("output_prefix"), py::arg("masked"),
             "Merge datasets in constant memory; returns (documents, tokens). See csrc/merge.h.");

  py::class_<DocumentOrder>(module, "DocumentOrder", "A random order of documents as a stream; see csrc/sampling.h.")
      .def(py::init(&make_order), py::keep_alive<1, 2>(), py::arg("sizes"), py::arg("copies"), py::arg("key"),
           py::arg("subset"), py::arg("subset_key"))
      .def("starts", &starts, "The index: tokens before every 64th document, and of all; int64.")
      .def("pieces", &pieces, py::arg("starts"), py::arg("begin"), py::arg("end"),
           "Tokens [begin, end) of the stream: [pieces, 3] int64 of document, begin and end within it.");
  module.def("find_subset", &find_subset, py::arg("sizes"), py::arg("key"), py::arg("tokens"),
             "(documents, tokens of the last one) of the subset of exactly so many tokens.");
  module.def("permute", &permute, py::arg("places"), py::arg("size"), py::arg("key"),
             "A permutation of 0 ... size - 1 at some places (int64, one dimension).");
}
