//! Parameters of transformers' modules that hold a matrix of each expert, which PEFT changes as one (`target_parameters`).
//!
//! | tensor | shape | an expert's part |
//! | --- | --- | --- |
//! | `lora_A.weight` | `(experts · R, inputs)` | the `R` rows from `expert · R` on |
//! | `lora_B.weight` | `(outputs, R · experts)` | the columns `expert`, `experts + expert`, and so on |
//!
//! A module's parameters are wrapped one in another: the names of an inner one have `.base_layer` for each that lies around it.
//! Source: `ParamWrapper` of PEFT 0.21.

use std::sync::Arc;

use super::Naming;
use super::config::PeftConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::nn::ExpertStack;

/// One that a configuration means.
pub(super) struct TargetedStack {
    pub stack: Arc<ExpertStack>,
    /// What patterns of ranks are compared with: `model.layers.0.mlp.experts.gate_up_proj`.
    pub key: String,
    /// What its tensors are named after: `model.layers.0.mlp.experts.base_layer`.
    pub path: String,
}

/// Those of `stacks` that a configuration means.
pub(super) fn targeted(config: &PeftConfig, naming: &Naming, stacks: &[Arc<ExpertStack>]) -> Vec<TargetedStack> {
    let key = |stack: &ExpertStack, name| format!("{}{}", naming.prefix, stack.path(name));
    let meant = |stack: &Arc<ExpertStack>| {
        let name = (0..stack.names.len()).find(|&name| config.targets_parameter(&key(stack, name)))?;
        Some((stack.clone(), name))
    };
    let all: Vec<_> = stacks.iter().filter_map(meant).collect();
    let module = |(stack, name): &(Arc<ExpertStack>, usize)| stack.names[*name].0.clone();
    let of = |one: &(Arc<ExpertStack>, usize)| {
        let (stack, name) = one;
        let is_around = |other: &&(Arc<ExpertStack>, usize)| module(other) == module(one) && other.0.position > stack.position;
        // Those of one layer lie side by side.
        let around = all.iter().filter(is_around).count();
        let path = format!("{}{}{}", naming.prefix, module(one), ".base_layer".repeat(around));
        TargetedStack { stack: stack.clone(), key: key(stack, *name), path }
    };
    all.iter().map(of).collect()
}

/// `A` and `B` of all experts, of those of each; the rows of a `B` are in the network's order.
pub(super) fn joined(stack: &ExpertStack, rank: usize, each: &[(&[f32], &[f32])]) -> Result<(Vec<f32>, Vec<f32>)> {
    let (count, outputs) = (each.len(), stack.outputs);
    let (mut a, mut b) = (room(count * rank * stack.inputs)?, zeros(outputs * rank * count)?);
    for (expert, (own_a, own_b)) in each.iter().enumerate() {
        a.extend_from_slice(own_a);
        for (output, values) in own_b.chunks_exact(rank).enumerate() {
            let row = &mut b[stack.row(output) * rank * count..][..rank * count];
            values.iter().enumerate().for_each(|(r, value)| row[r * count + expert] = *value);
        }
    }
    Ok((a, b))
}

/// `B` of one expert, its rows in the network's order, of that of all.
pub(super) fn of_expert(stack: &ExpertStack, rank: usize, expert: usize, b: &[f32]) -> Result<Vec<f32>> {
    let (count, mut own) = (stack.linears.len(), room(stack.outputs * rank)?);
    for output in 0..stack.outputs {
        let row = &b[stack.row(output) * rank * count..][..rank * count];
        own.extend((0..rank).map(|r| row[r * count + expert]));
    }
    Ok(own)
}

/// Rows of `cols` values by columns.
pub fn transposed(values: &[f32], cols: usize) -> Result<Vec<f32>> {
    let mut all = room(values.len())?;
    (0..cols).for_each(|col| all.extend(values.iter().skip(col).step_by(cols)));
    Ok(all)
}

fn room(len: usize) -> Result<Vec<f32>> {
    let mut values = Vec::new();
    let no_memory = |e| Error::new(ErrorKind::OutOfMemory, format!("adapter: {len} values do not fit the memory")).with_source(e);
    values.try_reserve_exact(len).map_err(no_memory)?;
    Ok(values)
}

fn zeros(len: usize) -> Result<Vec<f32>> {
    let mut values = room(len)?;
    values.resize(len, 0.0);
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{LinearId, Role};

    #[test]
    fn what_is_joined_and_taken_apart_is_what_it_was() {
        let linears = vec![LinearId::EMBEDDING; 3];
        let stack = |alternates| ExpertStack {
            names: vec![("experts".to_string(), "gate_up_proj")],
            position: 0,
            inputs: 2,
            outputs: 4,
            alternates,
            role: Role::Layer(0),
            linears: linears.clone(),
        };
        let a: Vec<Vec<f32>> = (0..3).map(|expert| (0..4).map(|i| (100 * expert + i) as f32).collect()).collect();
        let b: Vec<Vec<f32>> = (0..3).map(|expert| (0..8).map(|i| (100 * expert + i) as f32).collect()).collect();
        let each: Vec<_> = a.iter().zip(&b).map(|(a, b)| (a.as_slice(), b.as_slice())).collect();
        for alternates in [false, true] {
            let stack = stack(alternates);
            let (all_a, all_b) = joined(&stack, 2, &each).unwrap();
            assert_eq!(all_a, a.concat());
            // The first row is the first output of gate either way; the second that of up, or the next one.
            assert_eq!(all_b[..6], [0.0, 100.0, 200.0, 1.0, 101.0, 201.0]);
            assert_eq!(all_b[6], if alternates { 4.0 } else { 2.0 });
            for (expert, b) in b.iter().enumerate() {
                assert_eq!(of_expert(&stack, 2, expert, &all_b).unwrap(), *b);
            }
        }
    }
}
