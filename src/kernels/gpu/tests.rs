//! Matrices value by value against the formats of files, and the kernels on the CPU's executor against the CPU's own.
//!
//! The executor is that of `tests/gpu`, which runs the kernels thread by thread; its Makefile builds it. Where make or a C++ compiler is
//! missing, what needs it is skipped with a line that says so, which `CI` makes a failure.

use std::cell::{Cell, RefCell};
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, Device, Result, bail};

use super::super::format::coding::{CodedBlock, Scales};
use super::super::{Format, Packed, Use, noise, random_blocks};
use super::batch::CompiledBatch;
use super::compare::{Comparison, compare};
use super::device::{Launch, Launcher, Place};
use super::library::Dialect;
use super::matrix::GpuMatrix;
use super::replay::Recording;
use super::{Element, Gpu, GpuFormat, Library};

type EntryPoint = unsafe extern "C" fn(*const c_char, *const u32, u32, *const *mut c_void, u32) -> c_int;

/// The kernels of `tests/gpu/Makefile` that the tests use.
#[derive(Debug)]
pub struct Executor {
    entry: EntryPoint,
    /// By their numbers, each with its library.
    names: Mutex<Vec<CString>>,
    batch: CompiledBatch,
}

const LIBRARIES: &str = "row_float batch_half batch_bf16 batch_float product_half_512_dense product_float_512_dense product_half_512_four \
                         product_half_512_four_16 product_half_512_four_sym product_half_512_four_sym_16 \
                         product_half_512_five product_half_512_five_sym product_half_512_six product_half_512_six_sym_16 \
                         product_half_512_eight product_half_512_eight_sym product_half_512_table product_half_512_table_16 \
                         attention_half_64_1_4_4 attention_float_16_1_4_4 attention_float_24_1_4_4 attention_float_32_1_4_4 attention_float_64_1_4_4 \
                         attention_float_40_1_4_4 attention_half_16_1_4_4 attention_half_24_1_4_4 attention_half_32_1_4_4 \
                         attention_half_40_1_4_4";

thread_local! {
    static IN_USE: RefCell<Option<Arc<Executor>>> = const { RefCell::new(None) };
    static COMPILES: Cell<bool> = const { Cell::new(true) };
    static MOST_THREADS: Cell<u32> = const { Cell::new(u32::MAX) };
    static RECORDED: Cell<usize> = const { Cell::new(0) };
    static REPLAYED: Cell<usize> = const { Cell::new(0) };
    static LAST_RECORDED: Cell<usize> = const { Cell::new(0) };
}

/// Lists that this thread has recorded, and how often it has started one of them.
#[cfg_attr(not(reference_data), allow(dead_code, reason = "its users need the repository's references"))]
pub fn recorded_and_replayed() -> (usize, usize) {
    (RECORDED.get(), REPLAYED.get())
}

/// Launches of the list that this thread has recorded last.
#[cfg_attr(not(reference_data), allow(dead_code, reason = "its users need the repository's references"))]
pub fn last_recorded() -> usize {
    LAST_RECORDED.get()
}

/// What there is instead of a compiler while `work` runs on this thread.
#[cfg_attr(not(reference_data), allow(dead_code, reason = "its users need the repository's references"))]
pub fn without_compiler<R>(work: impl FnOnce() -> R) -> R {
    COMPILES.set(false);
    let result = work();
    COMPILES.set(true);
    result
}

/// A device with room for so many threads of a threadgroup while `work` runs on this thread.
#[cfg_attr(not(reference_data), allow(dead_code, reason = "its users need the repository's references"))]
pub fn with_most_threads<R>(threads: u32, work: impl FnOnce() -> R) -> R {
    MOST_THREADS.set(threads);
    let result = work();
    MOST_THREADS.set(u32::MAX);
    result
}

/// What `Gpu::of` makes of the CPU on this thread.
pub fn in_use() -> Option<Arc<Executor>> {
    IN_USE.with_borrow(Clone::clone)
}

/// Makes the CPU a GPU to this thread while `work` runs; `None` where make or a C++ compiler is missing, which `CI` makes a failure.
pub fn with_executor<R>(work: impl FnOnce() -> R) -> Option<R> {
    let executor = match Executor::build() {
        Ok(executor) => executor,
        Err(why) => {
            assert!(std::env::var("CI").is_err(), "the executor of GPU kernels: {why}");
            eprintln!("skip: GPU kernels on the CPU: {why}");
            return None;
        }
    };
    IN_USE.set(Some(Arc::new(executor)));
    let result = work();
    IN_USE.set(None);
    Some(result)
}

