#include "plane/server.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "plane/tables.h"
#include "plane/turns.h"
#include "test/check.h"

using namespace holdfast::plane;
using holdfast::region::Mapping;

namespace {

std::mutex disk;    // who holds it holds up the disk
std::atomic<int> disk_error = 0;
std::atomic<int> disk_calls = 0;

}  // namespace

// In this program msync can be held up, and told to fail.
extern "C" int msync(void* address, size_t length, int flags) {
  disk_calls++;
  const std::lock_guard<std::mutex> turn(disk);
  errno = disk_error;
  return disk_error == 0 ? static_cast<int>(syscall(SYS_msync, address, length, flags)) : -1;
}

namespace {

constexpr uint64_t kMemory = 4 << 20;

Name MakeName(uint8_t number) {
  Name name{};
  name[0] = number;
  name[15] = 1;
  return name;
}

const Name kRegion = MakeName(1);
const Name kTicket = MakeName(2);
const Name kKey = MakeName(3);
const Name kReadOnlyKey = MakeName(4);
const Name kOtherKey = MakeName(5);
constexpr uint64_t kSession = 7;

// A server over a file of its own. The region's first page lies behind its second one in memory.
class Unit {
 public:
  explicit Unit(Limits limits = {}) : server_(limits, [](void* unit) { static_cast<Unit*>(unit)->notified_++; }, this) {
    const char* parent = getenv("TMPDIR");
    folder_ = std::string(parent != nullptr ? parent : "/tmp") + "/holdfast-plane-XXXXXX";
    CHECK(mkdtemp(folder_.data()) != nullptr);
    CHECK(mapping_.Open({.path = folder_ + "/memory", .size_bytes = kMemory, .size_limit_bytes = kMemory, .create = true})
              .error == 0);
    CHECK(server_.Start(&mapping_, "127.0.0.1", &port_) == 0);
    Tables::Revocation revocation;
    CHECK(server_.Install({{kRegion, {{8192, 4096}, {4096, 4096}, {12288, kMemory - 12288}}}}, &revocation));
    CHECK(server_.Add({kKey, kRegion, 0, kMemory - 4096, kReadRight | kWriteRight, kSession}));
    CHECK(server_.Add({kReadOnlyKey, kRegion, 64, 1000, kReadRight, kSession}));
    CHECK(server_.Add({kOtherKey, kRegion, 0, 4096, kReadRight | kWriteRight, kSession + 1}));
    CHECK(server_.Admit(kTicket, kSession));
  }
  ~Unit() {
    server_.Stop();
    unlink((folder_ + "/memory").c_str());
    rmdir(folder_.c_str());
  }

  Server& server() { return server_; }
  Mapping& mapping() { return mapping_; }
  uint16_t port() const { return port_; }

  // Waits for an event of the kind; others are passed over.
  Event Await(EventKind kind) {
    for (int i = 0; i < 5000; i++) {
      while (!seen_.empty()) {
        const Event event = seen_.front();
        seen_.erase(seen_.begin());
        if (event.kind == kind) return event;
      }
      Event events[16];
      uint64_t dropped;
      const size_t count = server_.TakeEvents(events, 16, &dropped);
      dropped_ += dropped;
      seen_.assign(events, events + count);
      if (count == 0) usleep(1000);
    }
    CHECK(!"the event came");
    return {};
  }
  bool Has(EventKind kind) {
    Event events[256];
    uint64_t dropped;
    const size_t count = server_.TakeEvents(events, 256, &dropped);
    for (size_t i = 0; i < count; i++) {
      if (events[i].kind == kind) return true;
    }
    return false;
  }
  int notified() const { return notified_; }
  uint64_t dropped() const { return dropped_; }

 private:
  std::string folder_;
  Mapping mapping_;
  uint16_t port_ = 0;
  std::atomic<int> notified_ = 0;
  std::vector<Event> seen_;
  uint64_t dropped_ = 0;
  Server server_;
};

struct Answered {
  Answer header{};
  std::string data;
  bool closed = false;
};

class Client {
 public:
  explicit Client(const Unit& unit) {
    fd_ = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(unit.port());
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  }
  Client(const Unit& unit, const Name& ticket) : Client(unit) {
    Greet(ticket);
    const Answered welcome = Take();
    CHECK(welcome.header.status == kOk && welcome.header.version == kVersion && welcome.header.tag == 0);
  }
  ~Client() { close(fd_); }

