// The functions used are of OpenSSL 3.0's stable interface: EVP_DigestInit(3), EVP_MAC(3), EVP_MAC-GMAC(7),
// EVP_MAC-BLAKE2(7), OSSL_PARAM(3).
#include "digest/openssl.h"

#include <dlfcn.h>

#include <new>

namespace holdfast::digest {

namespace {

// Opaque: only pointers to them are handled here.
struct Md;
struct MdContext;
struct Mac;
struct MacContext;

// OSSL_PARAM
struct Parameter {
  const char* key;
  unsigned int type;
  void* data;
  size_t size;
  size_t returned;
};
constexpr unsigned int kUnsignedInteger = 2, kUtf8String = 4, kOctetString = 5;

struct OpenSsl {
  Md* (*md_fetch)(void* library, const char* name, const char* properties);
  void (*md_free)(Md*);
  MdContext* (*md_context_new)();
  void (*md_context_free)(MdContext*);
  int (*digest_init)(MdContext*, const Md*, void* engine);
  int (*digest_update)(MdContext*, const void* data, size_t length);
  int (*digest_final)(MdContext*, unsigned char* result, unsigned int* length);
  Mac* (*mac_fetch)(void* library, const char* name, const char* properties);
  void (*mac_free)(Mac*);
  MacContext* (*mac_context_new)(Mac*);
  void (*mac_context_free)(MacContext*);
  int (*mac_init)(MacContext*, const unsigned char* key, size_t length, const Parameter* parameters);
  int (*mac_update)(MacContext*, const unsigned char* data, size_t length);
  int (*mac_final)(MacContext*, unsigned char* result, size_t* length, size_t capacity);
  void (*clear_error)();
  bool complete = true;

  OpenSsl() {
    Find("EVP_MD_fetch", &md_fetch);
    Find("EVP_MD_free", &md_free);
    Find("EVP_MD_CTX_new", &md_context_new);
    Find("EVP_MD_CTX_free", &md_context_free);
    Find("EVP_DigestInit_ex", &digest_init);
    Find("EVP_DigestUpdate", &digest_update);
    Find("EVP_DigestFinal_ex", &digest_final);
    Find("EVP_MAC_fetch", &mac_fetch);
    Find("EVP_MAC_free", &mac_free);
    Find("EVP_MAC_CTX_new", &mac_context_new);
    Find("EVP_MAC_CTX_free", &mac_context_free);
    Find("EVP_MAC_init", &mac_init);
    Find("EVP_MAC_update", &mac_update);
    Find("EVP_MAC_final", &mac_final);
    Find("ERR_clear_error", &clear_error);
  }

  template <typename Function>
  void Find(const char* name, Function* function) {
    *function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
    if (*function == nullptr) complete = false;
  }
};

const OpenSsl& Library() {
  static const OpenSsl library;
  return library;
}

class HashDigest final : public Digest {
 public:
  HashDigest(const char* name, size_t size) : size_(size) {
    md_ = library_.md_fetch(nullptr, name, nullptr);
    context_ = library_.md_context_new();
    // This thread's errors belong to whoever else uses OpenSSL on it.
    library_.clear_error();
  }
  ~HashDigest() override {
    library_.md_context_free(context_);
    library_.md_free(md_);
  }
  bool works() const { return md_ != nullptr && context_ != nullptr; }

  size_t size() const override { return size_; }

 protected:
  bool One(const uint8_t* data, size_t length, uint8_t* result) override {
    return library_.digest_init(context_, md_, nullptr) == 1 && library_.digest_update(context_, data, length) == 1 &&
           library_.digest_final(context_, result, nullptr) == 1;
  }

