// The ring: direct I/O for one event loop.
#pragma once

#include <node_api.h>

namespace holdfast::ring {

// Adds the ring's functions to `exports`. False if Node-API refused (its exception may be pending).
bool Register(napi_env env, napi_value exports);

}  // namespace holdfast::ring
