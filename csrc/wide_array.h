// An array of zeros on large pages where the system has them: tables that are read all over cost an address translation
// for every access on small ones.

#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>

namespace megatron_adapt {

template <typename T>
class WideArray {
  static_assert(std::is_trivially_copyable_v<T>, "its memory is only mapped and unmapped");

 public:
  WideArray() = default;
  explicit WideArray(std::size_t size) : size_(size) {
    const std::size_t bytes = (size * sizeof(T) + kPage - 1) / kPage * kPage;  // the last page is a large one, too
    mapped_ = bytes + kPage;
    memory_ = ::mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    const std::uintptr_t begin = (reinterpret_cast<std::uintptr_t>(memory_) + kPage - 1) / kPage * kPage;
    data_ = reinterpret_cast<T*>(begin);
#ifdef MADV_HUGEPAGE
    static_cast<void>(::madvise(data_, bytes, MADV_HUGEPAGE));  // where it is refused, small pages do
#endif
  }
  WideArray(WideArray&& other) noexcept { swap(other); }
  WideArray& operator=(WideArray&& other) noexcept {
    WideArray(std::move(other)).swap(*this);
    return *this;
  }
  ~WideArray() {
    if (memory_ != nullptr) ::munmap(memory_, mapped_);
  }

  std::size_t size() const { return size_; }
  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }

 private:
  static constexpr std::size_t kPage = std::size_t{2} << 20;

  void swap(WideArray& other) noexcept {
    std::swap(memory_, other.memory_), std::swap(mapped_, other.mapped_);
    std::swap(data_, other.data_), std::swap(size_, other.size_);
  }

  void* memory_ = nullptr;
  T* data_ = nullptr;
  std::size_t size_ = 0, mapped_ = 0;
};

}  // namespace megatron_adapt
