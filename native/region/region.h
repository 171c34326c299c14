// The region folder's face to JavaScript.
#pragma once

#include <napi.h>

namespace holdfast::region {

// Adds open, grow, write, persist, persistDirect and close to `exports`.
void Register(Napi::Object exports);

}  // namespace holdfast::region
