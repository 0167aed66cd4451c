// Which documents say the same, and which nearly the same.

#pragma once

#include <cstdint>
#include <vector>

#include "texts.h"

namespace megatron_adapt {

enum class Compared { bytes, spaces, letters };  // all; runs of white space are one space, none at the ends; see folding.py

// Two values below 2^61 for each document: polynomials of its characters and their number at two points.
void fingerprints(const Texts& texts, const Folding& folding, Compared compared, std::int64_t threads, std::uint64_t* out);

struct Shingles {
  std::int64_t size;   // words or characters in each; a shorter document is one shingle
  bool of_characters;  // of words, and one space between words
};

struct Bands {
  std::int64_t count;
  std::int64_t rows;  // of each
  std::uint64_t seed;
  std::int64_t hashes() const { return count * rows; }
};

struct NearDuplicates {
  std::vector<std::int64_t> kept;  // for each document the one that it repeats, -1 where it is kept
  std::vector<double> similarity;  // to that one: exact Jaccard index of the sets of shingles
  std::int64_t verified = 0;       // pairs
  std::int64_t cut_short = 0;      // documents with more candidates than are looked at
};

// MinHash with locality-sensitive hashing (Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, chapter 3): two
// documents of Jaccard index s become a pair to compare with probability 1 - (1 - s^rows)^count. In their order, each
// document that has an index of at least `threshold` with one that was kept before is no more kept. The first `known` are kept
// whatever they say.
NearDuplicates near_duplicates(const Texts& texts, const Folding& folding, const Shingles& shingles, const Bands& bands,
                               double threshold, std::int64_t known, std::int64_t threads);

}  // namespace megatron_adapt