  void Greet(const Name& ticket) {
    Hello hello{};
    memcpy(hello.magic, kHelloMagic, sizeof(hello.magic));
    hello.ticket = ticket;
    Send(&hello, sizeof(hello));
  }
  void Send(const void* bytes, size_t length) {
    const auto* at = static_cast<const char*>(bytes);
    while (length > 0) {
      const ssize_t sent = send(fd_, at, length, MSG_NOSIGNAL);
      if (sent <= 0) return;
      at += sent;
      length -= static_cast<size_t>(sent);
    }
  }
  void Send(const Command& command, const std::string& data = "") {
    std::string bytes(reinterpret_cast<const char*>(&command), sizeof(command));
    bytes += data;
    Send(bytes.data(), bytes.size());
  }
  bool TakeBytes(void* bytes, size_t length) {
    auto* at = static_cast<char*>(bytes);
    while (length > 0) {
      const ssize_t got = recv(fd_, at, length, 0);
      if (got <= 0) return false;
      at += got;
      length -= static_cast<size_t>(got);
    }
    return true;
  }
  Answered Take() {
    Answered answered;
    answered.closed = !TakeBytes(&answered.header, sizeof(answered.header));
    if (answered.closed) return answered;
    answered.data.resize(answered.header.data_bytes);
    answered.closed = !TakeBytes(answered.data.data(), answered.data.size());
    return answered;
  }
  Answered Ask(const Command& command, const std::string& data = "") {
    Send(command, data);
    return Take();
  }
  // Nothing comes for a while.
  bool Silent() const {
    pollfd poll_fd{fd_, POLLIN, 0};
    return poll(&poll_fd, 1, 50) == 0;
  }
  int fd() const { return fd_; }

 private:
  int fd_;
};

Command Make(Operation operation, uint64_t address, uint64_t length, const Name& key = kKey) {
  Command command{};
  command.version = kVersion;
  command.operation = operation;
  command.data_bytes = operation == kWrite ? static_cast<uint32_t>(length) : 0;
  command.tag = 42;
  command.key = key;
  command.address = address;
  command.length = length;
  return command;
}

Command MakeSwap(uint64_t address, uint64_t expected, uint64_t desired) {
  Command command = Make(kCompareAndSwap, address, 8);
  command.operand_a = expected;
  command.operand_b = desired;
  return command;
}

uint64_t WordAt(Unit& unit, size_t physical) {
  uint64_t word;
  memcpy(&word, unit.mapping().data() + physical, sizeof(word));
  return word;
}

}  // namespace

TEST("what is written through a plane lies where the tables say, and is read back") {
  Unit unit;
  Client client(unit, kTicket);
  const std::string data = std::string(100, 'a') + std::string(5000, 'b');
  Command write = Make(kWrite, 4096 - 100, data.size());
  write.flags = kPersistFlag;
  const Answered written = client.Ask(write, data);
  CHECK(written.header.status == kOk && written.header.tag == 42 && written.header.data_bytes == 0);
  CHECK(memcmp(unit.mapping().data() + 12288 - 100, data.data(), 100) == 0);
  CHECK(memcmp(unit.mapping().data() + 4096, data.data() + 100, 4096) == 0);
  CHECK(memcmp(unit.mapping().data() + 12288, data.data() + 4196, 904) == 0);
  CHECK(client.Ask(Make(kRead, 4096 - 100, data.size())).data == data);
  CHECK(client.Ask(Make(kRead, 5, 0)).header.status == kOk);
  CHECK(client.Ask(Make(kPersist, 0, 0)).header.status == kOk);
  CHECK(client.Ask(Make(kPersist, 0, kMemory - 4096)).header.status == kOk);
}

TEST("a command of the greatest length is served, in pieces of the network's choice") {
  Unit unit;
  Client client(unit, kTicket);
  std::string data(kDataMaxBytes, 'x');
  for (size_t i = 0; i < data.size(); i++) data[i] = static_cast<char>(i * 7 + i / 4096);
  for (int round = 0; round < 3; round++) CHECK(client.Ask(Make(kWrite, 8192, data.size()), data).header.status == kOk);
  CHECK(client.Ask(Make(kRead, 8192, data.size())).data == data);
}

