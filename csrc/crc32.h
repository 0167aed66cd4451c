// CRC-32 as zlib and zip have it (polynomial 0x04C11DB7, reflected), many bytes at a time where the processor multiplies
// polynomials: data is folded onto 128 bits of the same remainder (Gopal et al. 2009, Fast CRC Computation for Generic
// Polynomials Using PCLMULQDQ), and those are divided byte by byte.

#pragma once

#include <cstddef>
#include <cstdint>

namespace megatron_adapt {

// Whether this processor has the instruction. Without it zlib's own function is faster than this one.
bool crc32_is_fast();

// Of bytes that follow on others of checksum value (0: on none).
std::uint32_t crc32(const void* data, std::size_t size, std::uint32_t value);

}  // namespace megatron_adapt
