//! Weights as a network asks for them: below a place, with the norms and biases that its configuration declares. Every matrix gets
//! its id here, and the stored modules that it is made of are noted.

use std::collections::HashMap;
use std::sync::Arc;

use super::config::{Bias, Name, NormConfig, NormParts};
use super::linear::{ExpertStack, Linear, LinearId, Module, Restored, Role, StoredStack};
use super::mix::Part;
use super::{Slot, Weights};
use crate::error::Result;
use crate::ops::{Convolution, Matrix, Norm, Vector};

pub struct Loader<'a, 'w> {
    pub weights: &'a mut Weights<'w>,
    norm: NormConfig,
    /// What stored norms have more than those of the family.
    raised: f32,
    /// What stands in front of every name of the network.
    prefix: String,
    /// And behind it, of the layer that is read.
    place: String,
    role: Role,
    of_experts: bool,
    /// The number of the layer that is read, and how many there are.
    depth: (usize, usize),
    modules: Vec<Module>,
    /// Stacks of matrices that were read.
    stored_stacks: Vec<StoredStack>,
    stacks: Vec<Arc<ExpertStack>>,
    restored: Vec<Restored>,
    /// Of the experts that are read, by their names.
    stacked_biases: HashMap<String, Vec<f32>>,
    next_linear: usize,
    next_state: usize,
}

impl<'a, 'w> Loader<'a, 'w> {
    /// `raised` is what MLX's converter has added to norms.
    pub fn new(weights: &'a mut Weights<'w>, (norm, raised): (NormConfig, f32), prefix: &str) -> Self {
        let place = String::new();
        let next_linear = LinearId::EMBEDDING.0 + 1;
        Self {
            weights,
            norm,
            raised,
            prefix: prefix.to_string(),
            place,
            role: Role::Beside,
            of_experts: false,
            depth: (0, 1),
            modules: Vec::new(),
            stored_stacks: Vec::new(),
            stacks: Vec::new(),
            restored: Vec::new(),
            stacked_biases: HashMap::new(),
            next_linear,
            next_state: 0,
        }
    }

    /// Reads this layer of so many from here on.
    pub fn enter_layer(&mut self, number: usize, layers: usize, name: &str) {
        self.depth = (number, layers);
        self.place = format!("{name}.");
        self.role = Role::Layer(number);
    }

    /// Reads what belongs to no layer from here on.
    pub fn leave_layers(&mut self) {
        self.place.clear();
        self.role = Role::Beside;
    }

    /// Reads experts, and what chooses among them, from here on.
    pub fn enter_experts(&mut self) {
        self.of_experts = true;
    }

    /// Reads no more of them.
    pub fn leave_experts(&mut self) {
        self.of_experts = false;
        self.stacked_biases.clear();
    }

    /// The full name of a tensor.
    pub fn at(&self, name: &str) -> String {
        format!("{}{}{name}", self.prefix, self.place)
    }

    /// The number of the next mixer, which is that of its state.
    pub fn next_state(&mut self) -> usize {
        self.next_state += 1;
        self.next_state - 1
    }

    /// A norm as all of the network are.
    pub fn norm(&mut self, name: Name, width: usize) -> Result<Norm> {
        let NormConfig { kind, eps, offset, parts } = self.norm;
        let (weight, bias) = match parts {
            NormParts::Nothing => (false, false),
            NormParts::Weight => (true, false),
            NormParts::WeightAndBias => (true, true),
        };
        let name = self.at(name);
        if weight {
            self.restore_norm(format!("{name}.weight"));
        }
        let mut vector = |wanted: bool, field: &str, offset| {
            wanted.then(|| self.weights.vector(&format!("{name}.{field}"), width, offset)).transpose()
        };
        Ok(Norm { kind, eps, width, weight: vector(weight, "weight", offset)?, bias: vector(bias, "bias", 0.0)? })
    }

    /// A norm where there is one.
    pub fn optional_norm(&mut self, name: Option<Name>, width: usize) -> Result<Option<Norm>> {
        name.map(|name| self.norm(name, width)).transpose()
    }

    /// A norm of `width` values with a weight alone, of these stored parts.
    pub fn norm_of(&mut self, parts: &[(String, usize)], width: usize) -> Result<Norm> {
        let NormConfig { kind, eps, offset, .. } = self.norm;
        let parts: Vec<_> = parts.iter().map(|(name, len)| (format!("{}.weight", self.at(name)), *len)).collect();
        parts.iter().for_each(|(name, _)| self.restore_norm(name.clone()));
        Ok(Norm { kind, eps, width, weight: Some(self.weights.vector_of(&parts, offset)?), bias: None })
    }

