// A pipeline in JavaScript's hands: its threads wake the event loop by a thread-safe function, once a batch.
//
// Life: a scan has two owners, its handle and the thread-safe function. The last lane lets the function go; its
// finalizer joins the threads. If the environment ends first (a worker is terminated), Node finalizes the function by
// itself: then the finalizer cancels, waits for the reads in flight and joins. From the moment that the function says
// that it is closing nobody uses it any more.
#include "scan/scan.h"

#include <errno.h>
#include <fcntl.h>

#include <memory>
#include <new>

#include "digest/digest.h"
#include "scan/pipeline.h"
#include "support/napi_support.h"

namespace holdfast::scan {

namespace {

constexpr napi_type_tag kHandleTag = {0x686f6c6466617374, 0x7363616e00000001};

class Scan {
 public:
  explicit Scan(const Settings& settings) : pipeline_(new Pipeline(settings, OnReady, this)) {}

  // The bare calls, because their statuses tell whether the environment is ending.
  bool Attach(Napi::Env env, Napi::Function on_ready) {
    const napi_value name = Napi::String::New(env, "holdfast.scan");
    if (napi_create_threadsafe_function(env, on_ready, nullptr, name, 0, 1, this, OnFinalized, nullptr, nullptr,
                                        &on_ready_) != napi_ok) {
      return false;
    }
    owners_++;
    return true;
  }

  // Returns 0 or an errno.
  int Start() {
    const int error = pipeline_->Start();
    if (error != 0) napi_release_threadsafe_function(on_ready_, napi_tsfn_abort);
    return error;
  }

  void KeepAlive(napi_env env, bool wanted) {
    if (finalized_ || wanted == kept_alive_) return;
    kept_alive_ = wanted;
    if (wanted) {
      napi_ref_threadsafe_function(env, on_ready_);
    } else {
      napi_unref_threadsafe_function(env, on_ready_);
    }
  }

  // One of the two owners lets go.
  void Release() {
    if (--owners_ == 0) delete this;
  }

  Pipeline& pipeline() { return *pipeline_; }

 private:
  // On a lane's thread, never twice at once.
  static void OnReady(void* context, bool ended) {
    auto* self = static_cast<Scan*>(context);
    if (self->closing_) return;
    if (napi_call_threadsafe_function(self->on_ready_, nullptr, napi_tsfn_nonblocking) == napi_closing) {
      self->closing_ = true;
    } else if (ended) {
      napi_release_threadsafe_function(self->on_ready_, napi_tsfn_release);
    }
  }

  static void OnFinalized(napi_env, void* data, void*) {
    auto* self = static_cast<Scan*>(data);
    self->pipeline_->Join();
    self->finalized_ = true;
    self->Release();
  }

