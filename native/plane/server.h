// The unit's end of the data plane: serves one-sided commands on TCP connections, straight from and into a mapping.
// Knows nothing of Node.
//
// Two threads take turns (leader and followers, Schmidt et al., 2000). One leads: it waits for the connections and
// executes commands. When commands have to be made durable, the leader hands the lead to the other one and persists
// itself, all that wait as one; so a lone command is woken for once, and a disk at work keeps nobody from reading. What
// comes meanwhile is the next group.
//
// Invariants:
// - Everything here is under one lock, given in the order of asking, but for the waiting: for connections, and for the
//   disk. So a command is one with respect to all others, a compare and swap or a guarded write too.
// - The commands of a connection are executed in the order in which they came. Their answers leave in any order; what
//   was read is what was there at the command's turn.
// - Nothing that is still to be sent lies in the mapping: what the socket does not take at once is copied.
// - What a connection makes us hold is bounded: beyond the limits nothing more is read from it until less is held.
// - Each peer keeps to the rates, if there are any. A connection whose next command has to wait for its turn is not read
//   from until then; one command of a connection, at most, has a turn that is still to come.
// - A connection that says what no client says is closed.
#pragma once

#include <pthread.h>
#include <sys/uio.h>

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "plane/linger.h"
#include "plane/pace.h"
#include "plane/tables.h"
#include "plane/turns.h"
#include "plane/wire.h"
#include "region/mapping.h"

struct epoll_event;

namespace holdfast::plane {

struct Limits {
  uint32_t connections = 256;
  uint32_t strangers = 64;    // connections that have not shown a ticket
  uint32_t tickets = 1024;
  uint32_t keys = 65536;
  // Of each connection. Commands: those that wait for the disk. Bytes: answers that the socket has not taken.
  uint32_t commands = 1024;
  uint32_t watches = 64;    // with one more the oldest is answered
  uint32_t answer_bytes = 1 << 20;
  uint32_t events = 1024;          // that wait to be taken; what is over is counted only
  uint32_t linger_us = 50;         // how long to look out for the next command before sleeping, where it pays
  uint32_t stranger_ms = 5000;
  Rates rates;    // of each peer
};

enum class EventKind : uint32_t {
  kConnected = 1,        // session
  kDisconnected = 2,     // session; detail: an errno, 0 for a clean end, kHostile or kReplaced
  kRefused = 3,          // session; detail: status, command
  kStranger = 4,         // turned away; detail: an errno or kBadTicket, kTooMany, kTooSlow, kHostile
  kRevoked = 5,          // number of a revocation: nothing runs any more under its keys
  kPersistFailed = 6,    // detail: errno
  kChanged = 7,          // name of a region that is observed; its range
};

constexpr uint32_t kHostile = 10001;
constexpr uint32_t kReplaced = 10002;
constexpr uint32_t kBadTicket = 10003;
constexpr uint32_t kTooMany = 10004;
constexpr uint32_t kTooSlow = 10005;

struct Event {
  EventKind kind;
  uint32_t detail = 0;
  uint32_t operation = 0;
  uint32_t reserved = 0;
  uint64_t number = 0;    // session, or revocation
  uint64_t start = 0;
  uint64_t length = 0;
  Name region{};
};
static_assert(sizeof(Event) == 56);

class Server {
 public:
  // Calls of `notify`, from any thread, say that events can be taken; it must not call back.
  Server(const Limits& limits, void (*notify)(void*), void* argument);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // The mapping outlives the server, or until ReplaceMapping has let it go. `host` is a numeric address. Returns 0 or an
  // errno; `port` becomes the one that is bound. Once.
  int Start(region::Mapping* mapping, const char* host, uint16_t* port);
  // Ends all connections and threads; waits for the disk. Idempotent.
  void Stop();

  // All of these may be called by any thread.

  // A longer mapping of the same file. The old one is in use until MappingInUse tells otherwise.
  void ReplaceMapping(region::Mapping* mapping);
  bool MappingInUse(const region::Mapping* mapping);

  // False if an extent is not inside of the memory, or not of whole words.
  bool Install(std::vector<Tables::Table> tables, Tables::Revocation* revocation);
  bool Add(const Grant& grant);
  Tables::Revocation Revoke(const Filter& filter);
  // One connection may show the ticket, and is then the session's, in place of the one before. The session is one of that
  // peer, which counts with rates only. False: too many.
  bool Admit(const Name& ticket, uint64_t session, uint32_t peer = 0);
  void Withdraw(const Name& ticket);
  // The session's keys and its connection.
  Tables::Revocation EndSession(uint64_t session);
  // For how long, ns, a command of the peer that comes another way, and moves so many bytes, waits before it begins. It
  // counts from now on.
  uint64_t DelayNs(uint32_t peer, uint64_t bytes);
  // Somebody else has stored in the region.
  void Changed(const Name& region, uint64_t start, uint64_t length);
  // Whether stores in the region are told by events. The region's change number; 0: there is no such region.
  uint64_t Observe(const Name& region, bool observe);
  // For stores by others into the same memory that must not fall between the commands' own.
  void Lock() { turns_.lock(); }
  void Unlock() { turns_.unlock(); }

