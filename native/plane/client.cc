// Invariants:
// - Only the event loop's thread is here. Memory of JavaScript is touched in its calls and in the call back, never
//   between: what a socket does not take at once is copied.
// - An id is in flight from its entry to its last result, or to the end of its session.
// - The handle keeps the event loop alive only while a command is in flight or a session is being made.
// - At the end of an environment the async clean-up hook closes the handle, and is removed when that is closed.
#include "plane/client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>
#include <uv.h>

#include <algorithm>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "plane/linger.h"
#include "support/napi_support.h"

namespace holdfast::plane {

namespace {

constexpr uint32_t kMaxCapacity = 65536;
constexpr int kEvents = 64;
constexpr size_t kSendPieces = 1024;    // IOV_MAX
// Of one session before the others get their turn.
constexpr size_t kTurnBytes = 4 << 20;
// Call backs before the event loop gets its turn.
constexpr uint32_t kRounds = 64;
// How long to look out for the next answer, each time, and in one drain.
constexpr uint64_t kLingerNs = 50'000;
constexpr uint64_t kLingerDrainNs = 1'000'000;

constexpr napi_type_tag kHandleTag = {0x686f6c6466617374, 0x706c616e65636c69};

struct Session {
  int fd = -1;
  uint32_t slot = 0;
  bool greeted = false;
  bool touched = false;
  bool wants_room = true;    // EPOLLOUT is asked for
  uint32_t in_flight = 0;
  std::vector<iovec> pieces;    // of the entries that are being taken
  size_t piece_bytes = 0;
  std::vector<uint8_t> kept;    // what the socket has not taken
  size_t kept_start = 0;
  Answer answer{};    // that is being received
  uint32_t answer_have = 0;
  uint32_t data_left = 0;
  uint32_t targets = 0;    // commands in flight whose data go straight to where they belong
};

struct Flight {
  uint32_t session = 0;
  uint32_t answer_bytes = 0;
  bool busy = false;
  napi_ref target = nullptr;    // a Uint8Array of answer_bytes
};

class Client {
 public:
  Client(Napi::Env env, uint32_t capacity) : env_(env), capacity_(capacity) {}

  // 0 or an errno.
  int Start(Napi::Object memory, support::Bytes bytes, Napi::Function on_results);
  // The number of a session, or a negative errno.
  int32_t Connect(const std::string& host, uint16_t port, const Name& ticket);
  // Its commands have no results any more.
  void Disconnect(uint32_t slot);
  // Where the data of the entry that comes next with this id go; no bytes: those of this command go nowhere any more.
  bool Aim(uint32_t id, napi_value target);
  void Submit();
  void BeginClose();
  void Release();
  bool closing() const { return closing_; }

 private:
  struct Place {
    uint8_t* data = nullptr;
    uint32_t length = 0;
    bool is_target = false;
  };

  static void OnPoll(uv_poll_t* poll, int, int) { static_cast<Client*>(poll->data)->Drain(); }
  static void OnClosed(uv_handle_t* handle);
  static void OnEnvironmentEnd(napi_async_cleanup_hook_handle hook, void* client);

  void Drain();
  bool Collect();
  bool LookOut();
  void TakeEntries();
  void Send(Session* session);
  void Keep(Session* session, size_t sent);
  void SendKept(Session* session);
  void AskForRoom(Session* session, bool wanted);
  void Receive(Session* session);
  void ReceiveApart(Session* session);
  bool Parse(Session* session, uint32_t offset, uint32_t bytes);
  void TakeData(Session* session, uint32_t offset, uint32_t bytes);
  Place PlaceOf(const Session& session) const;
  bool TakeApart(Session* session, const Place& place, const uint8_t* header, uint32_t got);
  void Unaim(uint32_t id);
  void Forget(uint32_t id);
  void Ended(uint32_t id);
  bool TakeHeader(Session* session);
  void End(Session* session, int error);
  void Drop(Session* session);
  ClientResult* NextResult();
  void Deliver();
  void KeepLoopAlive();
  void CloseHandle();
  void Finish();
  Session* At(uint32_t slot) const { return slot < sessions_.size() ? sessions_[slot].get() : nullptr; }

