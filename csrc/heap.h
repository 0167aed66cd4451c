// Memory of processes that do the same again and again.

#pragma once

namespace megatron_adapt {

// What is freed stays, since the kernel clears all that it gives; and the next tens of megabytes are on large pages where the
// system has them. Elsewhere than with glibc: nothing.
void prepare_heap();

}  // namespace megatron_adapt
