#include "support/work.h"

#include "support/napi_support.h"

namespace holdfast::support {

Napi::Value Work::Start(std::unique_ptr<Work> work) {
  const Napi::Env env = work->Env();
  napi_value promise;
  // Bare, because Napi::Promise::Deferred says nothing of its failure, and then what it gives is no promise but whatever
  // was in the memory.
  if (napi_create_promise(env, &work->deferred_, &promise) != napi_ok) {
    Napi::Error::New(env).ThrowAsJavaScriptException();
    return Napi::Value();
  }
  // AsyncWorker deletes itself once it is over.
  work.release()->Queue();
  return Napi::Value(env, promise);
}

void Work::OnOK() {
  const Napi::Env env = Env();
  // Where settling fails the environment is ending, and nobody waits any more.
  const auto reject = [&](const Napi::Error& error) { napi_reject_deferred(env, deferred_, error.Value()); };
  if (error_ != 0) return reject(MakeErrnoError(env, error_, failed_call_));
  const Napi::Value value = Result(env);
  if (env.IsExceptionPending()) return reject(env.GetAndClearPendingException());
  if (!value.IsEmpty()) napi_resolve_deferred(env, deferred_, value);
}

}  // namespace holdfast::support
