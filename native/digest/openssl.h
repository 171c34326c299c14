// OpenSSL 3 as it is in the process that loads the addon: Node has it inside or is linked to it, and exports it. It is
// found at run time, function by function, so that the addon needs neither its headers nor its library, and loads where
// there is none.
#pragma once

#include <memory>
#include <string>

#include "digest/algorithms.h"

namespace holdfast::digest {

// `md5`, `sha1`, `sha256`; `gmac` and `blake2b`, which take a key of kKeyBytes. Null for any other name, for a key of
// another length, or if this process's OpenSSL does not do it.
std::unique_ptr<Digest> MakeOpenSslDigest(const std::string& algorithm, const uint8_t* key, size_t key_length);

}  // namespace holdfast::digest