TEST("a key opens its range, by its rights, to its session, and nothing else") {
  Unit unit;
  Client client(unit, kTicket);
  const std::string data(8, 'x');
  CHECK(client.Ask(Make(kRead, 64, 1000, kReadOnlyKey)).header.status == kOk);
  CHECK(client.Ask(Make(kPersist, 64, 1000, kReadOnlyKey)).header.status == kOk);
  CHECK(client.Ask(Make(kRead, 63, 1, kReadOnlyKey)).header.status == kOutOfRange);
  CHECK(client.Ask(Make(kRead, 64, 1001, kReadOnlyKey)).header.status == kOutOfRange);
  CHECK(client.Ask(Make(kRead, kMemory, 1, kReadOnlyKey)).header.status == kOutOfRange);
  CHECK(client.Ask(Make(kWrite, 64, 8, kReadOnlyKey), data).header.status == kAccess);
  CHECK(client.Ask(Make(kRead, 0, 8, kOtherKey)).header.status == kKeyInvalid);
  CHECK(client.Ask(Make(kRead, 0, 8, MakeName(99))).header.status == kKeyInvalid);
  Command guarded = Make(kWrite, 64, 8);
  guarded.flags = kGuardFlag;
  guarded.operand_b = kMemory - 4096;
  CHECK(client.Ask(guarded, data).header.status == kOutOfRange);
  CHECK(WordAt(unit, 8192 + 64) == 0);
  const Event refused = unit.Await(EventKind::kRefused);
  CHECK(refused.number == kSession && refused.detail == kOutOfRange && refused.region == kRegion && refused.start == 63);
}

TEST("compare and swap changes a word once, and a guard holds back a write") {
  Unit unit;
  Client client(unit, kTicket);
  CHECK(client.Ask(MakeSwap(16, 0, 5)).header.value == 0);
  CHECK(client.Ask(MakeSwap(16, 0, 6)).header.value == 5);
  CHECK(WordAt(unit, 8192 + 16) == 5);
  Command durable = MakeSwap(16, 5, 6);
  durable.flags = kPersistFlag;
  CHECK(client.Ask(durable).header.value == 5 && WordAt(unit, 8192 + 16) == 6);
  Command guarded = Make(kWrite, 24, 8);
  guarded.flags = kGuardFlag;
  guarded.operand_a = 5;
  guarded.operand_b = 16;
  CHECK(client.Ask(guarded, std::string(8, 'x')).header.status == kFenced);
  CHECK(WordAt(unit, 8192 + 24) == 0);
  guarded.operand_a = 6;
  CHECK(client.Ask(guarded, std::string(8, '\1')).header.status == kOk);
  CHECK(WordAt(unit, 8192 + 24) == 0x0101010101010101);
}

TEST("a read is answered with what was there at its turn, although a write follows at once") {
  Unit unit;
  Client client(unit, kTicket);
  const std::string before(4096, 'b'), after(4096, 'a');
  CHECK(client.Ask(Make(kWrite, 0, 4096), before).header.status == kOk);
  std::string both;
  const Command read = Make(kRead, 0, 4096), write = Make(kWrite, 0, 4096);
  both.append(reinterpret_cast<const char*>(&read), sizeof(read));
  both.append(reinterpret_cast<const char*>(&write), sizeof(write));
  both += after;
  both.append(reinterpret_cast<const char*>(&read), sizeof(read));
  client.Send(both.data(), both.size());
  CHECK(client.Take().data == before);
  CHECK(client.Take().header.status == kOk);
  CHECK(client.Take().data == after);
}

TEST("a stranger is turned away, whatever it says") {
  Unit unit;
  Client http(unit);
  http.Send("GET / HTTP/1.1\r\n\r\n", 18);
  CHECK(http.Take().closed);
  CHECK(unit.Await(EventKind::kStranger).detail == kHostile);
  Client guesser(unit);
  guesser.Greet(MakeName(66));
  const Answered refused = guesser.Take();
  CHECK(!refused.closed && refused.header.status == kKeyInvalid);
  CHECK(guesser.Take().closed);
  CHECK(unit.Await(EventKind::kStranger).detail == kBadTicket);
  Client first(unit, kTicket);
  Client second(unit);
  second.Greet(kTicket);
  CHECK(second.Take().header.status == kKeyInvalid);
  CHECK(first.Ask(Make(kRead, 0, 8)).header.status == kOk);
}

TEST("a stranger that says nothing has its place taken away") {
  Limits limits;
  limits.stranger_ms = 100;
  limits.strangers = 2;
  Unit unit(limits);
  Client one(unit), two(unit), three(unit);
  CHECK(three.Take().closed);
  CHECK(unit.Await(EventKind::kStranger).detail == kTooMany);
  CHECK(one.Take().closed && two.Take().closed);
  CHECK(unit.Await(EventKind::kStranger).detail == kTooSlow);
  Client client(unit, kTicket);
}

