// The region folder's face to JavaScript.
#pragma once

#include <napi.h>

#include <memory>

#include "region/mapping.h"

namespace holdfast::region {

// A user of a region's mapping that is not JavaScript. As long as it is there the mapping stays, and the file with its
// lock too, also if the region is closed. Made and destroyed on the environment's thread.
class Lease {
 public:
  // Null if the value is not the handle of an open region.
  static std::unique_ptr<Lease> Take(Napi::Value handle);
  virtual ~Lease() = default;
  virtual Mapping* mapping() const = 0;
};

// Adds open, grow, write, persist, persistDirect and close to `exports`.
void Register(Napi::Object exports);

}  // namespace holdfast::region