  size_t TakeEvents(Event* events, size_t limit, uint64_t* dropped);

  struct State {
    uint64_t connections, keys, commands, refused, reads, read_bytes, writes, written_bytes, persists,
        persisted_commands, failure;
  };
  State GetState();

 private:
  struct Connection;
  struct Admission;
  struct Waiting;
  struct Watch;
  struct Observation;

  static void* Main(void* server);
  int Listen(const char* host, uint16_t* port);
  void WakeLeader();
  void Serve();
  void Lead();
  int Wait(epoll_event* events, int timeout_ms);
  int IdleMs() const;
  void PersistGroup();
  bool ShouldPersist() const;
  void GatherGroup();
  void NoteInFlight(size_t commands);
  region::Failure PersistRanges(const std::vector<Waiting>& group);

  void Accept();
  void PauseListener(bool pause);
  void TurnAwayTheSlow();
  void OnReady(Connection* connection, uint32_t events);
  void Receive(Connection* connection);
  bool Greet(Connection* connection);
  void Process(Connection* connection);
  bool Reserve(Connection* connection, size_t bytes);
  bool IsFull(const Connection& connection) const;
  bool Rests(const Connection& connection) const;
  Pace* PaceOf(uint32_t peer);
  bool HasTurn(Connection* connection, const Command& command, uint64_t now_ns);
  void AwaitTurn(const Connection& connection);
  void ProcessDue();
  void Execute(Connection* connection, const Command& command, const uint8_t* data);
  Status Check(const Connection& connection, const Command& command, Key** key);
  void Read(const Command& command);
  void Write(Connection* connection, const Command& command, const uint8_t* data, Key* key);
  void Swap(Connection* connection, const Command& command, Key* key);
  void Persist(Connection* connection, const Command& command, Key* key);
  void EndOldestWatch(Connection* connection);
  void StartWatch(Connection* connection, const Command& command, Key* key);
  void Finish(Connection* connection, const Command& command, Key* key, uint64_t value, bool durable);
  void EnqueuePersist(Connection* connection, const Command& command, Key* key, uint64_t value);
  void SendBeforeStore(Connection* connection);
  void Touch(Region* region, uint64_t start, uint64_t length);
  void EndWatches();
  void Respond(const Command& command, Status status, uint64_t value);
  void RespondLater(Connection* connection, uint64_t tag, Status status, uint64_t value);
  void Flush(Connection* connection);
  void Keep(Connection* connection, size_t sent);
  void SendKept(Connection* connection);
  void SendDirty();
  void UpdateInterest(Connection* connection);
  void Break(Connection* connection, uint32_t reason);
  void Close(Connection* connection);
  void CloseBroken();
  Connection* Find(uint32_t slot, uint32_t generation) const;
  uint64_t* Word(uint64_t physical) const;
  void Tell(const Event& event, bool may_drop);

  const Limits limits_;
  void (*const notify_)(void*);
  void* const argument_;

  std::mutex stop_mutex_;
  Turns turns_;
  std::condition_variable_any follow_;
  std::condition_variable_any gather_;
  bool stopping_ = false;
  bool leading_ = false;
  bool sleeping_ = false;    // the leader waits for connections, without the lock
  bool persisting_ = false;
  size_t in_flight_peak_ = 0;    // of late: commands that wait for the disk, or that it works on

  // How long the disk takes, and when it last ended: of the one thread that persists.
  uint64_t persist_mean_ns_ = 0;
  uint64_t persisted_at_ns_ = 0;

  region::Mapping* mapping_ = nullptr;
  region::Mapping* persisted_ = nullptr;    // by the group under way
  int failure_ = 0;                         // errno of a persist that failed: no later one can be relied on

  Tables tables_;
  std::unordered_map<Name, Admission, NameHash> tickets_;
  std::unordered_map<Name, Observation, NameHash> observed_;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::vector<uint32_t> generations_;
  uint32_t connection_count_ = 0;
  uint32_t stranger_count_ = 0;
  std::vector<Watch> watches_;
  std::vector<Waiting> waiting_;
  std::vector<uint64_t> revoked_;
  std::deque<Event> events_;
  uint64_t dropped_ = 0;
  State state_{};

  // Of the connection that is being processed: answers, and pieces of the mapping, that have not been sent.
  std::vector<Answer> answers_;
  std::vector<iovec> pieces_;
  size_t batch_bytes_ = 0;
  std::vector<Span> reads_;    // where those pieces are
  std::vector<Span> spans_;
  std::vector<Span> guard_;
  std::vector<Connection*> dirty_;
  std::vector<Connection*> broken_;
  std::vector<uint64_t> ready_;    // have more commands in their buffers
  std::unordered_map<uint32_t, Pace> paces_;    // of peers
  uint64_t next_due_ns_ = kNever;    // not after the next turn that a connection waits for

  int epoll_ = -1;
  int listener_ = -1;
  bool listener_paused_ = false;
  int wake_event_ = -1;
  Linger linger_;    // the leader's
  static constexpr uint32_t kThreads = 2;
  pthread_t threads_[kThreads];
  uint32_t thread_count_ = 0;
};

}  // namespace holdfast::plane