TEST("a command that cannot be ends its connection") {
  const std::function<void(Command*)> spoils[] = {
      [](Command* command) { command->version = 2; },
      [](Command* command) { command->operation = 0; },
      [](Command* command) { command->operation = 6; },
      [](Command* command) { command->flags = 4; },
      [](Command* command) { command->flags = kPersistFlag; },
      [](Command* command) { command->reserved = 1; },
      [](Command* command) { command->data_bytes = 8; },
      [](Command* command) { command->tag = kNumberLimit; },
      [](Command* command) { command->length = kDataMaxBytes + 1; },
      [](Command* command) { command->address = kNumberLimit - 1; },
      [](Command* command) { command->address = command->length = kNumberLimit / 2; },
      [](Command* command) { command->operand_a = 1; },
      [](Command* command) { *command = Make(kWrite, 0, 0xffffffff); },
      [](Command* command) { *command = Make(kWatch, 0, 0); },
      [](Command* command) { *command = MakeSwap(4, 0, 0); },
      [](Command* command) { *command = Make(kWrite, 0, 0), command->flags = kGuardFlag, command->operand_b = 4; },
  };
  for (const auto& spoil : spoils) {
    Unit unit;
    Client client(unit, kTicket);
    Command command = Make(kRead, 0, 8);
    spoil(&command);
    client.Send(command);
    CHECK(client.Take().closed);
    const Event ended = unit.Await(EventKind::kDisconnected);
    CHECK(ended.number == kSession && ended.detail == kHostile);
  }
}

TEST("random bytes from a client change nothing but what its key opens") {
  Unit unit;
  uint64_t state = 12345;
  const auto random = [&state](uint64_t limit) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (state >> 33) % limit;
  };
  Tables::Revocation revocation;
  CHECK(unit.server().Install({{kRegion, {{8192, 4096}}}}, &revocation));
  for (int round = 0; round < 300; round++) {
    CHECK(unit.server().Admit(MakeName(100), kSession));
    unit.server().Add({MakeName(80), kRegion, 512, 512, kReadRight | kWriteRight, kSession});
    Client client(unit, MakeName(100));
    std::string bytes;
    for (uint64_t count = 1 + random(20); count > 0; count--) {
      Command command = Make(static_cast<Operation>(1 + random(5)), random(1024), random(300), MakeName(80));
      if (command.operation == kCompareAndSwap) command.address &= ~7ull, command.length = 8;
      command.flags = random(4) == 0 && command.operation == kWrite ? static_cast<uint8_t>(random(4)) : 0;
      auto* raw = reinterpret_cast<char*>(&command);
      if (random(6) == 0) raw[random(sizeof(command))] = static_cast<char>(random(256));
      bytes.append(raw, sizeof(command)).append(command.data_bytes < 400 ? command.data_bytes : 0, '!');
    }
    client.Send(bytes.data(), bytes.size() - random(3));
    shutdown(client.fd(), SHUT_WR);
    char answers[4096];
    while (recv(client.fd(), answers, sizeof(answers), 0) > 0) {
    }
  }
  const uint8_t* memory = unit.mapping().data();
  for (size_t i = 0; i < kMemory; i++) {
    if (memory[i] != 0 && (i < 8192 + 512 || i >= 8192 + 1024)) CHECK(!"it is in the range of the key");
  }
  CHECK(unit.server().GetState().refused > 100);
}

TEST("a revocation is over when the last command under the key is") {
  Unit unit;
  Client client(unit, kTicket);
  Command write = Make(kWrite, 0, 8);
  write.flags = kPersistFlag;
  Filter filter;
  filter.by_key = true;
  filter.key = kKey;
  const int calls = disk_calls;
  {
    const std::unique_lock<std::mutex> held(disk);
    client.Send(write, std::string(8, 'x'));
    while (disk_calls == calls) usleep(1000);
    const Tables::Revocation first = unit.server().Revoke(filter);
    CHECK(first.keys == 1 && first.awaits != 0);
    const Tables::Revocation second = unit.server().Revoke(filter);
    CHECK(second.keys == 0 && second.awaits != 0);
    CHECK(!unit.Has(EventKind::kRevoked));
    CHECK(client.Ask(Make(kRead, 0, 8)).header.status == kKeyInvalid);
    CHECK(client.Ask(Make(kRead, 64, 8, kReadOnlyKey)).header.status == kOk);
  }
  CHECK(client.Take().header.status == kOk);
  CHECK(unit.Await(EventKind::kRevoked).number != unit.Await(EventKind::kRevoked).number);
  CHECK(unit.server().Revoke(filter).awaits == 0);
}

TEST("a disk at work holds up no reads, and what comes meanwhile is persisted as one") {
  Unit unit;
  Client client(unit, kTicket);
  Command write = Make(kWrite, 0, 8);
  write.flags = kPersistFlag;
  const int calls = disk_calls;
  {
    const std::unique_lock<std::mutex> held(disk);
    client.Send(write, std::string(8, 'x'));
    while (disk_calls == calls) usleep(1000);
    for (int i = 0; i < 100; i++) client.Send(write, std::string(8, 'y'));
    CHECK(client.Ask(Make(kRead, 4096, 8)).data == std::string(8, '\0'));
    CHECK(client.Silent());
  }
  for (int i = 0; i < 101; i++) CHECK(client.Take().header.status == kOk);
  CHECK(disk_calls <= calls + 3);
}

