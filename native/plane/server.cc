#include "plane/server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <new>
#include <utility>

namespace holdfast::plane {

namespace {

constexpr uint32_t kEvents = 64;              // of one look at the connections
constexpr uint32_t kAccepts = 16;
constexpr size_t kBatchCommands = 256;        // whose answers are sent at once
constexpr size_t kBatchPieces = 1024;         // IOV_MAX
constexpr size_t kBatchBytes = 1 << 20;
constexpr uint32_t kTurnCommands = 1024;      // of one connection, before the others get their turn
constexpr size_t kTurnBytes = 4 << 20;
constexpr size_t kBufferBytes = 256 << 10;    // of a connection; for a longer command it grows
constexpr int kIdleWaitMs = 500;
// From here on the disk's time outweighs that of the network and the processors.
constexpr uint64_t kSlowPersistNs = 500'000;
constexpr uint64_t kGatherNs = 2'000'000;
constexpr uint64_t kListenerMark = 0xffffffff;
constexpr uint64_t kWakeMark = 0xfffffffe;

bool OneProcessorOnly() {
  cpu_set_t processors;
  return sched_getaffinity(0, sizeof(processors), &processors) == 0 && CPU_COUNT(&processors) == 1;
}

}  // namespace

struct Server::Connection {
  int fd = -1;
  uint32_t slot = 0;
  uint32_t generation = 0;
  bool admitted = false;
  uint64_t session = 0;
  uint64_t deadline_ns = 0;    // of a stranger
  std::unique_ptr<uint8_t[]> buffer;
  size_t capacity = 0;
  size_t start = 0;    // what has been received and not been executed
  size_t end = 0;
  std::vector<uint8_t> kept;    // answers that the socket has not taken
  size_t kept_start = 0;
  uint32_t persists = 0;
  uint32_t watches = 0;
  uint32_t interest = 0;
  bool stuffed = false;    // may have a whole command in its buffer
  Pace* pace = nullptr;    // with rates
  uint64_t due_ns = 0;     // when the next command has its turn, if that has to wait
  bool dirty = false;
  bool broken = false;
  uint32_t reason = 0;

