// Between vectors and numpy's arrays.

#pragma once

#include <pybind11/numpy.h>

#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace megatron_adapt {

using Offsets = pybind11::array_t<std::int64_t, pybind11::array::c_style | pybind11::array::forcecast>;

// A numpy array that owns what the vector or string held.
template <typename Values>
auto as_array(Values&& values) {
  using Owner = std::decay_t<Values>;
  static_assert(!std::is_lvalue_reference_v<Values>, "it is moved from");
  auto* const owner = new Owner(std::move(values));
  const pybind11::capsule free(owner, [](void* pointer) { delete static_cast<Owner*>(pointer); });
  using Value = std::conditional_t<std::is_same_v<Owner, std::string>, std::uint8_t, typename Owner::value_type>;
  return pybind11::array_t<Value>(static_cast<pybind11::ssize_t>(owner->size()), reinterpret_cast<const Value*>(owner->data()), free);
}

inline void check_offsets(const Offsets& offsets, std::int64_t limit, const char* name) {
  bool ascending = offsets.ndim() == 1 && offsets.size() > 0 && offsets.at(0) >= 0 && offsets.at(offsets.size() - 1) <= limit;
  for (pybind11::ssize_t i = 1; ascending && i < offsets.size(); ++i) ascending = offsets.data()[i - 1] <= offsets.data()[i];
  if (!ascending) throw pybind11::value_error(std::string(name) + " must ascend within the array they point into");
}

}  // namespace megatron_adapt
