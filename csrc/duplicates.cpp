#include "duplicates.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "polynomial.h"

// The loop over all hashes is most of the work: made for AVX2, too, and chosen when the program is loaded.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define MEGATRON_ADAPT_WIDE __attribute__((target_clones("avx2", "default")))
#else
#define MEGATRON_ADAPT_WIDE
#endif

namespace megatron_adapt {

namespace {

constexpr std::size_t kCandidates = 256;  // that a document is compared with at most, and of one band
constexpr double kDeviations = 5;         // an estimate this far below the threshold is not verified: one in three million

// Polynomials at two points, of two characters at a time.
class Fingerprint {
 public:
  void add(std::uint32_t character) {
    pending_ = pending_ << 21 | character;
    if (++characters_ % 2 == 0) flush();
  }
  std::array<std::uint64_t, 2> finish() {
    if (characters_ % 2 != 0) flush();
    pending_ = characters_;
    flush();
    return values_;
  }

 private:
  void flush() {
    values_[0] = Polynomial::plus(Polynomial::times(values_[0], 0x13C6EF3720E84F9D), pending_ + 1);
    values_[1] = Polynomial::plus(Polynomial::times(values_[1], 0x05F2A94D3B8B1E67), pending_ + 1);
    pending_ = 0;
  }

  std::array<std::uint64_t, 2> values_{};
  std::uint64_t pending_ = 0, characters_ = 0;
};

std::array<std::uint64_t, 2> fingerprint(std::string_view text, const Folding& folding, Compared compared) {
  Fingerprint hash;
  bool is_empty = true, has_space = false;
  for (const char *at = text.data(), *end = at + text.size(); at != end;) {
    const std::uint32_t point = next_character(at, end);
    if (compared == Compared::bytes) {
      hash.add(point);
      continue;
    }
    const std::uint32_t folded = folding(point);
    if (compared == Compared::letters) {
      if (folded & Folding::kWord) hash.add(folded & Folding::kPoint), is_empty = false;
    } else if (folded & Folding::kSpace) {
      has_space = true;
    } else {
      if (has_space && !is_empty) hash.add(' ');
      hash.add(point), is_empty = has_space = false;
    }
  }
  // Rows of stars and rows of dots are not the same.
  if (compared == Compared::letters && is_empty) return fingerprint(text, folding, Compared::spaces);
  return hash.finish();
}

class Shingler {
 public:
  Shingler(const Folding& folding, const Shingles& shingles) : folding_(folding), shingles_(shingles) {}

  // Hashes of all, repeated ones repeatedly.
  const std::vector<std::uint64_t>& of(std::string_view text) {
    units_.clear();
    shingles_of_characters() ? characters(text) : words(text);
    found_.clear();
    const std::size_t size = std::min(static_cast<std::size_t>(shingles_.size), units_.size());
    for (std::size_t i = 0; size != 0 && i + size <= units_.size(); ++i) {
      std::uint64_t hash = 0;
      for (std::size_t k = i; k < i + size; ++k) hash = (hash + units_[k]) * 0x9E3779B97F4A7C15u, hash ^= hash >> 31;
      found_.push_back(mixed(hash));
    }
    return found_;
  }

  // The set, sorted.
  std::vector<std::uint64_t> set(std::string_view text) {
    of(text);
    std::sort(found_.begin(), found_.end());
    found_.erase(std::unique(found_.begin(), found_.end()), found_.end());
    return found_;
  }

 private:
  bool shingles_of_characters() const { return shingles_.of_characters; }

  void words(std::string_view text) {
    each_word(text, folding_, [this](std::uint64_t hash, std::uint32_t, bool, bool) { units_.push_back(hash); });
  }

  void characters(std::string_view text) {
    bool has_gap = false;
    for (const char *at = text.data(), *end = at + text.size(); at != end;) {
      const std::uint32_t folded = folding_(next_character(at, end));
      if (folded & Folding::kNothing) continue;
      if (!(folded & Folding::kWord)) {
        has_gap = true;
        continue;
      }
      if (has_gap && !units_.empty()) units_.push_back(mixed(' '));
      units_.push_back(mixed(folded & Folding::kPoint)), has_gap = false;
    }
  }

