// What Node's `fs` cannot ask of an open file.
#pragma once

#include <napi.h>

namespace holdfast::ring {

void RegisterFileFunctions(Napi::Object exports);

}  // namespace holdfast::ring
