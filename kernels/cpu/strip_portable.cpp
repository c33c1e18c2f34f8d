// The baseline of the architecture: any machine runs it.
#define CRIS_SET portable
#define CRIS_TABLE kStripPortable
#define CRIS_NAME "portable"
#include "strip.inl"
