// The addon: one module, one registration a folder. Each folder's functions stand in an object of its own
// (`addon.checksum`, `addon.ring` …), typed in lib/native.ts.
//
// What holds for all folders:
// - Plain Node-API, version 8. No C++ exceptions: errors are statuses, and only the outermost function throws into
//   JavaScript (support/napi_support.h).
// - The module is loaded once a process and initialised once an environment (main thread, each worker). State belongs
//   to an environment: it travels as callback data, and an environment clean-up hook ends it. No globals that change,
//   except those that are the same for all (the choice of a CRC kernel).
#include "checksum/checksum.h"
#include "identify/identify.h"
#include "region/region.h"
#include "ring/ring.h"
#include "support/napi_support.h"

namespace {

using Registration = bool (*)(napi_env, napi_value);

bool AddFolder(napi_env env, napi_value exports, const char* name, Registration register_folder) {
  napi_value folder;
  return napi_create_object(env, &folder) == napi_ok && register_folder(env, folder) &&
         napi_set_named_property(env, exports, name, folder) == napi_ok;
}

}  // namespace

NAPI_MODULE_INIT() {
  using namespace holdfast;
  const bool complete = AddFolder(env, exports, "checksum", checksum::Register) &&
                        AddFolder(env, exports, "identify", identify::Register) &&
                        AddFolder(env, exports, "region", region::Register) &&
                        AddFolder(env, exports, "ring", ring::Register);
  if (!complete) support::ThrowPending(env, "the addon could not be initialised");
  return exports;
}
