// x86-64-v4: AVX-512 F, BW, DQ, VL. Compiled with -march=x86-64-v4 (CMakeLists.txt).
#define CRIS_SET avx512
#define CRIS_TABLE kStripAvx512
#define CRIS_NAME "avx512"
#include "strip.inl"
