/* SwiftPM wants a source file in a C target; the functions are in the Rust library. */
#include <metal_candle.h>
