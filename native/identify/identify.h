// The identify folder's face to JavaScript: what a device is, and what stands on it.
#pragma once

#include <node_api.h>

namespace holdfast::identify {

// Adds probeSignatures, deviceGeometry and seekData to `exports`.
bool Register(napi_env env, napi_value exports);

}  // namespace holdfast::identify
