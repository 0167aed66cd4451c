#include "substrings.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>

#include "polynomial.h"

namespace megatron_adapt {

namespace {

constexpr std::size_t kShares = 256;                  // of all hashes, by their highest bits: the work of one thread at a time
constexpr std::size_t kTogether = std::size_t{1} << 22;  // windows that are compared at a time, of one thread

struct Entry {
  std::uint64_t hash;   // of the minimizer
  std::uint64_t place;  // first byte of the first window << 16 | windows with this minimizer, from there on

  std::int64_t begin() const { return static_cast<std::int64_t>(place >> 16); }
  std::int64_t windows() const { return static_cast<std::int64_t>(place & 0xFFFF); }
  bool operator<(const Entry& other) const { return hash != other.hash ? hash < other.hash : place < other.place; }
};

struct Window {
  std::uint64_t hash;
  std::int64_t begin, size;
  bool operator<(const Window& other) const { return hash != other.hash ? hash < other.hash : begin < other.begin; }
};

using Entries = std::vector<std::vector<Entry>>;  // by share

const char* skip(const char* at, const char* end, std::int64_t characters) {
  for (; characters > 0 && at != end; --characters) next_character(at, end);
  return at;
}

// Finds the minimizers of a document's windows.
class Minimizers {
 public:
  Minimizers(const Texts& texts, std::int64_t characters, std::size_t first_share, std::size_t last_share, Entries& out)
      : texts_(texts), n_(characters), k_((characters + 1) / 2), first_(first_share), last_(last_share),
        rolling_(static_cast<std::uint64_t>(k_)), out_(out) {
    while (size_ < static_cast<std::size_t>(n_ + 1)) size_ *= 2;
    begins_.resize(size_);
    queue_.resize(size_);
  }

  void operator()(std::int64_t document) {
    const std::string_view text = texts_[document];
    const char *head = text.data(), *const end = head + text.size(), *tail = head;
    rolling_.restart();
    front_ = back_ = 0;
    std::int64_t minimizer = -1;
    for (std::int64_t i = 0; head != end; ++i) {
      begins_[slot(i)] = head - texts_.data;
      rolling_.add(next_character(head, end));
      if (i >= k_) rolling_.remove(next_character(tail, end));
      if (i + 1 < k_) continue;
      const Item item{mixed(rolling_.value()), i + 1 - k_};
      while (back_ != front_ && queue_[slot(back_ - 1)].hash > item.hash) --back_;
      queue_[slot(back_++)] = item;
      if (i + 1 < n_) continue;
      const std::int64_t window = i + 1 - n_;
      while (queue_[slot(front_)].at < window) ++front_;
      const Item& least = queue_[slot(front_)];
      if (least.at == minimizer) {
        ++current_.place;
        continue;
      }
      if (minimizer >= 0) emit();
      minimizer = least.at;
      current_ = {least.hash, static_cast<std::uint64_t>(begins_[slot(window)]) << 16 | 1};
    }
    if (minimizer >= 0) emit();
  }

 private:
  struct Item {
    std::uint64_t hash;
    std::int64_t at;
  };

  std::size_t slot(std::int64_t i) const { return static_cast<std::size_t>(i) & (size_ - 1); }

  void emit() {
    const std::size_t share = current_.hash >> 56;
    if (share >= first_ && share < last_) out_[share - first_].push_back(current_);
  }

