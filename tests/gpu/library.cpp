// One library of kernels for the CPU: LIBRARY is its name, the `#define`s beside it are those that a GPU's compiler would get.
#include "cpu.h"
#include "params.h"

namespace {  // each library has its own T
#include "common.h"
#if defined(BATCH)
#include "activation.h"
#include "batch.h"
#include "batch_attention.h"
#elif defined(FORMAT)
#include "activation.h"
#include "format.h"
#include "product.h"
#elif defined(DIM)
#include "heads.h"
#include "attention.h"
#else
#include "norm.h"
#include "argmax.h"
#include "convolution.h"
#include "scan.h"
#endif
}  // namespace
