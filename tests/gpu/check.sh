#!/usr/bin/env bash
# Checks the GPU's kernels without a GPU (`make check-gpu`): the types of the text that Metal gets, then every kernel on the CPU's
# executor against F64, under AddressSanitizer with UBSan and under ThreadSanitizer. Needs make, a C++ compiler with sanitizers and
# clang, for the types.
#
#   tests/gpu/check.sh                 types, both programs, and a few planted errors
#   tests/gpu/check.sh planted         every planted error: each must be found (five minutes)
#   tests/gpu/check.sh planted NAME…   some of them
set -uo pipefail
cd "$(dirname "$0")/../.."
. tests/steps.sh
BUILD=build/gpu
make_gpu() { make -s -f tests/gpu/Makefile BUILD="$BUILD" "$@"; }

types() {
    local library
    for library in 'row float' 'batch half' 'batch bf16' 'batch float' 'attention half 64 7 2 4' 'attention bf16 128 1 16 4' 'attention half 96 2 1 2' 'attention bf16 256 3 3 2' \
        'attention float 96 1 4 2' 'attention bf16 512 1 8 2' 'product bf16 4096 dense' 'product float 4096 dense'; do
        # shellcheck disable=SC2086
        tests/gpu/types.sh $library || return 1
    done
    for library in $(sed -n 's/^typedef .* \([a-z0-9_]*\);$/\1/p' src/kernels/gpu/format.h); do
        tests/gpu/types.sh product half 2048 "$library" || return 1
    done
}

run() { # memory or races, arguments
    make_gpu "$BUILD/$1" || return 1
    "$BUILD/$1" "${@:2}" >"$BUILD/$1.log" 2>&1 || { grep -v ': 0 wrong' "$BUILD/$1.log" | head -40; return 1; }
}

