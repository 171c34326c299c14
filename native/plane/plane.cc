// The binding of the unit's end: a server, the lease of the region that it serves, and the event loop's handle by which
// its threads say that there are events.
//
// Life: a plane is closed by serverClose, by the collection of its handle, or by the end of its environment (the async
// clean-up hook, removed when the event loop's handle is closed). Each first ends the threads, then lets go of the
// region, then closes the loop's handle.
#include "plane/plane.h"

#include <errno.h>
#include <string.h>
#include <uv.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "plane/client.h"
#include "plane/server.h"
#include "region/region.h"
#include "support/napi_support.h"
#include "support/work.h"

namespace holdfast::plane {

namespace {

constexpr napi_type_tag kHandleTag = {0x686f6c6466617374, 0x706c616e65736572};
constexpr size_t kEventBatch = 256;

class Plane {
 public:
  Plane(Napi::Env env, const Limits& limits, std::unique_ptr<region::Lease> lease)
      : env_(env), server_(limits, OnNotify, this), lease_(std::move(lease)) {}

  // 0 or an errno.
  int Start(const std::string& host, uint16_t* port, Napi::Function on_events);
  void ReplaceRegion(std::unique_ptr<region::Lease> lease);
  // What the action throws is left pending.
  void RunAlone(Napi::Function action);
  void BeginClose();
  void Retain() { owners_++; }
  void Release() {
    if (--owners_ == 0) delete this;
  }
  Server& server() { return server_; }
  bool closing() const { return closing_; }
  bool alone() const { return alone_; }

 private:
  static void OnNotify(void* plane) { uv_async_send(&static_cast<Plane*>(plane)->async_); }
  static void OnAsync(uv_async_t* async) { static_cast<Plane*>(async->data)->OnEvents(); }
  static void OnClosed(uv_handle_t* handle);
  static void OnEnvironmentEnd(napi_async_cleanup_hook_handle hook, void* plane);
  void OnEvents();
  void Finish();

  Napi::Env env_;
  Server server_;
  std::unique_ptr<region::Lease> lease_;
  std::vector<std::unique_ptr<region::Lease>> replaced_;    // perhaps still being persisted
  uint32_t owners_ = 1;
  bool closing_ = false;
  bool alone_ = false;
  bool async_open_ = false;
  uv_async_t async_;
  Napi::FunctionReference on_events_;
  std::optional<Napi::AsyncContext> context_;
  napi_async_cleanup_hook_handle hook_ = nullptr;
};

int Plane::Start(const std::string& host, uint16_t* port, Napi::Function on_events) {
  on_events_ = Napi::Persistent(on_events);
  context_.emplace(env_, "holdfast.plane");
  uv_loop_t* loop = nullptr;
  if (env_.IsExceptionPending() || napi_get_uv_event_loop(env_, &loop) != napi_ok ||
      napi_add_async_cleanup_hook(env_, OnEnvironmentEnd, this, &hook_) != napi_ok) {
    return EIO;
  }
  const int error = uv_async_init(loop, &async_, OnAsync);
  if (error != 0) return -error;
  async_.data = this;
  async_open_ = true;
  owners_++;
  return server_.Start(lease_->mapping(), host.c_str(), port);
}

void Plane::ReplaceRegion(std::unique_ptr<region::Lease> lease) {
  server_.ReplaceMapping(lease->mapping());
  replaced_.push_back(std::move(lease_));
  lease_ = std::move(lease);
  OnEvents();
}

void Plane::RunAlone(Napi::Function action) {
  server_.Lock();
  alone_ = true;
  action.Call({});
  alone_ = false;
  server_.Unlock();
}

void Plane::OnEvents() {
  if (closing_) return;
  std::erase_if(replaced_, [this](const auto& lease) { return !server_.MappingInUse(lease->mapping()); });
  const Napi::HandleScope scope(env_);
  const napi_status status =
      napi_make_callback(env_, *context_, env_.Global(), on_events_.Value(), 0, nullptr, nullptr);
  if (status == napi_ok || !env_.IsExceptionPending()) return;
  napi_fatal_exception(env_, env_.GetAndClearPendingException().Value());
}

void Plane::OnEnvironmentEnd(napi_async_cleanup_hook_handle hook, void* plane) {
  auto* self = static_cast<Plane*>(plane);
  self->hook_ = hook;
  self->BeginClose();
}

// Waits for the disk, unless the server was stopped before.
void Plane::BeginClose() {
  if (closing_) return;
  closing_ = true;
  server_.Stop();
  replaced_.clear();
  lease_.reset();
  if (!async_open_) return Finish();
  uv_close(reinterpret_cast<uv_handle_t*>(&async_), OnClosed);
}

void Plane::OnClosed(uv_handle_t* handle) {
  auto* self = static_cast<Plane*>(handle->data);
  self->async_open_ = false;
  self->Finish();
  self->Release();
}

void Plane::Finish() {
  on_events_.Reset();
  context_.reset();
  if (hook_ != nullptr) napi_remove_async_cleanup_hook(hook_);
  hook_ = nullptr;
}

class StopWork : public support::Work {
 public:
  StopWork(Napi::Env env, Plane* plane) : Work(env, "holdfast.plane.stop"), plane_(plane) { plane_->Retain(); }
  ~StopWork() override { plane_->Release(); }

