// The long parts of a tokenizer.json, vocabulary and merges, without an object of Python's for every token.

#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bpe.h"

namespace megatron_adapt {

class TokenizerJson {
 public:
  static constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();

  // `text`: of the file. std::invalid_argument where this is not byte pair encoding by a model whose "vocab" is an object of
  // ids, each given once, with "merges" as strings or pairs; or where Python's json.loads might read something else.
  explicit TokenizerJson(std::string text);

  // The file with null in place of vocabulary and merges, and the text of these.
  std::string rest() const;
  // The file with merges of the form ["a", "b"] written as "a b", which takes others half the time to read; as it is where that
  // would say something else. Nothing is decoded: what is between quotes stays as it is.
  std::string compact() const;
  std::string_view vocabulary() const { return vocabulary_; }
  std::string_view merges() const { return merges_; }

  // By id; of an id that no token has, one without data.
  const std::vector<std::string_view>& tokens() const { return tokens_; }
  // Id of a token of the vocabulary, kNone for others.
  std::uint32_t find(std::string_view token) const;
  // By rank; std::invalid_argument where one is of tokens that do not exist, or becomes one.
  std::vector<Merge> numbered_merges() const;

  // What Python's json.dumps makes of [[id, token], ...] in order of the ids, and of [[left, right], ...].
  std::string canonical_vocabulary() const;
  std::string canonical_merges() const;

 private:
  void index();

  std::string text_;
  std::string_view vocabulary_, merges_;
  std::unique_ptr<char[]> spellings_;  // what the views below point into
  std::vector<std::string_view> tokens_;
  std::vector<std::pair<std::string_view, std::string_view>> pairs_;
  std::vector<std::uint32_t> by_spelling_;  // open addressing: ids
};

}  // namespace megatron_adapt
