// Which physical bytes a key opens at a virtual address, for whom. Pure: its owner sees to it that one thread is here at
// a time.
//
// Invariants:
// - A key opens something only for the session that it was granted to, in its range of its region, by its rights.
// - From the call of Revoke on a key opens nothing; a Key lives on until the last command under it has ended.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "plane/wire.h"

namespace holdfast::plane {

constexpr uint8_t kReadRight = 1;
constexpr uint8_t kWriteRight = 2;
constexpr uint8_t kAnyRight = 3;

// Bytes from a start on: physical ones, if nothing else is said.
struct Span {
  uint64_t start;
  uint64_t length;
};

inline bool Overlap(const Span& one, const Span& other) {
  return one.start < other.start + other.length && other.start < one.start + one.length;
}

constexpr uint64_t kStoresKept = 64;    // for watches that come later than they

// Names are random: their bytes are as good a hash as any. A stranger can choose what is looked up, not what is stored.
struct NameHash {
  size_t operator()(const Name& name) const {
    size_t hash;
    memcpy(&hash, name.data(), sizeof(hash));
    return hash;
  }
};

struct Region {
  Name name{};
  std::vector<Span> extents;
  std::vector<uint64_t> ends;    // of each extent, as virtual addresses
  uint32_t watches = 0;
  // Grows with each store; those that are remembered stand at their number modulo their count.
  uint64_t change = 1;
  Span stores[kStoresKept]{};

  uint64_t size() const { return ends.empty() ? 0 : ends.back(); }
  // Of virtual addresses.
  void NoteStore(uint64_t start, uint64_t length) { stores[++change % kStoresKept] = {start, length}; }
  // Whether a store has touched the range since that number was given; also if that is not known any more.
  bool HasChanged(uint64_t start, uint64_t length, uint64_t since) const;
};

struct Grant {
  Name key{};
  Name region{};
  uint64_t base = 0;
  uint64_t length = 0;
  uint8_t rights = 0;
  uint64_t session = 0;
};

struct Key {
  Grant grant;
  Region* region = nullptr;    // none once it is revoked
  uint32_t in_flight = 0;      // commands that go on after their execution: their persist is under way
  std::vector<uint64_t> awaited_by;    // revocations
};

// What a revocation matches.
struct Filter {
  bool by_region = false, by_key = false, by_session = false, but_session = false;
  Name region{};
  Name key{};
  uint64_t session = 0;
  uint64_t spared_session = 0;    // with but_session: all but those of this one
  uint8_t rights = 0;    // those that have one of these; 0: whatever they have

  bool Matches(const Grant& grant) const {
    return (!by_region || grant.region == region) && (!by_key || grant.key == key) &&
           (!by_session || grant.session == session) && (!but_session || grant.session != spared_session) &&
           (rights == 0 || (grant.rights & rights) != 0);
  }
};

class Tables {
 public:
  explicit Tables(size_t keys_max) : keys_max_(keys_max) {}

  struct Table {
    Name region;
    std::vector<Span> extents;
  };
  // What a revocation has done: how many keys open nothing any more, and its number if commands under some key that it
  // matches are still running (Ended tells when they are not), else 0.
  struct Revocation {
    uint32_t keys = 0;
    uint64_t awaits = 0;
  };

  // Takes the place of all tables; extents are inside the memory and multiples of 8. The keys of regions that are gone,
  // or no longer long enough, are revoked.
  Revocation Install(std::vector<Table> tables);
  // False if there is no such region, or its range reaches over the end, or there are too many keys, or such a key.
  bool Add(const Grant& grant);
  Revocation Revoke(const Filter& filter);

  // Checks a command, which needs one of the rights, and appends where its range is. `found` is the key, if it is valid; it is left in peace otherwise.
  Status Resolve(const Name& key, uint64_t session, uint64_t address, uint64_t length, uint8_t rights,
                 std::vector<Span>* spans, Key** found) const;

  // A command under the key has ended. Appends the revocations that nothing is left for.
  void Ended(Key* key, std::vector<uint64_t>* done);

  Region* Find(const Name& region) const;
  bool Knows(const Name& key) const { return keys_.contains(key); }
  size_t keys() const { return keys_.size(); }

 private:
  static void Translate(const Region& region, uint64_t address, uint64_t length, std::vector<Span>* spans);
  template <typename Predicate>
  Revocation RevokeIf(Predicate predicate);

  size_t keys_max_;
  std::unordered_map<Name, std::unique_ptr<Region>, NameHash> regions_;
  std::unordered_map<Name, std::unique_ptr<Key>, NameHash> keys_;
  std::vector<std::unique_ptr<Key>> ending_;    // revoked, with commands in flight
  uint64_t revocations_ = 0;
};

}  // namespace holdfast::plane