  std::unique_ptr<Pipeline> pipeline_;
  napi_threadsafe_function on_ready_ = nullptr;
  bool closing_ = false;    // touched on lanes' threads only, under the pipeline's lock
  bool kept_alive_ = true;
  bool finalized_ = false;
  int owners_ = 1;
};

// Reads the settings that are numbers. False if one is none, or out of all bounds.
bool GetNumbers(Napi::Object object, Settings* settings) {
  const auto size = [&](const char* name, uint64_t* value) {
    return support::GetSize(object.Get(name), value);
  };
  const auto count = [&](const char* name, uint32_t* value) {
    uint64_t wide;
    if (!size(name, &wide) || wide > UINT32_MAX) return false;
    *value = static_cast<uint32_t>(wide);
    return true;
  };
  const Napi::Value rate = object.Get("bytesPerSecond");
  if (!rate.IsNumber()) return false;
  settings->bytes_per_second = rate.As<Napi::Number>().DoubleValue();
  return size("offset", &settings->offset) && size("length", &settings->length) &&
         size("blockBytes", &settings->block_bytes) && size("pieceBlocks", &settings->piece_blocks) &&
         size("batchPieces", &settings->batch_pieces) && count("batches", &settings->batches) &&
         count("depth", &settings->depth) && count("lanes", &settings->lanes) &&
         count("alignmentBytes", &settings->alignment_bytes) && count("engine", &settings->engine);
}

// start(settings, onReady): handle. See NativeScanSettings in lib/native.ts.
Napi::Value Start(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!info[0].IsObject() || !info[1].IsFunction()) return support::ThrowType(env, "start(settings, onReady)");
  const Napi::Object object = info[0].As<Napi::Object>();
  Settings settings;
  if (!support::GetDescriptor(object.Get("fd"), &settings.fd) || !GetNumbers(object, &settings) ||
      !digest::GetAlgorithm(object.Get("algorithm"), object.Get("key"), &settings.algorithm) ||
      !Pipeline::AreValid(settings)) {
    return support::ThrowType(env, "start: a setting of the scan is missing or out of range");
  }
  // A descriptor of its own: when an environment ends, Node closes its own ones first.
  settings.fd = fcntl(settings.fd, F_DUPFD_CLOEXEC, 0);
  if (settings.fd < 0) return support::ThrowErrno(env, errno, "dup");
  auto* scan = new Scan(settings);
  const auto let_go = [](Napi::Env, Scan* owned) {
    owned->pipeline().Cancel();
    owned->Release();
  };
  if (!scan->Attach(env, info[1].As<Napi::Function>())) {
    let_go(env, scan);
    Napi::Error::New(env).ThrowAsJavaScriptException();
    return env.Undefined();
  }
  const auto handle = Napi::External<Scan>::New(env, scan, let_go);
  const int error = handle.IsEmpty() ? ECANCELED : scan->Start();
  if (handle.IsEmpty()) {
    let_go(env, scan);
    return handle;
  }
  if (error != 0) return support::ThrowErrno(env, error, "starting the threads of a scan");
  handle.TypeTag(&kHandleTag);
  return handle;
}

// Null, with an exception pending, if the first argument is no scan.
Scan* GetScan(const Napi::CallbackInfo& info) {
  Scan* scan = support::GetHandle<Scan>(info[0], kHandleTag);
  if (scan == nullptr) support::ThrowType(info.Env(), "expected a scan");
  return scan;
}

// take(scan, checksums): number of blocks
Napi::Value Take(const Napi::CallbackInfo& info) {
  Scan* scan = GetScan(info);
  if (scan == nullptr) return info.Env().Undefined();
  support::Bytes bytes;
  if (!support::GetBytes(info.Env(), info[1], &bytes)) return support::ThrowType(info.Env(), "expected a Uint8Array");
  return Napi::Number::New(info.Env(), static_cast<double>(scan->pipeline().Take(bytes.data, bytes.length)));
}

// doneBytes(scan): number
Napi::Value DoneBytes(const Napi::CallbackInfo& info) {
  Scan* scan = GetScan(info);
  if (scan == nullptr) return info.Env().Undefined();
  return Napi::Number::New(info.Env(), static_cast<double>(scan->pipeline().done_bytes()));
}

// setRate(scan, bytesPerSecond)
void SetRate(const Napi::CallbackInfo& info) {
  Scan* scan = GetScan(info);
  if (scan == nullptr) return;
  const double rate = info[1].IsNumber() ? info[1].As<Napi::Number>().DoubleValue() : 0;
  if (!(rate > 0)) {
    support::ThrowType(info.Env(), "expected a rate");
    return;
  }
  scan->pipeline().SetRate(rate);
}

void Cancel(const Napi::CallbackInfo& info) {
  Scan* scan = GetScan(info);
  if (scan != nullptr) scan->pipeline().Cancel();
}

// ended(scan): boolean
Napi::Value Ended(const Napi::CallbackInfo& info) {
  Scan* scan = GetScan(info);
  if (scan == nullptr) return info.Env().Undefined();
  return Napi::Boolean::New(info.Env(), scan->pipeline().ended());
}

// close(scan): waits for its threads; once it has ended they do not let wait
void Close(const Napi::CallbackInfo& info) {
  Scan* scan = GetScan(info);
  if (scan != nullptr) scan->pipeline().Join();
}

// keepAlive(scan, wanted): whether the event loop waits for it
void KeepAlive(const Napi::CallbackInfo& info) {
  Scan* scan = GetScan(info);
  if (scan != nullptr) scan->KeepAlive(info.Env(), info[1].ToBoolean());
}

// failure(scan): {result, offset, length}, or undefined if nothing has failed
Napi::Value GetFailure(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Scan* scan = GetScan(info);
  if (scan == nullptr) return env.Undefined();
  const Failure failure = scan->pipeline().failure();
  if (failure.result == 0) return env.Undefined();
  Napi::Object result = Napi::Object::New(env);
  result.Set("result", failure.result);
  result.Set("offset", static_cast<double>(failure.offset));
  result.Set("length", static_cast<double>(failure.length));
  return result;
}

}  // namespace

void Register(Napi::Object exports) {
  support::AddFunction<Start>(exports, "start");
  support::AddFunction<Take>(exports, "take");
  support::AddFunction<DoneBytes>(exports, "doneBytes");
  support::AddFunction<SetRate>(exports, "setRate");
  support::AddFunction<Cancel>(exports, "cancel");
  support::AddFunction<Ended>(exports, "ended");
  support::AddFunction<Close>(exports, "close");
  support::AddFunction<KeepAlive>(exports, "keepAlive");
  support::AddFunction<GetFailure>(exports, "failure");
}

}  // namespace holdfast::scan