  void Execute() override { plane_->server().Stop(); }

  Napi::Value Result(Napi::Env env) override {
    plane_->BeginClose();
    return env.Undefined();
  }

 private:
  Plane* plane_;
};

// ── Arguments ──────────────────────────────────────────────────────────────────────────────────────────────────────

bool GetName(Napi::Value value, Name* name) {
  support::Bytes bytes;
  if (!support::GetBytes(value.Env(), value, &bytes) || bytes.length != name->size()) return false;
  memcpy(name->data(), bytes.data, name->size());
  return true;
}

bool GetOptionalName(Napi::Value value, bool* given, Name* name) {
  *given = !value.IsUndefined();
  return !*given || GetName(value, name);
}

// Null, with an exception pending, if the first argument is no open plane.
Plane* GetPlane(const Napi::CallbackInfo& info) {
  Plane* plane = support::GetHandle<Plane>(info[0], kHandleTag);
  if (plane != nullptr && !plane->closing() && !plane->alone()) return plane;
  support::ThrowType(info.Env(), "expected an open plane, and not from inside of serverExclusively");
  return nullptr;
}

Napi::Value MakeRevocation(Napi::Env env, const Tables::Revocation& revocation) {
  Napi::Object result = Napi::Object::New(env);
  result.Set("keys", revocation.keys);
  result.Set("awaits", static_cast<double>(revocation.awaits));
  return result;
}

bool GetRate(Napi::Value value, double* rate) {
  if (!value.IsNumber()) return false;
  *rate = value.As<Napi::Number>().DoubleValue();
  return *rate >= 0;
}

// serverStart(region, host, port, commands, watches, answerBytes, lingerMicroseconds, commandsPerSecond, bytesPerSecond,
// onEvents): {handle, port}. Rates of 0: none.
Napi::Value ServerStart(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::unique_ptr<region::Lease> lease = region::Lease::Take(info[0]);
  std::string host;
  uint32_t port;
  Limits limits;
  if (lease == nullptr || !support::GetString(info[1], 64, &host) || !support::GetUint32(info[2], &port) ||
      port > UINT16_MAX || !support::GetUint32(info[3], &limits.commands) ||
      !support::GetUint32(info[4], &limits.watches) || !support::GetUint32(info[5], &limits.answer_bytes) ||
      !support::GetUint32(info[6], &limits.linger_us) || !GetRate(info[7], &limits.rates.commands) ||
      !GetRate(info[8], &limits.rates.bytes) || !info[9].IsFunction()) {
    return support::ThrowType(env, "serverStart takes an open region, an address, a port, limits, rates and a function");
  }
  auto* plane = new Plane(env, limits, std::move(lease));
  const auto let_go = [](Napi::Env, Plane* owned) {
    owned->BeginClose();
    owned->Release();
  };
  auto bound = static_cast<uint16_t>(port);
  const int error = plane->Start(host, &bound, info[9].As<Napi::Function>());
  if (error != 0) {
    let_go(env, plane);
    return support::ThrowErrno(env, error, "listen");
  }
  const auto handle = Napi::External<Plane>::New(env, plane, let_go);
  if (handle.IsEmpty()) {
    let_go(env, plane);
    return handle;
  }
  handle.TypeTag(&kHandleTag);
  Napi::Object result = Napi::Object::New(env);
  result.Set("handle", handle);
  result.Set("port", bound);
  return result;
}

// serverReplaceRegion(handle, region): void — the same file, grown
void ServerReplaceRegion(const Napi::CallbackInfo& info) {
  Plane* plane = GetPlane(info);
  if (plane == nullptr) return;
  std::unique_ptr<region::Lease> lease = region::Lease::Take(info[1]);
  if (lease == nullptr) {
    support::ThrowType(info.Env(), "serverReplaceRegion takes a plane and an open region");
    return;
  }
  plane->ReplaceRegion(std::move(lease));
}

bool GetNumbers(Napi::Value value, const double** numbers, size_t* count) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_float64_array) return false;
  const auto array = value.As<Napi::Float64Array>();
  *numbers = array.Data();
  *count = array.ElementLength();
  return true;
}

