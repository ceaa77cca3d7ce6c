//! The numbers of training: of each parameter its value, its gradient and two moments.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::{Result, Tensor};

use super::cpu::parameters as cpu;
use super::matrix::f32_matrix;
use super::tensors::parameters as tensors;
use super::{Backend, DeviceMatrix, Matrix, On, to_f32};
use crate::kernels::AdamW;

/// One number for each parameter, one after another: F32, where the network computes.
pub type ParameterValues = On<Vec<f32>, Tensor>;

impl ParameterValues {
    /// # Errors
    /// A failed upload.
    pub fn new(values: Vec<f32>, backend: &Backend) -> Result<Self> {
        Ok(match backend {
            Backend::Cpu => Self::Cpu(values),
            Backend::Tensors(device) => Self::Tensors(tensors::new(values, device)?),
        })
    }

    /// # Errors
    /// If there is no memory for them.
    pub fn zeros(len: usize, backend: &Backend) -> Result<Self> {
        Self::new(cpu::zeros(len)?, backend)
    }

    /// All of these, one after another.
    ///
    /// # Errors
    /// If there is no memory for them; if another backend made one of them.
    pub fn concat(parts: Vec<Self>, backend: &Backend) -> Result<Self> {
        match backend {
            Backend::Cpu => {
                let parts = parts.into_iter().map(Self::into_cpu).collect::<Result<_>>()?;
                cpu::concat(parts).map(Self::Cpu)
            }
            Backend::Tensors(_) => {
                let parts = parts.iter().map(Self::tensors).collect::<Result<Vec<_>>>()?;
                tensors::concat(&parts).map(Self::Tensors)
            }
        }
    }

    fn into_cpu(self) -> Result<Vec<f32>> {
        match self {
            Self::Cpu(values) => Ok(values),
            other => other.cpu().cloned(),
        }
    }

    /// The values, if they are on the CPU: reading them is then no work of a device.
    pub fn on_cpu(&self) -> Option<&[f32]> {
        self.cpu().ok().map(Vec::as_slice)
    }

    /// The values on the CPU.
    ///
    /// # Errors
    /// A failed device operation.
    pub fn values(&self) -> Result<Cow<'_, [f32]>> {
        match self {
            Self::Cpu(values) => Ok(values.into()),
            Self::Tensors(tensor) => to_f32(tensor).map(Cow::Owned),
        }
    }

    /// Some of them as a matrix of rows of `cols` values, as a product reads it.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn matrix(&self, range: Range<usize>, cols: usize) -> Result<Matrix> {
        match self {
            Self::Cpu(values) => f32_matrix(&values[range], cols),
            Self::Tensors(tensor) => Ok(Matrix::Tensors(DeviceMatrix::Dense(tensors::matrix(tensor, range, cols)?))),
        }
    }

    /// All times `factor`, plus those of `sum` where there is one.
    ///
    /// # Errors
    /// A failed device operation; if another backend made `sum`.
    pub fn scaled(self, factor: f32, sum: Option<&Self>) -> Result<Self> {
        match self {
            Self::Cpu(values) => Ok(Self::Cpu(cpu::scaled(values, factor, sum.map(Self::cpu).transpose()?))),
            Self::Tensors(tensor) => tensors::scaled(&tensor, factor, sum.map(Self::tensors).transpose()?).map(Self::Tensors),
        }
    }

    /// The Euclidean length; not finite if a value is not.
    ///
    /// # Errors
    /// A failed device operation.
    pub fn norm(&self) -> Result<f64> {
        match self {
            Self::Cpu(values) => Ok(cpu::norm(values)),
            Self::Tensors(tensor) => tensors::norm(tensor),
        }
    }
}

/// Parameters and the moments of their optimizer, all of one length.
pub struct Optimized {
    pub values: ParameterValues,
    /// Of the gradient.
    pub first: ParameterValues,
    /// Of its square; never negative.
    pub second: ParameterValues,
}

impl Optimized {
    /// Parameters before their first step.
    ///
    /// # Errors
    /// If there is no memory for the moments.
    pub fn new(values: Vec<f32>, backend: &Backend) -> Result<Self> {
        let zeros = || ParameterValues::zeros(values.len(), backend);
        let (first, second) = (zeros()?, zeros()?);
        Ok(Self { values: ParameterValues::new(values, backend)?, first, second })
    }