  Napi::Env env_;
  uint32_t capacity_;
  ClientHeader* header_ = nullptr;
  ClientEntry* entries_ = nullptr;
  ClientResult* results_ = nullptr;
  uint8_t* send_ = nullptr;
  uint8_t* receive_ = nullptr;
  std::unique_ptr<Flight[]> flights_;
  std::vector<std::unique_ptr<Session>> sessions_;
  std::vector<Session*> touched_;
  uint32_t in_flight_ = 0;
  uint32_t ungreeted_ = 0;
  uint32_t result_count_ = 0;
  uint32_t received_ = 0;    // bytes of the results' data
  uint64_t drain_begun_ns_ = 0;
  Linger linger_;
  bool draining_ = false;
  bool closing_ = false;
  bool loop_kept_alive_ = true;
  uint32_t owners_ = 1;
  int epoll_ = -1;
  bool poll_open_ = false;
  uv_poll_t poll_;
  Napi::ObjectReference memory_;
  Napi::FunctionReference on_results_;
  std::optional<Napi::AsyncContext> context_;
  napi_async_cleanup_hook_handle hook_ = nullptr;
};

size_t MemorySize(uint32_t capacity) {
  return sizeof(ClientHeader) + capacity * sizeof(ClientEntry) + kResultsMax * sizeof(ClientResult) + kDataMaxBytes +
         kReceiveBytes;
}

int Client::Start(Napi::Object memory, support::Bytes bytes, Napi::Function on_results) {
  header_ = reinterpret_cast<ClientHeader*>(bytes.data);
  entries_ = reinterpret_cast<ClientEntry*>(header_ + 1);
  results_ = reinterpret_cast<ClientResult*>(entries_ + capacity_);
  send_ = reinterpret_cast<uint8_t*>(results_ + kResultsMax);
  receive_ = send_ + kDataMaxBytes;
  flights_.reset(new (std::nothrow) Flight[capacity_]());
  if (flights_ == nullptr) return ENOMEM;
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_ < 0) return errno;
  memory_ = Napi::Persistent(memory);
  on_results_ = Napi::Persistent(on_results);
  context_.emplace(env_, "holdfast.plane");
  uv_loop_t* loop = nullptr;
  // node-addon-api has clean-up hooks that must be done when they return, and this one must wait.
  if (env_.IsExceptionPending() || napi_get_uv_event_loop(env_, &loop) != napi_ok ||
      napi_add_async_cleanup_hook(env_, OnEnvironmentEnd, this, &hook_) != napi_ok) {
    return EIO;
  }
  int error = uv_poll_init(loop, &poll_, epoll_);
  if (error != 0) return -error;
  poll_.data = this;
  poll_open_ = true;
  owners_++;
  error = uv_poll_start(&poll_, UV_READABLE, OnPoll);
  KeepLoopAlive();
  return -error;
}

// ── Sessions ───────────────────────────────────────────────────────────────────────────────────────────────────────

int32_t Client::Connect(const std::string& host, uint16_t port, const Name& ticket) {
  sockaddr_storage address{};
  socklen_t length = 0;
  auto* four = reinterpret_cast<sockaddr_in*>(&address);
  auto* six = reinterpret_cast<sockaddr_in6*>(&address);
  if (inet_pton(AF_INET, host.c_str(), &four->sin_addr) == 1) {
    four->sin_family = AF_INET;
    four->sin_port = htons(port);
    length = sizeof(*four);
  } else if (inet_pton(AF_INET6, host.c_str(), &six->sin6_addr) == 1) {
    six->sin6_family = AF_INET6;
    six->sin6_port = htons(port);
    length = sizeof(*six);
  } else {
    return -EINVAL;
  }
  // What was asked of a session that has ended must not reach the one that gets its number.
  TakeEntries();
  uint32_t slot = 0;
  while (slot < sessions_.size() && sessions_[slot] != nullptr) slot++;
  if (slot >= kSessionsMax) return -EMFILE;
  const int fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -errno;
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  epoll_event event{};
  event.events = EPOLLIN | EPOLLOUT;
  event.data.u32 = slot;
  int error = connect(fd, reinterpret_cast<sockaddr*>(&address), length) == 0 ? 0 : errno;
  if (error == EINPROGRESS) error = 0;
  if (error == 0 && epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) != 0) error = errno;
  if (error != 0) {
    close(fd);
    return -error;
  }
  auto session = std::make_unique<Session>();
  session->fd = fd;
  session->slot = slot;
  Hello hello{};
  memcpy(hello.magic, kHelloMagic, sizeof(hello.magic));
  hello.ticket = ticket;
  const auto* bytes = reinterpret_cast<const uint8_t*>(&hello);
  session->kept.assign(bytes, bytes + sizeof(hello));
  if (slot == sessions_.size()) sessions_.emplace_back();
  sessions_[slot] = std::move(session);
  ungreeted_++;
  KeepLoopAlive();
  return static_cast<int32_t>(slot);
}