# What is wrong with a kernel, where (file, a sed command that changes it), how it is looked for, in which library, and what is said.
# Modes: types, values (without sanitizers), memory, races.
planted_errors() {
    grep -v '^#' <<'ERRORS'
# norm.h
norm-eps|norm.h|s/ + p.eps/ + 0/|values|row_float|WRONG norm_f32
norm-added|norm.h|s/v += added\[row + i\]/v += 0/|values|row_float|WRONG norm_f32
norm-order|norm.h|s/lane_order(i, p.cols) : i/i : i/|values|row_float|WRONG norm_f32
norm-bound|norm.h|s/i < p.cols; i += threads/i <= p.cols; i += threads/|memory|row_float|AddressSanitizer
norm-mean|norm.h|s/(x\[row + i\] - mean) \* scale/x[row + i] * scale/|values|row_float|WRONG norm_f32
norm-first-barrier|common.h|s/group_barrier();  \/\/ an earlier.*//|races|row_float|ThreadSanitizer: data race
norm-barrier|common.h|/partial\[at.simd\] = v;/{n;s/group_barrier();//}|races|row_float|ThreadSanitizer: data race
# argmax.h
argmax-tie|argmax.h|s/id < than_id/id > than_id/|values|row_float|WRONG argmax
argmax-part|argmax.h|s/min(begin + p.part, p.count)/begin + p.part/|memory|row_float|AddressSanitizer
argmax-barrier|argmax.h|s/    group_barrier();//|races|row_float|ThreadSanitizer: data race
argmax-sum|argmax.h|s/exp(capped(row\[i\], p.softcap) - v)/exp(row[i] - v)/|values|row_float|WRONG argmax
argmax-row|argmax.h|s/scores + size_t(at.group.y) \* p.count/scores/|values|row_float|WRONG argmax
argmax-all-write|argmax.h|s/if (at.index > 0) return;//|races|row_float|ThreadSanitizer: data race
norm-scale|norm.h|s/ = p.scale \* v/ = v/|values|row_float|WRONG norm_f32
# convolution.h
conv-first|convolution.h|s/back < taps \&\& back <= position/back < taps/|values|row_float|WRONG short_conv
conv-ring|convolution.h|s/ring\[position % RING/ring[position/|memory|row_float|AddressSanitizer
conv-channels|convolution.h|s/if (i >= p.channels) return;//|memory|row_float|AddressSanitizer
conv-order|convolution.h|s/out\[lane_order(i, p.channels)\]/out[i]/|values|row_float|WRONG short_conv
# scan.h
scan-fold|scan.h|s/                \*cell = s;//|values|row_float|WRONG delta_net
scan-left|scan.h|s/const float u = left\[t\] \* /const float u = /|values|row_float|WRONG delta_net
scan-held|scan.h|s/held = begins ? 0 : before/held = min(before, uint(HELD - 1))/|values|row_float|WRONG delta_net
scan-start|scan.h|s/    if (position - start > HELD) return;.*//|memory|row_float|AddressSanitizer
scan-shared|scan.h|s/part >= 2 .. head % shared_by == 0/true/|races|row_float|ThreadSanitizer: data race
scan-barrier|scan.h|s/        group_barrier();  \/\/ sums.*//|races|row_float|ThreadSanitizer: data race
scan-dots|scan.h|/dots\[2 \* i + 1\] = of_query;/{n;n;s/group_barrier();//}|races|row_float|ThreadSanitizer: data race
scan-columns|scan.h|s/if (column < p.values) for/for/|memory|row_float|AddressSanitizer
scan-length|scan.h|s/ + p.length_eps) \* rsqrt(float(p.keys))/ + p.length_eps)/|values|row_float|WRONG delta_net
# batch.h
batch-stride|batch.h|s/p.groups) \* p.stride + /p.groups) * p.cols * p.groups + /|values|batch_half|WRONG norm_batch
batch-norm-along|batch.h|s/ \* along - shift/ * 0 - shift/|values|batch_half|WRONG norm_batch_backward
batch-norm-shift|batch.h|s/ along - shift/ along - 0 * shift/|values|batch_half|WRONG norm_batch_backward
batch-norm-each|batch.h|s/p.flags \& WEIGHT_EACH ? /0 ? /|values|batch_half|WRONG norm_batch
batch-norm-end|batch.h|s/i < p.cols; i += 32/i <= p.cols; i += 32/|memory|batch_half|AddressSanitizer
batch-inverse|batch.h|s/p.flags \& INVERSE/0/|values|batch_half|WRONG rotate_batch
batch-count|batch.h|s/if (i >= p.count) return;//|memory|batch_half|AddressSanitizer
batch-slope|activation.h|s/0.134145f/0.13f/|values|batch_float|WRONG activate_batch_backward
batch-gated|batch.h|s/slope(v, p.flags) \* load(x, from + p.cols) \* d/slope(v, p.flags) * d/|values|batch_half|WRONG activate_batch_backward
batch-target|batch.h|s/(i == target ? 1 : 0)/0/|values|batch_half|WRONG cross_entropy
batch-cap|batch.h|s/d \*= 1 - v/d *= 1 + v/|values|batch_half|WRONG cross_entropy
batch-loss-all-write|batch.h|s/if (target % threads == at.index) losses/losses/|races|batch_half|ThreadSanitizer: data race
batch-max-barrier|common.h|/if (at.lane == 0) partial\[at.simd\] = v;/,/highest = partial/{s/group_barrier();//}|races|batch_half|ThreadSanitizer: data race
batch-block|batch.h|s/p.to + size_t(row) \* p.to_stride/p.to + size_t(row) * p.from_stride/|values|batch_half|WRONG block_from_f32
batch-block-count|batch.h|s/if (i >= p.count) return;  *\\/\\/|memory|batch_half|AddressSanitizer
# batch_attention.h
batch-place|batch_attention.h|s/row < firsts\[sequence + 1\]/true/|memory|batch_half|AddressSanitizer
batch-unplace|batch_attention.h|s/p.longest + position) \* p.dim/p.longest + 0 * position) * p.dim/|values|batch_half|WRONG unplace_batch
batch-causal|batch_attention.h|s/min(len, position + 1)/min(len, position + 2)/|values|batch_half|WRONG softmax_batch
batch-window|batch_attention.h|s/s.begin = position + 1 - p.window/s.begin = position - p.window/|values|batch_half|WRONG softmax_batch
batch-window-after|batch_attention.h|s/s.end = min(s.end, position + p.window)/s.end = len/|values|batch_half|WRONG softmax_batch
batch-distance|batch_attention.h|s/key - s.position/s.position - key/|values|batch_half|WRONG softmax_batch
batch-sink|batch_attention.h|s/all.sum += exp(sinks\[s.head\] - all.top)/all.sum += 0/|values|batch_half|WRONG softmax_batch
batch-mean|batch_attention.h|s/ - mean) \* p.scale/) * p.scale/|values|batch_half|WRONG softmax_batch_backward
batch-rows|batch_attention.h|s/if (row >= p.rows) return;//|memory|batch_half|AddressSanitizer
# format.h
dense-pair|common.h|s/v\[2 \* i\] = both.x, v\[2 \* i + 1\] = both.y/v[2 * i] = both.y, v[2 * i + 1] = both.x/|values|product_half_512_dense|WRONG dense
four-nibble|format.h|s/d = v >> 5/d = v >> 9/|values|product_half_512_four|WRONG four
five-bit|format.h|s/u << (19 - from)/u << (18 - from)/|values|product_half_512_five|WRONG five
six-plane|format.h|s/w\[LOW + bit \/ 32\]/w[LOW]/|values|product_bf16_512_six|WRONG six
sym-zero|format.h|s/-zero \* s.x/-s.x/|values|product_half_512_six_sym_16|WRONG six_sym_16
eight-byte|format.h|s/(v >> 9) \& mask/(v >> 10) \& mask/|values|product_half_512_eight|WRONG eight
table-level|format.h|s/>> (4 \* i)) \& 15/>> (4 * i)) \& 7/|values|product_half_512_table|WRONG table
table-barrier|format.h|s/        group_barrier();//|races|product_half_512_table|ThreadSanitizer: data race
dense-float|common.h|s/EIGHT \/ 4 \* i + k/i + k/|values|product_float_512_dense|WRONG dense
# product.h
scale-group|product.h|s/i >> e.group_shift/i/|memory|product_half_512_four|AddressSanitizer
fetch-end|product.h|s/min(from + row \* e.chunks, e.last)/from + row * e.chunks/|memory|product_half_512_four|AddressSanitizer
row-end|product.h|s/min(row0 + r, p.rows - 1)/(row0 + r)/|memory|product_half_512_four|AddressSanitizer
output-end|product.h|s/ \&\& out + m < p.outputs//|memory|product_half_512_four|AddressSanitizer
store-row|product.h|s/ \&\& row0 + r < p.rows//|memory|product_half_512_four|AddressSanitizer
product-factor|product.h|s/if (p.flags \& FACTOR) v /if (0) v /|values|product_half_512_dense|WRONG dense product
norm-statistic|product.h|s/p.inputs) + p.eps/p.inputs)/|values|product_half_512_four|WRONG four product_r1n2
gate-up|product.h|s/n % 2 \* e.outputs/(1 - n % 2) * e.outputs/|values|product_half_512_four|WRONG four product_gated
activation|product.h|s/1.702f/1.7f/|values|product_half_512_four|WRONG four product
error-function|product.h|s/-2.1337405e-4f/-2.1337405e-3f/|values|product_half_512_four|WRONG four product
activation-order|product.h|s/bool ordered = GATED .. (p.flags & ACTIVATE)/bool ordered = GATED/|values|product_half_512_four|WRONG four product
stage-barrier|product.h|/stage_columns<F, R>/{n;s/group_barrier();//}|races|product_half_512_four|ThreadSanitizer: data race
tile-barrier|product.h|s/if (!first .. start > 0) group_barrier();//|races|product_half_512_four|ThreadSanitizer: data race
split-barrier|product.h|/for (uint i = 0; i < p.split; i++)/!{/^            group_barrier();$/d}|races|product_half_512_four|ThreadSanitizer: data race
lonely-barrier|product.h|s/group_barrier();  \/\/ sums of/if (part == 0) group_barrier();  \/\//|values|product_half_512_four|wait in vain
rows-scale|product.h|s/y, size_t(at.group.y) \* p.cols + 8/y, size_t(at.group.y) * p.cols + 7/|values|product_half_512_four|WRONG four rows
# heads.h
heads-turn|heads.h|s/y \* c + x \* s/y * c - x * s/|values|attention_half_64_7_2_4|WRONG attention
heads-norm|heads.h|s/ + p.eps/ + 0/|values|attention_half_64_7_2_4|WRONG attention
heads-value|heads.h|s/p.flags \& V_NORM ? /0 ? /|values|attention_half_64_7_2_4|WRONG attention
heads-after|heads.h|s/if (!(p.flags & NORM_AFTER))/if (true)/|values|attention_half_64_7_2_4|WRONG attention
# attention.h
attention-end|attention.h|s/, end - 1) \* (DIM/, p.capacity - 1) * (DIM/|values|attention_half_64_7_2_4|WRONG attention
attention-position|attention.h|s/if (position >= p.capacity) return;//|memory|attention_half_64_7_2_4|AddressSanitizer
attention-angles|attention.h|s/DIM, k_angles, p/DIM, q_angles, p/|values|attention_half_64_7_2_4|WRONG attention
attention-each|attention.h|s/(each ? kv : 0)/(each ? p.heads + kv : 0)/|memory|attention_half_64_7_2_4|AddressSanitizer
attention-newest|attention.h|s/end = min(stop, position)/end = stop/|races|attention_half_64_7_2_4|ThreadSanitizer: data race
attention-rounded|attention.h|s/rounded(turned\[HEADS \* DIM + 8 \* sub + i\], T())/turned[HEADS * DIM + 8 * sub + i]/|values|attention_half_64_7_2_4|WRONG attention
attention-window|attention.h|s/length - p.window : 0/length - p.window + 1 : 0/|values|attention_half_64_7_2_4|WRONG attention
attention-lanes|attention.h|s/lane + n \* KEY_LANES < EIGHTS ? p.scale : 0/p.scale/|values|attention_half_96_2_1_2|WRONG attention
attention-barrier|attention.h|s/    group_barrier();//|races|attention_half_64_7_2_4|ThreadSanitizer: data race
shared-size|attention.h|s/(HEADS + 2) \* DIM/(HEADS + 20) * DIM/|values|attention_half_256_1_16_4|bytes of threadgroup memory
attention-units|attention.h|s/lane + n \* KEY_LANES < EIGHTS ? p.scale : 0/p.scale/|values|attention_float_320_2_2_2|WRONG attention
attention-gate|attention.h|s/p.flags \& GATE_HEADS ? head : head \* DIM + d/head/|values|attention_half_64_7_2_4|WRONG attention
attention-same|attention.h|s/p.flags \& SAME ? 0 : p.kv_heads) + kv/p.kv_heads) + kv/|memory|attention_half_64_7_2_4|AddressSanitizer
attention-shared|attention.h|s/end = brings ? min(stop, position) : stop/end = min(stop, position)/|values|attention_half_64_7_2_4|WRONG attention
combine-gate|attention.h|s/sum \/ total \* gate(qkv, p, head, d)/sum \/ total/|values|attention_half_64_7_2_4|WRONG attention
combine-sink|attention.h|s/if (p.sinks) total = /if (0) total = /|values|attention_half_64_7_2_4|WRONG attention
# address spaces and names
space-levels|format.h|s/threadgroup const float\* levels/device const float* levels/|types|product half 2048 table|error
space-chunk|format.h|s/uint i, thread uint\* w)/uint i, device uint* w)/|types|product half 2048 four|error
space-part|attention.h|s/threadgroup const float\* part/thread const float* part/|types|attention half 64 7 2 4|error
space-none|common.h|s/threadgroup float\* partial/float* partial/|types|row float|error
shared-inside|norm.h|s/    float total = 0, squares = 0;/    float total = 0, squares = 0; threadgroup float more[4];/|types|row float|error
name-only-cuda|common.h|s/v = simd_sum(v);/v = __shfl_xor_sync(0, v, 1);/|types|row float|error
ERRORS
}

