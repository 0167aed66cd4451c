#include "merge.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "indexed_dataset.h"

namespace megatron_adapt {

namespace {

constexpr std::size_t kHeaderBytes = 34;
constexpr std::size_t kBlock = std::size_t{1} << 16;            // index entries read at a time
constexpr std::uint64_t kCopyBytes = std::uint64_t{64} << 20;  // copied between two pauses
constexpr const char* kMask = ".loss_mask";

// One file, read front to back or in blocks from any place.
class Input {
 public:
  explicit Input(std::string path) : path_(std::move(path)), descriptor_(::open(path_.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (descriptor_ < 0) throw FileError(errno, path_);
  }
  Input(Input&& other) noexcept : path_(other.path_), descriptor_(std::exchange(other.descriptor_, -1)) {}
  ~Input() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  void read_at(std::uint64_t offset, void* data, std::size_t bytes) const {
    char* out = static_cast<char*>(data);
    while (bytes > 0) {
      const ssize_t count = ::pread(descriptor_, out, bytes, static_cast<off_t>(offset));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) throw FileError(errno, path_);
      if (count == 0) throw ValueError(path_ + " ends before what its header describes");
      out += count;
      offset += static_cast<std::uint64_t>(count);
      bytes -= static_cast<std::size_t>(count);
    }
  }

  int descriptor() const { return descriptor_; }
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
  int descriptor_;
};

// PREFIX.idx; its layout is described in indexed_dataset.h.
class Index {
 public:
  explicit Index(const std::string& prefix) : prefix_(prefix), file_(prefix + ".idx") {
    char header[kHeaderBytes];
    file_.read_at(0, header, sizeof header);
    std::memcpy(&code_, header + 17, sizeof code_);
    std::memcpy(&sequences_, header + 18, sizeof sequences_);
    std::memcpy(&boundaries_, header + 26, sizeof boundaries_);
    if (std::memcmp(header, "MMIDIDX\0\0", 9) != 0 || id_bytes() == 0 || boundaries_ == 0) {
      throw ValueError(file_.path() + " is not the index of a corpus");
    }
  }

  // Megatron's type codes of integers; 0 for any other.
  std::uint64_t id_bytes() const {
    switch (code_) {
      case 1: case 2: return 1;
      case 3: case 8: return 2;
      case 4: return 4;
      case 5: return 8;
      default: return 0;
    }
  }

  template <typename Visit>
  void sizes(const Visit& visit) const {
    blocks<std::int32_t>(kHeaderBytes, sequences_, visit);
  }
  // Without the first boundary, which is 0.
  template <typename Visit>
  void ends(const Visit& visit) const {
    blocks<std::int64_t>(kHeaderBytes + sequences_ * 12 + 8, boundaries_ - 1, visit);
  }

  const std::string& prefix() const { return prefix_; }
  std::uint8_t code() const { return code_; }
  std::uint64_t sequences() const { return sequences_; }
  std::uint64_t documents() const { return boundaries_ - 1; }

 private:
  template <typename Value, typename Visit>
  void blocks(std::uint64_t offset, std::uint64_t count, const Visit& visit) const {
    std::vector<Value> block(static_cast<std::size_t>(std::min<std::uint64_t>(count, kBlock)));
    while (count > 0) {
      const std::size_t part = static_cast<std::size_t>(std::min<std::uint64_t>(count, kBlock));
      file_.read_at(offset, block.data(), part * sizeof(Value));
      visit(block.data(), part);
      offset += part * sizeof(Value);
      count -= part;
    }
  }

  const std::string prefix_;
  const Input file_;
  std::uint8_t code_ = 0;
  std::uint64_t sequences_ = 0;
  std::uint64_t boundaries_ = 0;
};

void copy(const std::string& path, std::uint64_t bytes, TemporaryFile& out, const std::function<void()>& pause) {
  const Input file(path);
  while (bytes > 0) {
    const std::uint64_t part = std::min(bytes, kCopyBytes);
    out.append_file(file.descriptor(), file.path(), part);
    bytes -= part;
    pause();
  }
  char more;
  if (::read(file.descriptor(), &more, 1) > 0) throw ValueError(file.path() + " is longer than its index describes");
}

void remove(const std::string& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) throw FileError(errno, path);
}

}  // namespace

Merged merge_indexed(const std::vector<std::string>& prefixes, const std::string& output, bool masked,
                     const std::function<void()>& pause) {
  if (prefixes.empty()) throw ValueError("there is nothing to merge");
  // Open one at a time: there may be more inputs than a process may have open files.
  const std::uint8_t code = Index(prefixes[0]).code();
  std::uint64_t sequences = 0, boundaries = 1;
  for (const std::string& prefix : prefixes) {
    const Index index(prefix);
    if (index.code() != code) throw ValueError(prefix + " has another type of ids than " + prefixes[0]);
    sequences += index.sequences();
    boundaries += index.documents();
  }
  TemporaryFile data(output + ".bin.tmp");
  TemporaryFile out(output + ".idx.tmp");
  std::optional<TemporaryFile> masks;
  if (masked) masks.emplace(output + kMask + ".tmp");
  const std::uint64_t version = 1;
  out.append("MMIDIDX\0\0", 9);
  out.append(&version, sizeof version);
  out.append(&code, sizeof code);
  out.append(&sequences, sizeof sequences);
  out.append(&boundaries, sizeof boundaries);

  Merged merged;
  merged.documents = boundaries - 1;
  for (const std::string& prefix : prefixes) {
    const Index index(prefix);
    std::uint64_t tokens = 0;
    index.sizes([&](const std::int32_t* sizes, std::size_t count) {
      for (std::size_t i = 0; i < count; ++i) tokens += static_cast<std::uint64_t>(sizes[i]);
      out.append(sizes, count * sizeof *sizes);
      pause();
    });
    copy(prefix + ".bin", tokens * index.id_bytes(), data, pause);
    if (masked) copy(prefix + kMask, tokens, *masks, pause);
    merged.tokens += tokens;
  }
  std::int64_t pointer = 0;
  std::vector<std::int64_t> block(kBlock);
  for (const std::string& prefix : prefixes) {
    const Index index(prefix);
    const std::int64_t id_bytes = static_cast<std::int64_t>(index.id_bytes());
    index.sizes([&](const std::int32_t* sizes, std::size_t count) {
      for (std::size_t i = 0; i < count; ++i) {
        block[i] = pointer;
        pointer += sizes[i] * id_bytes;
      }
      out.append(block.data(), count * sizeof block[0]);
      pause();
    });
  }
  std::int64_t before = 0;
  out.append(&before, sizeof before);
  for (const std::string& prefix : prefixes) {
    const Index index(prefix);
    index.ends([&](const std::int64_t* ends, std::size_t count) {
      for (std::size_t i = 0; i < count; ++i) block[i] = before + ends[i];
      out.append(block.data(), count * sizeof block[0]);
      pause();
    });
    before += static_cast<std::int64_t>(index.sequences());
  }
  data.sync();
  out.sync();
  if (masked) masks->sync();
  // Wherever this is killed: a description is never beside data that it was not written for, and without an index there is
  // no dataset, so no index finds another one's mask.
  for (const char* suffix : {".json", ".idx", kMask}) remove(output + suffix);
  if (masked) masks->rename_to(output + kMask);
  publish(output, data, out);
  return merged;
}

}  // namespace megatron_adapt
