//! What a forward pass leaves behind for the way back through it.
//!
//! candle's own graph is not used: it copies every gradient that it passes on, keeps all activations until the end, and asks for the
//! gradients of frozen weights. Here a gradient belongs to one tensor alone and moves, and what a step kept is free once it is done.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use candle_core::{Result, Tensor, TensorId, Var};

use super::{Backend, add_scaled};

/// Where an operation computes, and the tape that it writes to, if the pass is one to go back through.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub backend: &'a Backend,
    pub tape: Option<&'a Tape>,
}

impl<'a> Context<'a> {
    /// Forward alone.
    pub fn forward(backend: &'a Backend) -> Self {
        Self { backend, tape: None }
    }

    /// Notes how the gradient of `output` becomes those of `inputs`, if a gradient of one of them is asked for.
    pub(super) fn record<const N: usize>(
        self,
        inputs: [&Tensor; N],
        output: &Tensor,
        back: impl FnOnce(Tensor) -> Result<[Tensor; N]> + 'static,
    ) {
        let Some(tape) = self.tape else { return };
        let ids = inputs.map(|input| tape.tracks(input).then(|| input.id()));
        if ids.iter().all(Option::is_none) {
            return;
        }
        let (output_id, backend) = (output.id(), self.backend.clone());
        tape.push([output], move |gradients| {
            let Some(gradient) = gradients.take(output_id) else { return Ok(()) };
            for (id, gradient) in ids.into_iter().zip(back(gradient)?) {
                if let Some(id) = id {
                    gradients.add(id, gradient, &backend)?;
                }
            }
            Ok(())
        });
    }

    /// Whether the gradient of a tensor is asked for.
    pub(super) fn tracks(self, x: &Tensor) -> bool {
        self.tape.is_some_and(|tape| tape.tracks(x))
    }
}

type Step = Box<dyn FnOnce(&mut Gradients) -> Result<()>>;

/// The steps of a forward pass.
#[derive(Default)]
pub struct Tape {
    steps: RefCell<Vec<Step>>,
    tracked: RefCell<HashSet<TensorId>>,
}

impl Tape {
    /// Asks for the gradient of a tensor.
    pub fn track(&self, x: &Tensor) {
        self.tracked.borrow_mut().insert(x.id());
    }

    fn tracks(&self, x: &Tensor) -> bool {
        self.tracked.borrow().contains(&x.id())
    }

    /// Adds a step that takes the gradients of `outputs`.
    pub(super) fn push<const N: usize>(&self, outputs: [&Tensor; N], step: impl FnOnce(&mut Gradients) -> Result<()> + 'static) {
        outputs.iter().for_each(|output| self.track(output));
        self.steps.borrow_mut().push(Box::new(step));
    }

    /// Goes back through all steps.
    ///
    /// # Errors
    /// A failed device operation.
    pub fn back(self, gradients: &mut Gradients) -> Result<()> {
        self.steps.into_inner().into_iter().rev().try_for_each(|step| step(gradients))
    }
}

/// The gradient of a trained low-rank change.
#[derive(Debug, Clone)]
pub struct Gradient {
    /// `(R, inputs)`
    pub a: Vec<f32>,
    /// `(outputs, R)`
    pub b: Vec<f32>,
}

/// Gradients on their way. Each is a tensor of its own, in memory that nothing else uses.
#[derive(Default)]
pub struct Gradients {
    of: HashMap<TensorId, Tensor>,
    /// By the number of the change.
    pub trained: HashMap<usize, Gradient>,
}

impl Gradients {
    /// Adds to the gradient of a tensor.
    pub fn add(&mut self, id: TensorId, gradient: Tensor, backend: &Backend) -> Result<()> {
        let sum = match self.of.remove(&id) {
            Some(sum) => add_scaled(Context::forward(backend), &sum, gradient, 1.0, None)?,
            None => gradient,
        };
        self.of.insert(id, sum);
        Ok(())
    }

    /// The gradient of a tensor, which has none from here on.
    pub fn take(&mut self, id: TensorId) -> Option<Tensor> {
        self.of.remove(&id)
    }
}

/// The gradients of the inputs of what candle can differentiate, by computing it a second time.
pub(super) fn by_candle<const N: usize>(
    inputs: [Tensor; N],
    gradient: &Tensor,
    forward: impl FnOnce([&Tensor; N]) -> Result<Tensor>,
) -> Result<[Tensor; N]> {
    let variables = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let output = forward(std::array::from_fn(|i| variables[i].as_tensor()))?;
    let mut store = (output * gradient)?.sum_all()?.backward()?;
    let gradients: Vec<Tensor> = variables
        .iter()
        .map(|variable| store.remove(variable).map_or_else(|| variable.zeros_like(), Ok))
        .collect::<Result<_>>()?;
    Ok(std::array::from_fn(|i| gradients[i].clone()))
}