  size_t kept_bytes() const { return kept.size() - kept_start; }
  uint64_t mark() const { return uint64_t{generation} << 32 | slot; }
};

// Who has been given a ticket.
struct Server::Admission {
  uint64_t session;
  uint32_t peer;
};

// A command that waits for the disk.
struct Server::Waiting {
  uint32_t slot;
  uint32_t generation;
  uint64_t tag;
  uint64_t value;
  Key* key;
  uint64_t start;    // covers the spans
  uint64_t end;
};

struct Server::Watch {
  uint32_t slot;
  uint32_t generation;
  uint64_t tag;
  Name key;
  Name region_name;
  Region* region;
  uint64_t start;
  uint64_t length;
};

// What has been stored in a region since the last event of it was taken.
struct Server::Observation {
  uint64_t start = 0;
  uint64_t end = 0;
};

Server::Server(const Limits& limits, void (*notify)(void*), void* argument)
    : limits_(limits), notify_(notify), argument_(argument), tables_(limits.keys) {
  answers_.reserve(kBatchCommands);
  pieces_.reserve(kBatchPieces);
}

Server::~Server() { Stop(); }

// ── Life ───────────────────────────────────────────────────────────────────────────────────────────────────────────

int Server::Start(region::Mapping* mapping, const char* host, uint16_t* port) {
  mapping_ = mapping;
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  wake_event_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (epoll_ < 0 || wake_event_ < 0) return errno;
  epoll_event wake{};
  wake.events = EPOLLIN;
  wake.data.u64 = kWakeMark;
  if (epoll_ctl(epoll_, EPOLL_CTL_ADD, wake_event_, &wake) != 0) return errno;
  const int error = Listen(host, port);
  if (error != 0) return error;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int result = 0;
  while (thread_count_ < kThreads && result == 0) {
    result = pthread_create(&threads_[thread_count_], nullptr, Main, this);
    if (result == 0) thread_count_++;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return result;
}

int Server::Listen(const char* host, uint16_t* port) {
  sockaddr_storage address{};
  socklen_t length = 0;
  auto* four = reinterpret_cast<sockaddr_in*>(&address);
  auto* six = reinterpret_cast<sockaddr_in6*>(&address);
  if (inet_pton(AF_INET, host, &four->sin_addr) == 1) {
    four->sin_family = AF_INET;
    four->sin_port = htons(*port);
    length = sizeof(*four);
  } else if (inet_pton(AF_INET6, host, &six->sin6_addr) == 1) {
    six->sin6_family = AF_INET6;
    six->sin6_port = htons(*port);
    length = sizeof(*six);
  } else {
    return EINVAL;
  }
  listener_ = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  const int on = 1;
  if (listener_ < 0 || setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
      bind(listener_, reinterpret_cast<sockaddr*>(&address), length) != 0 || listen(listener_, 128) != 0 ||
      getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return errno;
  }
  *port = ntohs(address.ss_family == AF_INET ? four->sin_port : six->sin6_port);
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kListenerMark;
  return epoll_ctl(epoll_, EPOLL_CTL_ADD, listener_, &event) == 0 ? 0 : errno;
}

void Server::Stop() {
  const std::lock_guard<std::mutex> one_at_a_time(stop_mutex_);
  {
    const std::lock_guard<Turns> turn(turns_);
    stopping_ = true;
    WakeLeader();
    follow_.notify_all();
    gather_.notify_all();
  }
  for (; thread_count_ > 0; thread_count_--) pthread_join(threads_[thread_count_ - 1], nullptr);
  for (auto& connection : connections_) {
    if (connection != nullptr) close(connection->fd);
  }
  connections_.clear();
  for (int* fd : {&listener_, &wake_event_, &epoll_}) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
  }
}

void Server::WakeLeader() {
  const uint64_t one = 1;
  if (wake_event_ >= 0) (void)!write(wake_event_, &one, sizeof(one));
}

void* Server::Main(void* server) {
  static_cast<Server*>(server)->Serve();
  return nullptr;
}

void Server::Serve() {
  const std::lock_guard<Turns> turn(turns_);
  while (!stopping_) {
    const bool persists = !waiting_.empty() && !persisting_;
    if (leading_ && persists) {
      PersistGroup();
    } else if (leading_) {
      follow_.wait(turns_);
    } else {
      leading_ = true;
      Lead();
      leading_ = false;
      follow_.notify_one();
      if (!stopping_) PersistGroup();
    }
  }
}

// Returns when there is something to persist.
void Server::Lead() {
  epoll_event events[kEvents];
  std::vector<uint64_t> ready;
  while (!stopping_ && (waiting_.empty() || persisting_)) {
    const int timeout_ms = ready_.empty() ? IdleMs() : 0;
    sleeping_ = true;
    turns_.unlock();
    const int count = Wait(events, timeout_ms);
    turns_.lock();
    sleeping_ = false;
    if (stopping_) return;
    // What is left over is told again, to the next leader.
    for (int i = 0; i < count && !ShouldPersist(); i++) {
      const uint64_t mark = events[i].data.u64;
      if (mark == kListenerMark) {
        Accept();
      } else if (mark == kWakeMark) {
        uint64_t counter;
        (void)!read(wake_event_, &counter, sizeof(counter));
      } else if (Connection* connection = Find(static_cast<uint32_t>(mark), static_cast<uint32_t>(mark >> 32))) {
        OnReady(connection, events[i].events);
      }
    }
    ready.swap(ready_);
    for (const uint64_t mark : ready) {
      Connection* connection = Find(static_cast<uint32_t>(mark), static_cast<uint32_t>(mark >> 32));
      if (connection != nullptr && connection->stuffed) Process(connection);
    }
    ready.clear();
    if (next_due_ns_ != kNever) ProcessDue();
    if (stranger_count_ > 0 || listener_paused_) TurnAwayTheSlow();
    SendDirty();
    CloseBroken();
  }
}

// For how long there is nothing to do if nothing comes; -1: for ever.
int Server::IdleMs() const {
  const int idle_ms = stranger_count_ > 0 || listener_paused_ ? kIdleWaitMs : -1;
  if (next_due_ns_ == kNever) return idle_ms;
  const uint64_t now_ns = NowNs();
  const uint64_t due_ms = next_due_ns_ <= now_ns ? 0 : (next_due_ns_ - now_ns + 999'999) / 1'000'000;
  return static_cast<int>(std::min<uint64_t>(due_ms, kIdleWaitMs));
}

// Looks out for the next command for a moment before it sleeps: to be woken costs more, here and at the client's end.
int Server::Wait(epoll_event* events, int timeout_ms) {
  static const bool alone = OneProcessorOnly();
  if (timeout_ms == 0 || alone || limits_.linger_us == 0 || !linger_.Pays()) {
    return epoll_wait(epoll_, events, kEvents, timeout_ms);
  }
  const uint64_t begun_ns = NowNs();
  const uint64_t until_ns = begun_ns + uint64_t{limits_.linger_us} * 1000;
  int count = epoll_wait(epoll_, events, kEvents, 0);
  uint64_t now_ns = begun_ns;
  for (; count == 0 && now_ns < until_ns; now_ns = NowNs()) count = epoll_wait(epoll_, events, kEvents, 0);
  linger_.Note(begun_ns, until_ns, now_ns);
  return count != 0 ? count : epoll_wait(epoll_, events, kEvents, timeout_ms);
}

// ── Durability ─────────────────────────────────────────────────────────────────────────────────────────────────────

// Makes what waits durable, as one, and answers. Gives the lock back meanwhile.
void Server::PersistGroup() {
  if (waiting_.empty() || persisting_) return;
  persisting_ = true;
  GatherGroup();
  std::vector<Waiting> group;
  group.swap(waiting_);
  NoteInFlight(group.size());
  persisted_ = mapping_;
  region::Failure failure{failure_, "an earlier persist"};
  if (failure_ == 0) {
    turns_.unlock();
    const uint64_t begun_ns = NowNs();
    failure = PersistRanges(group);
    persisted_at_ns_ = NowNs();
    persist_mean_ns_ = (7 * persist_mean_ns_ + persisted_at_ns_ - begun_ns) / 8;
    turns_.lock();
  }
  persisting_ = false;
  NoteInFlight(group.size() + waiting_.size());
  if (persisted_ != mapping_) notify_(argument_);
  persisted_ = nullptr;
  if (failure.error != 0 && failure_ == 0) {
    failure_ = failure.error;
    Tell({.kind = EventKind::kPersistFailed, .detail = static_cast<uint32_t>(failure_)}, false);
  }
  state_.persists++;
  state_.persisted_commands += group.size();
  const Status status = failure.error == 0 ? kOk : kFlushFailed;
  for (const Waiting& waiting : group) {
    tables_.Ended(waiting.key, &revoked_);
    Connection* connection = Find(waiting.slot, waiting.generation);
    if (connection == nullptr) continue;
    connection->persists--;
    RespondLater(connection, waiting.tag, status, waiting.value);
  }
  for (const uint64_t revocation : revoked_) Tell({.kind = EventKind::kRevoked, .number = revocation}, false);
  revoked_.clear();
  SendDirty();
  CloseBroken();
}

// The lock is not held. The page cache goes to the disk by one call for all, whose cost is the disk's flush; caches are
// written back line by line, so only what was asked for.
region::Failure Server::PersistRanges(const std::vector<Waiting>& group) {
  if (persisted_->means() == region::Means::kMsync) {
    uint64_t start = UINT64_MAX;
    uint64_t end = 0;
    for (const Waiting& waiting : group) {
      start = std::min(start, waiting.start);
      end = std::max(end, waiting.end);
    }
    return persisted_->Persist(start, end - start);
  }
  for (const Waiting& waiting : group) {
    const region::Failure failure = persisted_->Persist(waiting.start, waiting.end - waiting.start);
    if (failure.error != 0) return failure;
  }
  return {};
}

// With so many waiting an idle disk begins at once, although more may come: it then works on one half while the other
// is on its way. All at once would leave it idle between.
bool Server::ShouldPersist() const { return !persisting_ && 2 * waiting_.size() >= std::max<size_t>(in_flight_peak_, 1); }

// A slow disk is not worth dividing for: with halves it would only be asked twice as often. So a group waits a moment for
// those whom the one before has answered.
void Server::GatherGroup() {
  if (persist_mean_ns_ < kSlowPersistNs) return;
  const uint64_t until_ns = persisted_at_ns_ + std::min(persist_mean_ns_ / 4, kGatherNs);
  for (uint64_t now_ns = NowNs(); now_ns < until_ns && waiting_.size() < in_flight_peak_ && !stopping_; now_ns = NowNs()) {
    gather_.wait_for(turns_, std::chrono::nanoseconds(until_ns - now_ns));
  }
}

void Server::NoteInFlight(size_t commands) {
  in_flight_peak_ = std::max(commands, in_flight_peak_ - (in_flight_peak_ + 7) / 8);
}

void Server::EnqueuePersist(Connection* connection, const Command& command, Key* key, uint64_t value) {
  uint64_t start = UINT64_MAX;
  uint64_t end = 0;
  for (const Span& span : spans_) {
    start = std::min(start, span.start);
    end = std::max(end, span.start + span.length);
  }
  key->in_flight++;
  connection->persists++;
  waiting_.push_back({connection->slot, connection->generation, command.tag, value, key, start, end});
  if (waiting_.size() >= in_flight_peak_) gather_.notify_one();
}

// ── Connections ────────────────────────────────────────────────────────────────────────────────────────────────────

void Server::Accept() {
  for (uint32_t i = 0; i < kAccepts; i++) {
    const int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) PauseListener(true);
      return;
    }
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    auto connection = std::make_unique<Connection>();
    connection->fd = fd;
    connection->buffer.reset(new (std::nothrow) uint8_t[kBufferBytes]);
    connection->capacity = kBufferBytes;
    if (stranger_count_ >= limits_.strangers || connection_count_ >= limits_.connections ||
        connection->buffer == nullptr) {
      close(fd);
      Tell({.kind = EventKind::kStranger, .detail = kTooMany}, true);
      continue;
    }
    uint32_t slot = 0;
    while (slot < connections_.size() && connections_[slot] != nullptr) slot++;
    if (slot == connections_.size()) {
      connections_.emplace_back();
      generations_.push_back(0);
    }
    connection->slot = slot;
    connection->generation = generations_[slot];
    connection->deadline_ns = NowNs() + uint64_t{limits_.stranger_ms} * 1'000'000;
    epoll_event event{};
    event.events = connection->interest = EPOLLIN;
    event.data.u64 = connection->mark();
    if (epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) != 0) {
      close(fd);
      continue;
    }
    connections_[slot] = std::move(connection);
    connection_count_++;
    stranger_count_++;
  }
}

