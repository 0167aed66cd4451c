#include "sequences.h"

#include <algorithm>
#include <limits>
#include <string>

#include "indexed_dataset.h"

namespace megatron_adapt {

namespace {

template <typename In>
void check(const In* ids, std::int64_t begin, std::int64_t end, const SequenceOptions& options) {
  // Without branches, so that the loop is vectorised; a negative id becomes a huge one.
  In wrong = 0;
  const In last = static_cast<In>(options.vocab_size - 1);
  for (std::int64_t i = begin; i < end; ++i) wrong |= static_cast<In>((ids[i] < In{0}) | (ids[i] > last));
  if (wrong == 0) return;
  const In* id = std::find_if(ids + begin, ids + end, [&](In x) { return static_cast<std::uint64_t>(x) >= options.vocab_size; });
  throw ValueError("a document contains the token id " + std::to_string(*id) + ", but the vocabulary has the ids 0 to " +
                   std::to_string(options.vocab_size - 1));
}

}  // namespace

template <typename Out, typename In>
SequenceCounts build_sequences(const In* ids, const std::int64_t* id_offsets, const std::int64_t* text_offsets,
                               const std::int64_t* first_text, std::size_t documents, const SequenceOptions& options,
                               std::vector<Out>& out, std::vector<std::int32_t>& sizes, std::vector<std::int32_t>& texts) {
  SequenceCounts counts;
  for (std::size_t d = 0; d < documents; ++d) {
    const std::int64_t begin = first_text[d], end = first_text[d + 1];
    const std::int64_t first = id_offsets[begin], last = id_offsets[end];
    if (first == last) {
      ++counts.empty;
      continue;
    }
    check(ids, first, last, options);
    std::int32_t kept = 0;
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t from = id_offsets[t], to = id_offsets[t + 1];
      if (from == to) continue;
      const bool bos = options.bos >= 0 && from == first && static_cast<std::int64_t>(ids[from]) != options.bos;
      const bool eod = options.eod >= 0 && to == last && static_cast<std::int64_t>(ids[to - 1]) != options.eod;
      const std::int64_t size = to - from + bos + eod;
      if (size > std::numeric_limits<std::int32_t>::max()) {
        throw ValueError("a document has " + std::to_string(size) + " tokens; the format holds up to 2147483647");
      }
      const std::size_t used = out.size();
      out.resize(used + static_cast<std::size_t>(size));
      Out* position = out.data() + used;
      if (bos) *position++ = static_cast<Out>(options.bos);
      for (std::int64_t i = from; i < to; ++i) *position++ = static_cast<Out>(ids[i]);
      if (eod) *position = static_cast<Out>(options.eod);
      if (options.unknown >= 0) counts.unknown += std::count(ids + from, ids + to, static_cast<In>(options.unknown));
      sizes.push_back(static_cast<std::int32_t>(size));
      ++kept;
    }
    texts.push_back(kept);
    ++counts.documents;
    counts.bytes += text_offsets[end] - text_offsets[begin];
  }
  return counts;
}

#define MEGATRON_ADAPT_INSTANTIATE(Out, In)                                                                              \
  template SequenceCounts build_sequences<Out, In>(const In*, const std::int64_t*, const std::int64_t*,                  \
                                                   const std::int64_t*, std::size_t, const SequenceOptions&,             \
                                                   std::vector<Out>&, std::vector<std::int32_t>&, std::vector<std::int32_t>&);
MEGATRON_ADAPT_INSTANTIATE(std::uint16_t, std::int32_t)
MEGATRON_ADAPT_INSTANTIATE(std::uint16_t, std::uint32_t)
MEGATRON_ADAPT_INSTANTIATE(std::uint16_t, std::int64_t)
MEGATRON_ADAPT_INSTANTIATE(std::int32_t, std::int32_t)
MEGATRON_ADAPT_INSTANTIATE(std::int32_t, std::uint32_t)
MEGATRON_ADAPT_INSTANTIATE(std::int32_t, std::int64_t)
#undef MEGATRON_ADAPT_INSTANTIATE

}  // namespace megatron_adapt
