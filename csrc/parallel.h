// A range of numbers shared out to threads that end with the call: nothing stays behind that a later fork could hang on.

#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace megatron_adapt {

// Calls work(part, begin, end) for every part of [0, size), each on a thread of its own and the last on the caller's.
// The first exception of the lowest part comes out when all have ended.
template <typename Work>
void in_parts(std::int64_t size, std::int64_t parts, const Work& work) {
  std::vector<std::exception_ptr> errors(static_cast<std::size_t>(parts));
  const auto run = [&](std::int64_t part) {
    try {
      work(part, size * part / parts, size * (part + 1) / parts);
    } catch (...) {
      errors[static_cast<std::size_t>(part)] = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(parts));
  std::int64_t next = 0;
  try {
    for (; next + 1 < parts; ++next) threads.emplace_back(run, next);
  } catch (const std::system_error&) {
    // No more threads are to be had: the caller's does what is left.
  }
  for (; next < parts; ++next) run(next);
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace megatron_adapt