  const Texts& texts_;
  std::int64_t n_, k_;
  std::size_t first_, last_, size_ = 4;
  RollingHash rolling_;
  Entries& out_;
  std::vector<std::int64_t> begins_;
  std::vector<Item> queue_;  // a ring; hashes ascend from front to back
  std::int64_t front_ = 0, back_ = 0;
  Entry current_{};
};

// The same for the entries of one minimizer where all their windows agree, as in copies of whole documents; else false.
template <typename Sink>
bool compare_copies(const Texts& texts, std::int64_t characters, const Entry* entries, std::size_t count, Sink& sink) {
  const char* const end = texts.data + texts.ends[texts.count - 1];
  const std::int64_t windows = entries[0].windows();
  const char* tail = texts.data + entries[0].begin();
  const std::int64_t size = skip(tail, end, characters + windows - 1) - tail;
  for (std::size_t i = 1; i < count; ++i) {
    const char* const other = texts.data + entries[i].begin();
    if (entries[i].windows() != windows || end - other < size) return false;
    if (std::memcmp(tail, other, static_cast<std::size_t>(size)) != 0) return false;
  }
  std::vector<std::int64_t> positions(count);
  for (std::size_t i = 0; i < count; ++i) positions[i] = entries[i].begin();
  const char* head = skip(tail, end, characters);
  for (std::int64_t left = windows;;) {
    sink(positions, head - tail);
    if (--left == 0) return true;
    const char* const before = tail;
    next_character(head, end), next_character(tail, end);
    for (std::int64_t& position : positions) position += tail - before;
  }
}

// The same for the entries of one minimizer.
template <typename Sink>
void compare(const Texts& texts, std::int64_t characters, const Entry* entries, std::size_t count, Sink& sink) {
  if (compare_copies(texts, characters, entries, count, sink)) return;
  std::size_t total = 0;
  for (std::size_t i = 0; i < count; ++i) total += static_cast<std::size_t>(entries[i].windows());
  const std::size_t turns = total / kTogether + 1;
  const char* const end = texts.data + texts.ends[texts.count - 1];
  std::vector<Window> windows;
  std::vector<std::int64_t> same;
  std::vector<Window> others;
  RollingHash rolling(static_cast<std::uint64_t>(characters));
  for (std::size_t turn = 0; turn < turns; ++turn) {
    windows.clear();
    for (std::size_t i = 0; i < count; ++i) {
      const char *tail = texts.data + entries[i].begin(), *head = tail;
      rolling.restart();
      for (std::int64_t k = 0; k < characters; ++k) rolling.add(next_character(head, end));
      for (std::int64_t left = entries[i].windows();;) {
        if (turns == 1 || mixed(rolling.value()) % turns == turn) windows.push_back({rolling.value(), tail - texts.data, head - tail});
        if (--left == 0) break;
        rolling.add(next_character(head, end));
        rolling.remove(next_character(tail, end));
      }
    }
    std::sort(windows.begin(), windows.end());
    for (std::size_t i = 0, k; i < windows.size(); i = k) {
      for (k = i + 1; k < windows.size() && windows[k].hash == windows[i].hash;) ++k;
      if (k - i < 2) continue;
      others.assign(windows.begin() + static_cast<std::ptrdiff_t>(i), windows.begin() + static_cast<std::ptrdiff_t>(k));
      while (others.size() > 1) {  // once, unless different windows have one hash
        same.clear();
        const Window first = others[0];
        std::size_t rest = 0;
        for (const Window& other : others) {
          const bool is_same = other.size == first.size && std::memcmp(texts.data + first.begin, texts.data + other.begin,
                                                                       static_cast<std::size_t>(first.size)) == 0;
          if (is_same) same.push_back(other.begin);
          else others[rest++] = other;
        }
        others.resize(rest);
        if (same.size() > 1) sink(same, first.size);
      }
    }
  }
}

// Calls sink(first bytes of all of them in order, size of each) for each content that several windows have. Several threads do,
// each through a sink of its own that make() gives.
template <typename Make>
void each_repeat(const Texts& texts, const Search& search, const Make& make) {
  std::int64_t bytes = 0;
  for (std::int64_t i = 0; i < texts.count; ++i) bytes += texts.ends[i] - texts.begins[i];
  // Of characters of one byte; as much again for vectors that grow.
  const double entries = 2.0 * static_cast<double>(bytes) / static_cast<double>(search.characters / 2 + 2);
  const double needed = 2.0 * sizeof(Entry) * entries / static_cast<double>(std::max<std::int64_t>(search.memory, 1));
  const auto passes = static_cast<std::size_t>(std::clamp(needed + 1.0, 1.0, static_cast<double>(kShares)));
  for (std::size_t pass = 0; pass < passes; ++pass) {
    const std::size_t first = kShares * pass / passes, last = kShares * (pass + 1) / passes;
    std::vector<std::unique_ptr<Entries>> all;
    std::mutex mutex;
    for_each_text(texts, search.threads, [&] {
      const std::lock_guard lock(mutex);
      all.push_back(std::make_unique<Entries>(last - first));
      return Minimizers(texts, search.characters, first, last, *all.back());
    });
    std::atomic<std::size_t> next{0};
    in_parts(search.threads, search.threads, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
      for (; begin < end; ++begin) {
        auto sink = make();
        for (std::size_t share; (share = next.fetch_add(1)) < last - first;) {
          std::vector<Entry> entries;
          for (const auto& part : all) {
            entries.insert(entries.end(), (*part)[share].begin(), (*part)[share].end());
            std::vector<Entry>().swap((*part)[share]);
          }
          std::sort(entries.begin(), entries.end());
          for (std::size_t i = 0, k; i < entries.size(); i = k) {
            for (k = i + 1; k < entries.size() && entries[k].hash == entries[i].hash;) ++k;
            if (k - i > 1) compare(texts, search.characters, &entries[i], k - i, sink);
          }
        }
      }
    });
  }
}

std::int64_t document_of(const Texts& texts, std::int64_t position) {
  return std::upper_bound(texts.begins, texts.begins + texts.count, position) - texts.begins - 1;
}

using Bits = std::vector<std::atomic<std::uint64_t>>;

bool has(const Bits& bits, std::int64_t at) {
  return bits[static_cast<std::size_t>(at) / 64].load(std::memory_order_relaxed) >> (at % 64) & 1;
}

// A span without the parts of words at its ends; as it is where that leaves nothing.
Span whole_words(const Texts& texts, const Folding& folding, const Span& span) {
  const char *const first = texts.data + texts.begins[span.document], *const last = texts.data + texts.ends[span.document];
  const char *begin = texts.data + span.begin, *end = texts.data + span.end;
  const auto is_space = [&](const char* at) { return (folding(next_character(at, last)) & Folding::kSpace) != 0; };
  const auto before = [first](const char* at) {
    do --at;
    while (at != first && is_tail(static_cast<unsigned char>(*at)));
    return at;
  };
  if (begin != first && !is_space(before(begin))) {
    while (begin != end && !is_space(begin)) next_character(begin, last);
    if (begin != end) next_character(begin, last);  // the space goes with what stays in front
  }
  if (end != last && !is_space(end) && !is_space(before(end))) {
    while (end > begin && !is_space(before(end))) end = before(end);
  }
  if (begin >= end) return span;
  if (end != last && *end == ' ' && begin != first) ++end;  // else two spaces are left
  return {span.document, begin - texts.data, end - texts.data};
}

void spans_of(const Texts& texts, const Folding& folding, std::int64_t document, std::int64_t characters, const Bits& bits,
              bool is_whole, std::vector<Span>& out) {
  const char *at = texts.data + texts.begins[document], *const end = texts.data + texts.ends[document];
  std::vector<Span> found;
  while (at != end) {
    const std::int64_t position = at - texts.data;
    if (bits[static_cast<std::size_t>(position) / 64].load(std::memory_order_relaxed) == 0) {
      const std::int64_t next = std::min<std::int64_t>((position / 64 + 1) * 64, end - texts.data);
      at = texts.data + next;
      while (at != end && is_tail(static_cast<unsigned char>(*at))) ++at;
      continue;
    }
    if (!has(bits, position)) {
      next_character(at, end);
      continue;
    }
    const char* head = skip(at, end, characters);  // of all windows that begin one character behind another
    for (next_character(at, end); at != end && has(bits, at - texts.data); next_character(at, end)) next_character(head, end);
    const std::int64_t behind = head - texts.data;
    if (!found.empty() && found.back().end >= position) found.back().end = behind;
    else found.push_back({document, position, behind});
  }
  for (const Span& span : found) out.push_back(is_whole ? whole_words(texts, folding, span) : span);
}

}  // namespace

