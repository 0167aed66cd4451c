#include "indexed_dataset.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the format is little-endian");

namespace megatron_adapt {

namespace {

constexpr std::size_t kBufferBytes = std::size_t{1} << 20;
constexpr std::uint64_t kUint16Limit = 65500;
constexpr std::uint8_t kInt32Code = 4;
constexpr std::uint8_t kUint16Code = 8;
constexpr std::size_t kChunk = std::size_t{1} << 16;  // index entries built at a time

std::string directory_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

void sync_directory(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) throw FileError(errno, path);
  // Some network file systems cannot sync a directory; the files themselves are already on the disk.
  const int code = ::fsync(descriptor) == 0 || errno == EINVAL || errno == EROFS ? 0 : errno;
  ::close(descriptor);
  if (code != 0) throw FileError(code, path);
}

}  // namespace

FileError::FileError(int code, const std::string& path)
    : std::runtime_error(path + ": " + std::strerror(code)), code(code), path(path) {}

// ---------------------------------------------------------------------------------------------- TemporaryFile

TemporaryFile::TemporaryFile(std::string path) : path_(std::move(path)), owner_(::getpid()), buffer_(kBufferBytes) {
  open_and_lock();
}

TemporaryFile::~TemporaryFile() { discard(); }

bool TemporaryFile::is_still_at_path() const {
  struct stat opened, named;
  return ::fstat(descriptor_, &opened) == 0 && ::stat(path_.c_str(), &named) == 0 &&
         opened.st_dev == named.st_dev && opened.st_ino == named.st_ino;
}

void TemporaryFile::open_and_lock() {
  for (;;) {
    // Not O_TRUNC: until it is locked, the file may be another process's.
    descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor_ < 0) throw FileError(errno, path_);
    const bool locked = ::flock(descriptor_, LOCK_EX | LOCK_NB) == 0;
    // File systems without locks: go on without.
    const int code = locked || errno == ENOLCK || errno == ENOTSUP || errno == EINVAL || errno == ENOSYS ? 0 : errno;
    if (code == 0 && is_still_at_path()) break;  // else its former writer has just renamed or removed it: again
    ::close(std::exchange(descriptor_, -1));
    if (code != 0) throw FileError(code, path_);
  }
  struct stat status;
  if (::fstat(descriptor_, &status) != 0 || (status.st_size > 0 && ::ftruncate(descriptor_, 0) != 0)) {
    const int code = errno;
    discard();
    throw FileError(code, path_);
  }
}

void TemporaryFile::flush() {
  const char* data = buffer_.data();
  while (used_ > 0) {
    const ssize_t written = ::write(descriptor_, data, used_);
    if (written < 0) {
      if (errno == EINTR) continue;
      throw FileError(errno, path_);
    }
    data += written;
    used_ -= static_cast<std::size_t>(written);
  }
}

void TemporaryFile::append(const void* data, std::size_t bytes) {
  append_as<char>(static_cast<const char*>(data), bytes);
}

template <typename Out, typename In>
void TemporaryFile::append_as(const In* values, std::size_t count) {
  while (count > 0) {
    std::size_t part = std::min(count, (buffer_.size() - used_) / sizeof(Out));
    if (part == 0) {
      flush();
      continue;
    }
    // Every id of a .bin file has the same size, so the position in the buffer is aligned for Out.
    Out* out = reinterpret_cast<Out*>(buffer_.data() + used_);
    for (std::size_t i = 0; i < part; ++i) out[i] = static_cast<Out>(values[i]);
    used_ += part * sizeof(Out);
    values += part;
    count -= part;
  }
}

void TemporaryFile::append_file(int descriptor, const std::string& path, std::uint64_t bytes) {
  while (bytes > 0) {
    if (used_ == buffer_.size()) flush();
    const std::size_t room = buffer_.size() - used_;
    const ssize_t count = ::read(descriptor, buffer_.data() + used_, std::min<std::uint64_t>(room, bytes));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw FileError(errno, path);
    if (count == 0) throw ValueError(path + " is shorter than its index describes");
    used_ += static_cast<std::size_t>(count);
    bytes -= static_cast<std::uint64_t>(count);
  }
}

void TemporaryFile::sync() {
  flush();
  // EINVAL: a pipe or a device, which has nothing to sync.
  if (::fsync(descriptor_) != 0 && errno != EINVAL) throw FileError(errno, path_);
}

void TemporaryFile::rename_to(const std::string& path) {
  if (::rename(path_.c_str(), path.c_str()) != 0) throw FileError(errno, path);
  // The data are synced: closing only gives up the lock.
  ::close(std::exchange(descriptor_, -1));
}

void TemporaryFile::discard() noexcept {
  if (descriptor_ < 0) return;
  if (::getpid() == owner_) ::unlink(path_.c_str());
  ::close(std::exchange(descriptor_, -1));
}

void publish(const std::string& prefix, TemporaryFile& data, TemporaryFile& index) {
  const std::string index_path = prefix + ".idx";
  // No reader may ever find a former index beside the new data.
  if (::unlink(index_path.c_str()) != 0 && errno != ENOENT) throw FileError(errno, index_path);
  data.rename_to(prefix + ".bin");
  index.rename_to(index_path);
  sync_directory(directory_of(prefix));
}

// ---------------------------------------------------------------------------------------------- IndexedWriter

IndexedWriter::IndexedWriter(std::string prefix, std::uint64_t vocab_size)
    : prefix_(std::move(prefix)),
      vocab_size_(vocab_size),
      is_uint16_(vocab_size < kUint16Limit),
      data_(prefix_ + ".bin.tmp"),
      index_(prefix_ + ".idx.tmp") {
  if (vocab_size == 0 || vocab_size > std::uint64_t{1} << 31) {
    throw ValueError("a vocabulary of " + std::to_string(vocab_size) + " ids cannot be stored; it must have 1 to 2^31");
  }
}

