// The copy folder's face to JavaScript.
#pragma once

#include <napi.h>

namespace holdfast::copy {

// Adds cloneRange, copyFileRange, dropCache and scsi to `exports`.
void Register(Napi::Object exports);

}  // namespace holdfast::copy
