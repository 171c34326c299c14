// The addon: one module, one registration a folder. Each folder's functions stand in an object of its own
// (`addon.checksum`, `addon.ring` …), typed in lib/native.ts.
//
// What holds for all folders:
// - Node-API, version 8, through node-addon-api without C++ exceptions: what fails leaves a JavaScript exception pending
//   and returns an empty value. Once an environment is ending it can run no JavaScript: then such an exception goes
//   nowhere (NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS), and a value may be empty with nothing pending.
// - Bare napi_* calls stand only where their status is needed, or where the way is hot; a comment says which.
// - The module is loaded once a process and initialised once an environment (main thread, each worker). State belongs
//   to an environment: it travels as callback data, and an environment clean-up hook ends it. No globals that change,
//   except those that are the same for all (the choice of a CRC kernel).
#include <napi.h>

#include "checksum/checksum.h"
#include "copy/copy.h"
#include "digest/digest.h"
#include "identify/identify.h"
#include "plane/plane.h"
#include "region/region.h"
#include "ring/ring.h"
#include "scan/scan.h"

namespace {

Napi::Object Initialise(Napi::Env env, Napi::Object exports) {
  using Registration = void (*)(Napi::Object);
  const auto add_folder = [&](const char* name, Registration register_functions) {
    Napi::Object folder = Napi::Object::New(env);
    register_functions(folder);
    exports.Set(name, folder);
  };
  add_folder("checksum", holdfast::checksum::Register);
  add_folder("copy", holdfast::copy::Register);
  add_folder("digest", holdfast::digest::Register);
  add_folder("identify", holdfast::identify::Register);
  add_folder("plane", holdfast::plane::Register);
  add_folder("region", holdfast::region::Register);
  add_folder("ring", holdfast::ring::Register);
  add_folder("scan", holdfast::scan::Register);
  return exports;
}

}  // namespace

NODE_API_MODULE(holdfast, Initialise)
