#include "text_rules.h"

#include <algorithm>
#include <utility>

namespace megatron_adapt {

namespace {

constexpr std::uint32_t kBullets[] = {'*',    '-',    0x2022, 0x2023, 0x25B6, 0x25CF, 0x25CB, 0x25AA,
                                      0x25A0, 0x25A1, 0x2013, 0xB7,   0x2043, 0x204C, 0x2219};
// . ! ? and their like in Arabic, Devanagari, Ethiopic, Khmer, Chinese and Armenian; quotes and brackets may follow.
constexpr std::uint32_t kTerminals[] = {'.',   '!',    '?',    0x2026, 0x589,  0x61F,  0x6D4, 0x964,
                                        0x965, 0x1362, 0x17D4, 0x3002, 0xFF01, 0xFF0E, 0xFF1F};
constexpr std::uint32_t kClosing[] = {'"', '\'', ')', ']', 0xBB, 0xAB, 0x2019, 0x201C, 0x201D, 0x203A, 0x300D, 0x300F, 0xFF09};
constexpr std::uint32_t kEllipsis = 0x2026;

template <std::size_t N>
bool among(const std::uint32_t (&points)[N], std::uint32_t point) {
  return std::find(points, points + N, point) != points + N;
}

double share(double part, double all) { return all > 0 ? part / all : 0; }

// Whether a hash was there before; forgets everything in constant time.
class Seen {
 public:
  void restart(std::size_t most) {
    std::size_t size = 64;
    while (size < 2 * most) size *= 2;
    if (size > slots_.size()) slots_.assign(size, {}), round_ = 0;
    mask_ = size - 1;
    ++round_;
  }
  // How often it was added, this time included.
  std::uint32_t add(std::uint64_t hash) {
    for (std::size_t at = hash & mask_;; at = (at + 1) & mask_) {
      Slot& slot = slots_[at];
      if (slot.round != round_) return slot = {hash, round_, 1}, 1;
      if (slot.hash == hash) return ++slot.count;
    }
  }

 private:
  struct Slot {
    std::uint64_t hash = 0;
    std::uint32_t round = 0, count = 0;
  };
  std::vector<Slot> slots_;
  std::size_t mask_ = 0;
  std::uint32_t round_ = 0;
};

class Measure {
 public:
  Measure(const Folding& folding, const std::vector<std::uint64_t>& stop_words) : folding_(folding), stop_words_(stop_words) {}

  void operator()(std::string_view text, double* out) {
    std::fill(out, out + kRuleColumns, 0.0);
    characters(text, out);
    words(text, out);
    lines(text, out);
    grams(out);
  }

 private:
  struct Word {
    std::uint64_t hash;
    std::uint32_t length;
  };

  // Columns 0, 4, 5, and what 3 and 6 need.
  void characters(std::string_view text, double* out) {
    double all = 0, digits = 0, letters = 0;
    signs_ = 0, wordless_ = 0;
    bool has_token = false, has_word = false;
    int dots = 0;
    const auto token_done = [&] {
      wordless_ += has_token && !has_word;
      has_token = has_word = false;
    };
    for (const char *at = text.data(), *end = at + text.size(); at != end;) {
      const std::uint32_t point = next_character(at, end), folded = folding_(point);
      dots = point == '.' ? dots + 1 : 0;
      signs_ += point == '#' || point == kEllipsis || dots == 3;
      if (folded & Folding::kSpace) {
        token_done();
        continue;
      }
      ++all;
      digits += (folded & Folding::kDigit) != 0;
      letters += (folded & Folding::kLetter) != 0;
      has_token = true;
      has_word |= (folded & Folding::kWord) != 0;
    }
    token_done();
    out[0] = all, out[4] = share(digits, all), out[5] = share(letters, all);
  }

  void words(std::string_view text, double* out) {
    words_.clear();
    double spaced = 0, spaced_length = 0, with_letter = 0;
    std::vector<std::uint64_t> stops;
    each_word(text, folding_, [&](std::uint64_t hash, std::uint32_t length, bool has_letter, bool is_alone) {
      words_.push_back({hash, length});
      if (!is_alone) ++spaced, spaced_length += length;
      with_letter += has_letter;
      if (std::binary_search(stop_words_.begin(), stop_words_.end(), hash)) stops.push_back(hash);
    });
    std::sort(stops.begin(), stops.end());
    const double count = static_cast<double>(words_.size());
    out[1] = count;
    out[2] = 2 * spaced >= count ? share(spaced_length, spaced) : 0;
    out[3] = signs_ / std::max(count, 1.0);
    out[6] = share(with_letter, count + wordless_);
    out[23] = static_cast<double>(std::unique(stops.begin(), stops.end()) - stops.begin());
  }

