// Substrings of N characters that a corpus has more than once, exactly, in memory that can be bounded.
//
// Each window of N characters is represented by the least (by a hash) of the substrings of K = ceil(N / 2) characters in it, the
// leftmost of equal ones: its minimizer (Schleimer, Wilkerson, Aiken 2003). Equal windows have equal minimizers at equal
// places, neighbouring windows mostly share theirs. So there is one entry of 16 bytes for some N / 4 characters (for each
// character of a run of one and the same character), sorted by the hash; windows are compared only where entries agree, by
// hashes and then by their bytes. Nothing is missed, nothing is taken for equal that is not, and the time is linear.

#pragma once

#include <cstdint>
#include <vector>

#include "texts.h"

namespace megatron_adapt {

struct Search {
  std::int64_t characters;  // N, 2 to 100000
  std::int64_t memory;      // bytes of entries at a time, about: more passes over the text where these do not suffice
  std::int64_t threads;
};

struct Span {
  std::int64_t document, begin, end;  // bytes of the data
};

// What repeats earlier text: the union of all windows that stand earlier in the same or another document, without overlap. Per
// document in order, none of them touching. `whole_words`: a span that has white space in it begins and ends at words.
std::vector<Span> repeated_spans(const Texts& texts, const Folding& folding, const Search& search, bool whole_words);

// For each document the first kept one that has a window in common with it, -1 where it is kept: in their order, a document is
// kept if it has no window in common with one that was kept before. The first `known` are kept whatever they say.
std::vector<std::int64_t> repeating_documents(const Texts& texts, const Search& search, std::int64_t known);

// Whether any window of a document stands anywhere else, too: in another document, or in this without overlap.
std::vector<std::int8_t> documents_with_repeats(const Texts& texts, const Search& search);

}  // namespace megatron_adapt
