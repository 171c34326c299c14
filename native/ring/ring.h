// The ring: direct I/O for one event loop.
#pragma once

#include <napi.h>

namespace holdfast::ring {

// Adds the ring's functions to `exports`.
void Register(Napi::Object exports);

}  // namespace holdfast::ring
