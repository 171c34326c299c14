#include "support/work.h"

#include "support/napi_support.h"

namespace holdfast::support {

Napi::Promise Work::Start(std::unique_ptr<Work> work) {
  const Napi::Promise promise = work->deferred_.Promise();
  // AsyncWorker deletes itself once it is over.
  work.release()->Queue();
  return promise;
}

void Work::OnOK() {
  const Napi::Env env = Env();
  if (error_ != 0) return deferred_.Reject(MakeErrnoError(env, error_, failed_call_).Value());
  const Napi::Value value = Result(env);
  if (env.IsExceptionPending()) return deferred_.Reject(env.GetAndClearPendingException().Value());
  // A value that is empty for no reason means that the environment is ending: nobody waits any more.
  if (!value.IsEmpty()) deferred_.Resolve(value);
}

}  // namespace holdfast::support