// With no descriptor left, accepting would fail again at once, for ever.
void Server::PauseListener(bool pause) {
  epoll_event event{};
  event.events = pause ? 0u : EPOLLIN;
  event.data.u64 = kListenerMark;
  epoll_ctl(epoll_, EPOLL_CTL_MOD, listener_, &event);
  listener_paused_ = pause;
}

void Server::TurnAwayTheSlow() {
  const uint64_t now_ns = NowNs();
  for (const auto& connection : connections_) {
    if (connection != nullptr && !connection->admitted && now_ns > connection->deadline_ns) {
      Break(connection.get(), kTooSlow);
    }
  }
  if (listener_paused_) PauseListener(false);
}

Server::Connection* Server::Find(uint32_t slot, uint32_t generation) const {
  if (slot >= connections_.size()) return nullptr;
  Connection* connection = connections_[slot].get();
  return connection != nullptr && connection->generation == generation && !connection->broken ? connection : nullptr;
}

void Server::OnReady(Connection* connection, uint32_t events) {
  if ((events & (EPOLLERR | EPOLLHUP)) != 0) {
    int error = 0;
    socklen_t length = sizeof(error);
    getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    return Break(connection, static_cast<uint32_t>(error));
  }
  if ((events & EPOLLOUT) != 0) SendKept(connection);
  if ((events & EPOLLIN) != 0 && !connection->broken) Receive(connection);
  if (connection->broken || (!connection->admitted && !Greet(connection))) return;
  Process(connection);
}