std::vector<Span> repeated_spans(const Texts& texts, const Folding& folding, const Search& search, bool is_whole) {
  if (texts.count == 0) return {};
  Bits bits(static_cast<std::size_t>(texts.ends[texts.count - 1]) / 64 + 1);
  each_repeat(texts, search, [&] {
    return [&](const std::vector<std::int64_t>& positions, std::int64_t size) {
      for (const std::int64_t at : positions) {
        if (at >= positions[0] + size) {
          bits[static_cast<std::size_t>(at) / 64].fetch_or(std::uint64_t{1} << (at % 64), std::memory_order_relaxed);
        }
      }
    };
  });
  std::vector<Span> found;
  for (std::int64_t i = 0; i < texts.count; ++i) spans_of(texts, folding, i, search.characters, bits, is_whole, found);
  return found;
}

std::vector<std::int8_t> documents_with_repeats(const Texts& texts, const Search& search) {
  if (texts.count == 0) return {};
  std::vector<std::atomic<std::int8_t>> marks(static_cast<std::size_t>(texts.count));
  each_repeat(texts, search, [&] {
    return [&](const std::vector<std::int64_t>& positions, std::int64_t size) {
      const std::int64_t first = document_of(texts, positions.front()), last = document_of(texts, positions.back());
      if (first == last && positions.back() < positions.front() + size) return;
      for (const std::int64_t at : positions) {
        marks[static_cast<std::size_t>(document_of(texts, at))].store(1, std::memory_order_relaxed);
      }
    };
  });
  return std::vector<std::int8_t>(marks.begin(), marks.end());
}