  Folding folding_;
  Shingles shingles_;
  std::vector<std::uint64_t> units_, found_;
};

// out[i] = min(out[i], factors[i] * low + high)
MEGATRON_ADAPT_WIDE void lower(const std::uint64_t* hashes, std::size_t count, const std::uint32_t* factors, std::size_t size,
                               std::uint32_t* out) {
  for (std::size_t k = 0; k < count; ++k) {
    const std::uint32_t low = static_cast<std::uint32_t>(hashes[k]), high = static_cast<std::uint32_t>(hashes[k] >> 32);
    for (std::size_t i = 0; i < size; ++i) {
      const std::uint32_t value = factors[i] * low + high;
      out[i] = value < out[i] ? value : out[i];
    }
  }
}

using Row = std::uint16_t;  // 16 bits of a minimum: by chance equal once in 65536

// [documents, hashes]; has[i]: whether a document has words at all.
struct Signatures {
  std::vector<Row> rows;
  std::vector<char> has;
};

Signatures sign(const Texts& texts, const Folding& folding, const Shingles& shingles, const Bands& bands, std::int64_t threads) {
  const std::size_t width = static_cast<std::size_t>(bands.hashes());
  std::vector<std::uint32_t> factors(width);
  for (std::size_t i = 0; i < width; ++i) factors[i] = static_cast<std::uint32_t>(mixed(mixed(bands.seed + 1) + i) >> 16) | 1;
  const std::size_t count = static_cast<std::size_t>(texts.count);
  Signatures found{std::vector<Row>(count * width), std::vector<char>(count)};
  for_each_text(texts, threads, [&] {
    return [&, shingler = Shingler(folding, shingles), least = std::vector<std::uint32_t>(width)](std::int64_t i) mutable {
      const auto& hashes = shingler.of(texts[i]);
      found.has[static_cast<std::size_t>(i)] = !hashes.empty();
      std::fill(least.begin(), least.end(), std::numeric_limits<std::uint32_t>::max());
      lower(hashes.data(), hashes.size(), factors.data(), width, least.data());
      std::copy(least.begin(), least.end(), found.rows.begin() + i * static_cast<std::int64_t>(width));
    };
  });
  return found;
}

struct Place {
  std::uint64_t bucket;
  std::int64_t document;
  bool operator<(const Place& other) const {
    return bucket != other.bucket ? bucket < other.bucket : document < other.document;
  }
};

// Buckets with at least two documents, numbered within the band; sorted by document.
std::vector<Place> shared_buckets(const Signatures& signatures, const Bands& bands, std::int64_t band) {
  const std::size_t rows = static_cast<std::size_t>(bands.rows), width = static_cast<std::size_t>(bands.hashes());
  std::vector<Place> places;
  for (std::size_t i = 0; i < signatures.has.size(); ++i) {
    if (!signatures.has[i]) continue;
    const Row* const row = signatures.rows.data() + i * width + static_cast<std::size_t>(band) * rows;
    std::uint64_t key = 0;
    for (std::size_t k = 0; k < rows; ++k) key = mixed(key + row[k] + 1);
    places.push_back({key, static_cast<std::int64_t>(i)});
  }
  std::sort(places.begin(), places.end());
  std::size_t kept = 0;
  std::uint64_t bucket = 0;
  for (std::size_t begin = 0, end; begin < places.size(); begin = end) {
    for (end = begin; end < places.size() && places[end].bucket == places[begin].bucket;) ++end;
    if (end - begin == 1) continue;
    for (std::size_t i = begin; i < end; ++i) places[kept++] = {bucket, places[i].document};
    ++bucket;
  }
  places.resize(kept);
  places.shrink_to_fit();
  std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) { return a.document < b.document; });
  return places;
}

double jaccard(const std::vector<std::uint64_t>& a, const std::vector<std::uint64_t>& b) {
  std::size_t both = 0;
  for (std::size_t i = 0, k = 0; i < a.size() && k < b.size();) {
    if (a[i] == b[k]) ++both, ++i, ++k;
    else if (a[i] < b[k]) ++i;
    else ++k;
  }
  return static_cast<double>(both) / static_cast<double>(a.size() + b.size() - both);
}