void Server::Receive(Connection* connection) {
  if (connection->end == connection->capacity && !Reserve(connection, connection->end - connection->start + 1)) return;
  const ssize_t got =
      recv(connection->fd, &connection->buffer[connection->end], connection->capacity - connection->end, MSG_DONTWAIT);
  if (got > 0) {
    connection->end += static_cast<size_t>(got);
  } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
    Break(connection, got == 0 ? 0 : static_cast<uint32_t>(errno));
  }
}

// Makes room for so many bytes from the first one that has not been executed.
bool Server::Reserve(Connection* connection, size_t bytes) {
  if (connection->start + bytes <= connection->capacity) return true;
  const size_t held = connection->end - connection->start;
  if (bytes <= connection->capacity) {
    memmove(&connection->buffer[0], &connection->buffer[connection->start], held);
  } else {
    const size_t capacity = std::max(bytes, sizeof(Command) + kDataMaxBytes);
    std::unique_ptr<uint8_t[]> buffer(new (std::nothrow) uint8_t[capacity]);
    if (buffer == nullptr) {
      Break(connection, ENOMEM);
      return false;
    }
    memcpy(&buffer[0], &connection->buffer[connection->start], held);
    connection->buffer = std::move(buffer);
    connection->capacity = capacity;
  }
  connection->start = 0;
  connection->end = held;
  return true;
}

bool Server::Greet(Connection* connection) {
  Hello hello;
  const size_t held = connection->end;
  memcpy(&hello, &connection->buffer[0], std::min(held, sizeof(hello)));
  if (memcmp(hello.magic, kHelloMagic, std::min(held, sizeof(hello.magic))) != 0) {
    Break(connection, kHostile);
    return false;
  }
  if (held < sizeof(hello)) return false;
  const auto ticket = tickets_.find(hello.ticket);
  if (ticket == tickets_.end() || hello.reserved != 0) {
    // It is told, so that a client whose ticket has run out does not take it for a broken link.
    const Answer answer{kVersion, kKeyInvalid, 0, 0, 0, 0, 0};
    (void)!send(connection->fd, &answer, sizeof(answer), MSG_DONTWAIT | MSG_NOSIGNAL);
    Break(connection, kBadTicket);
    return false;
  }
  const auto [session, peer] = ticket->second;
  tickets_.erase(ticket);
  for (const auto& other : connections_) {
    if (other != nullptr && other->admitted && other->session == session) Break(other.get(), kReplaced);
  }
  connection->admitted = true;
  connection->session = session;
  if (limits_.rates.limit()) connection->pace = PaceOf(peer);
  connection->start = sizeof(hello);
  stranger_count_--;
  Tell({.kind = EventKind::kConnected, .number = session}, false);
  RespondLater(connection, 0, kOk, 0);
  return true;
}

void Server::Break(Connection* connection, uint32_t reason) {
  if (connection->broken) return;
  connection->broken = true;
  connection->reason = reason;
  broken_.push_back(connection);
}

void Server::CloseBroken() {
  // Closing one can leave another with something to send, and that may find it broken.
  while (!broken_.empty()) {
    std::vector<Connection*> broken;
    broken.swap(broken_);
    for (Connection* connection : broken) Close(connection);
  }
}