std::vector<std::int64_t> repeating_documents(const Texts& texts, const Search& search, std::int64_t known) {
  struct Member {
    std::int64_t document;
    std::uint64_t group;
    bool operator<(const Member& other) const {
      return document != other.document ? document < other.document : group < other.group;
    }
  };
  std::vector<Member> members;
  std::uint64_t groups = 0;
  std::mutex mutex;
  if (texts.count != 0) each_repeat(texts, search, [&] {
    return [&, last = std::vector<std::int64_t>(), documents = std::vector<std::int64_t>()](
               const std::vector<std::int64_t>& positions, std::int64_t) mutable {
      documents.clear();
      for (const std::int64_t at : positions) {
        const std::int64_t document = document_of(texts, at);
        if (documents.empty() || documents.back() != document) documents.push_back(document);
      }
      if (documents.size() < 2 || documents == last) return;  // windows side by side are mostly in the same documents
      last = documents;
      const std::lock_guard lock(mutex);
      for (const std::int64_t document : documents) members.push_back({document, groups});
      ++groups;
    };
  });
  std::sort(members.begin(), members.end());
  std::vector<std::int64_t> keepers(groups, -1), found(static_cast<std::size_t>(texts.count), -1);
  for (std::size_t i = 0, k; i < members.size(); i = k) {
    std::int64_t& keeper = found[static_cast<std::size_t>(members[i].document)];
    for (k = i; k < members.size() && members[k].document == members[i].document; ++k) {
      const std::int64_t other = keepers[members[k].group];
      if (members[i].document >= known && other >= 0 && (keeper < 0 || other < keeper)) keeper = other;
    }
    if (keeper >= 0) continue;
    for (std::size_t j = i; j < k; ++j) {
      if (keepers[members[j].group] < 0) keepers[members[j].group] = members[j].document;
    }
  }
  return found;
}

}  // namespace megatron_adapt
