// The digest folder's face to JavaScript.
#pragma once

#include <napi.h>

#include "digest/algorithms.h"

namespace holdfast::digest {

// Reads a name and a key (a Uint8Array, or undefined for none). False if they are not that.
bool GetAlgorithm(Napi::Value name, Napi::Value key, Algorithm* algorithm);

// Adds digestBlocks and isAvailable to `exports`.
void Register(Napi::Object exports);

}  // namespace holdfast::digest