    /// One step of AdamW by a gradient, which is `gradient` times `clip`.
    ///
    /// # Errors
    /// A failed device operation, if another backend made the gradient: nothing has changed then.
    pub fn step(&mut self, adam: &AdamW, gradient: &ParameterValues, clip: f32) -> Result<()> {
        match (&mut self.values, &mut self.first, &mut self.second) {
            (On::Cpu(values), On::Cpu(first), On::Cpu(second)) => {
                cpu::adamw(adam, values, gradient.cpu()?, clip, (first, second));
            }
            (values, first, second) => {
                let moments = (first.tensors()?, second.tensors()?);
                let after = tensors::adamw(adam, values.tensors()?, gradient.tensors()?, clip, moments)?;
                [*values, *first, *second] = after.map(On::Tensors);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize, mut seed: u32) -> Vec<f32> {
        let next = |_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(next).collect()
    }

    const BACKENDS: [Backend; 2] = [Backend::Cpu, Backend::TENSORS_ON_CPU];

    #[test]
    fn both_backends_take_the_same_steps() {
        let len = 5000;
        for beta1 in [0.3, 0.9] {
            let steps = BACKENDS.map(|backend| {
                let mut state = Optimized::new(noise(len, 1), &backend).unwrap();
                for step in 1..4 {
                    let gradient = ParameterValues::new(noise(len, 10 + step), &backend).unwrap();
                    let (beta2, epsilon, weight_decay, learning_rate) = (0.99, 1e-6, 0.1, 0.01);
                    let adam = AdamW { beta1, beta2, epsilon, weight_decay, learning_rate, step: step.into() };
                    state.step(&adam, &gradient, 0.7).unwrap();
                }
                [state.values, state.first, state.second].map(|values| values.values().unwrap().to_vec())
            });
            let [kernel, tensors] = steps.each_ref().map(|state| state.iter().flatten());
            // A tensor is divided by a number as it is multiplied with the inverse.
            assert!(kernel.zip(tensors).all(|(x, y)| (x - y).abs() <= 1e-6 * x.abs().max(0.1)));
            assert_ne!(steps[0][0], noise(len, 1));
        }
    }

    #[test]
    fn a_gradient_without_bounds_leaves_finite_moments() {
        for backend in &BACKENDS {
            let mut state = Optimized::new(vec![1.0], backend).unwrap();
            let gradient = ParameterValues::new(vec![1e30], backend).unwrap();
            let (beta1, beta2, epsilon, weight_decay, learning_rate) = (0.9, 0.999, 1e-8, 0.0, 0.1);
            let adam = AdamW { beta1, beta2, epsilon, weight_decay, learning_rate, step: 1 };
            state.step(&adam, &gradient, 1.0).unwrap();
            assert_eq!(*state.second.values().unwrap(), [f32::MAX], "{backend:?}");
        }
    }

    #[test]
    fn sums_and_lengths_are_those_by_hand() {
        for backend in &BACKENDS {
            let values = |values: &[f32]| ParameterValues::new(values.to_vec(), backend).unwrap();
            let all = ParameterValues::concat(vec![values(&[3.0]), values(&[-4.0, 12.0])], backend).unwrap();
            let is_long = |values: &ParameterValues, want: f64| {
                let found = values.norm().unwrap();
                assert!((found - want).abs() <= 1e-6 * want, "{backend:?}: {found} {want}");
            };
            is_long(&all, 13.0);
            let sum = all.scaled(0.5, Some(&values(&[1.0, 2.0, 3.0]))).unwrap();
            assert_eq!(*sum.values().unwrap(), [2.5, 0.0, 9.0], "{backend:?}");
            assert_eq!(sum.matrix(1..3, 1).unwrap().rows(0..2).unwrap(), [0.0, 9.0], "{backend:?}");
            // Squares beyond F32, and more values than a block of the sum.
            is_long(&values(&vec![1e30; 4900]), 70e30);
            is_long(&values(&[0.0; 7]), 0.0);
            for odd in [f32::NAN, f32::INFINITY] {
                for others in [0.0, 1.0] {
                    let mut found = vec![others; 2000];
                    found[1500] = odd;
                    assert!(!values(&found).norm().unwrap().is_finite(), "{backend:?}: {odd} among {others}");
                }
            }
        }
    }
}