 private:
  const OpenSsl& library_ = Library();
  const size_t size_;
  Md* md_;
  MdContext* context_;
};

// A fixed key for all blocks. Each block begins anew: with the parameters that `again` names and the key that is set, or
// with the key alone if it names none.
class MacDigest final : public Digest {
 public:
  MacDigest(const char* name, size_t size, const uint8_t* key) : size_(size) {
    mac_ = library_.mac_fetch(nullptr, name, nullptr);
    if (mac_ != nullptr) context_ = library_.mac_context_new(mac_);
    for (size_t i = 0; i < kKeyBytes; i++) key_[i] = key[i];
  }
  ~MacDigest() override {
    library_.mac_context_free(context_);
    library_.mac_free(mac_);
  }

  bool Prepare(const Parameter* first, const Parameter* again) {
    again_ = again;
    const bool done = context_ != nullptr && library_.mac_init(context_, key_, kKeyBytes, first) == 1;
    library_.clear_error();
    return done;
  }

  size_t size() const override { return size_; }

 protected:
  bool One(const uint8_t* data, size_t length, uint8_t* result) override {
    size_t written = 0;
    const bool keep_key = again_ != nullptr;
    return library_.mac_init(context_, keep_key ? nullptr : key_, keep_key ? 0 : kKeyBytes, again_) == 1 &&
           library_.mac_update(context_, data, length) == 1 &&
           library_.mac_final(context_, result, &written, size_) == 1 && written == size_;
  }

 private:
  const OpenSsl& library_ = Library();
  const size_t size_;
  Mac* mac_ = nullptr;
  MacContext* context_ = nullptr;
  const Parameter* again_ = nullptr;
  uint8_t key_[kKeyBytes];
};

// The nonce is the same for every block: equal blocks shall have equal results. What that gives up (a forger who sees
// results) does not matter here; what stays is GHASH, a universal hash under a key that whoever chose the data does not
// know (McGrew and Viega, 2004): two different blocks of n bytes are taken for equal in (n / 16 + 1) of 2^128 keys.
std::unique_ptr<Digest> MakeGmac(const uint8_t* key) {
  static char cipher[] = "AES-256-GCM";
  static uint8_t nonce[12] = {};
  static const Parameter first[] = {{"cipher", kUtf8String, cipher, sizeof cipher - 1, 0},
                                    {"iv", kOctetString, nonce, sizeof nonce, 0},
                                    {nullptr, 0, nullptr, 0, 0}};
  auto* digest = new (std::nothrow) MacDigest("GMAC", 16, key);
  std::unique_ptr<Digest> result(digest);
  if (digest != nullptr && digest->Prepare(first, &first[1])) return result;
  return nullptr;
}

std::unique_ptr<Digest> MakeBlake2b(const uint8_t* key) {
  static size_t size = 32;
  static const Parameter first[] = {{"size", kUnsignedInteger, &size, sizeof size, 0}, {nullptr, 0, nullptr, 0, 0}};
  auto* digest = new (std::nothrow) MacDigest("BLAKE2BMAC", size, key);
  std::unique_ptr<Digest> result(digest);
  if (digest != nullptr && digest->Prepare(first, nullptr)) return result;
  return nullptr;
}

std::unique_ptr<Digest> MakeHash(const char* name, size_t size) {
  auto* digest = new (std::nothrow) HashDigest(name, size);
  std::unique_ptr<Digest> result(digest);
  if (digest != nullptr && digest->works()) return result;
  return nullptr;
}

}  // namespace

std::unique_ptr<Digest> MakeOpenSslDigest(const std::string& algorithm, const uint8_t* key, size_t key_length) {
  if (!Library().complete) return nullptr;
  const bool keyed = algorithm == "gmac" || algorithm == "blake2b";
  if (key_length != (keyed ? kKeyBytes : 0)) return nullptr;
  if (algorithm == "gmac") return MakeGmac(key);
  if (algorithm == "blake2b") return MakeBlake2b(key);
  if (algorithm == "md5") return MakeHash("MD5", 16);
  if (algorithm == "sha1") return MakeHash("SHA1", 20);
  if (algorithm == "sha256") return MakeHash("SHA256", 32);
  return nullptr;
}

}  // namespace holdfast::digest
