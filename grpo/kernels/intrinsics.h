// The processor's own instructions, where a source is compiled for an x86 with AVX-512.

#pragma once

#pragma GCC diagnostic push
// GCC 12 takes the registers its own header leaves undefined on purpose for a mistake (bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
