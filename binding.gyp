# The install build (scripts/build-native.mjs calls node-gyp with it). CMakeLists.txt builds the same sources for
# development. The CRC kernels of each instruction set are a library of their own, because gyp has compiler flags by
# target, not by file, and no other code may be compiled for an instruction set that the processor may lack.
{
  "target_defaults": {
    "cflags": ["-fPIC", "-Wall", "-Wextra", "-fvisibility=hidden", "-ffunction-sections", "-fdata-sections", "-ffile-prefix-map=<!(pwd)=."],
    "cflags_cc!": ["-std=gnu++17", "-std=gnu++20"],
    "cflags_cc": ["-std=c++20", "-fno-exceptions", "-fno-rtti"],
    "defines": [
      "NAPI_VERSION=8", "NODE_ADDON_API_DISABLE_CPP_EXCEPTIONS", "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS",
      "_FILE_OFFSET_BITS=64"
    ],
    "include_dirs": ["native", "<!(node -p \"require('node-addon-api').include_dir\")"]
  },
  "targets": [
    {
      "target_name": "holdfast",
      "sources": ["<!@(grep -v '^#' native/sources.txt)"],
      # With the C++ library inside, and without the parts of it that nobody needs, the binary runs where that library is
      # older, and asks for no newer C library than its own code does.
      "ldflags": ["-static-libstdc++", "-Wl,--exclude-libs,ALL", "-Wl,--gc-sections"],
      "libraries": ["-ldl"],
      "conditions": [
        ["target_arch=='x64'", { "dependencies": ["crc32c_sse42", "crc32c_avx512"] }],
        ["target_arch=='arm64'", { "dependencies": ["crc32c_armv8"] }]
      ]
    }
  ],
  "conditions": [
    ["target_arch=='x64'", {
      "targets": [
        {
          "target_name": "crc32c_sse42",
          "type": "static_library",
          "sources": ["native/checksum/crc32c_sse42.cc"],
          "cflags": ["-msse4.2", "-mpclmul"]
        },
        {
          "target_name": "crc32c_avx512",
          "type": "static_library",
          "sources": ["native/checksum/crc32c_avx512.cc", "native/checksum/crc32c_avx512_streams.cc"],
          "cflags": [
            "-msse4.2", "-mpclmul", "-mavx512f", "-mavx512vl", "-mvpclmulqdq",
            # The intrinsics' "undefined" operands in GCC 12's own headers set these off (GCC bug 105593).
            "-Wno-uninitialized", "-Wno-maybe-uninitialized"
          ]
        }
      ]
    }],
    ["target_arch=='arm64'", {
      "targets": [
        {
          "target_name": "crc32c_armv8",
          "type": "static_library",
          "sources": ["native/checksum/crc32c_armv8.cc"],
          "cflags": ["-march=armv8-a+crc+crypto"]
        }
      ]
    }]
  ]
}
