// Blocking work off the event loop, with a promise for its result.
//
// Invariants: Execute runs once on a thread of libuv's pool and touches no JavaScript; Result runs once on the loop's
// thread, after it, if it has not failed. The work is deleted on the loop's thread in every case, so that its
// destructor may touch what belongs to that thread.
#pragma once

#include <napi.h>

#include <memory>

namespace holdfast::support {

class Work : public Napi::AsyncWorker {
 public:
  // Queues the work and returns its promise. Empty, with nothing begun, in an environment that is ending.
  static Napi::Value Start(std::unique_ptr<Work> work);

 protected:
  Work(Napi::Env env, const char* name) : AsyncWorker(env, name) {}

  // The promise's value. An exception that it leaves pending rejects the promise.
  virtual Napi::Value Result(Napi::Env env) = 0;

  // For Execute: the promise will be rejected with this errno. `call` is a literal.
  void Fail(int error, const char* call) {
    error_ = error;
    failed_call_ = call;
  }

 private:
  void OnOK() final;

  napi_deferred deferred_ = nullptr;
  int error_ = 0;
  const char* failed_call_ = "";
};

}  // namespace holdfast::support