void Client::Disconnect(uint32_t slot) {
  if (Session* session = At(slot)) Drop(session);
  KeepLoopAlive();
}

void Client::Drop(Session* session) {
  const uint32_t slot = session->slot;
  for (uint32_t id = 0; session->in_flight > 0 && id < capacity_; id++) {
    if (flights_[id].busy && flights_[id].session == slot) Ended(id);
  }
  if (!session->greeted) ungreeted_--;
  close(session->fd);
  sessions_[slot].reset();
}

void Client::End(Session* session, int error) {
  ClientResult* result = NextResult();
  *result = {kSessionEvent, 1, 1, session->slot, 0, 0, static_cast<uint64_t>(error)};
  Drop(session);
}

// ── Commands ───────────────────────────────────────────────────────────────────────────────────────────────────────

void Client::Submit() {
  if (closing_) return;
  TakeEntries();
  KeepLoopAlive();
}

void Client::TakeEntries() {
  const uint32_t count = header_->entries;
  if (count == 0) return;
  header_->entries = 0;
  if (count > capacity_) napi_fatal_error("holdfast plane", NAPI_AUTO_LENGTH, "too many entries", NAPI_AUTO_LENGTH);
  for (uint32_t i = 0; i < count; i++) {
    ClientEntry& entry = entries_[i];
    Session* session = At(entry.session);
    const uint32_t bytes = entry.command.data_bytes;
    if (entry.id >= capacity_ || flights_[entry.id].busy || uint64_t{entry.data_offset} + bytes > kDataMaxBytes) {
      napi_fatal_error("holdfast plane", NAPI_AUTO_LENGTH, "an entry that cannot be", NAPI_AUTO_LENGTH);
    }
    Flight& flight = flights_[entry.id];
    // One that has ended meanwhile: JavaScript is told, or knows.
    if (session == nullptr) {
      Unaim(entry.id);
      continue;
    }
    flight = {entry.session, entry.answer_bytes, true, flight.target};
    if (flight.target != nullptr) session->targets++;
    entry.command.tag = entry.id;
    session->in_flight++;
    in_flight_++;
    if (!session->touched) touched_.push_back(session);
    session->touched = true;
    session->pieces.push_back({&entry.command, sizeof(Command)});
    if (bytes > 0) session->pieces.push_back({send_ + entry.data_offset, bytes});
    session->piece_bytes += sizeof(Command) + bytes;
  }
  for (Session* session : touched_) Send(session);
  touched_.clear();
}

bool Client::Aim(uint32_t id, napi_value target) {
  if (id >= capacity_) return false;
  Unaim(id);
  support::Bytes bytes;
  if (!support::GetBytes(env_, target, &bytes)) return true;
  return !flights_[id].busy && napi_create_reference(env_, target, 1, &flights_[id].target) == napi_ok;
}

void Client::Unaim(uint32_t id) {
  Flight& flight = flights_[id];
  if (flight.target != nullptr && flight.busy) At(flight.session)->targets--;
  Forget(id);
}

void Client::Forget(uint32_t id) {
  if (flights_[id].target != nullptr) napi_delete_reference(env_, flights_[id].target);
  flights_[id].target = nullptr;
}

void Client::Ended(uint32_t id) {
  Unaim(id);
  flights_[id].busy = false;
  At(flights_[id].session)->in_flight--;
  in_flight_--;
}

