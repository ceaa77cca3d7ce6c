//! Activation functions by the names of torch's classes, each with torch's defaults: what models of texts end with.
//!
//! They work on a vector of a text or on a score, few values that are computed in F64.

use candle_core::cpu::erf::{erf_f64, erfc_f64};
use candle_core::{Result, Tensor};

use super::cpu::torch_activation as cpu;
use super::tensors::torch_activation as tensors;
use super::{Activation, Backend, Context};

/// A class of `torch.nn` that changes each value for itself and has no parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TorchActivation {
    /// `x`, below 0 `eˣ - 1`; with its factor of 1 ELU.
    Celu,
    Elu,
    Gelu,
    Hardshrink,
    Hardsigmoid,
    Hardswish,
    Hardtanh,
    Identity,
    LeakyRelu,
    LogSigmoid,
    Mish,
    Relu,
    Relu6,
    Selu,
    Sigmoid,
    Silu,
    Softplus,
    Softshrink,
    Softsign,
    Tanh,
    Tanhshrink,
}

impl TorchActivation {
    /// Every one, with the name of its class.
    pub const ALL: [(&str, Self); 21] = [
        ("CELU", Self::Celu),
        ("ELU", Self::Elu),
        ("GELU", Self::Gelu),
        ("Hardshrink", Self::Hardshrink),
        ("Hardsigmoid", Self::Hardsigmoid),
        ("Hardswish", Self::Hardswish),
        ("Hardtanh", Self::Hardtanh),
        ("Identity", Self::Identity),
        ("LeakyReLU", Self::LeakyRelu),
        ("LogSigmoid", Self::LogSigmoid),
        ("Mish", Self::Mish),
        ("ReLU", Self::Relu),
        ("ReLU6", Self::Relu6),
        ("SELU", Self::Selu),
        ("Sigmoid", Self::Sigmoid),
        ("SiLU", Self::Silu),
        ("Softplus", Self::Softplus),
        ("Softshrink", Self::Softshrink),
        ("Softsign", Self::Softsign),
        ("Tanh", Self::Tanh),
        ("Tanhshrink", Self::Tanhshrink),
    ];

    /// Both `torch.nn.modules.activation.ReLU` and `torch.nn.ReLU` are written; a class of another package is none of these.
    pub fn named(class: &str) -> Option<Self> {
        let name = class.strip_prefix("torch.nn.")?.rsplit('.').next()?;
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
    }

    /// The names of the classes.
    pub fn names() -> String {
        Self::ALL.map(|(name, _)| name).join(", ")
    }

    /// The same among those of networks, which compute it in F32.
    pub fn of_networks(self) -> Option<Activation> {
        Some(match self {
            Self::Gelu => Activation::Gelu,
            Self::Relu => Activation::Relu,
            Self::Sigmoid => Activation::Sigmoid,
            Self::Silu => Activation::Silu,
            Self::Tanh => Activation::Tanh,
            _ => return None,
        })
    }

