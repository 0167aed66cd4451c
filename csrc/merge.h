// Several indexed datasets -> one, their documents in order, in constant memory.

#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace megatron_adapt {

struct Merged {
  std::uint64_t documents = 0;
  std::uint64_t tokens = 0;
};

// Writes OUTPUT.bin and OUTPUT.idx, byte for byte what Megatron's IndexedDatasetBuilder.add_index makes of the same
// inputs in the same order. The inputs are prefixes of datasets of one type of ids, valid in themselves (the caller has
// opened each); a file that is not as long as it says is an error all the same. Nothing appears under the final names
// before all is on the disk; then OUTPUT.json and what else described a former dataset goes, and the index comes last.
// `masked`: every input has a file PREFIX.loss_mask of a byte for each id, and OUTPUT.loss_mask is what they make one after
// the other. `pause` is called now and then; what it throws ends the merge.
Merged merge_indexed(const std::vector<std::string>& prefixes, const std::string& output, bool masked,
                     const std::function<void()>& pause);

}  // namespace megatron_adapt
