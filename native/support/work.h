// Blocking work off the event loop, with a promise for its result.
//
// Invariants: Execute runs once on a thread of libuv's pool and touches no JavaScript; Result runs once on the loop's
// thread, after it, if the environment still lives. The work is deleted on the loop's thread in every case, so that
// its destructor may touch what belongs to that thread.
#pragma once

#include <node_api.h>

#include <memory>

namespace holdfast::support {

class Work {
 public:
  virtual ~Work() = default;
  virtual void Execute() = 0;
  // The promise's value. nullptr rejects it, with Fail's error or with the exception that is pending.
  virtual napi_value Result(napi_env env) = 0;

  int error() const { return error_; }
  const char* failed_call() const { return failed_call_; }

 protected:
  // For Execute: the promise will be rejected with this errno. `call` is a literal.
  void Fail(int error, const char* call) {
    error_ = error;
    failed_call_ = call;
  }

 private:
  int error_ = 0;
  const char* failed_call_ = "";
};

// Queues the work and returns its promise. On failure nullptr, with an exception pending.
napi_value Queue(napi_env env, const char* name, std::unique_ptr<Work> work);

}  // namespace holdfast::support
