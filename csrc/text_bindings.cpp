#include "text_bindings.h"

#include <fcntl.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <utility>

#include "arrays.h"
#include "bpe.h"
#include "documents.h"
#include "heap.h"
#include "sequences.h"
#include "tokenizer_json.h"

namespace py = pybind11;

namespace megatron_adapt {

namespace {

py::tuple take(DocumentScanner& scanner) {
  Documents documents = scanner.take();
  const py::ssize_t size = static_cast<py::ssize_t>(documents.size);
  const py::capsule free(documents.text.get(), [](void* pointer) { std::free(pointer); });
  py::array_t<std::uint8_t> text(size, reinterpret_cast<const std::uint8_t*>(documents.text.release()), free);
  return py::make_tuple(std::move(text), as_array(std::move(documents.offsets)), as_array(std::move(documents.lines)));
}

std::unique_ptr<DocumentScanner> make_scanner(std::string key, const std::string& kind) {
  using Kind = DocumentScanner::Kind;
  if (kind != "json" && kind != "lines" && kind != "text") throw py::value_error("documents are of json, lines or text");
  const Kind text = kind == "lines" ? Kind::lines : Kind::blocks;
  return std::make_unique<DocumentScanner>(std::move(key), kind == "json" ? Kind::json : text);
}

std::string_view view(const py::buffer_info& buffer) {
  if (buffer.itemsize != 1 || buffer.ndim != 1 || buffer.strides[0] != 1) throw py::value_error("data must be contiguous bytes");
  return {static_cast<const char*>(buffer.ptr), static_cast<std::size_t>(buffer.size)};
}

std::pair<std::size_t, std::size_t> scan(DocumentScanner& scanner, const py::buffer& data, std::size_t begin) {
  const py::buffer_info buffer = data.request();
  const std::string_view bytes = view(buffer);
  if (begin > bytes.size()) throw py::value_error("begin is behind the data");
  const py::gil_scoped_release released;
  const DocumentScanner::Odd odd = scanner.scan(bytes, begin);
  return {odd.begin, odd.end};
}

using Bytes = py::array_t<std::uint8_t, py::array::c_style>;

std::unique_ptr<BpeEncoder> make_bpe(const TokenizerJson& json, bool prefix, bool unless_space, bool words) {
  using Prefix = BpeEncoder::Prefix;
  const Prefix kind = !prefix ? Prefix::none : unless_space ? Prefix::unless_space : Prefix::always;
  return std::make_unique<BpeEncoder>(json.tokens(), json.numbered_merges(), kind, words);
}

// Python's strings: surrogates cannot come, since JSON with lone ones is refused.
py::str string(std::string_view text) { return py::str(text.data(), text.size()); }

py::tuple encode_texts(BpeEncoder& encoder, const Bytes& text, const Offsets& offsets) {
  check_offsets(offsets, text.size(), "offsets");
  Ids ids;
  std::vector<std::int64_t> starts;
  {
    const char* const data = reinterpret_cast<const char*>(text.data());
    const std::size_t texts = static_cast<std::size_t>(offsets.size() - 1);
    const py::gil_scoped_release released;
    encoder.encode(data, offsets.data(), texts, ids, starts);
  }
  const py::ssize_t size = static_cast<py::ssize_t>(ids.size());
  const py::capsule free(ids.data(), [](void* pointer) { std::free(pointer); });
  return py::make_tuple(py::array_t<std::uint32_t>(size, ids.release(), free), as_array(std::move(starts)));
}

template <typename Out, typename In>
py::tuple build_as(const py::array& ids, const Offsets& id_offsets, const Offsets& text_offsets, const Offsets& first_text,
                   const SequenceOptions& options) {
  std::vector<Out> out;
  std::vector<std::int32_t> sizes, texts;
  SequenceCounts counts;
  {
    const In* const data = static_cast<const In*>(ids.data());
    const std::size_t documents = static_cast<std::size_t>(first_text.size() - 1);
    const py::gil_scoped_release released;
    out.reserve(static_cast<std::size_t>(ids.size()) + 2 * documents);
    counts = build_sequences<Out, In>(data, id_offsets.data(), text_offsets.data(), first_text.data(), documents, options,
                                      out, sizes, texts);
  }
  py::dict found;
  found["documents"] = counts.documents;
  found["empty"] = counts.empty;
  found["bytes"] = counts.bytes;
  found["unknown_tokens"] = counts.unknown;
  return py::make_tuple(as_array(std::move(out)), as_array(std::move(sizes)), as_array(std::move(texts)), found);
}

template <typename Out>
py::tuple build(const py::array& ids, const Offsets& id_offsets, const Offsets& text_offsets, const Offsets& first_text,
                const SequenceOptions& options) {
  if (py::isinstance<py::array_t<std::uint32_t>>(ids)) {
    return build_as<Out, std::uint32_t>(ids, id_offsets, text_offsets, first_text, options);
  }
  if (py::isinstance<py::array_t<std::int32_t>>(ids)) {
    return build_as<Out, std::int32_t>(ids, id_offsets, text_offsets, first_text, options);
  }
  if (py::isinstance<py::array_t<std::int64_t>>(ids)) {
    return build_as<Out, std::int64_t>(ids, id_offsets, text_offsets, first_text, options);
  }
  throw py::type_error("ids must be int32, uint32 or int64");
}

py::tuple sequences(const py::array& ids, const Offsets& id_offsets, const Offsets& text_offsets, const Offsets& first_text,
                    std::int64_t bos, std::int64_t eod, std::int64_t unknown, std::uint64_t vocab_size, bool uint16) {
  if (ids.ndim() != 1 || (ids.flags() & py::array::c_style) == 0) throw py::value_error("ids must be flat and contiguous");
  if (vocab_size == 0 || vocab_size > std::uint64_t{1} << 31 || (uint16 && vocab_size > std::uint64_t{1} << 16)) {
    throw py::value_error("a vocabulary of " + std::to_string(vocab_size) + " ids cannot be stored in this type");
  }
  if (bos >= static_cast<std::int64_t>(vocab_size) || eod >= static_cast<std::int64_t>(vocab_size)) {
    throw py::value_error("BOS or EOD is outside the vocabulary");
  }
  check_offsets(id_offsets, ids.size(), "id_offsets");
  check_offsets(first_text, id_offsets.size() - 1, "first_text");
  if (text_offsets.ndim() != 1 || text_offsets.size() != id_offsets.size()) {
    throw py::value_error("text_offsets and id_offsets must be of the same texts");
  }
  const SequenceOptions options{bos, eod, unknown, vocab_size};
  return uint16 ? build<std::uint16_t>(ids, id_offsets, text_offsets, first_text, options)
                : build<std::int32_t>(ids, id_offsets, text_offsets, first_text, options);
}

void start_writeback([[maybe_unused]] int descriptor, [[maybe_unused]] std::int64_t offset, [[maybe_unused]] std::int64_t bytes) {
#ifdef SYNC_FILE_RANGE_WRITE
  // Only a hint, so that the final fsync finds little left to do: its errors come back from fsync.
  const py::gil_scoped_release released;
  static_cast<void>(::sync_file_range(descriptor, offset, bytes, SYNC_FILE_RANGE_WRITE));
#endif
}

}  // namespace

void bind_text(py::module_& module) {
  py::class_<DocumentScanner>(module, "DocumentScanner", "Documents of JSON lines or of plain text; see csrc/documents.h.")
      .def(py::init(&make_scanner), py::arg("key"), py::arg("kind"))
      .def("scan", &scan, py::arg("data"), py::arg("begin") = 0,
           "Read whole lines up to what Python has to decide; returns where that begins and ends.")
      .def("push", [](DocumentScanner& scanner, const py::bytes& text) { scanner.push(static_cast<std::string_view>(text)); },
           py::arg("text"), "Add a document decided by the caller.")
      .def("pass_", [](DocumentScanner& scanner, const py::bytes& odd) { scanner.pass(static_cast<std::string_view>(odd)); },
           py::arg("odd"), "Count the lines of what the caller has decided.")
      .def("take", &take, "(text uint8, offsets int64 [documents + 1], line of each document from 0 int64); starts afresh.")
      .def_property_readonly("lines", &DocumentScanner::lines)
      .def("__len__", &DocumentScanner::count);
  py::class_<TokenizerJson>(module, "TokenizerJson", "Vocabulary and merges of a tokenizer.json; see csrc/tokenizer_json.h.")
      .def(py::init([](const py::bytes& text) { return std::make_unique<TokenizerJson>(static_cast<std::string>(text)); }),
           py::arg("text"))
      .def("find", [](const TokenizerJson& json, std::string_view token) {
             const std::uint32_t id = json.find(token);
             return id == TokenizerJson::kNone ? std::nullopt : std::optional(id);
           }, py::arg("token"), "Id of a token of the vocabulary, None of others.")
      .def("__len__", [](const TokenizerJson& json) { return json.tokens().size(); }, "Highest id + 1.")
      .def_property_readonly("count", [](const TokenizerJson& json) {
             return std::count_if(json.tokens().begin(), json.tokens().end(), [](auto token) { return token.data() != nullptr; });
           }, "Tokens: as many as ids where these have no holes.")
      .def_property_readonly("rest", [](const TokenizerJson& json) { return string(json.rest()); })
      .def_property_readonly("compact", [](const TokenizerJson& json) { return py::bytes(json.compact()); })
      .def_property_readonly("vocabulary", [](const TokenizerJson& json) { return string(json.vocabulary()); })
      .def_property_readonly("merges", [](const TokenizerJson& json) { return string(json.merges()); })
      .def_property_readonly("canonical_vocabulary", [](const TokenizerJson& json) { return as_array(json.canonical_vocabulary()); })
      .def_property_readonly("canonical_merges", [](const TokenizerJson& json) { return as_array(json.canonical_merges()); });
  py::class_<BpeEncoder>(module, "BpeEncoder", "Byte pair encoding of sentencepiece's and GPT-2's kind; see csrc/bpe.h.")
      .def(py::init(&make_bpe), py::arg("json"), py::kw_only(), py::arg("prefix"), py::arg("unless_space"),
           py::arg("words"))
      .def("encode", &encode_texts, py::arg("text"), py::arg("offsets"),
           "ids uint32 of all texts and where each begins int64 [texts + 1], for UTF-8 uint8 and offsets [texts + 1].");
  module.def("sequences", &sequences, py::arg("ids"), py::arg("id_offsets"), py::arg("text_offsets"), py::arg("first_text"),
             py::kw_only(), py::arg("bos"), py::arg("eod"), py::arg("unknown"), py::arg("vocab_size"), py::arg("uint16"),
             "(ids as stored, size of each sequence, sequences of each document, counts); see csrc/sequences.h.");
  module.def("prepare_heap", &prepare_heap, "For a process that does the same again and again; see csrc/heap.h.");
  module.def("start_writeback", &start_writeback, py::arg("descriptor"), py::arg("offset"), py::arg("bytes"),
             "Let the kernel begin to write a part of a file to the disk.");
}

}  // namespace megatron_adapt
