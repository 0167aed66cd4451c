#include "crc32.h"

#include <array>

#if defined(__x86_64__) && defined(__GNUC__)
#define MEGATRON_ADAPT_FOLDS 1
#include <immintrin.h>
#endif

namespace megatron_adapt {
namespace {

// Polynomials are reflected: the bit of the highest power is the lowest one.
constexpr std::uint32_t times_x(std::uint32_t value) { return (value >> 1) ^ ((value & 1) != 0 ? 0xEDB88320u : 0u); }

constexpr std::array<std::uint32_t, 256> make_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = times_x(value);
    table[byte] = value;
  }
  return table;
}

constexpr std::array<std::uint32_t, 256> kTable = make_table();

// The remainder of what a remainder was made of and more bytes.
std::uint32_t divided(const unsigned char* data, std::size_t size, std::uint32_t remainder) {
  for (std::size_t i = 0; i < size; ++i) remainder = (remainder >> 8) ^ kTable[(remainder ^ data[i]) & 255];
  return remainder;
}

#ifdef MEGATRON_ADAPT_FOLDS

constexpr int kLanes = 8;  // folded side by side, as one multiplication takes several cycles
constexpr std::size_t kLane = 16;
constexpr std::size_t kRound = kLanes * kLane;

// x to the power, modulo the polynomial; one place higher, as a product of two reflected numbers is one place lower.
constexpr long long power(int exponent) {
  std::uint32_t value = 0x80000000u;
  for (int i = 0; i < exponent; ++i) value = times_x(value);
  return static_cast<long long>(static_cast<std::uint64_t>(value) << 1);
}

// 128 bits that have the same remainder so many bits further on.
template <int kBits>
__attribute__((target("pclmul,sse4.1"))) inline __m128i folded(__m128i lane) {
  constexpr long long kFirst = power(kBits + 32), kSecond = power(kBits - 32);
  const __m128i powers = _mm_set_epi64x(kSecond, kFirst);
  return _mm_xor_si128(_mm_clmulepi64_si128(lane, powers, 0x00), _mm_clmulepi64_si128(lane, powers, 0x11));
}

__attribute__((target("pclmul,sse4.1"))) inline __m128i loaded(const unsigned char* data) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(data));
}

// At least one round; what is left over is divided byte by byte.
__attribute__((target("pclmul,sse4.1"))) std::uint32_t folded_and_divided(const unsigned char* data, std::size_t size,
                                                                          std::uint32_t remainder) {
  __m128i lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = loaded(data + i * kLane);
  lanes[0] = _mm_xor_si128(lanes[0], _mm_cvtsi32_si128(static_cast<int>(remainder)));
  std::size_t done = kRound;
  for (; done + kRound <= size; done += kRound) {
    for (int i = 0; i < kLanes; ++i) {
      lanes[i] = _mm_xor_si128(folded<kRound * 8>(lanes[i]), loaded(data + done + i * kLane));
    }
  }
  __m128i rest = lanes[0];
  for (int i = 1; i < kLanes; ++i) rest = _mm_xor_si128(folded<kLane * 8>(rest), lanes[i]);
  unsigned char bytes[kLane];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), rest);
  return divided(data + done, size - done, divided(bytes, kLane, 0));
}

#endif

}  // namespace

bool crc32_is_fast() {
#ifdef MEGATRON_ADAPT_FOLDS
  return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
#else
  return false;
#endif
}

std::uint32_t crc32(const void* data, std::size_t size, std::uint32_t value) {
  const auto* bytes = static_cast<const unsigned char*>(data);
#ifdef MEGATRON_ADAPT_FOLDS
  static const bool is_fast = crc32_is_fast();
  if (is_fast && size >= kRound) return ~folded_and_divided(bytes, size, ~value);
#endif
  return ~divided(bytes, size, ~value);
}

}  // namespace megatron_adapt