# Builds a copy of the kernels with the error in it, and expects to be told of it.
planted() { # name, file, sed, mode, library, what is said
    local folder=$BUILD/planted/$1 mode=$4 few=
    [ "$mode" != races ] || few=few
    rm -rf "$folder" && mkdir -p "$folder" && cp src/kernels/gpu/*.h "$folder"
    sed -i.before -e "$3" "$folder/$2"
    ! cmp -s "$folder/$2" "$folder/$2.before" || { echo "$1 changes nothing in $2"; return 1; }
    if [ "$mode" = types ]; then
        # shellcheck disable=SC2086
        ! KERNELS=$folder tests/gpu/types.sh $5 >"$folder/log" 2>&1 || { echo "$1 was not found"; return 1; }
    else
        [ "$mode" != values ] || mode=plain
        make_gpu KERNELS="$folder" LIBRARIES="$5" RACES="$5" BUILD="$folder" COMMON="$BUILD" "$folder/$mode" >"$folder/build" 2>&1 ||
            { tail "$folder/build"; return 1; }
        ! TSAN_OPTIONS=halt_on_error=1 "$folder/$mode" $few row batch product attention >"$folder/log" 2>&1 || { echo "$1 was not found"; return 1; }
    fi
    grep -q "$6" "$folder/log" || { echo "$1 was not found as '$6':"; tail -5 "$folder/log"; return 1; }
    rm -rf "$folder"
}

plant() { # names, or all
    local name file edit mode library said
    while IFS='|' read -r name file edit mode library said; do
        [ "$*" = '' ] || [[ " $* " = *" $name "* ]] || continue
        step "planted error $name" planted "$name" "$file" "$edit" "$mode" "$library" "$said"
    done < <(planted_errors)
}

case ${1:-} in
planted)
    shift
    plant "$@"
    end "planted errors in the GPU's kernels"
    ;;
*)
    have clang "the types of the GPU's kernels" && step "types" types
    step "memory" run memory
    step "races" run races few
    plant argmax-barrier four-nibble fetch-end lonely-barrier
    have clang "errors of types" && plant space-levels space-part name-only-cuda
    end "the GPU's kernels"
    ;;
esac