impl Executor {
    fn build() -> std::result::Result<Self, String> {
        // Tests of one process build one after another.
        static BUILDING: Mutex<()> = Mutex::new(());
        let _guard = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let made = Command::new("make")
            .args(["-s", "-f", "tests/gpu/Makefile", "build/gpu/executor.so"])
            .arg(format!("LIBRARIES={LIBRARIES}"))
            .current_dir(root)
            // What an outer make was told is not meant for this one.
            .env_remove("MAKEFLAGS")
            .output()
            .map_err(|error| format!("make: {error}"))?;
        if !made.status.success() {
            return Err(String::from_utf8_lossy(&made.stderr).into_owned());
        }
        let entry = load(&root.join("build/gpu/executor.so"))?;
        // SAFETY: the executor declares it with these parameters.
        let entry = unsafe { std::mem::transmute::<*mut c_void, EntryPoint>(entry) };
        Ok(Self { entry, names: Mutex::default(), batch: CompiledBatch::default() })
    }
}

/// The function that launches kernels, of a library that stays loaded.
#[cfg(unix)]
fn load(library: &Path) -> std::result::Result<*mut c_void, String> {
    let path = CString::new(library.to_str().unwrap()).unwrap();
    // SAFETY: both strings end with a zero; the library's constructors only make kernels known by name.
    let entry = unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        if library.is_null() { library } else { libc::dlsym(library, c"gpu_launch".as_ptr()) }
    };
    if entry.is_null() { Err(format!("{} has no gpu_launch", library.display())) } else { Ok(entry) }
}

#[cfg(not(unix))]
fn load(_library: &Path) -> std::result::Result<*mut c_void, String> {
    Err("libraries are loaded by dlopen, which this system does not have".into())
}

/// Where a tensor of the CPU lies. The kernels write there as a device does, behind the back of the language: only tests do.
pub fn address(storage: &CpuStorage) -> Result<u64> {
    Ok(match storage {
        CpuStorage::U32(values) => values.as_ptr() as u64,
        CpuStorage::F32(values) => values.as_ptr() as u64,
        CpuStorage::F16(values) => values.as_ptr() as u64,
        CpuStorage::BF16(values) => values.as_ptr() as u64,
        _ => bail!("a kernel's buffer: expected U32, F32, F16 or BF16"),
    })
}

/// A list, started launch by launch.
struct Recorded(Arc<Executor>, Vec<Launch>);

impl Recording for Recorded {
    unsafe fn start(&self) -> Result<()> {
        REPLAYED.set(REPLAYED.get() + 1);
        // SAFETY: the caller vouches for what was recorded.
        unsafe { self.0.start(&self.1) }
    }
}

impl Launcher for Executor {
    fn kernel(&self, library: Library, name: &str, threads: u32) -> Result<usize> {
        if !COMPILES.get() {
            bail!("{}: line 7: no such type", library.name())
        }
        if threads > MOST_THREADS.get() {
            bail!("{}/{name}: expected at most {} threads of a threadgroup, found {threads}", library.name(), MOST_THREADS.get())
        }
        let name = CString::new(format!("{}/{name}", library.name())).map_err(candle_core::Error::wrap)?;
        let mut names = self.names.lock().unwrap();
        if let Some(number) = names.iter().position(|known| *known == name) {
            return Ok(number);
        }
        names.push(name);
        Ok(names.len() - 1)
    }

    unsafe fn start(&self, launches: &[Launch]) -> Result<()> {
        // One launch of the process at a time: the executor's fibers are those of one thread.
        static LAUNCHING: Mutex<()> = Mutex::new(());
        let _guard = LAUNCHING.lock().unwrap_or_else(PoisonError::into_inner);
        let names = self.names.lock().unwrap();
        for launch in launches {
            let address = |place: &Place| std::ptr::from_ref(&place.offset).cast_mut().cast();
            let args: Vec<*mut c_void> =
                launch.buffers().iter().map(address).chain([launch.words().as_ptr().cast_mut().cast()]).collect();
            let name = &names[launch.kernel()];
            // SAFETY: the addresses are of pointers that the caller vouches for, and of the struct's words.
            let code = unsafe { (self.entry)(name.as_ptr(), launch.grid.as_ptr(), launch.threads, args.as_ptr(), 7) };
            if code != 0 {
                bail!("{name:?}: {code}")
            }
        }
        Ok(())
    }

