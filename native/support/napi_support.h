// What every folder's binding needs of Node-API, once: argument readers that throw a JavaScript TypeError, errors that
// carry the operating system's name, and registration of functions.
//
// Errors thrown here are plain `Error`s with `code` (`EIO`, `ERR_INVALID_ARG_TYPE` …); lib/ turns them into
// HoldfastErrors, because only it knows what the caller was doing.
#pragma once

#include <node_api.h>

#include <cstddef>
#include <cstdint>

namespace holdfast::support {

// Throws a generic error unless an exception is pending already.
void ThrowPending(napi_env env, const char* message);

// Throws a TypeError with code ERR_INVALID_ARG_TYPE and returns nullptr, for `return ThrowType(...)`.
napi_value ThrowType(napi_env env, const char* message);

// Makes an Error for an errno (positive) with `code` = its name and the message "CALL: text".
napi_value MakeErrnoError(napi_env env, int error, const char* call);

// Throws that and returns nullptr.
napi_value ThrowErrno(napi_env env, int error, const char* call);

struct Method {
  const char* name;
  napi_callback callback;
  void* data = nullptr;
};

bool AddMethods(napi_env env, napi_value exports, const Method* methods, size_t count);

template <size_t N>
bool AddMethods(napi_env env, napi_value exports, const Method (&methods)[N]) {
  return AddMethods(env, exports, methods, N);
}

// A view over bytes that JavaScript owns. Valid until the call returns to JavaScript.
struct Bytes {
  uint8_t* data = nullptr;
  size_t length = 0;
};

// Reads a Uint8Array (Buffers are ones), over an ArrayBuffer or a SharedArrayBuffer. False for anything else.
bool GetBytes(napi_env env, napi_value value, Bytes* bytes);

// Reads a whole number 0 … 2^53 − 1. False for anything else.
bool GetSize(napi_env env, napi_value value, uint64_t* size);

// Reads a string of at most `capacity` − 1 bytes of UTF-8, refusing longer ones and ones with an embedded NUL.
bool GetString(napi_env env, napi_value value, char* buffer, size_t capacity);

// Shorthands for building results. A failure leaves *object untouched and returns false.
bool SetString(napi_env env, napi_value object, const char* name, const char* value);
bool SetNumber(napi_env env, napi_value object, const char* name, double value);
bool SetBoolean(napi_env env, napi_value object, const char* name, bool value);

}  // namespace holdfast::support