bool IsSize(double number) { return number >= 0 && number < static_cast<double>(kNumberLimit); }

bool GetTables(const Napi::CallbackInfo& info, std::vector<Tables::Table>* tables) {
  support::Bytes names;
  const double* counts;
  const double* extents;
  size_t tables_given, numbers_given;
  if (!support::GetBytes(info.Env(), info[1], &names) || !GetNumbers(info[2], &counts, &tables_given) ||
      !GetNumbers(info[3], &extents, &numbers_given) || names.length != tables_given * sizeof(Name)) {
    return false;
  }
  size_t at = 0;
  for (size_t i = 0; i < tables_given; i++) {
    Tables::Table table;
    memcpy(table.region.data(), names.data + i * sizeof(Name), sizeof(Name));
    if (!IsSize(counts[i]) || counts[i] > static_cast<double>((numbers_given - at) / 2)) return false;
    for (auto left = static_cast<size_t>(counts[i]); left > 0; left--, at += 2) {
      if (!IsSize(extents[at]) || !IsSize(extents[at + 1])) return false;
      table.extents.push_back({static_cast<uint64_t>(extents[at]), static_cast<uint64_t>(extents[at + 1])});
    }
    tables->push_back(std::move(table));
  }
  return true;
}

// serverInstall(handle, names, counts, extents): {keys, awaits}, or undefined if an extent is not inside of the memory.
// 16 bytes a region; how many extents each has; start and length of each extent.
Napi::Value ServerInstall(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Plane* plane = GetPlane(info);
  if (plane == nullptr) return env.Undefined();
  std::vector<Tables::Table> tables;
  if (!GetTables(info, &tables)) return support::ThrowType(env, "serverInstall(handle, names, counts, extents)");
  Tables::Revocation revocation;
  if (!plane->server().Install(std::move(tables), &revocation)) return env.Undefined();
  return MakeRevocation(env, revocation);
}

