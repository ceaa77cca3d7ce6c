//! The text that a GPU's compiler is given, and what a kernel of it is given.

use super::format::GpuFormat;

/// A GPU's language, by what the prelude makes of the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Metal,
    Cuda,
}

/// In which type dense weights, the KV cache and the rows of a batch are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    F32,
    F16,
    BF16,
}

impl Element {
    /// Every one.
    #[cfg(feature = "selftest")]
    pub const ALL: [Self; 3] = [Self::F16, Self::BF16, Self::F32];

    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// As the kernels' language has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "float",
            Self::F16 => "half",
            Self::BF16 => "bf16",
        }
    }
}

/// Kernels that are compiled together: constants of the text, rather than function constants, which CUDA has none of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Library {
    /// Norms, the greedy choice, short convolutions and scans, of F32.
    Row,
    /// What is between the products of a batch, forward and backward.
    Batch { element: Element },
    /// Products with weights of a format, of which a threadgroup holds `stage` columns of activations.
    Product { element: Element, stage: u32, format: GpuFormat },
    /// Rotary embedding, the cache, and attention with heads of `dim` values; `heads`, `parts`, `keys`: see `attention.h`.
    Attention { element: Element, dim: u32, heads: u32, parts: u32, keys: u32 },
}

impl Library {
    /// Its name, as `tests/gpu` has it.
    pub fn name(&self) -> String {
        match *self {
            Self::Row => format!("row {}", Element::F32.name()),
            Self::Batch { element } => format!("batch {}", element.name()),
            Self::Product { element, stage, format } => format!("product {} {stage} {}", element.name(), format.row().name),
            Self::Attention { element, dim, heads, parts, keys } => {
                format!("attention {} {dim} {heads} {parts} {keys}", element.name())
            }
        }
    }

    /// The whole text for a GPU's compiler.
    pub fn text(&self, dialect: Dialect) -> String {
        let prelude = match dialect {
            Dialect::Metal => include_str!("metal.h"),
            Dialect::Cuda => include_str!("cuda.h"),
        };
        let (names, files): (&[&str], &[&str]) = match self {
            Self::Row => (
                &["T"],
                &[include_str!("norm.h"), include_str!("argmax.h"), include_str!("convolution.h"), include_str!("scan.h")],
            ),
            Self::Batch { .. } => {
                (&["T"], &[include_str!("activation.h"), include_str!("batch.h"), include_str!("batch_attention.h")])
            }
            Self::Product { .. } => {
                (&["T", "STAGE", "FORMAT"], &[include_str!("activation.h"), include_str!("format.h"), include_str!("product.h")])
            }
            Self::Attention { .. } => {
                (&["T", "DIM", "HEADS", "PARTS", "KEYS"], &[include_str!("heads.h"), include_str!("attention.h")])
            }
        };
        let name = self.name();
        let defines = names.iter().zip(name.split(' ').skip(1)).map(|(name, value)| format!("#define {name} {value}\n"));
        let shared = [include_str!("params.h"), include_str!("common.h")];
        [prelude.to_owned()].into_iter().chain(defines).chain(shared.iter().chain(files).map(|text| (*text).to_owned())).collect()
    }
}

/// How many of its last buffers a kernel writes.
pub fn buffers_written(kernel: &str) -> u32 {
    match kernel {
        "attention" => 4,
        "delta_net" => 3,
        "short_conv" | "cross_entropy" => 2,
        _ => 1,
    }
}