void Server::Close(Connection* connection) {
  if (connection->admitted) {
    Tell({.kind = EventKind::kDisconnected, .detail = connection->reason, .number = connection->session}, false);
  } else {
    stranger_count_--;
    if (connection->reason != 0) Tell({.kind = EventKind::kStranger, .detail = connection->reason}, true);
  }
  if (connection->watches > 0) {
    std::erase_if(watches_, [connection](const Watch& watch) {
      if (watch.slot != connection->slot || watch.generation != connection->generation) return false;
      watch.region->watches--;
      return true;
    });
  }
  std::erase(dirty_, connection);
  close(connection->fd);
  connection_count_--;
  generations_[connection->slot]++;
  connections_[connection->slot].reset();
}

// What is held of it is over a limit: nothing more is taken from it until that has gone.
bool Server::IsFull(const Connection& connection) const {
  return connection.persists >= limits_.commands || connection.kept_bytes() >= limits_.answer_bytes;
}

// Nothing is executed for it, nor taken from it, before something else has happened, or its time has come.
bool Server::Rests(const Connection& connection) const {
  return IsFull(connection) || connection.due_ns != 0;
}

void Server::UpdateInterest(Connection* connection) {
  if (connection->broken) return;
  const uint32_t interest = (Rests(*connection) ? 0u : EPOLLIN) | (connection->kept_bytes() > 0 ? EPOLLOUT : 0u);
  if (interest == connection->interest) return;
  epoll_event event{};
  event.events = connection->interest = interest;
  event.data.u64 = connection->mark();
  if (epoll_ctl(epoll_, EPOLL_CTL_MOD, connection->fd, &event) != 0) Break(connection, static_cast<uint32_t>(errno));
}

// ── Answers ────────────────────────────────────────────────────────────────────────────────────────────────────────

// To a command of the connection that is being processed.
void Server::Respond(const Command& command, Status status, uint64_t value) {
  answers_.push_back({kVersion, status, 0, 0, command.tag, value, 0});
  auto* header = reinterpret_cast<uint8_t*>(&answers_.back());
  if (!pieces_.empty() && static_cast<uint8_t*>(pieces_.back().iov_base) + pieces_.back().iov_len == header) {
    pieces_.back().iov_len += sizeof(Answer);
  } else {
    pieces_.push_back({header, sizeof(Answer)});
  }
  batch_bytes_ += sizeof(Answer);
}

// To a command of any connection: it goes with the next SendDirty.
void Server::RespondLater(Connection* connection, uint64_t tag, Status status, uint64_t value) {
  const Answer answer{kVersion, status, 0, 0, tag, value, 0};
  const auto* bytes = reinterpret_cast<const uint8_t*>(&answer);
  connection->kept.insert(connection->kept.end(), bytes, bytes + sizeof(answer));
  if (!connection->dirty) dirty_.push_back(connection);
  connection->dirty = true;
}

