// Arguments of the kernels, the same bytes on host and device, so members of four bytes alone. Comes after the prelude.

struct Norm {
    uint cols, flags;
    float eps;
    float scale;  // of the result
};
enum {
    ADD_AFTER = 2,  // y = scale · (added + norm(x))
    LANE_ORDER = 4,  // y in the order of `lane_order`, for products that do not stage it
    LAYER = 8,       // LayerNorm: the mean is subtracted
    SHIFT = 16       // the norm's bias is added
};

struct Product {
    uint outputs, inputs, rows;
    uint split;        // simdgroups that share the columns of a row of W
    uint group_shift;  // a scale is of 2^group_shift chunks, see format.h
    uint flags;
    float eps;
    float scale;  // what the result is multiplied by, before the residual is added
};
enum {
    NORM = 1,      // the root-mean-square norm of x
    BIAS = 2,
    RESIDUAL = 4,  // y = residual + scale · …
    ACTIVATE = 8,  // of an MLP without a gate; y is then in `lane_order`, as it is with a gate
    ACTIVATION = 16,  // times one of these
    FACTOR = 128     // of an MLP without a gate: what is activated is multiplied by `residual`, which is in the order of columns
};
enum { SILU, GELU, GELU_TANH, QUICK_GELU, RELU, RELU2, TANH, SIGMOID };

struct Rows {
    uint cols, group_shift;
    uint first;  // the first row, or BY_ID where `ids` says which
    float scale;
};
#define BY_ID 0xffffffffu

struct Attention {
    uint heads, kv_heads, capacity;
    uint splits;   // threadgroups that share the keys of a head
    uint window;   // positions that are seen, the own one among them; 0: all
    uint sinks;    // whether heads have attention sinks
    uint rotated;  // values of a head that are rotated
    uint flags;
    float eps;  // of the norms of q and k
    float scale;
    float softcap;  // 0: none
};
enum {
    ADJACENT = 1,   // pairs are neighbours, as GPT-J has it; otherwise halves, as GPT-NeoX has it
    QK_NORM = 2,    // each head of q and k is normed
    NORM_AFTER = 4, // the norm's weight is applied behind the rotation
    NORM_EACH = 8,  // each head has a norm's weight of its own
    V_NORM = 16,    // each head of v is normed, without a weight
    SAME = 32,      // values are the projections of keys
    SHARED_KEYS = 64,  // there are queries alone: another attention has written the token's key and value before
    GATE_VALUES = 128, // what is found is multiplied by the sigmoid of a gate for each value; gates lie behind q, k and v
    GATE_HEADS = 256   // or for each head
};

// Of convolution.h and scan.h. A ring has as many rows: the input of position t lies in row t % RING.
enum { RING = 32, HELD = 16 };

struct Convolution {
    uint channels, taps, flags;  // BIAS as above
};

struct Scan {
    uint heads, groups;
    uint keys, values;  // of a head
    uint taps;
    float length_eps;  // added to the squared length of a query or key
    float eps;         // of the norm of what is read
};

struct Argmax {
    uint count;
    uint part;  // scores of a threadgroup
    float softcap;  // 0: none
};

// Of batch.h and batch_attention.h. `stride`: values from the beginning of a row of x to that of the next; `count`: values, or pairs, that
// are made.
struct BatchNorm {
    uint cols, groups, stride, flags;  // LAYER and SHIFT as above
    float eps;
};
enum {
    WEIGHTED = 32,
    WEIGHT_EACH = 64  // each group of a row has weights of its own
};

struct BatchRotation {
    uint count, heads, dim;
    uint rotated;  // values of a head that are rotated
    uint stride, flags;  // ADJACENT as above
};
enum { INVERSE = 16 };

struct BatchActivation {
    uint count, cols, stride, flags;  // an activation as above
};
enum { GATED = 1 };  // a row is gates, and then as many values

struct BatchLoss {
    uint cols, with_gradient;
    float scale, softcap;  // of the scores; 0: none
};

struct BatchBlock {
    uint count, cols;
    uint from, from_stride, to, to_stride;  // values before the block's first, and from the beginning of a row to the next
    float factor;
};

struct BatchPlaces {
    uint count, heads, dim, longest, stride;
};

struct BatchSoftmax {
    uint rows, keys, heads, queries;
    uint first;   // position of the first query
    uint window;  // positions that are seen to either side, the own one among them; 0: all
    uint flags;
    float scale, softcap;
};
enum {
    CAUSAL = 1,
    SINKS = 2,
    BY_DISTANCE = 4  // a bias by the distance of a key is added to scores
};
