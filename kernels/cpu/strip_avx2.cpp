// x86-64-v3: AVX2, FMA, BMI. Compiled with -march=x86-64-v3 (CMakeLists.txt).
#define CRIS_SET avx2
#define CRIS_TABLE kStripAvx2
#define CRIS_NAME "avx2"
#include "strip.inl"
