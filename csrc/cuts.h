// Where texts are cut, looked for in 64 bytes at a time: what is found depends on no branch, so that none is mispredicted.

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace megatron_adapt {

// What two neighbouring bytes tell.
class CutTable {
 public:
  enum Sign : std::uint8_t { kCut = 1, kLook = 2 };  // there is a cut between them; only a closer look tells
  static constexpr std::size_t kBlock = 64;
  static constexpr unsigned kWide = 128;  // stands for all bytes outside ASCII that are in front of another

  // Bit i: in front of p[i].
  struct Found {
    std::uint64_t cuts, looks;
  };

  std::uint8_t& at(unsigned before, unsigned from) { return signs_[before][from]; }

  // In the first `size` bytes from `p` on, at most kBlock. `before`: the byte in front of p, or kWide; then that of the next.
  Found find(const char* p, std::size_t size, unsigned& before) const {
    std::array<char, kBlock> padded;
    if (size < kBlock) {
      padded.fill(0);
      std::memcpy(padded.data(), p, size);
      p = padded.data();
    }
    Found found{0, 0};
    unsigned last = before;
    for (std::size_t begin = 0; begin < kBlock; begin += 8) {
      std::uint64_t word = 0;
      for (std::size_t i = 0; i < 8; ++i) {
        const unsigned c = static_cast<unsigned char>(p[begin + i]);
        word |= std::uint64_t{signs_[last][c]} << 8 * i;
        last = std::min(c, kWide);
      }
      found.cuts |= gather(word) << begin;
      found.looks |= gather(word >> 1) << begin;
    }
    const std::uint64_t inside = ~std::uint64_t{0} >> (kBlock - size);
    before = std::min<unsigned>(static_cast<unsigned char>(p[size - 1]), kWide);
    return {found.cuts & inside, found.looks & inside};
  }

 private:
  // The lowest bits of eight bytes side by side: all but the ones wanted fall out of the product's highest byte.
  static std::uint64_t gather(std::uint64_t word) {
    return (word & 0x0101010101010101) * 0x0102040810204080 >> 56;
  }

  std::array<std::array<std::uint8_t, 256>, kWide + 1> signs_{};
};

// The cuts of a block, and what a closer look finds beyond its end.
class Cuts {
 public:
  explicit Cuts(std::uint64_t bits) : bits_(bits) {}

  void set(std::size_t at) { (at < CutTable::kBlock ? set_ : next_set_) |= bit(at); }
  void clear(std::size_t at) { (at < CutTable::kBlock ? cleared_ : next_cleared_) |= bit(at); }
  std::uint64_t bits() const { return (bits_ & ~cleared_) | set_; }
  // Those of the block behind this one.
  Cuts next(std::uint64_t bits) const {
    Cuts cuts(bits);
    cuts.set_ = next_set_, cuts.cleared_ = next_cleared_;
    return cuts;
  }

 private:
  static std::uint64_t bit(std::size_t at) { return std::uint64_t{1} << at % CutTable::kBlock; }

  std::uint64_t bits_, set_ = 0, cleared_ = 0, next_set_ = 0, next_cleared_ = 0;
};

}  // namespace megatron_adapt