// Sends the batch. What the socket does not take is kept, as a copy.
void Server::Flush(Connection* connection) {
  if (pieces_.empty()) return;
  size_t sent = 0;
  if (!connection->broken && connection->kept_bytes() == 0) {
    msghdr message{};
    message.msg_iov = pieces_.data();
    message.msg_iovlen = pieces_.size();
    const ssize_t result = sendmsg(connection->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (result > 0) {
      sent = static_cast<size_t>(result);
    } else if (result < 0 && errno != EAGAIN && errno != EINTR) {
      Break(connection, static_cast<uint32_t>(errno));
    }
  }
  if (sent < batch_bytes_ && !connection->broken) Keep(connection, sent);
  answers_.clear();
  pieces_.clear();
  reads_.clear();
  batch_bytes_ = 0;
}

void Server::Keep(Connection* connection, size_t sent) {
  for (const iovec& piece : pieces_) {
    const size_t skipped = std::min(sent, piece.iov_len);
    const auto* base = static_cast<const uint8_t*>(piece.iov_base);
    connection->kept.insert(connection->kept.end(), base + skipped, base + piece.iov_len);
    sent -= skipped;
  }
}

void Server::SendKept(Connection* connection) {
  while (connection->kept_bytes() > 0 && !connection->broken) {
    const ssize_t sent = send(connection->fd, &connection->kept[connection->kept_start], connection->kept_bytes(),
                              MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) {
      if (errno != EAGAIN && errno != EINTR) Break(connection, static_cast<uint32_t>(errno));
      return;
    }
    connection->kept_start += static_cast<size_t>(sent);
  }
  connection->kept.clear();
  connection->kept_start = 0;
  if (connection->kept.capacity() > limits_.answer_bytes) connection->kept.shrink_to_fit();
}

void Server::SendDirty() {
  // To process what was held back can make more to send.
  for (size_t i = 0; i < dirty_.size(); i++) {
    Connection* connection = dirty_[i];
    connection->dirty = false;
    SendKept(connection);
    if (connection->stuffed && !IsFull(*connection)) Process(connection);
    UpdateInterest(connection);
  }
  dirty_.clear();
}

// ── Rates ──────────────────────────────────────────────────────────────────────────────────────────────────────────

Pace* Server::PaceOf(uint32_t peer) { return &paces_.try_emplace(peer, limits_.rates).first->second; }

uint64_t Server::DelayNs(uint32_t peer, uint64_t bytes) {
  const std::lock_guard<Turns> turn(turns_);
  if (!limits_.rates.limit()) return 0;
  const uint64_t now_ns = NowNs();
  return PaceOf(peer)->Begin(now_ns, bytes) - now_ns;
}

// Whether it is the turn of the command. It is paid for when it is asked for first, and not before it could be executed:
// who is full saves up no turns.
bool Server::HasTurn(Connection* connection, const Command& command, uint64_t now_ns) {
  const bool moves = command.operation == kRead || command.operation == kWrite;
  if (connection->due_ns == 0) connection->due_ns = connection->pace->Begin(now_ns, moves ? command.length : 0);
  if (connection->due_ns > now_ns) return false;
  connection->due_ns = 0;
  return true;
}

void Server::AwaitTurn(const Connection& connection) {
  if (connection.due_ns >= next_due_ns_) return;
  next_due_ns_ = connection.due_ns;
  if (sleeping_) WakeLeader();
}

void Server::ProcessDue() {
  const uint64_t now_ns = NowNs();
  if (now_ns < next_due_ns_) return;
  next_due_ns_ = kNever;
  for (const auto& connection : connections_) {
    if (connection == nullptr || connection->broken || connection->due_ns == 0) continue;
    if (connection->due_ns <= now_ns) {
      Process(connection.get());
    } else {
      AwaitTurn(*connection);
    }
  }
}

// ── Commands ───────────────────────────────────────────────────────────────────────────────────────────────────────

void Server::Process(Connection* connection) {
  const uint64_t now_ns = connection->pace == nullptr ? 0 : NowNs();
  uint32_t commands = 0;
  size_t bytes = 0;
  bool whole = true;
  while (!connection->broken && commands < kTurnCommands && bytes < kTurnBytes && !IsFull(*connection)) {
    const size_t held = connection->end - connection->start;
    whole = held >= sizeof(Command);
    if (!whole) break;
    Command command;
    memcpy(&command, &connection->buffer[connection->start], sizeof(command));
    if (!IsWellFormed(command)) {
      Break(connection, kHostile);
      break;
    }
    whole = held >= sizeof(command) + command.data_bytes;
    if (!whole) {
      Reserve(connection, sizeof(command) + command.data_bytes);
      break;
    }
    if (connection->pace != nullptr && !HasTurn(connection, command, now_ns)) break;
    const uint8_t* data = &connection->buffer[connection->start + sizeof(command)];
    connection->start += sizeof(command) + command.data_bytes;
    Execute(connection, command, data);
    commands++;
    bytes += command.length;
    if (ShouldPersist()) break;
    if (answers_.size() == kBatchCommands || batch_bytes_ >= kBatchBytes) Flush(connection);
  }
  Flush(connection);
  state_.commands += commands;
  connection->stuffed = whole && !connection->broken;
  if (connection->start == connection->end) {
    connection->start = connection->end = 0;
    if (connection->capacity > kBufferBytes) {
      connection->buffer.reset(new (std::nothrow) uint8_t[kBufferBytes]);
      connection->capacity = kBufferBytes;
      if (connection->buffer == nullptr) Break(connection, ENOMEM);
    }
  }
  UpdateInterest(connection);
  if (connection->due_ns != 0 && !IsFull(*connection)) AwaitTurn(*connection);
  if (connection->stuffed && !Rests(*connection)) {
    ready_.push_back(connection->mark());
    if (sleeping_) WakeLeader();
  }
}

Status Server::Check(const Connection& connection, const Command& command, Key** key) {
  const bool reads = command.operation == kRead || command.operation == kWatch;
  const uint8_t rights = reads ? kReadRight : command.operation == kPersist ? kAnyRight : kWriteRight;
  spans_.clear();
  guard_.clear();
  const Status status = tables_.Resolve(command.key, connection.session, command.address, command.length,
                                        rights, &spans_, key);
  if (status != kOk || (command.flags & kGuardFlag) == 0) return status;
  return tables_.Resolve(command.key, connection.session, command.operand_b, kWordBytes, kWriteRight, &guard_, key);
}

void Server::Execute(Connection* connection, const Command& command, const uint8_t* data) {
  Key* key = nullptr;
  Status status = Check(*connection, command, &key);
  if (status == kOk && !guard_.empty() &&
      __atomic_load_n(Word(guard_[0].start), __ATOMIC_SEQ_CST) != command.operand_a) {
    status = kFenced;
  }
  if (status != kOk) {
    state_.refused++;
    Tell({.kind = EventKind::kRefused,
          .detail = status,
          .operation = command.operation,
          .number = connection->session,
          .start = command.address,
          .length = command.length,
          .region = key != nullptr ? key->grant.region : Name{}},
         true);
    return Respond(command, status, 0);
  }
  switch (command.operation) {
    case kRead:
      return Read(command);
    case kWrite:
      return Write(connection, command, data, key);
    case kPersist:
      return Persist(connection, command, key);
    case kCompareAndSwap:
      return Swap(connection, command, key);
    default:
      return StartWatch(connection, command, key);
  }
}

uint64_t* Server::Word(uint64_t physical) const { return reinterpret_cast<uint64_t*>(mapping_->data() + physical); }

void Server::Read(const Command& command) {
  Respond(command, kOk, 0);
  answers_.back().data_bytes = static_cast<uint32_t>(command.length);
  for (const Span& span : spans_) {
    pieces_.push_back({mapping_->data() + span.start, span.length});
    reads_.push_back(span);
  }
  batch_bytes_ += command.length;
  state_.reads++;
  state_.read_bytes += command.length;
}

// What was read before in the same batch has to be sent before it is changed.
void Server::SendBeforeStore(Connection* connection) {
  for (const Span& read : reads_) {
    for (const Span& store : spans_) {
      if (Overlap(read, store)) return Flush(connection);
    }
  }
}

void Server::Write(Connection* connection, const Command& command, const uint8_t* data, Key* key) {
  SendBeforeStore(connection);
  const bool persist = (command.flags & kPersistFlag) != 0;
  bool durable = true;
  for (const Span& span : spans_) {
    if (persist) {
      durable = mapping_->Write(span.start, data, span.length) && durable;
    } else {
      memcpy(mapping_->data() + span.start, data, span.length);
    }
    data += span.length;
  }
  state_.writes++;
  state_.written_bytes += command.length;
  if (command.length == 0) return Respond(command, kOk, 0);
  Touch(key->region, command.address, command.length);
  Finish(connection, command, key, 0, durable);
}

void Server::Swap(Connection* connection, const Command& command, Key* key) {
  SendBeforeStore(connection);
  uint64_t before = command.operand_a;
  const bool swapped = __atomic_compare_exchange_n(Word(spans_[0].start), &before, command.operand_b, false,
                                                   __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  if (swapped) {
    state_.writes++;
    state_.written_bytes += command.length;
    Touch(key->region, command.address, command.length);
  }
  const bool direct = (command.flags & kPersistFlag) != 0 && mapping_->IsDirect(kWordBytes);
  if (direct) mapping_->Persist(spans_[0].start, kWordBytes);
  // Also if nothing was stored: what is told to be there is durable then.
  Finish(connection, command, key, before, direct);
}

// With what is durable already, or is to be made so if the command says that.
void Server::Finish(Connection* connection, const Command& command, Key* key, uint64_t value, bool durable) {
  if ((command.flags & kPersistFlag) == 0 || durable) return Respond(command, kOk, value);
  if (failure_ != 0) return Respond(command, kFlushFailed, value);
  EnqueuePersist(connection, command, key, value);
}

void Server::Persist(Connection* connection, const Command& command, Key* key) {
  if (failure_ != 0) return Respond(command, kFlushFailed, 0);
  if (command.length == 0) return Respond(command, kOk, 0);
  if (!mapping_->IsDirect(command.length)) return EnqueuePersist(connection, command, key, 0);
  for (const Span& span : spans_) mapping_->Persist(span.start, span.length);
  Respond(command, kOk, 0);
}

void Server::StartWatch(Connection* connection, const Command& command, Key* key) {
  Region* region = key->region;
  if (region->HasChanged(command.address, command.length, command.operand_a)) {
    return Respond(command, kOk, region->change);
  }
  if (connection->watches >= limits_.watches) EndOldestWatch(connection);
  connection->watches++;
  region->watches++;
  watches_.push_back({connection->slot, connection->generation, command.tag, command.key, region->name, region,
                      command.address, command.length});
}

// Without cause: the client may have stopped waiting for it long ago.
void Server::EndOldestWatch(Connection* connection) {
  const auto oldest = std::find_if(watches_.begin(), watches_.end(), [connection](const Watch& watch) {
    return watch.slot == connection->slot && watch.generation == connection->generation;
  });
  oldest->region->watches--;
  connection->watches--;
  RespondLater(connection, oldest->tag, kOk, oldest->region->change);
  watches_.erase(oldest);
}

// Something has been stored in the range.
void Server::Touch(Region* region, uint64_t start, uint64_t length) {
  region->NoteStore(start, length);
  if (region->watches > 0) {
    std::erase_if(watches_, [&](const Watch& watch) {
      if (watch.region != region || !Overlap({start, length}, {watch.start, watch.length})) return false;
      region->watches--;
      if (Connection* connection = Find(watch.slot, watch.generation)) {
        connection->watches--;
        RespondLater(connection, watch.tag, kOk, region->change);
      }
      return true;
    });
  }
  if (observed_.empty()) return;
  const auto observed = observed_.find(region->name);
  if (observed == observed_.end()) return;
  Observation& observation = observed->second;
  if (observation.end > 0) {
    observation.start = std::min(observation.start, start);
    observation.end = std::max(observation.end, start + length);
    return;
  }
  observation = {start, start + length};
  Tell({.kind = EventKind::kChanged, .region = region->name}, false);
}

// Those whose keys have been revoked.
void Server::EndWatches() {
  std::erase_if(watches_, [this](const Watch& watch) {
    if (tables_.Knows(watch.key)) return false;
    if (tables_.Find(watch.region_name) == watch.region) watch.region->watches--;
    if (Connection* connection = Find(watch.slot, watch.generation)) {
      connection->watches--;
      RespondLater(connection, watch.tag, kKeyInvalid, 0);
    }
    return true;
  });
  SendDirty();
}

// ── Control ────────────────────────────────────────────────────────────────────────────────────────────────────────

void Server::ReplaceMapping(region::Mapping* mapping) {
  const std::lock_guard<Turns> turn(turns_);
  mapping_ = mapping;
}

bool Server::MappingInUse(const region::Mapping* mapping) {
  const std::lock_guard<Turns> turn(turns_);
  return mapping == mapping_ || mapping == persisted_;
}

bool Server::Install(std::vector<Tables::Table> tables, Tables::Revocation* revocation) {
  const std::lock_guard<Turns> turn(turns_);
  for (const Tables::Table& table : tables) {
    for (const Span& extent : table.extents) {
      if (extent.start % kWordBytes != 0 || extent.length % kWordBytes != 0 || extent.start > mapping_->size() ||
          extent.length > mapping_->size() - extent.start) {
        return false;
      }
    }
  }
  *revocation = tables_.Install(std::move(tables));
  EndWatches();
  CloseBroken();
  return true;
}

bool Server::Add(const Grant& grant) {
  const std::lock_guard<Turns> turn(turns_);
  return tables_.Add(grant);
}

Tables::Revocation Server::Revoke(const Filter& filter) {
  const std::lock_guard<Turns> turn(turns_);
  const Tables::Revocation revocation = tables_.Revoke(filter);
  EndWatches();
  CloseBroken();
  return revocation;
}

bool Server::Admit(const Name& ticket, uint64_t session, uint32_t peer) {
  const std::lock_guard<Turns> turn(turns_);
  return tickets_.size() < limits_.tickets && tickets_.emplace(ticket, Admission{session, peer}).second;
}

void Server::Withdraw(const Name& ticket) {
  const std::lock_guard<Turns> turn(turns_);
  tickets_.erase(ticket);
}

Tables::Revocation Server::EndSession(uint64_t session) {
  const std::lock_guard<Turns> turn(turns_);
  Filter filter;
  filter.by_session = true;
  filter.session = session;
  const Tables::Revocation revocation = tables_.Revoke(filter);
  std::erase_if(tickets_, [session](const auto& ticket) { return ticket.second.session == session; });
  EndWatches();
  for (const auto& connection : connections_) {
    if (connection != nullptr && connection->admitted && connection->session == session) Break(connection.get(), 0);
  }
  CloseBroken();
  return revocation;
}

void Server::Changed(const Name& region, uint64_t start, uint64_t length) {
  const std::lock_guard<Turns> turn(turns_);
  Region* found = tables_.Find(region);
  if (found == nullptr || length == 0) return;
  Touch(found, start, length);
  SendDirty();
  CloseBroken();
}

uint64_t Server::Observe(const Name& region, bool observe) {
  const std::lock_guard<Turns> turn(turns_);
  if (observe) {
    observed_.try_emplace(region);
  } else {
    observed_.erase(region);
  }
  const Region* found = tables_.Find(region);
  return found != nullptr ? found->change : 0;
}

void Server::Tell(const Event& event, bool may_drop) {
  if (may_drop && events_.size() >= limits_.events) {
    dropped_++;
    return;
  }
  events_.push_back(event);
  if (events_.size() == 1) notify_(argument_);
}

size_t Server::TakeEvents(Event* events, size_t limit, uint64_t* dropped) {
  const std::lock_guard<Turns> turn(turns_);
  *dropped = dropped_;
  dropped_ = 0;
  size_t count = 0;
  while (count < limit && !events_.empty()) {
    Event event = events_.front();
    events_.pop_front();
    if (event.kind == EventKind::kChanged) {
      const auto observed = observed_.find(event.region);
      if (observed == observed_.end()) continue;
      event.start = observed->second.start;
      event.length = observed->second.end - observed->second.start;
      observed->second = {};
    }
    events[count++] = event;
  }
  if (!events_.empty()) notify_(argument_);
  return count;
}

Server::State Server::GetState() {
  const std::lock_guard<Turns> turn(turns_);
  State state = state_;
  state.connections = connection_count_ - stranger_count_;
  state.keys = tables_.keys();
  state.failure = static_cast<uint64_t>(failure_);
  return state;
}

}  // namespace holdfast::plane