struct Candidate {
  std::int64_t equal_rows, document;
  bool operator<(const Candidate& other) const {
    return equal_rows != other.equal_rows ? equal_rows > other.equal_rows : document < other.document;
  }
};

}  // namespace

void fingerprints(const Texts& texts, const Folding& folding, Compared compared, std::int64_t threads, std::uint64_t* out) {
  for_each_text(texts, threads, [&] {
    return [&](std::int64_t i) {
      const auto values = fingerprint(texts[i], folding, compared);
      std::copy(values.begin(), values.end(), out + 2 * i);
    };
  });
}

NearDuplicates near_duplicates(const Texts& texts, const Folding& folding, const Shingles& shingles, const Bands& bands,
                               double threshold, std::int64_t known, std::int64_t threads) {
  const Signatures signatures = sign(texts, folding, shingles, bands, threads);
  const std::size_t count = static_cast<std::size_t>(texts.count), width = static_cast<std::size_t>(bands.hashes());
  std::vector<std::vector<Place>> places(static_cast<std::size_t>(bands.count));
  in_parts(bands.count, std::min(threads, bands.count), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (; begin < end; ++begin) places[static_cast<std::size_t>(begin)] = shared_buckets(signatures, bands, begin);
  });
  std::vector<std::vector<std::vector<std::int64_t>>> kept(places.size());  // documents of each bucket of each band
  for (std::size_t band = 0; band < places.size(); ++band) {
    std::uint64_t buckets = 0;
    for (const Place& place : places[band]) buckets = std::max(buckets, place.bucket + 1);
    kept[band].resize(buckets);
  }
  NearDuplicates found{std::vector<std::int64_t>(count, -1), std::vector<double>(count)};
  const double deviation = std::sqrt(threshold * (1 - threshold) / static_cast<double>(width));
  const auto enough = static_cast<std::int64_t>(std::ceil((threshold - kDeviations * deviation) * static_cast<double>(width)));
  std::vector<std::size_t> next(places.size());
  std::vector<std::int64_t> others;
  std::vector<Candidate> candidates;
  Shingler shingler(folding, shingles);
  for (std::size_t i = 0; i < count; ++i) {
    const auto document = static_cast<std::int64_t>(i);
    others.clear();
    bool is_cut = false;
    std::vector<std::pair<std::size_t, std::uint64_t>> buckets;
    for (std::size_t band = 0; band < places.size(); ++band) {
      if (next[band] == places[band].size() || places[band][next[band]].document != document) continue;
      const std::uint64_t bucket = places[band][next[band]++].bucket;
      buckets.emplace_back(band, bucket);
      if (document < known) continue;
      others.insert(others.end(), kept[band][bucket].begin(), kept[band][bucket].end());
      is_cut |= kept[band][bucket].size() == kCandidates;
    }
    std::sort(others.begin(), others.end());
    others.erase(std::unique(others.begin(), others.end()), others.end());
    candidates.clear();
    const Row* const mine = signatures.rows.data() + i * width;
    for (const std::int64_t other : others) {
      const Row* const row = signatures.rows.data() + static_cast<std::size_t>(other) * width;
      std::int64_t equal = 0;
      for (std::size_t k = 0; k < width; ++k) equal += mine[k] == row[k];
      if (equal >= enough) candidates.push_back({equal, other});
    }
    std::sort(candidates.begin(), candidates.end());
    if (candidates.size() > kCandidates) candidates.resize(kCandidates), is_cut = true;
    std::vector<std::uint64_t> own;
    for (const Candidate& candidate : candidates) {
      if (own.empty()) own = shingler.set(texts[document]);
      const double similarity = jaccard(own, shingler.set(texts[candidate.document]));
      ++found.verified;
      if (similarity < threshold) continue;
      found.kept[i] = candidate.document;
      found.similarity[i] = similarity;
      break;
    }
    if (found.kept[i] >= 0) continue;
    found.cut_short += is_cut;
    for (const auto& [band, bucket] : buckets) {
      if (kept[band][bucket].size() < kCandidates) kept[band][bucket].push_back(document);
    }
  }
  return found;
}

}  // namespace megatron_adapt
