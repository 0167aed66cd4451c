// Writer of Megatron Core's indexed datasets: PREFIX.bin (token ids back to back) and PREFIX.idx (the document index).
//
// PREFIX.idx, little-endian, no padding (S = number of sequences; here one per document):
//   "MMIDIDX\0\0"  u64 version = 1  u8 dtype code  u64 S  u64 S + 1
//   i32 sizes[S] (tokens)  i64 pointers[S] (byte offsets into PREFIX.bin)  i64 document_indices[S + 1] = 0 1 ... S

#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace megatron_adapt {

// A system call on a file failed.
class FileError : public std::runtime_error {
 public:
  FileError(int code, const std::string& path);
  const int code;  // errno
  const std::string path;
};

// A token id that the vocabulary does not have, or a length that the format cannot hold.
class ValueError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A file written front to back under a temporary name; unless it is renamed it vanishes with the object.
//
// While it is open it is locked, so that a second writer of the same path fails instead of mixing its bytes in.
class TemporaryFile {
 public:
  explicit TemporaryFile(std::string path);
  ~TemporaryFile();
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  void append(const void* data, std::size_t bytes);
  // Appends `count` values converted to Out (through the buffer, without a second copy).
  template <typename Out, typename In>
  void append_as(const In* values, std::size_t count);
  // Appends the next `bytes` of an open file, which `path` names in errors.
  void append_file(int descriptor, const std::string& path, std::uint64_t bytes);
  // Everything is on the disk when this returns.
  void sync();
  void rename_to(const std::string& path);
  void discard() noexcept;

 private:
  bool is_still_at_path() const;
  void open_and_lock();
  void flush();

  const std::string path_;
  const pid_t owner_;  // a forked child must not remove the file of its parent
  int descriptor_ = -1;
  std::vector<char> buffer_;
  std::size_t used_ = 0;
};

// Gives two synced files the names PREFIX.bin and PREFIX.idx, the index last.
void publish(const std::string& prefix, TemporaryFile& data, TemporaryFile& index);

// Writes one corpus. Not usable after an exception that is not a ValueError, nor after `finish` or `abandon`.
class IndexedWriter {
 public:
  // Ids are stored as uint16 when vocab_size < 65500 (Megatron's DType.optimal_dtype), else as int32.
  IndexedWriter(std::string prefix, std::uint64_t vocab_size);

  // Appends documents: their ids back to back, and the number of ids of each. A ValueError leaves the writer unchanged.
  template <typename Id>
  void add(const Id* ids, std::size_t count, const std::int64_t* lengths, std::size_t documents);
  // Completes both files under their temporary names and syncs them: what a full disk can still prevent. Nothing can be
  // added any more.
  void sync();
  // Syncs unless that is done and gives the files their final names, the index last.
  void finish();
  // Removes what was written.
  void abandon() noexcept;

  std::uint64_t num_documents() const { return sizes_.size(); }
  std::uint64_t num_tokens() const { return tokens_; }
  bool is_uint16() const { return is_uint16_; }

 private:
  enum class State { open, synced, failed, closed };

  template <typename Id>
  void check(const Id* ids, std::size_t count, const std::int64_t* lengths, std::size_t documents) const;
  void require(bool allowed) const;
  void write_and_sync();
  void write_index();

  const std::string prefix_;
  const std::uint64_t vocab_size_;
  const bool is_uint16_;
  State state_ = State::open;
  std::mutex mutex_;  // the GIL is released during writes
  std::vector<std::int32_t> sizes_;
  std::uint64_t tokens_ = 0;
  TemporaryFile data_;
  TemporaryFile index_;
};

}  // namespace megatron_adapt
