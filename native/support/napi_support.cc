#include "support/napi_support.h"

#include <uv.h>

#include <cmath>
#include <cstdio>
#include <cstring>

namespace holdfast::support {

void ThrowPending(napi_env env, const char* message) {
  bool pending = false;
  if (napi_is_exception_pending(env, &pending) == napi_ok && pending) return;
  napi_throw_error(env, nullptr, message);
}

napi_value ThrowType(napi_env env, const char* message) {
  napi_throw_type_error(env, "ERR_INVALID_ARG_TYPE", message);
  return nullptr;
}

napi_value MakeErrnoError(napi_env env, int error, const char* call) {
  char name[64], description[128], text[256];
  uv_err_name_r(-error, name, sizeof name);
  uv_strerror_r(-error, description, sizeof description);
  snprintf(text, sizeof text, "%s: %s", call, description);
  napi_value code, message, result;
  if (napi_create_string_utf8(env, name, NAPI_AUTO_LENGTH, &code) != napi_ok ||
      napi_create_string_utf8(env, text, NAPI_AUTO_LENGTH, &message) != napi_ok ||
      napi_create_error(env, code, message, &result) != napi_ok) {
    return nullptr;
  }
  return result;
}

napi_value ThrowErrno(napi_env env, int error, const char* call) {
  napi_value value = MakeErrnoError(env, error, call);
  if (value == nullptr || napi_throw(env, value) != napi_ok) ThrowPending(env, call);
  return nullptr;
}

bool AddMethods(napi_env env, napi_value exports, const Method* methods, size_t count) {
  for (size_t i = 0; i < count; i++) {
    napi_value function;
    if (napi_create_function(env, methods[i].name, NAPI_AUTO_LENGTH, methods[i].callback, methods[i].data,
                             &function) != napi_ok ||
        napi_set_named_property(env, exports, methods[i].name, function) != napi_ok) {
      return false;
    }
  }
  return true;
}

bool GetBytes(napi_env env, napi_value value, Bytes* bytes) {
  napi_typedarray_type type;
  void* data = nullptr;
  size_t length = 0;
  if (napi_get_typedarray_info(env, value, &type, &length, &data, nullptr, nullptr) != napi_ok) return false;
  if (type != napi_uint8_array && type != napi_uint8_clamped_array) return false;
  bytes->data = static_cast<uint8_t*>(data);
  bytes->length = length;
  return true;
}

bool GetSize(napi_env env, napi_value value, uint64_t* size) {
  constexpr double kLimit = 9007199254740992.0;  // 2^53
  double number;
  if (napi_get_value_double(env, value, &number) != napi_ok) return false;
  if (!(number >= 0) || number >= kLimit || std::floor(number) != number) return false;
  *size = static_cast<uint64_t>(number);
  return true;
}

bool GetString(napi_env env, napi_value value, char* buffer, size_t capacity) {
  size_t length = 0;
  if (napi_get_value_string_utf8(env, value, nullptr, 0, &length) != napi_ok || length >= capacity) return false;
  if (napi_get_value_string_utf8(env, value, buffer, capacity, &length) != napi_ok) return false;
  return memchr(buffer, 0, length) == nullptr;
}

bool SetString(napi_env env, napi_value object, const char* name, const char* value) {
  napi_value text;
  return napi_create_string_utf8(env, value, NAPI_AUTO_LENGTH, &text) == napi_ok &&
         napi_set_named_property(env, object, name, text) == napi_ok;
}

bool SetNumber(napi_env env, napi_value object, const char* name, double value) {
  napi_value number;
  return napi_create_double(env, value, &number) == napi_ok &&
         napi_set_named_property(env, object, name, number) == napi_ok;
}

bool SetBoolean(napi_env env, napi_value object, const char* name, bool value) {
  napi_value boolean;
  return napi_get_boolean(env, value, &boolean) == napi_ok &&
         napi_set_named_property(env, object, name, boolean) == napi_ok;
}

}  // namespace holdfast::support
