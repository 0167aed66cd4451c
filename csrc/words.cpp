#include "words.h"

#include <algorithm>
#include <cstddef>

#include "unicode_classes.h"
#include "utf8.h"

namespace megatron_adapt {

Words::Words() : classes_(0x110000, kSymbol) {
  const auto fill = [this](const auto& runs, Class as) {
    for (const CodePoints& run : runs) std::fill(classes_.begin() + run.first, classes_.begin() + run.last + 1, as);
  };
  fill(kLetters, kLetter), fill(kNumbers, kNumber), fill(kSpaces, kSpace);
  of_byte_.fill(kNoAscii);
  std::copy_n(classes_.begin(), 0x80, of_byte_.begin());
}

Words::Class Words::class_at(const char* p, const char* end, int& bytes) const {
  const unsigned char first = static_cast<unsigned char>(*p);
  bytes = 1;
  if (first < 0x80) return static_cast<Class>(of_byte_[first]);
  const int size = sequence(p, end);
  if (size == 0) return kSymbol;
  bytes = size;
  return static_cast<Class>(classes_[code_point({p, static_cast<std::size_t>(size)})]);
}

const char* Words::next(const char* p, const char* end) const {
  if (*p == '\'' && end - p >= 2) {
    const char c = p[1], d = end - p >= 3 ? p[2] : '\0';
    if (c == 's' || c == 't' || c == 'm' || c == 'd') return p + 2;
    if ((c == 'r' && d == 'e') || (c == 'v' && d == 'e') || (c == 'l' && d == 'l')) return p + 3;
  }
  int bytes = 0;
  Class kind = class_at(p, end, bytes);
  if (kind == kSpace) {
    const char* last = p;  // where the last character of the run begins
    const char* stop = p + bytes;
    while (stop < end && (kind = class_at(stop, end, bytes)) == kSpace) last = stop, stop += bytes;
    if (stop == end) return end;
    if (last > p) return last;      // the last one goes to the word behind, or stands alone
    if (*p != ' ') return stop;     // a single space that no word begins with
    p = stop;
  }
  for (p += bytes;; p += bytes) {
    while (p < end && of_byte_[static_cast<unsigned char>(*p)] == kind) ++p;
    if (p == end || static_cast<unsigned char>(*p) < 0x80 || class_at(p, end, bytes) != kind) return p;
  }
}

}  // namespace megatron_adapt