void IndexedWriter::require(bool allowed) const {
  if (allowed) return;
  throw std::logic_error("the writer of " + prefix_ + (state_ == State::failed ? " has failed before" : " is closed"));
}

template <typename Id>
void IndexedWriter::check(const Id* ids, std::size_t count, const std::int64_t* lengths, std::size_t documents) const {
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < documents; ++i) {
    if (lengths[i] < 0 || lengths[i] > std::numeric_limits<std::int32_t>::max()) {
      throw ValueError("document " + std::to_string(num_documents() + i) + " has " + std::to_string(lengths[i]) +
                       " tokens; the format holds 0 to 2147483647");
    }
    total += static_cast<std::uint64_t>(lengths[i]);
  }
  if (total != count) {
    throw ValueError("the lengths add up to " + std::to_string(total) + " but there are " + std::to_string(count) +
                     " ids");
  }
  // In the type of the ids and without branches, so that the loop is vectorised.
  constexpr std::uint64_t kLargest = static_cast<std::uint64_t>(std::numeric_limits<Id>::max());
  const Id last = static_cast<Id>(std::min(vocab_size_ - 1, kLargest));
  Id wrong = 0;
  for (std::size_t i = 0; i < count; ++i) wrong |= static_cast<Id>((ids[i] < Id{0}) | (ids[i] > last));
  if (wrong == 0) return;
  // A negative id becomes a huge one, so one comparison finds both kinds.
  const Id* id = std::find_if(ids, ids + count, [this](Id x) { return static_cast<std::uint64_t>(x) >= vocab_size_; });
  std::uint64_t end = 0;
  std::size_t document = 0;
  while ((end += static_cast<std::uint64_t>(lengths[document])) <= static_cast<std::uint64_t>(id - ids)) ++document;
  throw ValueError("document " + std::to_string(num_documents() + document) + " contains the token id " +
                   std::to_string(*id) + ", but the vocabulary has the ids 0 to " + std::to_string(vocab_size_ - 1));
}

template <typename Id>
void IndexedWriter::add(const Id* ids, std::size_t count, const std::int64_t* lengths, std::size_t documents) {
  const std::lock_guard<std::mutex> lock(mutex_);
  require(state_ == State::open);
  check(ids, count, lengths, documents);
  state_ = State::failed;  // until the end of this call
  sizes_.insert(sizes_.end(), lengths, lengths + documents);
  if (is_uint16_) {
    data_.append_as<std::uint16_t>(ids, count);
  } else {
    data_.append_as<std::int32_t>(ids, count);
  }
  tokens_ += count;
  state_ = State::open;
}

void IndexedWriter::write_index() {
  const std::uint64_t documents = sizes_.size();
  const std::uint64_t version = 1;
  const std::uint64_t boundaries = documents + 1;
  const std::uint8_t code = is_uint16_ ? kUint16Code : kInt32Code;
  index_.append("MMIDIDX\0\0", 9);
  index_.append(&version, sizeof version);
  index_.append(&code, sizeof code);
  index_.append(&documents, sizeof documents);
  index_.append(&boundaries, sizeof boundaries);
  index_.append(sizes_.data(), documents * sizeof(std::int32_t));

  const std::int64_t bytes_per_id = is_uint16_ ? 2 : 4;
  std::vector<std::int64_t> chunk;
  chunk.reserve(kChunk);
  const auto push = [&](std::int64_t value) {
    chunk.push_back(value);
    if (chunk.size() < kChunk) return;
    index_.append(chunk.data(), chunk.size() * sizeof(std::int64_t));
    chunk.clear();
  };
  std::int64_t pointer = 0;
  for (const std::int32_t size : sizes_) {
    push(pointer);
    pointer += size * bytes_per_id;
  }
  for (std::uint64_t i = 0; i < boundaries; ++i) push(static_cast<std::int64_t>(i));
  index_.append(chunk.data(), chunk.size() * sizeof(std::int64_t));
}

void IndexedWriter::write_and_sync() {
  state_ = State::failed;  // until the end of this call
  write_index();
  data_.sync();
  index_.sync();
  state_ = State::synced;
}

void IndexedWriter::sync() {
  const std::lock_guard<std::mutex> lock(mutex_);
  require(state_ == State::open);
  write_and_sync();
}

void IndexedWriter::finish() {
  const std::lock_guard<std::mutex> lock(mutex_);
  require(state_ == State::open || state_ == State::synced);
  if (state_ == State::open) write_and_sync();
  state_ = State::failed;  // until the end of this call
  publish(prefix_, data_, index_);
  state_ = State::closed;
}

void IndexedWriter::abandon() noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  data_.discard();
  index_.discard();
  if (state_ != State::failed) state_ = State::closed;
}

#define MEGATRON_ADAPT_INSTANTIATE(Id) \
  template void IndexedWriter::add<Id>(const Id*, std::size_t, const std::int64_t*, std::size_t);
MEGATRON_ADAPT_INSTANTIATE(std::int8_t)
MEGATRON_ADAPT_INSTANTIATE(std::int16_t)
MEGATRON_ADAPT_INSTANTIATE(std::int32_t)
MEGATRON_ADAPT_INSTANTIATE(std::int64_t)
MEGATRON_ADAPT_INSTANTIATE(std::uint8_t)
MEGATRON_ADAPT_INSTANTIATE(std::uint16_t)
MEGATRON_ADAPT_INSTANTIATE(std::uint32_t)
MEGATRON_ADAPT_INSTANTIATE(std::uint64_t)
#undef MEGATRON_ADAPT_INSTANTIATE

}  // namespace megatron_adapt