// serverGrant(handle, key, region, base, length, rights, session): boolean
Napi::Value ServerGrant(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Plane* plane = GetPlane(info);
  if (plane == nullptr) return env.Undefined();
  Grant grant;
  uint32_t rights;
  if (!GetName(info[1], &grant.key) || !GetName(info[2], &grant.region) || !support::GetSize(info[3], &grant.base) ||
      !support::GetSize(info[4], &grant.length) || !support::GetUint32(info[5], &rights) || rights < 1 || rights > kAnyRight ||
      !support::GetSize(info[6], &grant.session)) {
    return support::ThrowType(env, "serverGrant(handle, key, region, base, length, rights, session)");
  }
  grant.rights = static_cast<uint8_t>(rights);
  return Napi::Boolean::New(env, plane->server().Add(grant));
}

// serverRevoke(handle, region?, key?, session?, sparedSession?, rights): {keys, awaits}
Napi::Value ServerRevoke(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Plane* plane = GetPlane(info);
  if (plane == nullptr) return env.Undefined();
  Filter filter;
  uint32_t rights;
  filter.by_session = !info[3].IsUndefined();
  filter.but_session = !info[4].IsUndefined();
  if (!GetOptionalName(info[1], &filter.by_region, &filter.region) ||
      !GetOptionalName(info[2], &filter.by_key, &filter.key) ||
      (filter.by_session && !support::GetSize(info[3], &filter.session)) ||
      (filter.but_session && !support::GetSize(info[4], &filter.spared_session)) ||
      !support::GetUint32(info[5], &rights) || rights > kAnyRight) {
    return support::ThrowType(env, "serverRevoke(handle, region, key, session, sparedSession, rights)");
  }
  filter.rights = static_cast<uint8_t>(rights);
  return MakeRevocation(env, plane->server().Revoke(filter));
}

// serverAdmit(handle, ticket, session, peer): boolean
Napi::Value ServerAdmit(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Plane* plane = GetPlane(info);
  if (plane == nullptr) return env.Undefined();
  Name ticket;
  uint64_t session;
  uint32_t peer;
  if (!GetName(info[1], &ticket) || !support::GetSize(info[2], &session) || !support::GetUint32(info[3], &peer)) {
    return support::ThrowType(env, "serverAdmit(handle, ticket, session, peer)");
  }
  return Napi::Boolean::New(env, plane->server().Admit(ticket, session, peer));
}

// serverDelay(handle, peer, bytes): milliseconds
Napi::Value ServerDelay(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Plane* plane = GetPlane(info);
  if (plane == nullptr) return env.Undefined();
  uint32_t peer;
  uint64_t bytes;
  if (!support::GetUint32(info[1], &peer) || !support::GetSize(info[2], &bytes)) {
    return support::ThrowType(env, "serverDelay(handle, peer, bytes)");
  }
  return Napi::Number::New(env, static_cast<double>(plane->server().DelayNs(peer, bytes)) / 1e6);
}

// serverWithdraw(handle, ticket): void
void ServerWithdraw(const Napi::CallbackInfo& info) {
  Plane* plane = GetPlane(info);
  Name ticket;
  if (plane != nullptr && GetName(info[1], &ticket)) plane->server().Withdraw(ticket);
}

// serverEndSession(handle, session): {keys, awaits}
Napi::Value ServerEndSession(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Plane* plane = GetPlane(info);
  if (plane == nullptr) return env.Undefined();
  uint64_t session;
  if (!support::GetSize(info[1], &session)) return support::ThrowType(env, "serverEndSession(handle, session)");
  return MakeRevocation(env, plane->server().EndSession(session));
}

// serverChanged(handle, region, address, length): void
void ServerChanged(const Napi::CallbackInfo& info) {
  Plane* plane = GetPlane(info);
  if (plane == nullptr) return;
  Name region;
  uint64_t address, length;
  if (!GetName(info[1], &region) || !support::GetSize(info[2], &address) || !support::GetSize(info[3], &length)) {
    support::ThrowType(info.Env(), "serverChanged(handle, region, address, length)");
    return;
  }
  plane->server().Changed(region, address, length);
}

