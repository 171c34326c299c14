// The plane folder's face to JavaScript.
#pragma once

#include <napi.h>

namespace holdfast::plane {

// Adds the unit's end (server.h) as server…, the client's (client.h) as client… to `exports`.
void Register(Napi::Object exports);

}  // namespace holdfast::plane
