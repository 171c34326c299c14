// The scan folder's face to JavaScript.
#pragma once

#include <napi.h>

namespace holdfast::scan {

// Adds start, take, doneBytes, setRate, cancel, ended, close, keepAlive and failure to `exports`.
void Register(Napi::Object exports);

}  // namespace holdfast::scan
