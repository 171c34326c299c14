// The identify folder's face to JavaScript: what a device is, and what stands on it.
#pragma once

#include <napi.h>

namespace holdfast::identify {

// Adds probeSignatures, deviceGeometry and seekData to `exports`.
void Register(Napi::Object exports);

}  // namespace holdfast::identify
