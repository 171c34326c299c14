#include "support/work.h"

#include "support/napi_support.h"

namespace holdfast::support {
namespace {

struct Queued {
  std::unique_ptr<Work> work;
  napi_async_work handle = nullptr;
  napi_deferred deferred = nullptr;
};

void Execute(napi_env, void* data) { static_cast<Queued*>(data)->work->Execute(); }

void Settle(napi_env env, Queued* queued) {
  napi_value value = nullptr;
  if (queued->work->error() == 0) value = queued->work->Result(env);
  if (value != nullptr) {
    napi_resolve_deferred(env, queued->deferred, value);
    return;
  }
  bool pending = false;
  napi_value error = nullptr;
  if (napi_is_exception_pending(env, &pending) == napi_ok && pending) {
    napi_get_and_clear_last_exception(env, &error);
  } else if (queued->work->error() != 0) {
    error = MakeErrnoError(env, queued->work->error(), queued->work->failed_call());
  }
  // Where this fails the environment is ending, and nobody waits any more.
  if (error != nullptr) napi_reject_deferred(env, queued->deferred, error);
}

void Complete(napi_env env, napi_status, void* data) {
  std::unique_ptr<Queued> queued(static_cast<Queued*>(data));
  napi_handle_scope scope;
  if (napi_open_handle_scope(env, &scope) != napi_ok) return;
  Settle(env, queued.get());
  napi_delete_async_work(env, queued->handle);
  queued.reset();
  napi_close_handle_scope(env, scope);
}

}  // namespace

napi_value Queue(napi_env env, const char* name, std::unique_ptr<Work> work) {
  auto queued = std::make_unique<Queued>();
  queued->work = std::move(work);
  napi_value resource_name, promise;
  if (napi_create_string_utf8(env, name, NAPI_AUTO_LENGTH, &resource_name) != napi_ok ||
      napi_create_async_work(env, nullptr, resource_name, Execute, Complete, queued.get(), &queued->handle) !=
          napi_ok) {
    ThrowPending(env, "the work could not be created");
    return nullptr;
  }
  if (napi_create_promise(env, &queued->deferred, &promise) != napi_ok ||
      napi_queue_async_work(env, queued->handle) != napi_ok) {
    napi_delete_async_work(env, queued->handle);
    ThrowPending(env, "the work could not be queued");
    return nullptr;
  }
  static_cast<void>(queued.release());  // Complete deletes it.
  return promise;
}

}  // namespace holdfast::support
