//! Mixes of formats: what each matrix of a network is quantised to on loading.
//!
//! Those of llama.cpp spend more bits where errors cost most: on the values of the attention and on what the MLP adds to the stream, in
//! the first eighth of the layers, the last, and every third between; and on the output matrix. Columns that are no whole blocks of a
//! format have another one. Source: `llama-quantize`, <https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp>.

use crate::ops::Format;

/// Which format the matrices of a network have.
#[derive(Debug, PartialEq, Eq)]
pub struct Mix {
    /// As the option `quantization` spells it.
    pub name: &'static str,
    /// `general.file_type` of a GGUF file of it, if there are such files.
    pub file_type: Option<u32>,
    most: Format,
    /// The values of the attention, and `down`, of some layers.
    sensitive: Format,
    /// Queries, keys and values that are stored as one tensor.
    qkv: Format,
    /// The output matrix, which may be the embedding as well.
    output: Format,
}

/// What a matrix is, as far as mixes tell matrices apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Other,
    Value,
    Qkv,
    Down,
    Output,
    /// What chooses experts: small, and decisive.
    Router,
}

const fn mix(name: &'static str, file_type: Option<u32>, most: Format, [sensitive, qkv, output]: [Format; 3]) -> Mix {
    Mix { name, file_type, most, sensitive, qkv, output }
}

/// Every mix.
pub static MIXES: &[Mix] = &[
    mix("q8_0", Some(7), Format::Q8_0, [Format::Q8_0; 3]),
    mix("q6_k", Some(18), Format::Q6_K, [Format::Q6_K; 3]),
    mix("q5_k_m", Some(17), Format::Q5_K, [Format::Q6_K; 3]),
    mix("q4_k_m", Some(15), Format::Q4_K, [Format::Q6_K, Format::Q5_K, Format::Q6_K]),
    mix("q4_0", Some(2), Format::Q4_0, [Format::Q4_0, Format::Q4_0, Format::Q6_K]),
    mix("iq4_nl", Some(25), Format::IQ4_NL, [Format::IQ4_NL, Format::IQ4_NL, Format::Q6_K]),
    mix("mlx4", None, Format::AFFINE4_64, [Format::AFFINE4_64; 3]),
];

impl Mix {
    /// The mix of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        MIXES.iter().find(|mix| mix.name == name)
    }

    /// The format of a matrix of `cols` inputs in one of so many layers.
    pub fn format(&self, part: Part, (layer, layers): (usize, usize), cols: usize) -> Format {
        if part == Part::Router {
            return Format::F32;
        }
        let eighth = layers / 8;
        let is_sensitive = layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2;
        let format = match part {
            Part::Value | Part::Down if is_sensitive => self.sensitive,
            Part::Other | Part::Value | Part::Down => self.most,
            Part::Qkv => self.qkv,
            Part::Output => self.output,
            Part::Router => Format::F32,
        };
        match format {
            // Whose last block may be shorter.
            Format::Q8_0 => format,
            _ if cols.is_multiple_of(format.block()) => format,
            _ if !cols.is_multiple_of(32) => Format::F16,
            Format::Q4_K => Format::Q5_0,
            Format::Q5_K => Format::Q5_1,
            Format::Q6_K => Format::Q8_0,
            _ => Format::F16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_of_some_layers_and_the_output_have_more_bits() {
        let mix = Mix::named("q4_k_m").unwrap();
        // As `use_more_bits` of llama.cpp says of 22 and of 4 layers.
        let more = |layers: usize| (0..layers).filter(|&i| mix.format(Part::Value, (i, layers), 512) == Format::Q6_K).collect();
        let (of_many, of_few): (Vec<usize>, Vec<usize>) = (more(22), more(4));
        assert_eq!((of_many, of_few), (vec![0, 1, 4, 7, 10, 13, 16, 19, 20, 21], vec![2, 3]));
        assert_eq!(mix.format(Part::Down, (0, 22), 512), Format::Q6_K);
        assert_eq!(mix.format(Part::Down, (2, 22), 512), Format::Q4_K);
        assert_eq!(mix.format(Part::Other, (0, 22), 512), Format::Q4_K);
        assert_eq!(mix.format(Part::Qkv, (0, 22), 512), Format::Q5_K);
        assert_eq!(mix.format(Part::Output, (0, 1), 512), Format::Q6_K);
    }

    #[test]
    fn columns_that_are_no_whole_blocks_fall_back() {
        let of = |name, part, cols| Mix::named(name).unwrap().format(part, (0, 1), cols);
        assert_eq!(of("q4_k_m", Part::Other, 896), Format::Q5_0);
        assert_eq!(of("q5_k_m", Part::Other, 896), Format::Q5_1);
        assert_eq!(of("q4_k_m", Part::Output, 896), Format::Q8_0);
        assert_eq!((of("q4_0", Part::Other, 896), of("q4_0", Part::Other, 45)), (Format::Q4_0, Format::F16));
        assert_eq!((of("mlx4", Part::Other, 896), of("mlx4", Part::Other, 96)), (Format::AFFINE4_64, Format::F16));
        assert_eq!((of("q8_0", Part::Other, 45), of("q6_k", Part::Other, 45)), (Format::Q8_0, Format::F16));
        for mix in MIXES {
            let parts = [Part::Other, Part::Value, Part::Qkv, Part::Down, Part::Output];
            let formats = parts.into_iter().flat_map(|part| [512, 96, 45].map(|cols| mix.format(part, (0, 8), cols)));
            assert!(formats.into_iter().all(|format| format == Format::F16 || Format::quantised_to().any(|to| to == format)));
        }
    }
}
