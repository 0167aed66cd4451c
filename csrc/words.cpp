#include "words.h"

#include <algorithm>

#include "unicode_classes.h"
#include "utf8.h"

namespace megatron_adapt {

namespace {

// Length of what an apostrophe begins, 0 where it is a symbol.
std::size_t contraction(const char* p, const char* end) {
  if (end - p < 2) return 0;
  const char c = p[1], d = end - p >= 3 ? p[2] : '\0';
  if (c == 's' || c == 't' || c == 'm' || c == 'd') return 2;
  return (c == 'r' && d == 'e') || (c == 'v' && d == 'e') || (c == 'l' && d == 'l') ? 3 : 0;
}

}  // namespace

Words::Words() : classes_(0x110000, kSymbol) {
  const auto fill = [this](const auto& runs, Class as) {
    for (const CodePoints& run : runs) std::fill(classes_.begin() + run.first, classes_.begin() + run.last + 1, as);
  };
  fill(kLetters, kLetter), fill(kNumbers, kNumber), fill(kSpaces, kSpace);
}

void Words::fill(CutTable& table) const {
  for (unsigned before = 0; before < CutTable::kWide; ++before) {
    const std::uint8_t a = classes_[before];
    for (unsigned from = 0; from < 0x80; ++from) {
      const std::uint8_t b = classes_[from];
      const bool is_cut = a != b && before != ' ';
      if (a == kSpace && b == kSpace) {
        table.at(before, from) = CutTable::kLook;
      } else {
        table.at(before, from) = !is_cut ? 0 : from == '\'' ? CutTable::kLook : CutTable::kCut;
      }
    }
    for (unsigned from = 0x80; from < 0x100; ++from) table.at(before, from) = CutTable::kLook;
  }
  for (unsigned from = 0; from < 0x100; ++from) {
    table.at(CutTable::kWide, from) = is_tail(static_cast<unsigned char>(from)) ? 0 : CutTable::kLook;
  }
}

Words::Class Words::class_at(const char* p, const char* end, std::ptrdiff_t& bytes) const {
  bytes = 1;
  if (static_cast<unsigned char>(*p) < 0x80) return static_cast<Class>(classes_[static_cast<unsigned char>(*p)]);
  const int size = sequence(p, end);
  if (size == 0) return kSymbol;
  bytes = size;
  return static_cast<Class>(classes_[code_point({p, static_cast<std::size_t>(size)})]);
}

bool Words::is_cut(const char* begin, const char* p, const char* end, unsigned front) const {
  std::ptrdiff_t bytes = 0, behind = 0;
  Class a = static_cast<Class>(classes_[front]);
  if (p > begin) {
    const char* previous = p - 1;
    for (int i = 0; i < 3 && previous > begin && is_tail(static_cast<unsigned char>(*previous)); ++i) --previous;
    a = class_at(previous, end, bytes);
    front = static_cast<unsigned char>(*previous);
  }
  const Class b = class_at(p, end, bytes);
  if (b == kSpace) return a != kSpace || (end - p > bytes && class_at(p + bytes, end, behind) != kSpace);
  return a == kSpace ? front != ' ' : a != b;
}

void Words::look(const char* begin, const char* p, const char* end, unsigned front, std::size_t at, Cuts& cuts) const {
  if (!is_cut(begin, p, end, front)) return;
  cuts.set(at);
  if (*p != '\'') return;
  if (const std::size_t size = contraction(p, end)) {
    cuts.clear(at + 1);
    if (p + size < end) cuts.set(at + size);
  }
}

}  // namespace megatron_adapt
