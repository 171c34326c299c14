#include "ring/ring.h"

namespace holdfast::ring {

bool Register(napi_env, napi_value) { return true; }

}  // namespace holdfast::ring