TEST("too many commands that wait for the disk: no more is taken, and none is lost") {
  Limits limits;
  limits.commands = 10;
  Unit unit(limits);
  Client client(unit, kTicket);
  Command write = Make(kWrite, 0, 8);
  write.flags = kPersistFlag;
  {
    const std::unique_lock<std::mutex> held(disk);
    for (int i = 0; i < 50; i++) client.Send(write, std::string(8, 'x'));
    client.Send(Make(kRead, 0, 8));
    CHECK(client.Silent());
  }
  int reads = 0;
  for (int i = 0; i < 51; i++) {
    const Answered answered = client.Take();
    CHECK(answered.header.status == kOk);
    if (answered.header.data_bytes > 0) reads++;
  }
  CHECK(reads == 1);
}

TEST("a persist that failed: it and all later ones are told, and what is read goes on") {
  Unit unit;
  Client client(unit, kTicket);
  Command write = Make(kWrite, 0, 8);
  write.flags = kPersistFlag;
  disk_error = EIO;
  CHECK(client.Ask(write, std::string(8, 'x')).header.status == kFlushFailed);
  disk_error = 0;
  CHECK(unit.Await(EventKind::kPersistFailed).detail == EIO);
  CHECK(client.Ask(write, std::string(8, 'x')).header.status == kFlushFailed);
  CHECK(client.Ask(Make(kPersist, 0, 8)).header.status == kFlushFailed);
  CHECK(client.Ask(Make(kRead, 0, 8)).data == std::string(8, 'x'));
  CHECK(unit.server().GetState().failure == EIO);
}

