// What rules about the quality of a document are about.

#pragma once

#include <cstdint>
#include <vector>

#include "texts.h"

namespace megatron_adapt {

// Of each document; names of the columns are in data/filters/rules.py. Words are those of each_word; lines are without white
// space at their ends, and empty ones do not count; paragraphs lie between empty lines.
//  0 characters that are not white space, 1 words, 2 mean length of the words of scripts with spaces (0 where these are less
//  than half of the words), 3 signs # and ellipses per word, 4 digits, 5 letters, as shares of 0, 6 words with a letter as share of
//  words and of runs of signs between white space, 7 lines that begin with a bullet, 8 that end in an ellipsis, 9 that end in
//  a sign that ends sentences, 10 that stood before, 11 their characters, 12 and 13 the same of paragraphs, 14-16 characters of
//  the words of the 2, 3, 4-gram that comes oftenest and more than once (the longest of these), 17-22 of words in 5 ... 10-grams that
//  stood before, 23 different stop words. Shares of characters are of those in words (14-22), or in lines (11, 13).
constexpr std::int64_t kRuleColumns = 24;

// out: [documents, kRuleColumns]; stop_words: hashes of each_word, sorted.
void text_rules(const Texts& texts, const Folding& folding, const std::vector<std::uint64_t>& stop_words, std::int64_t threads,
                double* out);

// Hashes of the words of a text, sorted.
std::vector<std::uint64_t> word_set(std::string_view text, const Folding& folding);

}  // namespace megatron_adapt
