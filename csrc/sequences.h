// Ids of many texts -> what a .bin file holds: BOS and end-of-text added, empty ones left out, narrowed to the type on disk.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace megatron_adapt {

struct SequenceOptions {
  std::int64_t bos = -1, eod = -1, unknown = -1;  // -1: none
  std::uint64_t vocab_size = 0;
};

struct SequenceCounts {
  std::int64_t documents = 0;  // with at least one token
  std::int64_t empty = 0;
  std::int64_t bytes = 0;    // of the text of the former
  std::int64_t unknown = 0;  // tokens
};

// Appends to `out` the ids of `documents` documents. Document d consists of the texts from first_text[d] to
// first_text[d + 1]; text t has the ids from id_offsets[t] to id_offsets[t + 1] and the bytes between the same entries
// of text_offsets. Texts without ids are left out, documents without texts too. BOS goes before a document that does not
// begin with it, end-of-text behind one that does not end with it. `sizes` gets the ids of each text kept, `texts` the
// number of texts of each document kept. Throws ValueError for an id outside the vocabulary.
template <typename Out, typename In>
SequenceCounts build_sequences(const In* ids, const std::int64_t* id_offsets, const std::int64_t* text_offsets,
                               const std::int64_t* first_text, std::size_t documents, const SequenceOptions& options,
                               std::vector<Out>& out, std::vector<std::int32_t>& sizes, std::vector<std::int32_t>& texts);

}  // namespace megatron_adapt
