// What every folder's binding needs beyond node-addon-api, once: readers of arguments that say whether an argument is
// what it must be, and errors that carry the operating system's name.
//
// Errors made here are plain `Error`s with `code` (`EIO`, `ERR_INVALID_ARG_TYPE` …); lib/ turns them into
// HoldfastErrors, because only it knows what the caller was doing.
#pragma once

#include <napi.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace holdfast::support {

// Throws a TypeError with code ERR_INVALID_ARG_TYPE and returns undefined, for `return ThrowType(...)`.
Napi::Value ThrowType(Napi::Env env, const char* message);

// Makes an Error for an errno (positive) with `code` = its name and the message "CALL: text".
Napi::Error MakeErrnoError(Napi::Env env, int error, const char* call);

// Throws that and returns undefined.
Napi::Value ThrowErrno(Napi::Env env, int error, const char* call);

// Adds a function (Napi::Value or void, of const Napi::CallbackInfo&) to an object.
template <auto function>
void AddFunction(Napi::Object object, const char* name) {
  object.Set(name, Napi::Function::New<function>(object.Env(), name));
}

// The same for a bare callback, on ways where node-addon-api's wrapping was measured to cost.
void AddBareFunction(Napi::Object object, const char* name, napi_callback callback);

// A view over bytes that JavaScript owns. Valid until the call returns to JavaScript.
struct Bytes {
  uint8_t* data = nullptr;
  size_t length = 0;
};

// Reads a Uint8Array (Buffers are ones), over an ArrayBuffer or a SharedArrayBuffer. False for anything else. Bare,
// because one call answers what the wrappers ask three times, and each checksum asks it.
bool GetBytes(napi_env env, napi_value value, Bytes* bytes);

// Reads a whole number 0 … 2^53 − 1. False for anything else.
bool GetSize(Napi::Value value, uint64_t* size);

// Reads a number as ECMAScript's ToUint32 does. False for anything else.
bool GetUint32(Napi::Value value, uint32_t* number);

// Reads a file descriptor. False for what cannot be one.
bool GetDescriptor(Napi::Value value, int* fd);

// Reads a string of at most `capacity` − 1 bytes of UTF-8, refusing longer ones and ones with an embedded NUL.
bool GetString(Napi::Value value, size_t capacity, std::string* text);

// The object behind a handle (an External with this tag), or nullptr for anything else.
template <typename T>
T* GetHandle(Napi::Value value, const napi_type_tag& tag) {
  if (!value.IsExternal()) return nullptr;
  const auto external = value.As<Napi::External<T>>();
  return external.CheckTypeTag(&tag) ? external.Data() : nullptr;
}

}  // namespace holdfast::support
