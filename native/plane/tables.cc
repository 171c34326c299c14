#include "plane/tables.h"

#include <algorithm>

namespace holdfast::plane {

bool Region::HasChanged(uint64_t start, uint64_t length, uint64_t since) const {
  // A number that this process has not given yet is one of an earlier process.
  if (since == 0 || since > change || change - since > kStoresKept) return true;
  for (uint64_t number = since + 1; number <= change; number++) {
    if (Overlap(stores[number % kStoresKept], {start, length})) return true;
  }
  return false;
}

Region* Tables::Find(const Name& region) const {
  const auto found = regions_.find(region);
  return found == regions_.end() ? nullptr : found->second.get();
}

Tables::Revocation Tables::Install(std::vector<Table> tables) {
  std::unordered_map<Name, std::unique_ptr<Region>, NameHash> before;
  before.swap(regions_);
  for (Table& table : tables) {
    std::unique_ptr<Region>& region = regions_[table.region];
    if (region == nullptr) {
      const auto known = before.find(table.region);
      region = known != before.end() ? std::move(known->second) : std::make_unique<Region>();
    }
    region->name = table.region;
    region->extents = std::move(table.extents);
    region->ends.clear();
    uint64_t end = 0;
    for (const Span& extent : region->extents) region->ends.push_back(end += extent.length);
  }
  return RevokeIf([this](const Grant& grant) {
    const Region* region = Find(grant.region);
    return region == nullptr || grant.base + grant.length > region->size();
  });
}

bool Tables::Add(const Grant& grant) {
  Region* region = Find(grant.region);
  if (region == nullptr || grant.base > region->size() || grant.length > region->size() - grant.base) return false;
  if (keys_.size() >= keys_max_ || keys_.contains(grant.key)) return false;
  auto key = std::make_unique<Key>();
  key->grant = grant;
  key->region = region;
  keys_.emplace(grant.key, std::move(key));
  return true;
}

Tables::Revocation Tables::Revoke(const Filter& filter) {
  return RevokeIf([&filter](const Grant& grant) { return filter.Matches(grant); });
}

template <typename Predicate>
Tables::Revocation Tables::RevokeIf(Predicate predicate) {
  Revocation revocation;
  for (auto at = keys_.begin(); at != keys_.end();) {
    if (!predicate(at->second->grant)) {
      ++at;
      continue;
    }
    revocation.keys++;
    at->second->region = nullptr;
    if (at->second->in_flight > 0) ending_.push_back(std::move(at->second));
    at = keys_.erase(at);
  }
  // Also what an earlier one waits for: its caller must not be told that nothing is running.
  for (const auto& key : ending_) {
    if (!predicate(key->grant)) continue;
    if (revocation.awaits == 0) revocation.awaits = ++revocations_;
    key->awaited_by.push_back(revocation.awaits);
  }
  return revocation;
}

void Tables::Translate(const Region& region, uint64_t address, uint64_t length, std::vector<Span>* spans) {
  size_t at = static_cast<size_t>(std::upper_bound(region.ends.begin(), region.ends.end(), address) - region.ends.begin());
  while (length > 0) {
    const Span& extent = region.extents[at];
    const uint64_t offset = address - (region.ends[at] - extent.length);
    const uint64_t part = std::min(length, extent.length - offset);
    spans->push_back({extent.start + offset, part});
    address += part;
    length -= part;
    at++;
  }
}

Status Tables::Resolve(const Name& key, uint64_t session, uint64_t address, uint64_t length, uint8_t rights,
                       std::vector<Span>* spans, Key** found) const {
  const auto at = keys_.find(key);
  if (at == keys_.end() || at->second->grant.session != session) return kKeyInvalid;
  const Grant& grant = at->second->grant;
  *found = at->second.get();
  if ((grant.rights & rights) == 0) return kAccess;
  if (address < grant.base || address - grant.base > grant.length || length > grant.length - (address - grant.base)) {
    return kOutOfRange;
  }
  Translate(*at->second->region, address, length, spans);
  return kOk;
}

void Tables::Ended(Key* key, std::vector<uint64_t>* done) {
  if (--key->in_flight > 0 || key->region != nullptr) return;
  const auto at = std::find_if(ending_.begin(), ending_.end(), [key](const auto& each) { return each.get() == key; });
  const std::vector<uint64_t> awaited_by = std::move(key->awaited_by);
  ending_.erase(at);
  for (const uint64_t revocation : awaited_by) {
    const bool more = std::any_of(ending_.begin(), ending_.end(), [revocation](const auto& each) {
      return std::find(each->awaited_by.begin(), each->awaited_by.end(), revocation) != each->awaited_by.end();
    });
    if (!more) done->push_back(revocation);
  }
}

}  // namespace holdfast::plane