// serverObserve(handle, region, observe): the region's change number
Napi::Value ServerObserve(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Plane* plane = GetPlane(info);
  if (plane == nullptr) return env.Undefined();
  Name region;
  if (!GetName(info[1], &region) || !info[2].IsBoolean()) {
    return support::ThrowType(env, "serverObserve(handle, region, observe)");
  }
  const uint64_t change = plane->server().Observe(region, info[2].As<Napi::Boolean>().Value());
  return Napi::Number::New(env, static_cast<double>(change));
}

// serverExclusively(handle, action): void — no command is executed meanwhile. The action may not use the plane.
void ServerExclusively(const Napi::CallbackInfo& info) {
  Plane* plane = GetPlane(info);
  if (plane == nullptr) return;
  if (!info[1].IsFunction()) {
    support::ThrowType(info.Env(), "serverExclusively takes a plane and a function");
    return;
  }
  plane->RunAlone(info[1].As<Napi::Function>());
}

// serverTakeEvents(handle, bytes): {count, dropped} — fills in Events (server.h)
Napi::Value ServerTakeEvents(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Plane* plane = GetPlane(info);
  if (plane == nullptr) return env.Undefined();
  support::Bytes bytes;
  if (!support::GetBytes(env, info[1], &bytes)) return support::ThrowType(env, "serverTakeEvents(handle, bytes)");
  Event events[kEventBatch];
  uint64_t dropped;
  const size_t count =
      plane->server().TakeEvents(events, std::min(kEventBatch, bytes.length / sizeof(Event)), &dropped);
  memcpy(bytes.data, events, count * sizeof(Event));
  Napi::Object result = Napi::Object::New(env);
  result.Set("count", count);
  result.Set("dropped", static_cast<double>(dropped));
  return result;
}

// serverState(handle): figures
Napi::Value ServerState(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Plane* plane = GetPlane(info);
  if (plane == nullptr) return env.Undefined();
  const Server::State state = plane->server().GetState();
  Napi::Object result = Napi::Object::New(env);
  const auto set = [&](const char* name, uint64_t value) { result.Set(name, static_cast<double>(value)); };
  set("connections", state.connections);
  set("keys", state.keys);
  set("commands", state.commands);
  set("refused", state.refused);
  set("reads", state.reads);
  set("readBytes", state.read_bytes);
  set("writes", state.writes);
  set("writtenBytes", state.written_bytes);
  set("persists", state.persists);
  set("persistedCommands", state.persisted_commands);
  set("persistError", state.failure);
  return result;
}

// serverClose(handle): Promise<void>
Napi::Value ServerClose(const Napi::CallbackInfo& info) {
  Plane* plane = GetPlane(info);
  if (plane == nullptr) return info.Env().Undefined();
  return support::Work::Start(std::make_unique<StopWork>(info.Env(), plane));
}

}  // namespace

void Register(Napi::Object exports) {
  support::AddFunction<ServerStart>(exports, "serverStart");
  support::AddFunction<ServerReplaceRegion>(exports, "serverReplaceRegion");
  support::AddFunction<ServerInstall>(exports, "serverInstall");
  support::AddFunction<ServerGrant>(exports, "serverGrant");
  support::AddFunction<ServerRevoke>(exports, "serverRevoke");
  support::AddFunction<ServerAdmit>(exports, "serverAdmit");
  support::AddFunction<ServerDelay>(exports, "serverDelay");
  support::AddFunction<ServerWithdraw>(exports, "serverWithdraw");
  support::AddFunction<ServerEndSession>(exports, "serverEndSession");
  support::AddFunction<ServerChanged>(exports, "serverChanged");
  support::AddFunction<ServerObserve>(exports, "serverObserve");
  support::AddFunction<ServerExclusively>(exports, "serverExclusively");
  support::AddFunction<ServerTakeEvents>(exports, "serverTakeEvents");
  support::AddFunction<ServerState>(exports, "serverState");
  support::AddFunction<ServerClose>(exports, "serverClose");
  RegisterClient(exports);
}

}  // namespace holdfast::plane