    /// What it makes of a value; of one that is no number none.
    ///
    /// # Source
    /// The formulas of torch's manual, <https://docs.pytorch.org/docs/stable/nn.html#non-linear-activations-weighted-sum-nonlinearity>.
    pub fn value(self, x: f32) -> f32 {
        // Of log(1 + eˣ) neither the power nor the sum may pass its range.
        let log1p_exp = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let x = f64::from(x);
        if x.is_nan() {
            return f32::NAN;
        }
        let y = match self {
            Self::Celu | Self::Elu => {
                if x > 0.0 {
                    x
                } else {
                    x.exp_m1()
                }
            }
            // Of few values below 0 the sum of 1 and the error function has no digits left.
            Self::Gelu if x < 0.0 => 0.5 * x * erfc_f64(-x * std::f64::consts::FRAC_1_SQRT_2),
            Self::Gelu => 0.5 * x * (1.0 + erf_f64(x * std::f64::consts::FRAC_1_SQRT_2)),
            Self::Hardshrink => {
                if x.abs() > 0.5 {
                    x
                } else {
                    0.0
                }
            }
            Self::Hardsigmoid => (x + 3.0).clamp(0.0, 6.0) / 6.0,
            Self::Hardswish => x * ((x + 3.0).clamp(0.0, 6.0) / 6.0),
            Self::Hardtanh => x.clamp(-1.0, 1.0),
            Self::Identity => x,
            Self::LeakyRelu => {
                if x > 0.0 {
                    x
                } else {
                    0.01 * x
                }
            }
            Self::LogSigmoid => -log1p_exp(-x),
            Self::Mish => x * log1p_exp(x).tanh(),
            Self::Relu => x.max(0.0),
            Self::Relu6 => x.clamp(0.0, 6.0),
            // Klambauer et al. 2017, <https://arxiv.org/abs/1706.02515>, with as many digits as an F64 has.
            Self::Selu => 1.050_700_987_355_480_5 * if x > 0.0 { x } else { 1.673_263_242_354_377_2 * x.exp_m1() },
            Self::Sigmoid => sigmoid(x),
            Self::Silu => x * sigmoid(x),
            // As torch, which takes the line for it from there on.
            Self::Softplus => {
                if x > 20.0 {
                    x
                } else {
                    log1p_exp(x)
                }
            }
            Self::Softshrink => x - x.clamp(-0.5, 0.5),
            Self::Softsign => x / (1.0 + x.abs()),
            Self::Tanh => x.tanh(),
            Self::Tanhshrink => x - x.tanh(),
        };
        y as f32
    }
}

