// The region folder's face to JavaScript.
#pragma once

#include <node_api.h>

namespace holdfast::region {

// Adds open, persist, persistDirect and close to `exports`.
bool Register(napi_env env, napi_value exports);

}  // namespace holdfast::region