    /// A norm with a weight alone, which is as it is stored, whatever other norms add to theirs.
    pub fn plain_norm(&mut self, name: Name, width: usize) -> Result<Norm> {
        let NormConfig { kind, eps, .. } = self.norm;
        let weight = self.weights.vector(&format!("{}.weight", self.at(name)), width, 0.0)?;
        Ok(Norm { kind, eps, width, weight: Some(weight), bias: None })
    }

    /// A norm without a weight.
    pub fn bare_norm(&self, width: usize) -> Norm {
        let NormConfig { kind, eps, .. } = self.norm;
        Norm { kind, eps, width, weight: None, bias: None }
    }

    /// Tensors that some checkpoints hold below this place, and nothing reads.
    pub fn skip(&mut self, names: &[Name]) {
        for name in names {
            let name = self.at(name);
            self.weights.skip(&name);
        }
    }

    /// The number of the layer that is read.
    pub fn layer(&self) -> usize {
        self.depth.0
    }

    /// A tensor of this full name as numbers; nothing in a dry run.
    pub fn values(&mut self, name: Name, len: usize) -> Result<Vec<f32>> {
        self.weights.values(&[(self.at(name), len)])
    }

    /// A convolution of each channel, stored as `(channels, 1, taps)`.
    pub fn convolution(&mut self, name: Name, channels: usize, taps: usize, bias: Bias) -> Result<Convolution> {
        let name = self.at(name);
        let full = format!("{name}.weight");
        let stored = self.weights.values(&[(full.clone(), channels * taps)])?;
        if taps > 1 && self.weights.shape(&full) == [channels, taps, 1] {
            let (shape, pieces) = (vec![channels, 1, taps], vec![(full.clone(), 0..channels * taps)]);
            self.restore(Restored { name: full, shape, pieces, each: taps, plus: 0.0 });
        }
        let weight = Vector::new(Convolution::by_taps(&stored, taps), self.weights.backend())?;
        let bias = match bias {
            Bias::None => None,
            Bias::Stored => Some(self.weights.vector(&format!("{name}.bias"), channels, 0.0)?),
        };
        Ok(Convolution { taps, channels, weight, bias })
    }

    /// The same of inputs times these factors, each of so many neighbouring channels.
    pub fn scaled_convolution(&self, conv: Convolution, factors: &[(usize, f32)]) -> Result<Convolution> {
        if factors.iter().all(|(_, factor)| *factor == 1.0) {
            return Ok(conv);
        }
        let of_channels: Vec<f32> = factors.iter().flat_map(|(count, factor)| vec![*factor; *count]).collect();
        let mut taps = conv.weight.values()?;
        // Nothing in a dry run.
        for tap in taps.chunks_exact_mut(conv.channels) {
            tap.iter_mut().zip(&of_channels).for_each(|(x, factor)| *x *= factor);
        }
        Ok(Convolution { weight: Vector::new(taps, self.weights.backend())?, ..conv })
    }

    /// Several stored projections of `inputs` values as one matrix.
    pub fn linear(&mut self, slots: &[(&Slot, Part)], inputs: usize, bias: Bias) -> Result<Linear> {
        let (slots, parts): (Vec<&Slot>, Vec<Part>) = slots.iter().copied().unzip();
        let id = self.note(&slots, &parts, inputs, bias);
        let slots: Vec<Slot> = slots.iter().map(|slot| slot.below(&self.at(""))).collect();
        let weight = self.weights.matrix_of(&slots, &parts, self.depth, inputs)?;
        let bias = match bias {
            Bias::None => None,
            Bias::Stored => Some(self.bias(&slots)?),
        };
        Ok(Linear { id, weight, bias })
    }

    /// The output matrix, which has a prefix of its own, and may be a matrix that is there already.
    pub fn head(
        &mut self,
        (prefix, name): (&str, Name),
        outputs: usize,
        inputs: usize,
        bias: Bias,
        shared: Option<&Matrix>,
    ) -> Result<Linear> {
        self.role = Role::Head;
        let slot = Slot::whole(name, outputs);
        let (id, slot) = (self.note(&[&slot], &[Part::Output], inputs, bias), slot.below(prefix));
        let weight = match shared {
            Some(shared) => shared.clone(),
            None => self.weights.matrix_of(std::slice::from_ref(&slot), &[Part::Output], self.depth, inputs)?,
        };
        let bias = match bias {
            Bias::None => None,
            Bias::Stored => Some(self.bias(&[slot])?),
        };
        Ok(Linear { id, weight, bias })
    }

