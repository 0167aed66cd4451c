// Polynomials over the integers modulo the Mersenne prime 2^61 - 1 as hashes (Karp, Rabin 1987): two different texts of n
// units have the same value at a random point with a probability of at most n / 2^61.

#pragma once

#include <cstdint>

namespace megatron_adapt {

class Polynomial {
 public:
  static constexpr std::uint64_t kPrime = (std::uint64_t{1} << 61) - 1;

  static std::uint64_t times(std::uint64_t a, std::uint64_t b) {
    const auto product = static_cast<unsigned __int128>(a) * b;
    return reduced(static_cast<std::uint64_t>(product & kPrime) + static_cast<std::uint64_t>(product >> 61));
  }
  static std::uint64_t plus(std::uint64_t a, std::uint64_t b) { return reduced(a + b); }

  static std::uint64_t power(std::uint64_t base, std::uint64_t exponent) {
    std::uint64_t result = 1;
    for (; exponent != 0; exponent >>= 1, base = times(base, base)) {
      if (exponent & 1) result = times(result, base);
    }
    return result;
  }

 private:
  static std::uint64_t reduced(std::uint64_t x) { return x >= kPrime ? x - kPrime : x; }
};

// Of the last `length` characters that were added.
class RollingHash {
 public:
  static constexpr std::uint64_t kPoint = 0x0B1D5A3F96C74E21;  // any, below the prime

  explicit RollingHash(std::uint64_t length)
      : out_(Polynomial::kPrime - Polynomial::power(kPoint, length)) {}

  void restart() { value_ = 0; }
  void add(std::uint32_t character) {
    value_ = Polynomial::plus(Polynomial::times(value_, kPoint), character + 1);
  }
  // Behind add(): without the character that is `length` in front of the one added.
  void remove(std::uint32_t character) {
    value_ = Polynomial::plus(value_, Polynomial::times(out_, character + std::uint64_t{1}));
  }
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t out_;
  std::uint64_t value_ = 0;
};

}  // namespace megatron_adapt