/// The function of each value; on the CPU in the memory of `x`.
///
/// # Shape
/// `(T, C)`, F32; returns the same. No gradient.
pub fn torch_activation(cx: Context<'_>, x: Tensor, kind: TorchActivation) -> Result<Tensor> {
    match cx.backend {
        Backend::Cpu => cpu::activate(x, kind),
        Backend::Tensors(_) => tensors::activate(&x, kind),
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::LN_2;

    use candle_core::Device;

    use super::*;
    use crate::ops::{activate, to_f32};

    const X: [f32; 8] = [-30.0, -3.5, -0.75, -1e-4, 0.0, 0.25, 2.5, 30.0];

    /// What the formulas of torch's manual give in F64 at [`X`], computed by Python with 50 digits.
    #[rustfmt::skip]
    const WANT: [(TorchActivation, [f64; 8]); 21] = [
        (TorchActivation::Celu, [-0.9999999999999064, -0.9698026165776815, -0.5276334472589853, -9.999499764070263e-05, 0.0, 0.25, 2.5, 30.0]),
        (TorchActivation::Elu, [-0.9999999999999064, -0.9698026165776815, -0.5276334472589853, -9.999499764070263e-05, 0.0, 0.25, 2.5, 30.0]),
        (TorchActivation::Gelu, [-1.472014178144456e-196, -0.0008142017766243376, -0.16997051428265114, -4.999600931429796e-05, 0.0, 0.14967658142073093, 2.4844758366855597, 30.0]),
        (TorchActivation::Hardshrink, [-30.0, -3.5, -0.75, 0.0, 0.0, 0.0, 2.5, 30.0]),
        (TorchActivation::Hardsigmoid, [0.0, 0.0, 0.375, 0.4999833333337544, 0.5, 0.5416666666666666, 0.9166666666666666, 1.0]),
        (TorchActivation::Hardswish, [0.0, 0.0, -0.28125, -4.9998332070311296e-05, 0.0, 0.13541666666666666, 2.2916666666666665, 30.0]),
        (TorchActivation::Hardtanh, [-1.0, -1.0, -0.75, -9.999999747378752e-05, 0.0, 0.25, 1.0, 1.0]),
        (TorchActivation::Identity, [-30.0, -3.5, -0.75, -9.999999747378752e-05, 0.0, 0.25, 2.5, 30.0]),
        (TorchActivation::LeakyRelu, [-0.3, -0.035, -0.0075, -9.999999747378752e-07, 0.0, 0.25, 2.5, 30.0]),
        (TorchActivation::LogSigmoid, [-30.000000000000092, -3.5297504182726205, -1.1368710061148999, -0.6931971818086822, -LN_2, -0.5759394198788436, -0.07888973429254963, -9.357622968839737e-14]),
        (TorchActivation::Mish, [-2.807286890651921e-12, -0.10409575448637122, -0.2764947145054652, -5.9996798468438774e-05, 0.0, 0.1695724096638176, 2.471392304557881, 30.0]),
        (TorchActivation::Relu, [0.0, 0.0, 0.0, 0.0, 0.0, 0.25, 2.5, 30.0]),
        (TorchActivation::Relu6, [0.0, 0.0, 0.0, 0.0, 0.0, 0.25, 2.5, 6.0]),
        (TorchActivation::Selu, [-1.7580993408472123, -1.7050093409572833, -0.9276320158350512, -0.00017580113944015428, 0.0, 0.2626752468388701, 2.6267524683887014, 31.521029620664414]),
        (TorchActivation::Sigmoid, [9.357622968839299e-14, 0.02931223075135632, 0.320821300824607, 0.49997500000065237, 0.5, 0.5621765008857981, 0.9241418199787564, 0.9999999999999064]),
        (TorchActivation::Silu, [-2.8072868906517896e-12, -0.10259280762974711, -0.24061597561845527, -4.999749873702215e-05, 0.0, 0.14054412522144952, 2.310354549946891, 29.999999999997193]),
        (TorchActivation::Softplus, [9.357622968839737e-14, 0.029750418272620566, 0.38687100611489994, 0.6930971818112084, LN_2, 0.8259394198788436, 2.5788897342925496, 30.0]),
        (TorchActivation::Softshrink, [-29.5, -3.0, -0.25, 0.0, 0.0, 0.0, 2.0, 29.5]),
        (TorchActivation::Softsign, [-0.967741935483871, -0.7777777777777778, -0.42857142857142855, -9.99899984741927e-05, 0.0, 0.2, 0.7142857142857143, 0.967741935483871]),
        (TorchActivation::Tanh, [-1.0, -0.9981778976111987, -0.6351489523872873, -9.999999714045421e-05, 0.0, 0.24491866240370913, 0.9866142981514303, 1.0]),
        (TorchActivation::Tanhshrink, [-29.0, -2.501822102388801, -0.11485104761271268, -3.3333330673787596e-13, 0.0, 0.005081337596290871, 1.5133857018485697, 29.0]),
    ];

    #[test]
    fn each_is_its_formula() {
        assert!(TorchActivation::ALL.windows(2).all(|pair| pair[0].0.to_lowercase() < pair[1].0.to_lowercase()));
        for ((_, kind), (same, want)) in TorchActivation::ALL.into_iter().zip(WANT) {
            assert_eq!(kind, same);
            let x = || Tensor::new(&[X], &Device::Cpu).unwrap();
            for (x, want) in X.into_iter().zip(want) {
                let found = f64::from(kind.value(x));
                assert!((found - want).abs() <= 1e-7 * want.abs() + 1e-45, "{kind:?} of {x}: {found} {want}");
            }
            assert!(kind.value(f32::NAN).is_nan(), "{kind:?}");
            for x in [f32::MIN, f32::MAX] {
                assert!(kind.value(x).is_finite() || kind == TorchActivation::Selu, "{kind:?} of {x}");
            }
            let values: Vec<f32> = X.iter().map(|x| kind.value(*x)).collect();
            for backend in [Backend::Cpu, Backend::TENSORS_ON_CPU] {
                let cx = Context::forward(&backend);
                assert_eq!(to_f32(&torch_activation(cx, x(), kind).unwrap()).unwrap(), values, "{kind:?}");
                if let Some(same) = kind.of_networks() {
                    let found = to_f32(&activate(cx, x(), same).unwrap()).unwrap();
                    for ((x, found), value) in X.iter().zip(&found).zip(&values) {
                        assert!((found - value).abs() <= 1e-6 * x.abs().max(1.0), "{kind:?} of {x}: {found} {value}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_class_goes_by_both_of_its_names() {
        for (name, kind) in TorchActivation::ALL {
            for class in [format!("torch.nn.{name}"), format!("torch.nn.modules.activation.{name}")] {
                assert_eq!(TorchActivation::named(&class), Some(kind));
            }
            assert_eq!(TorchActivation::named(&format!("custom.{name}")), None);
        }
        assert_eq!(TorchActivation::named("torch.nn.modules.activation.PReLU"), None);
    }
}