    /// The biases of slots, in the order of their rows; parts of one tensor share its bias, which is read once.
    fn bias(&mut self, slots: &[Slot]) -> Result<Vector> {
        let (mut bias, mut read) = (Vec::new(), HashMap::new());
        for slot in slots {
            let name = format!("{}.bias", slot.name.strip_suffix(".weight").filter(|_| slot.is_stack).unwrap_or(&slot.name));
            // Those of a stack are read for one expert and kept for the others.
            let read = if slot.is_stack { &mut self.stacked_biases } else { &mut read };
            if !read.contains_key(&name) {
                read.insert(name.clone(), self.weights.values(&[(name.clone(), slot.total())])?);
            }
            // Nothing in a dry run.
            let values = read.get(&name).map_or(&[][..], Vec::as_slice);
            bias.extend(slot.ranges().filter_map(|rows| values.get(rows)).flatten());
        }
        Ok(Vector::new(bias, self.weights.backend())?)
    }

    /// Notes the stored modules of a matrix; returns its id.
    fn note(&mut self, slots: &[&Slot], parts: &[Part], inputs: usize, bias: Bias) -> LinearId {
        let linear = LinearId(self.next_linear);
        self.next_linear += 1;
        // Matrices of a stack are no modules of their own.
        if slots.iter().any(|slot| slot.is_stack) {
            let mut start = 0;
            for (slot, part) in slots.iter().zip(parts) {
                let (name, role) = (self.at(&slot.name), self.role);
                // The experts of a layer are read one after another.
                let first = self.stored_stacks.len().saturating_sub(STACKS);
                let known = (first..self.stored_stacks.len()).find(|&at| self.stored_stacks[at].name == name);
                let at = known.unwrap_or_else(|| {
                    self.stored_stacks.push(StoredStack { name, inputs, role, part: *part, pieces: Vec::new() });
                    self.stored_stacks.len() - 1
                });
                for rows in slot.ranges() {
                    let len = rows.len();
                    self.stored_stacks[at].pieces.push((rows, linear, start));
                    start += len;
                }
            }
            return linear;
        }
        let (first, mut start) = (self.modules.len(), 0);
        for (slot, part) in slots.iter().zip(parts) {
            let name = format!("{}{}", self.place, slot.name);
            let known = (first..self.modules.len()).find(|&at| self.modules[at].name == name);
            let at = known.unwrap_or_else(|| {
                let bias = bias == Bias::Stored;
                self.modules.push(Module {
                    name,
                    inputs,
                    outputs: slot.total(),
                    bias,
                    role: self.role,
                    of_experts: self.of_experts,
                    part: *part,
                    linear,
                    parts: Vec::new(),
                    stack: None,
                });
                self.modules.len() - 1
            });
            for rows in slot.ranges() {
                let len = rows.len();
                self.modules[at].add(rows, start);
                start += len;
            }
        }
        linear
    }

    /// A name in the layer that is read, without the prefix.
    pub fn in_layer(&self, name: &str) -> String {
        format!("{}{name}", self.place)
    }

    /// Where what is read stands.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Notes what stored tensors were before MLX's converter.
    pub fn restore(&mut self, restored: Restored) {
        self.restored.push(restored);
    }

    fn restore_norm(&mut self, name: String) {
        if self.raised != 0.0 {
            let shape = self.weights.shape(&name).to_vec();
            let pieces = vec![(name.clone(), 0..shape.iter().product())];
            let each = shape.last().copied().filter(|_| shape.len() > 1).unwrap_or(1);
            self.restore(Restored { name, shape, pieces, each, plus: -self.raised });
        }
    }

    /// Notes that transformers has matrices, one an expert, as one parameter.
    pub fn note_stack(&mut self, stack: ExpertStack) {
        self.stacks.push(Arc::new(stack));
    }

    /// The embedding's module, and all that were noted, in the order in which they were read.
    pub fn into_noted(self, embed: Name, vocab_size: usize, hidden_size: usize) -> Noted {
        let embedding = Module {
            name: embed.to_string(),
            inputs: hidden_size,
            outputs: vocab_size,
            bias: false,
            role: Role::Embedding,
            of_experts: false,
            part: Part::Output,
            linear: LinearId::EMBEDDING,
            parts: vec![(0..vocab_size, 0)],
            stack: None,
        };
        let modules = std::iter::once(embedding).chain(self.modules).collect();
        Noted { modules, stacks: self.stacks, stored_stacks: self.stored_stacks, restored: self.restored }
    }
}

/// At most so many stored tensors hold the experts of a layer.
const STACKS: usize = 3;

/// What was read.
pub struct Noted {
    pub modules: Vec<Module>,
    pub stacks: Vec<Arc<ExpertStack>>,
    pub stored_stacks: Vec<StoredStack>,
    pub restored: Vec<Restored>,
}