// An error is not looked at here: it is told by the next look at the socket.
void Client::Send(Session* session) {
  session->touched = false;
  size_t sent = 0;
  if (session->kept.size() == session->kept_start && session->greeted) {
    msghdr message{};
    message.msg_iov = session->pieces.data();
    message.msg_iovlen = std::min(session->pieces.size(), kSendPieces);
    const ssize_t result = sendmsg(session->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (result > 0) sent = static_cast<size_t>(result);
  }
  if (sent < session->piece_bytes) Keep(session, sent);
  session->pieces.clear();
  session->piece_bytes = 0;
}

void Client::Keep(Session* session, size_t sent) {
  for (const iovec& piece : session->pieces) {
    const size_t skipped = std::min(sent, piece.iov_len);
    const auto* base = static_cast<const uint8_t*>(piece.iov_base);
    session->kept.insert(session->kept.end(), base + skipped, base + piece.iov_len);
    sent -= skipped;
  }
  AskForRoom(session, true);
}

void Client::SendKept(Session* session) {
  while (session->kept_start < session->kept.size()) {
    const ssize_t sent = send(session->fd, &session->kept[session->kept_start],
                              session->kept.size() - session->kept_start, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) return;
    session->kept_start += static_cast<size_t>(sent);
  }
  session->kept.clear();
  session->kept_start = 0;
  if (session->kept.capacity() > kReceiveBytes) session->kept.shrink_to_fit();
  AskForRoom(session, false);
}

void Client::AskForRoom(Session* session, bool wanted) {
  if (wanted == session->wants_room) return;
  session->wants_room = wanted;
  epoll_event event{};
  event.events = EPOLLIN | (wanted ? EPOLLOUT : 0u);
  event.data.u32 = session->slot;
  epoll_ctl(epoll_, EPOLL_CTL_MOD, session->fd, &event);
}

// ── Answers ────────────────────────────────────────────────────────────────────────────────────────────────────────

void Client::Drain() {
  if (draining_ || closing_) return;
  draining_ = true;
  drain_begun_ns_ = NowNs();
  bool found = Collect();
  for (uint32_t round = 1; found; round++) {
    Deliver();
    if (closing_) break;
    TakeEntries();
    found = round < kRounds && in_flight_ > 0 && linger_.Pays() && (Collect() || (LookOut() && Collect()));
  }
  draining_ = false;
  if (closing_) return CloseHandle();
  KeepLoopAlive();
}

// Looks at the sockets once. True if there are results.
bool Client::Collect() {
  epoll_event events[kEvents];
  result_count_ = 0;
  received_ = 0;
  const int count = epoll_wait(epoll_, events, kEvents, 0);
  for (int i = 0; i < count; i++) {
    Session* session = At(events[i].data.u32);
    if (session == nullptr) continue;
    if ((events[i].events & EPOLLOUT) != 0) SendKept(session);
    if ((events[i].events & ~uint32_t{EPOLLOUT}) != 0) Receive(session);
  }
  return result_count_ > 0;
}

// Looks out for an answer for a moment, if one is likely.
bool Client::LookOut() {
  const uint64_t begun_ns = NowNs();
  const uint64_t until_ns = std::min(begun_ns + kLingerNs, drain_begun_ns_ + kLingerDrainNs);
  if (until_ns <= begun_ns) return false;
  uint64_t now_ns = begun_ns;
  epoll_event event;
  bool ready = false;
  for (; !ready && now_ns < until_ns; now_ns = NowNs()) ready = epoll_wait(epoll_, &event, 1, 0) > 0;
  linger_.Note(begun_ns, until_ns, now_ns);
  return ready;
}

ClientResult* Client::NextResult() { return &results_[result_count_++]; }

void Client::Receive(Session* session) {
  if (session->targets > 0) return ReceiveApart(session);
  const uint32_t room = kReceiveBytes - received_;
  if (room == 0) return;
  const ssize_t got = recv(session->fd, receive_ + received_, room, MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) return End(session, got == 0 ? ECONNRESET : errno);
  const uint32_t offset = received_;
  received_ += static_cast<uint32_t>(got);
  if (!Parse(session, offset, static_cast<uint32_t>(got))) End(session, session->greeted ? EPROTO : EACCES);
}

// False if no plane answers so.
bool Client::Parse(Session* session, uint32_t offset, uint32_t bytes) {
  const uint32_t end = offset + bytes;
  while (offset < end) {
    if (session->data_left == 0) {
      const uint32_t part = std::min<uint32_t>(sizeof(Answer) - session->answer_have, end - offset);
      memcpy(reinterpret_cast<uint8_t*>(&session->answer) + session->answer_have, receive_ + offset, part);
      session->answer_have += part;
      offset += part;
      if (session->answer_have < sizeof(Answer)) return true;
      session->answer_have = 0;
      if (!TakeHeader(session)) return false;
      continue;
    }
    const uint32_t part = std::min(session->data_left, end - offset);
    TakeData(session, offset, part);
    offset += part;
  }
  return true;
}

void Client::TakeData(Session* session, uint32_t offset, uint32_t bytes) {
  const Answer& answer = session->answer;
  const uint32_t done = answer.data_bytes - session->data_left;
  session->data_left -= bytes;
  const auto id = static_cast<uint32_t>(answer.tag);
  const bool last = session->data_left == 0;
  *NextResult() = {id, kOk, last ? 1u : 0u, session->slot, offset, bytes, done};
  if (last) Ended(id);
}

// While data may go straight to where they belong: takes the data of one answer, and the header of the next one. Ends
// with the first result, so that one look at the sockets has few of them.
void Client::ReceiveApart(Session* session) {
  const Napi::HandleScope scope(env_);
  const uint32_t results = result_count_;
  for (size_t taken = 0; taken < kTurnBytes && result_count_ == results;) {
    const Place place = PlaceOf(*session);
    if (place.length == 0 && session->data_left > 0) return;
    uint8_t header[sizeof(Answer)];    // not over the one whose data are coming
    iovec pieces[2] = {{place.data, place.length}, {header, 0}};
    if (place.length == session->data_left) pieces[1].iov_len = sizeof(Answer) - session->answer_have;
    msghdr message{};
    message.msg_iov = pieces;
    message.msg_iovlen = 2;
    const ssize_t got = recvmsg(session->fd, &message, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) return End(session, got == 0 ? ECONNRESET : errno);
    taken += static_cast<size_t>(got);
    if (!TakeApart(session, place, header, static_cast<uint32_t>(got))) return End(session, EPROTO);
  }
}

// Of the data that come next. What has been detached or has another length by now gets nothing.
Client::Place Client::PlaceOf(const Session& session) const {
  if (session.data_left == 0) return {};
  const Flight& flight = flights_[session.answer.tag];
  napi_value target;
  support::Bytes bytes;
  if (flight.target != nullptr && napi_get_reference_value(env_, flight.target, &target) == napi_ok &&
      support::GetBytes(env_, target, &bytes) && bytes.length == flight.answer_bytes) {
    return {bytes.data + bytes.length - session.data_left, session.data_left, true};
  }
  return {receive_ + received_, std::min(session.data_left, kReceiveBytes - received_), false};
}

// False if no plane answers so.
bool Client::TakeApart(Session* session, const Place& place, const uint8_t* header, uint32_t got) {
  const uint32_t bytes = std::min(got, place.length);
  if (bytes > 0 && !place.is_target) {
    TakeData(session, received_, bytes);
    received_ += bytes;
  } else if (bytes > 0) {
    session->data_left -= bytes;
    if (session->data_left == 0) {
      const auto id = static_cast<uint32_t>(session->answer.tag);
      *NextResult() = {id, kOk, 1, session->slot, 0, 0, 0};
      Ended(id);
    }
  }
  memcpy(reinterpret_cast<uint8_t*>(&session->answer) + session->answer_have, header, got - bytes);
  session->answer_have += got - bytes;
  if (session->answer_have < sizeof(Answer)) return true;
  session->answer_have = 0;
  return TakeHeader(session);
}

bool Client::TakeHeader(Session* session) {
  const Answer& answer = session->answer;
  if (answer.version != kVersion || answer.reserved != 0 || answer.reserved_too != 0) return false;
  if (!session->greeted) {
    if (answer.status != kOk || answer.tag != 0 || answer.data_bytes != 0) return false;
    session->greeted = true;
    ungreeted_--;
    *NextResult() = {kSessionEvent, 0, 1, session->slot, 0, 0, 0};
    return true;
  }
  if (answer.tag >= capacity_) return false;
  Flight& flight = flights_[answer.tag];
  if (!flight.busy || flight.session != session->slot) return false;
  if (answer.data_bytes != (answer.status == kOk ? flight.answer_bytes : 0)) return false;
  session->data_left = answer.data_bytes;
  if (answer.data_bytes > 0) return true;
  Ended(static_cast<uint32_t>(answer.tag));
  *NextResult() = {static_cast<uint32_t>(answer.tag), answer.status, 1, session->slot, 0, 0, answer.value};
  return true;
}

// Calls back into JavaScript. The promises that it settles have run their continuations when this returns, so what they
// asked for stands in the entries. The call is bare, because an exception is told from an environment that ends by its
// status.
void Client::Deliver() {
  const Napi::HandleScope scope(env_);
  const napi_value argument = Napi::Number::New(env_, result_count_);
  header_->reaping = 1;
  const napi_status status =
      napi_make_callback(env_, *context_, env_.Global(), on_results_.Value(), 1, &argument, nullptr);
  header_->reaping = 0;
  if (status == napi_ok || !env_.IsExceptionPending()) return;
  napi_fatal_exception(env_, env_.GetAndClearPendingException().Value());
}

// ── Life ───────────────────────────────────────────────────────────────────────────────────────────────────────────

void Client::KeepLoopAlive() {
  const bool wanted = in_flight_ > 0 || ungreeted_ > 0;
  if (wanted == loop_kept_alive_ || !poll_open_) return;
  loop_kept_alive_ = wanted;
  auto* handle = reinterpret_cast<uv_handle_t*>(&poll_);
  if (wanted) {
    uv_ref(handle);
  } else {
    uv_unref(handle);
  }
}

void Client::OnEnvironmentEnd(napi_async_cleanup_hook_handle hook, void* client) {
  auto* self = static_cast<Client*>(client);
  self->hook_ = hook;
  self->BeginClose();
}

void Client::BeginClose() {
  if (closing_) return;
  closing_ = true;
  if (!draining_) CloseHandle();
}

void Client::CloseHandle() {
  if (!poll_open_) return Finish();
  uv_poll_stop(&poll_);
  uv_close(reinterpret_cast<uv_handle_t*>(&poll_), OnClosed);
}

void Client::OnClosed(uv_handle_t* handle) {
  auto* self = static_cast<Client*>(handle->data);
  self->poll_open_ = false;
  self->Finish();
  self->Release();
}

void Client::Finish() {
  for (const auto& session : sessions_) {
    if (session != nullptr) close(session->fd);
  }
  for (uint32_t id = 0; flights_ != nullptr && id < capacity_; id++) Forget(id);
  sessions_.clear();
  if (epoll_ >= 0) close(epoll_);
  epoll_ = -1;
  on_results_.Reset();
  memory_.Reset();
  context_.reset();
  if (hook_ != nullptr) napi_remove_async_cleanup_hook(hook_);
  hook_ = nullptr;
}

void Client::Release() {
  if (--owners_ == 0) delete this;
}

// ── Binding ────────────────────────────────────────────────────────────────────────────────────────────────────────

// clientCreate(memory, capacity, onResults): handle
Napi::Value ClientCreate(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  support::Bytes bytes;
  uint32_t capacity;
  if (!support::GetBytes(env, info[0], &bytes) || !support::GetUint32(info[1], &capacity) || !info[2].IsFunction() ||
      capacity < 1 || capacity > kMaxCapacity || bytes.length != MemorySize(capacity) ||
      reinterpret_cast<uintptr_t>(bytes.data) % alignof(ClientEntry) != 0) {
    return support::ThrowType(env, "clientCreate takes memory for so many commands, their number and a function");
  }
  auto* client = new Client(env, capacity);
  const auto let_go = [](Napi::Env, Client* owned) {
    owned->BeginClose();
    owned->Release();
  };
  const int error = client->Start(info[0].As<Napi::Object>(), bytes, info[2].As<Napi::Function>());
  if (error != 0) {
    let_go(env, client);
    return support::ThrowErrno(env, error, "client of a plane");
  }
  const auto handle = Napi::External<Client>::New(env, client, let_go);
  if (handle.IsEmpty()) {
    let_go(env, client);
    return handle;
  }
  handle.TypeTag(&kHandleTag);
  return handle;
}

// Null, with an exception pending, if the first argument is no open client.
Client* GetClient(const Napi::CallbackInfo& info) {
  Client* client = support::GetHandle<Client>(info[0], kHandleTag);
  if (client != nullptr && !client->closing()) return client;
  support::ThrowType(info.Env(), "expected an open client of a plane");
  return nullptr;
}

// clientConnect(handle, host, port, ticket): the number of the session, or a negative errno
Napi::Value ClientConnect(const Napi::CallbackInfo& info) {
  Client* client = GetClient(info);
  if (client == nullptr) return info.Env().Undefined();
  std::string host;
  uint32_t port;
  support::Bytes bytes;
  Name ticket;
  if (!support::GetString(info[1], 64, &host) || !support::GetUint32(info[2], &port) || port > UINT16_MAX ||
      !support::GetBytes(info.Env(), info[3], &bytes) || bytes.length != ticket.size()) {
    return support::ThrowType(info.Env(), "clientConnect takes a client, an address, a port and a ticket");
  }
  memcpy(ticket.data(), bytes.data, ticket.size());
  return Napi::Number::New(info.Env(), client->Connect(host, static_cast<uint16_t>(port), ticket));
}

// clientDisconnect(handle, session): void
void ClientDisconnect(const Napi::CallbackInfo& info) {
  Client* client = GetClient(info);
  uint32_t session;
  if (client != nullptr && support::GetUint32(info[1], &session)) client->Disconnect(session);
}

// Null for anything else.
Client* BareClient(napi_env env, napi_value handle) {
  void* data = nullptr;
  bool is_client = false;
  const bool is_external = napi_get_value_external(env, handle, &data) == napi_ok &&
                           napi_check_object_type_tag(env, handle, &kHandleTag, &is_client) == napi_ok;
  return is_external && is_client ? static_cast<Client*>(data) : nullptr;
}

// clientAim(handle, id, target): void. For each long read: bare, as clientSubmit.
napi_value ClientAim(napi_env env, napi_callback_info info) {
  napi_value arguments[3];
  size_t count = 3;
  uint32_t id;
  Client* client = nullptr;
  if (napi_get_cb_info(env, info, &count, arguments, nullptr, nullptr) == napi_ok) client = BareClient(env, arguments[0]);
  if (client == nullptr || napi_get_value_uint32(env, arguments[1], &id) != napi_ok || !client->Aim(id, arguments[2])) {
    support::ThrowType(env, "clientAim takes a client, a command that is not under way, and a target or nothing");
  }
  return nullptr;
}

// clientSubmit(handle): void. Bare, because a command at depth 1 pays for a call of its own.
napi_value ClientSubmit(napi_env env, napi_callback_info info) {
  napi_value handle;
  size_t count = 1;
  Client* client = nullptr;
  if (napi_get_cb_info(env, info, &count, &handle, nullptr, nullptr) == napi_ok) client = BareClient(env, handle);
  if (client != nullptr) {
    client->Submit();
  } else {
    support::ThrowType(env, "expected a client of a plane");
  }
  return nullptr;
}

void ClientClose(const Napi::CallbackInfo& info) {
  Client* client = support::GetHandle<Client>(info[0], kHandleTag);
  if (client != nullptr) client->BeginClose();
}

}  // namespace

void RegisterClient(Napi::Object exports) {
  support::AddFunction<ClientCreate>(exports, "clientCreate");
  support::AddFunction<ClientConnect>(exports, "clientConnect");
  support::AddFunction<ClientDisconnect>(exports, "clientDisconnect");
  support::AddBareFunction(exports, "clientSubmit", ClientSubmit);
  support::AddBareFunction(exports, "clientAim", ClientAim);
  support::AddFunction<ClientClose>(exports, "clientClose");
}

}  // namespace holdfast::plane
