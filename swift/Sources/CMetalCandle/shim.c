/* SwiftPM wants a source file in a C target; the functions are in the Rust library. */
#include <metal_candle.h>

#ifdef __linux__
/*
 * libswiftObservation.so of some toolchains names swift::threading::fatal(), which no library has (swiftlang/swift issue 75670), and
 * linkers then refuse every program that observes. A toolchain that has it is heard before this one.
 */
void mc_swift_threading_fatal(const char *message, ...) __asm__("_ZN5swift9threading5fatalEPKcz");

__attribute__((weak, noreturn)) void mc_swift_threading_fatal(const char *message, ...) {
    (void)message;
    __builtin_trap();
}
#endif