TEST("answers that nobody takes are kept up to a limit, and all come in the end") {
  Limits limits;
  limits.answer_bytes = 1 << 16;
  Unit unit(limits);
  for (size_t i = 0; i < kMemory; i++) unit.mapping().data()[i] = static_cast<uint8_t>(i >> 12);
  Client client(unit, kTicket);
  constexpr int kReads = 2000;
  std::thread sender([&] {
    for (int i = 0; i < kReads; i++) {
      Command read = Make(kRead, 4096u * static_cast<uint64_t>(2 + i % 512), 8192);
      read.tag = static_cast<uint64_t>(i);
      client.Send(read);
    }
  });
  usleep(100'000);
  for (int i = 0; i < kReads; i++) {
    const Answered answered = client.Take();
    CHECK(answered.header.tag == static_cast<uint64_t>(i) && answered.data.size() == 8192);
    const auto page = static_cast<char>(3 + i % 512);
    CHECK(answered.data[0] == page && answered.data[8191] == static_cast<char>(page + 1));
  }
  sender.join();
}

TEST("a watch ends with the next store in its range, with its key, or for a newer one") {
  Limits limits;
  limits.watches = 2;
  Unit unit(limits);
  Client client(unit, kTicket);
  Client other(unit);
  CHECK(unit.server().Admit(MakeName(50), kSession + 1));
  other.Greet(MakeName(50));
  CHECK(other.Take().header.status == kOk);
  Command watch = Make(kWatch, 0, 64);
  const uint64_t now = client.Ask(watch).header.value;
  CHECK(now > 0);
  watch.operand_a = now;
  client.Send(watch);
  CHECK(client.Silent());
  CHECK(other.Ask(Make(kWrite, 64, 8, kOtherKey), std::string(8, 'x')).header.status == kOk);
  CHECK(client.Silent());
  CHECK(other.Ask(Make(kWrite, 56, 9, kOtherKey), std::string(9, 'x')).header.status == kOk);
  const uint64_t later = client.Take().header.value;
  CHECK(later == now + 2);
  CHECK(client.Ask(watch).header.value == later);
  watch.operand_a = later;
  for (uint64_t tag = 1; tag <= 3; tag++) {
    watch.tag = tag;
    client.Send(watch);
  }
  CHECK(client.Take().header.tag == 1);
  unit.server().Changed(kRegion, 0, 1);
  CHECK(client.Take().header.value == later + 1 && client.Take().header.value == later + 1);
  watch.operand_a = later + 1;
  client.Send(watch);
  CHECK(client.Silent());
  Tables::Revocation revocation;
  CHECK(unit.server().Install({}, &revocation) && revocation.keys == 3);
  CHECK(client.Take().header.status == kKeyInvalid);
}

TEST("stores in a region that is observed are told, together") {
  Unit unit;
  Client client(unit, kTicket);
  unit.server().Observe(kRegion, true);
  CHECK(client.Ask(Make(kWrite, 100, 8), std::string(8, 'x')).header.status == kOk);
  CHECK(client.Ask(Make(kWrite, 300, 8), std::string(8, 'x')).header.status == kOk);
  const Event changed = unit.Await(EventKind::kChanged);
  CHECK(changed.region == kRegion && changed.start == 100 && changed.length == 208);
  CHECK(client.Ask(MakeSwap(0, 0, 1)).header.status == kOk);
  CHECK(unit.Await(EventKind::kChanged).length == 8);
  CHECK(unit.notified() > 0);
}

TEST("a session's end closes its connection and voids its keys; a new ticket replaces the connection") {
  Unit unit;
  Client client(unit, kTicket);
  CHECK(unit.server().Admit(MakeName(60), kSession));
  Client again(unit, MakeName(60));
  CHECK(client.Take().closed);
  CHECK(unit.Await(EventKind::kDisconnected).detail == kReplaced);
  CHECK(again.Ask(Make(kRead, 0, 8)).header.status == kOk);
  CHECK(unit.server().Admit(MakeName(61), kSession));
  CHECK(unit.server().EndSession(kSession).keys == 2);
  CHECK(again.Take().closed);
  Client late(unit);
  late.Greet(MakeName(61));
  CHECK(late.Take().header.status == kKeyInvalid);
}

TEST("a client that leaves while its persist is under way leaves nothing behind") {
  Unit unit;
  const int calls = disk_calls;
  {
    const std::unique_lock<std::mutex> held(disk);
    {
      Client client(unit, kTicket);
      Command write = Make(kWrite, 0, 8);
      write.flags = kPersistFlag;
      client.Send(write, std::string(8, 'x'));
      while (disk_calls == calls) usleep(1000);
    }
    unit.Await(EventKind::kDisconnected);
    CHECK(unit.server().EndSession(kSession).awaits != 0);
  }
  unit.Await(EventKind::kRevoked);
  CHECK(unit.server().GetState().connections == 0);
}

TEST("refusals that nobody takes are counted, not kept") {
  Limits limits;
  limits.events = 4;
  Unit unit(limits);
  Client client(unit, kTicket);
  for (int i = 0; i < 50; i++) CHECK(client.Ask(Make(kRead, 0, 8, MakeName(99))).header.status == kKeyInvalid);
  unit.Await(EventKind::kRefused);
  CHECK(unit.dropped() >= 46);
}

TEST("tables with an extent outside of the memory, or not of whole words, change nothing") {
  Unit unit;
  Client client(unit, kTicket);
  Tables::Revocation revocation;
  CHECK(!unit.server().Install({{kRegion, {{kMemory - 4096, 4104}}}}, &revocation));
  CHECK(!unit.server().Install({{kRegion, {{kMemory + 8, 0}}}}, &revocation));
  CHECK(!unit.server().Install({{kRegion, {{4, 4096}}}}, &revocation));
  CHECK(client.Ask(Make(kRead, 0, 8)).header.status == kOk);
  CHECK(!unit.server().Add({MakeName(70), kRegion, 1, kMemory - 4096, kReadRight, kSession}));
  CHECK(!unit.server().Add({MakeName(70), MakeName(71), 0, 1, kReadRight, kSession}));
  CHECK(!unit.server().Add({kKey, kRegion, 0, 1, kReadRight, kSession}));
}

TEST("a longer mapping takes over under commands in flight") {
  Unit unit;
  Client client(unit, kTicket);
  std::unique_ptr<Mapping> longer = unit.mapping().Successor();
  CHECK(longer->OpenGrown(2 * kMemory, 2 * kMemory).error == 0);
  unit.server().ReplaceMapping(longer.get());
  CHECK(!unit.server().MappingInUse(&unit.mapping()) && unit.server().MappingInUse(longer.get()));
  Tables::Revocation revocation;
  CHECK(unit.server().Install({{kRegion, {{4096, 2 * kMemory - 4096}}}}, &revocation) && revocation.keys == 0);
  CHECK(unit.server().Add({MakeName(70), kRegion, 0, 2 * kMemory - 4096, kWriteRight | kReadRight, kSession}));
  Command write = Make(kWrite, 2 * kMemory - 8192, 8, MakeName(70));
  write.flags = kPersistFlag;
  CHECK(client.Ask(write, std::string(8, 'z')).header.status == kOk);
  CHECK(longer->data()[2 * kMemory - 4096] == 'z');
  unit.server().Stop();
}

TEST("a revocation spares whom it is told to spare, and takes those with a right") {
  Tables tables(10);
  tables.Install({{kRegion, {{0, 4096}}}});
  CHECK(tables.Add({MakeName(10), kRegion, 0, 8, kReadRight, 1}));
  CHECK(tables.Add({MakeName(11), kRegion, 0, 8, kWriteRight, 1}));
  CHECK(tables.Add({MakeName(12), kRegion, 0, 8, kWriteRight, 2}));
  Filter filter;
  filter.but_session = true;
  filter.spared_session = 2;
  filter.rights = kWriteRight;
  CHECK(tables.Revoke(filter).keys == 1);
  CHECK(tables.Knows(MakeName(10)) && !tables.Knows(MakeName(11)) && tables.Knows(MakeName(12)));
}

TEST("turns are given in the order of asking") {
  Turns turns;
  std::vector<int> order;
  std::vector<std::thread> threads;
  turns.lock();
  for (int i = 0; i < 5; i++) {
    threads.emplace_back([&, i] {
      turns.lock();
      order.push_back(i);
      turns.unlock();
    });
    usleep(20'000);
  }
  turns.unlock();
  for (std::thread& thread : threads) thread.join();
  CHECK(order == std::vector<int>({0, 1, 2, 3, 4}));
}

TEST("a pace begins no more in any second than its rate and its burst, whatever the gaps") {
  Pace pace({.commands = 100, .bytes = 0});
  constexpr uint64_t kMs = 1'000'000;
  std::vector<uint64_t> begun;
  for (const uint64_t now_ms : {0, 300, 5000, 5001}) {
    for (int i = 0; i < 50; i++) begun.push_back(pace.Begin(now_ms * kMs, 0));
  }
  for (size_t i = 0; i < begun.size(); i++) {
    size_t end = i;
    while (end < begun.size() && begun[end] < begun[i] + 1000 * kMs) end++;
    CHECK(end - i <= 100 + 10 + 1);
    CHECK(i == 0 || begun[i - 1] <= begun[i]);
    CHECK(i >= 10 || begun[i] == 0);
  }
  Pace bytes({.commands = 1000, .bytes = 1e6});
  CHECK(bytes.Begin(0, 500'000) == 0 && bytes.Begin(0, 1) == 400 * kMs && bytes.Begin(10'000 * kMs, 1) == 10'000 * kMs);
  Pace never({.commands = 1e-300, .bytes = 0});
  CHECK(never.Begin(5, 0) == 5 && never.Begin(5, 0) == kNever && never.Begin(5, 0) == kNever);
}

TEST("a rate so low that a byte's time is no number is kept to, after commands without bytes too") {
  Pace pace({.commands = 0, .bytes = 1e-310});
  CHECK(pace.Begin(5, 0) == 5 && pace.Begin(5, 1) == 5 && pace.Begin(5, 0) == kNever && pace.Begin(5, 1) == kNever);
}

TEST("a peer at its rate waits for its turn, over all that it has, and nobody else does") {
  Limits limits;
  limits.rates.commands = 0.001;
  Unit unit(limits);
  CHECK(unit.server().Admit(MakeName(90), kSession + 1, 1) && unit.server().Admit(MakeName(91), kSession + 2, 0));
  Client busy(unit, kTicket), calm(unit, MakeName(90));
  Client same(unit, MakeName(91));    // another session of the busy one
  CHECK(busy.Ask(Make(kRead, 0, 8)).header.status == kOk);
  busy.Send(Make(kWrite, 0, 8), std::string(8, 'x'));
  same.Send(Make(kRead, 0, 8));
  const clock_t worked = clock();
  for (int i = 0; i < 4; i++) CHECK(busy.Silent() && same.Silent());
  CHECK(clock() - worked < CLOCKS_PER_SEC / 20);    // no thread looks again and again
  CHECK(unit.server().DelayNs(0, 0) > 2'000'000'000'000);
  CHECK(calm.Ask(Make(kRead, 0, 8, kOtherKey)).data == std::string(8, '\0'));
  CHECK(unit.server().DelayNs(1, 0) > 999'000'000'000);
  // Neither a revocation nor the end of the session waits for what has no turn yet.
  Filter filter;
  filter.by_key = true;
  filter.key = kKey;
  const Tables::Revocation revocation = unit.server().Revoke(filter);
  CHECK(revocation.keys == 1 && revocation.awaits == 0);
  CHECK(unit.server().EndSession(kSession).awaits == 0 && busy.Take().closed);
  CHECK(WordAt(unit, 8192) == 0);
  CHECK(same.Silent());
}

TEST("all that is paced is executed, in order, no faster than its rate, as much of it as comes at once") {
  Limits limits;
  limits.rates = {.commands = 2000, .bytes = 200'000};
  limits.linger_us = 0;
  Unit unit(limits);
  Client client(unit, kTicket);
  const uint64_t begun_ns = NowNs();
  std::string bytes;
  constexpr uint64_t kCommands = 400;
  for (uint64_t i = 0; i < kCommands; i++) {
    Command command = i % 2 == 0 ? Make(kWrite, 0, 200) : MakeSwap(0, 0, 1);
    command.tag = i;
    command.flags = i % 8 == 0 ? kPersistFlag : 0;
    bytes.append(reinterpret_cast<const char*>(&command), sizeof(command)).append(command.data_bytes, 'x');
  }
  std::thread sender([&] {
    for (size_t at = 0; at < bytes.size(); at += 1000) client.Send(&bytes[at], std::min<size_t>(1000, bytes.size() - at));
  });
  uint64_t last = 0;
  for (uint64_t i = 0; i < kCommands; i++) {
    const Answered answered = client.Take();
    CHECK(!answered.closed && answered.header.status == kOk);
    // Those that the disk holds up are overtaken.
    if (answered.header.tag % 8 == 0) continue;
    CHECK(answered.header.tag > last);
    last = answered.header.tag;
  }
  sender.join();
  // Two hundred writes of 200 bytes, of which the first 100 ms' worth come at once.
  CHECK(NowNs() - begun_ns >= 98'000'000);
  CHECK(unit.server().GetState().commands == kCommands);
}

TEST("a command that had to wait, and came in pieces, is paid for once") {
  Limits limits;
  limits.rates.commands = 20;
  Unit unit(limits);
  Client client(unit, kTicket);
  const Command write = Make(kWrite, 0, 200);
  const std::string data(200, 'x');
  for (int i = 0; i < 7; i++) {
    client.Send(&write, 60);
    usleep(100);
    client.Send(reinterpret_cast<const char*>(&write) + 60, sizeof(write) - 60);
    client.Send(data.data(), 100);
    usleep(100);
    client.Send(data.data(), 100);
  }
  for (int i = 0; i < 7; i++) CHECK(client.Take().header.status == kOk);
  // The next one waits no longer than one costs.
  CHECK(unit.server().DelayNs(0, 0) <= 50'000'000);
}

TEST("a connection that is full does not save up turns for later") {
  Limits limits;
  limits.commands = 1;
  limits.rates.commands = 200;
  Unit unit(limits);
  Client client(unit, kTicket);
  std::unique_lock<std::mutex> held(disk);
  Command write = Make(kWrite, 0, 8);
  write.flags = kPersistFlag;
  std::string bytes = std::string(reinterpret_cast<const char*>(&write), sizeof(write)) + std::string(8, 'x');
  const Command read = Make(kRead, 0, 8);
  for (int i = 0; i < 100; i++) bytes.append(reinterpret_cast<const char*>(&read), sizeof(read));
  client.Send(bytes.data(), bytes.size());
  const clock_t worked = clock();
  usleep(400'000);
  CHECK(clock() - worked < CLOCKS_PER_SEC / 20);    // no thread looks again and again
  CHECK(unit.server().GetState().commands == 1);
  const uint64_t begun_ns = NowNs();
  held.unlock();
  for (int i = 0; i < 61; i++) CHECK(client.Take().header.status == kOk);
  // Sixty, of which the first 100 ms' worth come at once.
  CHECK(NowNs() - begun_ns >= 190'000'000);
}

TEST("a peer whose turn is to come cannot make a plane hold more than a connection's buffer, and it can be stopped") {
  Limits limits;
  limits.rates.bytes = 1;
  Unit unit(limits);
  Client client(unit, kTicket);
  const std::string data(kDataMaxBytes, 'x');
  CHECK(client.Ask(Make(kWrite, 0, data.size()), data).header.status == kOk);
  const int flags = fcntl(client.fd(), F_GETFL);
  CHECK(fcntl(client.fd(), F_SETFL, flags | O_NONBLOCK) == 0);
  client.Send(Make(kWrite, 0, data.size()));
  size_t taken = 0;
  for (ssize_t sent = 0; taken < (64 << 20); taken += static_cast<size_t>(sent)) {
    pollfd poll_fd{client.fd(), POLLOUT, 0};
    if (poll(&poll_fd, 1, 100) == 0) break;
    sent = send(client.fd(), data.data(), data.size(), MSG_NOSIGNAL);
    CHECK(sent > 0);
  }
  CHECK(taken < (32 << 20));    // the sockets' buffers, most of it
  unit.server().Stop();
}