  std::string_view trimmed(std::string_view line) const {
    const auto is_space = [&](const char* at) { return (folding_(next_character(at, line.data() + line.size())) & Folding::kSpace) != 0; };
    while (!line.empty() && is_space(line.data())) line.remove_prefix(character_width(line));
    while (!line.empty()) {
      std::size_t last = line.size() - 1;
      while (last > 0 && is_tail(static_cast<unsigned char>(line[last]))) --last;
      if (!is_space(line.data() + last)) break;
      line.remove_suffix(line.size() - last);
    }
    return line;
  }

  struct Repeats {
    double count = 0, repeated = 0, characters = 0, repeated_characters = 0;
    void add(bool is_repeated, double length) {
      ++count, characters += length;
      if (is_repeated) ++repeated, repeated_characters += length;
    }
  };

  void lines(std::string_view text, double* out) {
    lines_seen_.restart(static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n')) + 2);
    paragraphs_seen_.restart(static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n')) + 2);
    Repeats lines, paragraphs;
    double bullets = 0, ellipses = 0, terminals = 0, length = 0;
    std::uint64_t paragraph = 0;
    const auto paragraph_done = [&] {
      if (length > 0) paragraphs.add(paragraphs_seen_.add(mixed(paragraph)) > 1, length);
      paragraph = 0, length = 0;
    };
    for (std::size_t begin = 0; begin <= text.size();) {
      const std::size_t end = std::min(text.find('\n', begin), text.size());
      const std::string_view line = trimmed(text.substr(begin, end - begin));
      begin = end + 1;
      if (line.empty()) {
        paragraph_done();
        continue;
      }
      std::uint64_t hash = 0;
      std::uint32_t first = 0, last = 0, before = 0, third = 0;  // the last three, without closing ones
      double size = 0;
      for (const char *at = line.data(), *stop = at + line.size(); at != stop;) {
        const std::uint32_t point = next_character(at, stop);
        hash = (hash + point + 1) * 0x9E3779B97F4A7C15u;
        hash ^= hash >> 29;
        if (size++ == 0) first = point;
        if (!among(kClosing, point)) third = before, before = last, last = point;
      }
      lines.add(lines_seen_.add(mixed(hash)) > 1, size);
      paragraph = mixed(paragraph + hash), length += size;
      bullets += among(kBullets, first);
      ellipses += last == kEllipsis || (last == '.' && before == '.' && third == '.');
      terminals += among(kTerminals, last);
    }
    paragraph_done();
    out[7] = share(bullets, lines.count), out[8] = share(ellipses, lines.count), out[9] = share(terminals, lines.count);
    out[10] = share(lines.repeated, lines.count), out[11] = share(lines.repeated_characters, lines.characters);
    out[12] = share(paragraphs.repeated, paragraphs.count), out[13] = share(paragraphs.repeated_characters, paragraphs.characters);
  }

  void grams(double* out) {
    double all = 0;
    partial_.clear();  // of the n-gram that begins at each word
    const auto join = [](std::uint64_t hash, const Word& word) {
      hash = (hash + word.hash) * 0x9E3779B97F4A7C15u;
      return hash ^ hash >> 31;
    };
    for (const Word& word : words_) all += word.length, partial_.push_back(join(0, word));
    for (std::size_t n = 2; n <= 10; ++n) {
      double most = 0, covered = 0;
      std::uint32_t oftenest = 1;
      std::size_t behind = 0;  // words in front of it are counted
      seen_.restart(words_.size());
      for (std::size_t i = 0; i + n <= words_.size(); ++i) {
        double length = 0;
        partial_[i] = join(partial_[i], words_[i + n - 1]);
        const std::uint32_t count = seen_.add(mixed(partial_[i]));
        if (count == 1) continue;
        if (n < 5) {
          if (count < oftenest) continue;
          for (std::size_t k = i; k < i + n; ++k) length += words_[k].length;
          most = std::max(count > oftenest ? 0.0 : most, length * count);
          oftenest = count;
        } else {
          for (std::size_t k = std::max(i, behind); k < i + n; ++k) covered += words_[k].length;
          behind = i + n;
        }
      }
      out[12 + n] = share(n < 5 ? most : covered, all);
    }
  }

  Folding folding_;
  const std::vector<std::uint64_t>& stop_words_;
  std::vector<Word> words_;
  std::vector<std::uint64_t> partial_;
  Seen seen_, lines_seen_, paragraphs_seen_;
  double signs_ = 0, wordless_ = 0;
};

}  // namespace

void text_rules(const Texts& texts, const Folding& folding, const std::vector<std::uint64_t>& stop_words, std::int64_t threads,
                double* out) {
  for_each_text(texts, threads, [&] {
    return [&, measure = Measure(folding, stop_words)](std::int64_t i) mutable { measure(texts[i], out + i * kRuleColumns); };
  });
}

std::vector<std::uint64_t> word_set(std::string_view text, const Folding& folding) {
  std::vector<std::uint64_t> found;
  each_word(text, folding, [&found](std::uint64_t hash, std::uint32_t, bool, bool) { found.push_back(hash); });
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

}  // namespace megatron_adapt
