// What Node's `fs` cannot ask of an open file.
#pragma once

#include <node_api.h>

namespace holdfast::ring {

bool RegisterFileFunctions(napi_env env, napi_value exports);

}  // namespace holdfast::ring
