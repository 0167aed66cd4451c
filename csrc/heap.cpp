#include "heap.h"

#include <cstdint>
#include <cstdlib>

#ifdef __GLIBC__
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace megatron_adapt {

#if defined(__GLIBC__) && defined(MADV_HUGEPAGE)

void prepare_heap() {
  constexpr int kLargest = 32 << 20;  // what is larger is mapped and unmapped; glibc accepts no more
  constexpr int kAhead = 64 << 20;
  constexpr std::uintptr_t kPage = std::uintptr_t{2} << 20;
  ::mallopt(M_MMAP_THRESHOLD, kLargest);
  ::mallopt(M_TRIM_THRESHOLD, 2 * kAhead);
  ::mallopt(M_TOP_PAD, kAhead);
  void* const first = std::malloc(kLargest / 4 * 3);  // more than is free: the heap grows, and by M_TOP_PAD more
  ::mallopt(M_TOP_PAD, kLargest / 8);
  if (first == nullptr) return;  // there is a limit: whatever needs memory says so
  const std::uintptr_t begin = (reinterpret_cast<std::uintptr_t>(first) + kPage - 1) / kPage * kPage;
  const std::uintptr_t end = reinterpret_cast<std::uintptr_t>(::sbrk(0)) / kPage * kPage;
  std::free(first);
  if (begin < end) static_cast<void>(::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE));
}

#else

void prepare_heap() {}

#endif

}  // namespace megatron_adapt
