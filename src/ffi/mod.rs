//! One C ABI for language models inside an app: load a model, hold a conversation, stream the answer.
//!
//! The shortest program:
//!
//! @snippet hello.c hello
//!
//! What is simple comes first, in each section too; from @ref error on follows what a program needs for more than text in and text out. The
//! sections' examples are parts of programs in examples/c. There `error` is a static mc_error *, and check() ends the program where a call
//! fails, as @ref error shows.
//!
//! @sections
//!
//! These rules hold for every function and are not repeated there.
//!
//! - **Status.** Values below 16 are outcomes, values from 16 are errors; treat a value you do not know as an error. Every
//!   function that returns mc_status can also return MC_ERROR_INVALID_ARGUMENT (NULL for an `MC_NONNULL` pointer, a handle
//!   of another type, a number outside its range) and MC_ERROR_PANIC (a defect of this library).
//! - **Errors.** The last parameter `err` may be NULL. `*err` becomes NULL on entry and is set exactly when the status is
//!   an error; free it with mc_error_free(). It does not matter which thread reads or frees it.
//! - **Outs.** An out parameter for a handle becomes NULL on entry; numbers and buffers are written on success alone.
//! - **Ownership.** `_new`, `_load` and out parameters hand over one reference, dropped by the type's `_free`, which takes
//!   NULL and may run on any thread. A handle keeps what it was made from alive: free in any order. Pointers that a getter
//!   returns are valid until the handle is freed, unless it says otherwise.
//! - **Strings.** `const char *` without a length is NUL-terminated UTF-8, on Windows too. Content is a pointer and a length
//!   in bytes; the pointer may be NULL when the length is 0, if it is marked so.
//! - **Setters.** NULL resets: a setter that takes a pointer takes NULL for the default, which it names. A bad value is remembered, and
//!   reported by the first call that uses the options. Each kind of options has a setter that takes JSON. Texts are copied, and are at
//!   most a mebibyte where nothing else is said.
//! - **Threads.** Handles belong to no thread. Functions that take a handle as `const` may run beside each other on that
//!   handle; any other use must be the only one, and where the documentation says MC_ERROR_BUSY it is checked. Freeing
//!   while another thread is about to use the handle is an error of the caller. Each section says what that means for its
//!   handles, and a function where it differs from its section.
//! - **Callbacks.** They run on the thread of the call they were given to, before it returns, with no lock held. They must
//!   not throw or longjmp. They may use other handles and free the handle in use; any other use of that handle gives
//!   MC_ERROR_BUSY. Only MC_CONTINUE goes on, every other return value stops.
//! - **A wrong handle** (NULL, another type) makes a getter return 0, "" or an empty array, and a setter or `_free` do
//!   nothing; the log callback is told.
//! - **Stack.** 512 KiB are enough for any call, as Apple's systems give their secondary threads.
//! - **Memory.** Where the system gives none, a call fails with MC_ERROR_OUT_OF_MEMORY. What the library makes of a model, a text, a
//!   file or a batch is asked for so; before JSON is parsed, a tokenizer built, a text tokenised or a template run, there must be room
//!   for what that takes. For the rest, many small things, 16 MiB are put by in the library, and while half of them is in use, calls fail
//!   early. The process ends, with a line on standard error, only where that does not do: if other threads take the memory between
//!   the look and the work, if a file is made to take more than any that was measured, if the C library finds none for itself, or
//!   the system takes a process that has used what it was promised. A library built without the cargo feature `reserve`, which `make`
//!   sets, has nothing put by, and ends the process at the first small thing that finds no memory.
//! - **Processes.** The library makes its threads when the first model is loaded, as many as mc_set_threads() says; that fails with
//!   MC_ERROR_OUT_OF_MEMORY if the system gives none, and can be tried again. They do not survive fork(): in a child of a process that had
//!   them, every function that returns mc_status gives MC_ERROR_UNSUPPORTED.
//! - **Environment.** No variable is needed. RAYON_NUM_THREADS, or else RAYON_RS_NUM_CPUS, where it is set, is how many threads there are
//!   without mc_set_threads(); CANDLE_METAL_COMPUTE_PER_BUFFER is how many kernels Apple's GPUs get at once; downloads look at HTTPS_PROXY,
//!   HTTP_PROXY, ALL_PROXY and NO_PROXY (in either case), and at HOME for the cache. Nothing else is read.
//! - The library prints nothing, installs no signal handler and never ends the process, but where memory ends as said above.

// The functions of a section carry their contract in the header's documentation, which these doc comments become; what Rust
// calls a safety section would print a second time there. Pointers are checked by the four small files below; their helpers
// are safe functions because nothing but an exported function can call them, with the arguments C handed to it.
//
// Three types stand for what a C program may get wrong although the header forbids it:
// `MaybeUninit<&T>` prints as a nonnull pointer and, unlike `&T`, may hold NULL; `MaybeUninit<mc_dtype>` prints as the enum
// and may hold any number; a raw pointer prints as nullable.
#![allow(clippy::missing_safety_doc)]
#![allow(non_camel_case_types)]

pub mod boundary;
mod handle;
mod text;
mod callback;

pub mod model;
pub mod generate;
pub mod chat;
pub mod session;
pub mod embed;
pub mod rerank;
pub mod lora;
pub mod dataset;
pub mod train;
pub mod error;
pub mod values;
pub mod cancel;
pub mod device;
pub mod tokenizer;
pub mod library;
pub mod abi1;