    fn record(self: Arc<Self>, launches: &[Launch]) -> Result<Option<Box<dyn Recording>>> {
        RECORDED.set(RECORDED.get() + 1);
        LAST_RECORDED.set(launches.len());
        Ok(Some(Box::new(Recorded(self, launches.to_vec()))))
    }

    unsafe fn upload(&self, to: Place, words: &[u32]) -> Result<()> {
        // SAFETY: the caller vouches for the address.
        unsafe { std::ptr::copy_nonoverlapping(words.as_ptr(), to.offset as *mut u32, words.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: Place, out: &mut [f32]) -> Result<()> {
        // SAFETY: the caller vouches for the address.
        unsafe { std::ptr::copy_nonoverlapping(from.offset as *const f32, out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    fn units(&self) -> u32 {
        4
    }

    fn batch(&self) -> &CompiledBatch {
        &self.batch
    }
}

fn quantised() -> impl Iterator<Item = Format> {
    Format::all().filter(|format| format.is_quantised())
}

/// Rows whose scales and mins an F16 holds.
fn blocks_within_f16(format: Format, blocks: usize) -> Vec<u8> {
    let coding = format.coding().unwrap();
    let mut coded = CodedBlock::default();
    let within = |block: &Vec<u8>, coded: &mut CodedBlock| {
        format.unpack(block, coded);
        (0..format.block() / coding.group).all(|group| {
            let (scale, min) = coding.scale_and_min(coded, group);
            scale.abs() < 65504.0 && min.abs() < 65504.0 && (scale == 0.0 || scale.abs() >= 2f32.powi(-24))
        })
    };
    let all = (1..).map(|seed| random_blocks(format, 1, seed));
    all.filter(|block| within(block, &mut coded)).take(blocks).flatten().collect()
}

/// All values, row by row.
fn values(matrix: &GpuMatrix) -> Vec<f32> {
    let (rows, cols) = matrix.shape();
    let mut values = vec![f32::NAN; rows * cols];
    values.chunks_exact_mut(cols).enumerate().for_each(|(row, out)| matrix.row(row, out));
    values
}

#[test]
fn every_quantised_format_of_files_has_one_of_a_gpu() {
    let becomes = |name: &str| GpuFormat::of(Format::named(name).unwrap()).unwrap().row().name;
    for (to, names) in [
        ("four", "q4_1 q4_k affine2_32 affine3_64 affine4_128 zero4_32"),
        ("four_16", "q2_k"),
        ("four_sym", "q4_0"),
        ("four_sym_16", "q3_k"),
        ("five", "q5_1 q5_k affine5_64"),
        ("five_sym", "q5_0"),
        ("six", "affine6_128"),
        ("six_sym_16", "q6_k"),
        ("eight", "affine8_32 zero8_128"),
        ("eight_sym", "q8_0"),
        ("table", "iq4_nl iq4_xs iq3_xxs iq3_s iq2_xxs iq1_s tq1_0 tq2_0 q1_0 q2_0 mxfp4"),
        ("table_16", "iq2_xs iq2_s iq1_m nvfp4 nvfp4_scaled"),
        ("dense", "F16 BF16"),
    ] {
        names.split(' ').for_each(|name| assert_eq!(becomes(name), to, "{name}"));
    }
    assert!(quantised().all(|format| GpuFormat::of(format).is_some()));
    assert_eq!(GpuFormat::of(Format::F32), None);
    let text = include_str!("format.h");
    for format in GpuFormat::ALL {
        let name = format.row().name;
        assert!(text.contains(&format!(" {name};\n")) || text.contains(&format!("struct {name} {{")), "{name}");
    }
}

#[test]
fn values_are_those_of_the_file_but_for_scales_that_become_f16() {
    // By how much an F16 is rounded at most.
    let rounding = |x: f32| (x.abs() * 2f32.powi(-11)).max(2f32.powi(-25));
    for format in quantised() {
        let (rows, coding) = (3, format.coding().unwrap());
        let cols = format.block().max(32) * 3;
        let bytes = blocks_within_f16(format, rows * cols / format.block());
        let mut matrix = GpuMatrix::new(&[(rows, format)], cols).unwrap();
        // The last row first: rows are written each for itself, and again.
        let row_bytes = bytes.len() / rows;
        assert!(matrix.fill(2, &bytes[2 * row_bytes..], format) && matrix.fill(0, &bytes, format), "{}", format.name());
        let want = format.widen(&bytes);
        let mut coded = CodedBlock::default();
        let mut lost = 0;
        for (i, (want, found)) in want.iter().zip(values(&matrix)).enumerate() {
            let (block, within) = (i / format.block(), i % format.block());
            format.unpack(&bytes[block * format.block_bytes()..][..format.block_bytes()], &mut coded);
            let (scale, min) = coding.scale_and_min(&coded, within / coding.group);
            let level = if scale == 0.0 { 0.0 } else { (want - min) / scale };
            let limit = match coding.scales {
                Scales::F16 | Scales::F16AndMin | Scales::Float8 { .. } => 0.0,
                Scales::F16AndZero => rounding(min) + 2f32.powi(-23) * want.abs(),
                Scales::TwoLevels | Scales::Float8Times { .. } => rounding(scale) * level.abs() * 1.0001,
                _ => rounding(scale) * level.abs() * 1.0001 + rounding(min) + 2f32.powi(-22) * (min.abs() + want.abs()),
            };
            assert!((found - want).abs() <= limit, "{} {i}: {found}, not {want}", format.name());
            lost += usize::from(found != *want);
        }
        // Otherwise the limits would say nothing.
        let exact = matches!(coding.scales, Scales::F16 | Scales::F16AndMin | Scales::Float8 { .. });
        assert_eq!(lost == 0, exact, "{}", format.name());
    }
}

#[test]
fn values_are_quantised_as_those_of_the_cpu() {
    let (rows, cols) = (19, 512);
    let x = noise(rows * cols, 3);
    for format in Format::quantised_to() {
        let mut packed = Packed::new(rows, cols, format, Use::Product).unwrap();
        let mut matrix = GpuMatrix::new(&[(rows, format)], cols).unwrap();
        let (head, tail) = x.split_at(7 * cols);
        let bytes: Vec<u8> = tail.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert!(packed.fill_f32(0, &x) && matrix.fill_f32(0, head) && matrix.fill(7, &bytes, Format::F32));
        assert!(!matrix.fill_f32(rows - 6, head) && !matrix.fill_f32(0, &[f32::NAN; 512]));
        assert!(matrix.fill_f32(0, &x[..cols]));
        let mut want = vec![0.0; cols];
        for (row, found) in values(&matrix).chunks_exact(cols).enumerate() {
            packed.row(row, &mut want);
            // What a scale and a min are rounded by: of a range of 2, and of 1.
            assert!(want.iter().zip(found).all(|(a, b)| (a - b).abs() <= 2f32.powi(-9)), "{} {row}", format.name());
        }
        let (codes, extra, scales) = matrix.parts();
        let bytes = 4 * (codes.len() + extra.len()) + 2 * scales.len();
        assert_eq!(GpuMatrix::bytes(&[(rows, format)], cols), Some(bytes as u64), "{}", format.name());
    }
}

#[test]
fn rows_of_several_formats_lie_together_where_a_kernel_can_decode_both() {
    let (cols, rows) = (256, 2);
    let parts = [(rows, Format::Q4_K), (rows, Format::AFFINE4_64), (rows, Format::Q4_1)];
    let mut matrix = GpuMatrix::new(&parts, cols).unwrap();
    assert_eq!((matrix.format(), matrix.group_shift(), matrix.shape()), (GpuFormat::four, 0, (6, 256)));
    for (i, (rows, format)) in parts.into_iter().enumerate() {
        let bytes = blocks_within_f16(format, rows * cols / format.block());
        assert!(matrix.fill(i * rows, &bytes, format));
        let want = format.widen(&bytes);
        let found = &values(&matrix)[i * rows * cols..][..rows * cols];
        let scale = want.iter().fold(0f32, |most, x| most.max(x.abs()));
        assert!(found.iter().zip(&want).all(|(a, b)| (a - b).abs() <= 1e-3 * scale), "{}", format.name());
    }
    // Other levels, other codes, other floats; columns that are no whole chunks, or no whole blocks.
    assert!(GpuMatrix::new(&[(1, Format::IQ4_NL), (1, Format::MXFP4)], 256).is_none());
    assert!(GpuMatrix::new(&[(1, Format::IQ4_NL), (1, Format::IQ4_XS)], 256).is_some());
    assert!(GpuMatrix::new(&[(1, Format::Q4_K), (1, Format::Q6_K)], 256).is_none());
    assert!(GpuMatrix::new(&[(1, Format::F16), (1, Format::BF16)], 256).is_none());
    assert!(GpuMatrix::new(&[(1, Format::F16)], 48).is_none() && GpuMatrix::new(&[(1, Format::Q4_K)], 288).is_none());
    assert!(GpuMatrix::new(&[(usize::MAX / 64, Format::Q4_K)], 256).is_none() && GpuMatrix::new(&[], 256).is_none());
}

#[test]
fn what_does_not_fit_is_refused() {
    let block = blocks_within_f16(Format::Q4_K, 1);
    let mut matrix = GpuMatrix::new(&[(1, Format::Q4_K)], 256).unwrap();
    assert!(matrix.fill(0, &block, Format::Q4_K));
    assert!(!matrix.fill(1, &block, Format::Q4_K) && !matrix.fill(0, &block[..143], Format::Q4_K));
    // Nothing is quantised to this one.
    let mut other = GpuMatrix::new(&[(1, Format::Q2_K)], 256).unwrap();
    assert!(!other.fill(0, &blocks_within_f16(Format::Q6_K, 1), Format::Q6_K) && !other.fill_f32(0, &[1.0; 256]));
    // d is the largest F16, and a scale of six bits multiplies it.
    let mut large = block.clone();
    (large[0], large[1], large[4]) = (0xff, 0x7b, 0x3f);
    assert!(!matrix.fill(0, &large, Format::Q4_K));
    let mut infinite = block.clone();
    (infinite[2], infinite[3]) = (0x00, 0x7c);
    assert!(!matrix.fill(0, &infinite, Format::Q4_K));
    let mut matrix = GpuMatrix::new(&[(1, Format::MXFP4)], 32).unwrap();
    let scale = |e: u8| [&[e], [0x21; 16].as_slice()].concat();
    assert!(matrix.fill(0, &scale(127), Format::MXFP4) && !matrix.fill(0, &scale(145), Format::MXFP4));
}

#[test]
fn kernels_give_what_those_of_the_cpu_give() {
    let rows = with_executor(|| compare(&Gpu::of(&Device::Cpu).unwrap().unwrap(), &[Element::F16, Element::F32]));
    rows.into_iter().for_each(|rows| hold(&rows));
}

/// The same on a device: `cargo test --features cuda --lib kernels::gpu -- --ignored`.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs a CUDA device"]
fn kernels_of_a_device_give_what_those_of_the_cpu_give() {
    let gpu = Gpu::of(&super::super::open_cuda(0).unwrap()).unwrap().unwrap();
    hold(&compare(&gpu, &[Element::F16, Element::BF16, Element::F32]));
}

fn hold(rows: &[Comparison]) {
    assert!(rows.len() > 200);
    let holds = |(_, error, limit): &&Comparison| error.as_ref().is_ok_and(|error| error <= limit);
    let failed: Vec<_> = rows.iter().filter(|row| !holds(row)).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn a_library_is_one_text_with_its_constants() {
    let library = Library::Product { element: Element::F16, stage: 2048, format: GpuFormat::six_sym_16 };
    let text = library.text(Dialect::Metal);
    assert!(text.contains("\n#define T half\n#define STAGE 2048\n#define FORMAT six_sym_16\n") && text.contains("metal_stdlib"));
    assert_eq!(library.name(), "product half 2048 six_sym_16");
    let attention = Library::Attention { element: Element::BF16, dim: 128, heads: 1, parts: 16, keys: 4 };
    let text = attention.text(Dialect::Cuda);
    assert!(text.contains("#define T bf16\n#define DIM 128\n#define HEADS 1\n#define PARTS 16\n#define KEYS 4\n"));
    // What CUDA compiles includes nothing: a machine with a driver has no toolkit's headers.
    assert!(text.contains("__global__") && !text.contains("#include") && !text.contains("#pragma once"));
    let _ = Library::Row.text(Dialect::Cuda);
}
