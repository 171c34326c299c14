#include "support/napi_support.h"

#include <uv.h>

#include <cmath>

namespace holdfast::support {

Napi::Value ThrowType(Napi::Env env, const char* message) {
  Napi::TypeError error = Napi::TypeError::New(env, message);
  error.Set("code", "ERR_INVALID_ARG_TYPE");
  error.ThrowAsJavaScriptException();
  return env.Undefined();
}

Napi::Error MakeErrnoError(Napi::Env env, int error, const char* call) {
  char name[64], description[128];
  uv_err_name_r(-error, name, sizeof name);
  uv_strerror_r(-error, description, sizeof description);
  Napi::Error result = Napi::Error::New(env, std::string(call) + ": " + description);
  result.Set("code", static_cast<const char*>(name));
  return result;
}

Napi::Value ThrowErrno(Napi::Env env, int error, const char* call) {
  MakeErrnoError(env, error, call).ThrowAsJavaScriptException();
  return env.Undefined();
}

void AddBareFunction(Napi::Object object, const char* name, napi_callback callback) {
  napi_value function;
  if (napi_create_function(object.Env(), name, NAPI_AUTO_LENGTH, callback, nullptr, &function) != napi_ok) {
    Napi::Error::New(object.Env()).ThrowAsJavaScriptException();
    return;
  }
  object.Set(name, function);
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

bool GetSize(Napi::Value value, uint64_t* size) {
  constexpr double kLimit = 9007199254740992.0;  // 2^53
  if (!value.IsNumber()) return false;
  const double number = value.As<Napi::Number>().DoubleValue();
  if (!(number >= 0) || number >= kLimit || std::floor(number) != number) return false;
  *size = static_cast<uint64_t>(number);
  return true;
}

bool GetUint32(Napi::Value value, uint32_t* number) {
  if (!value.IsNumber()) return false;
  *number = value.As<Napi::Number>().Uint32Value();
  return true;
}

bool GetDescriptor(Napi::Value value, int* fd) {
  if (!value.IsNumber()) return false;
  *fd = value.As<Napi::Number>().Int32Value();
  return *fd >= 0;
}

bool GetString(Napi::Value value, size_t capacity, std::string* text) {
  // The bare call tells the length before there is a copy.
  size_t length = 0;
  if (napi_get_value_string_utf8(value.Env(), value, nullptr, 0, &length) != napi_ok || length >= capacity) return false;
  *text = value.As<Napi::String>().Utf8Value();
  return text->find('\0') == std::string::npos;
}

}  // namespace holdfast::support
