//! What goes through the network together. Examples of a dataset come in another order each time, those of near lengths in one batch:
//! it then takes about as much time for each of them, and as little memory as it can.

use std::borrow::Cow;
use std::collections::TryReserveError;

use super::super::dataset::Sample;
use super::super::random::Random;
use crate::engine::Model;
use crate::error::{Error, ErrorKind, Result};
use crate::nn::Batch;
use crate::ops::copied;

/// Sequences that the network can take, with at least one target token.
pub(super) struct BatchSequences<'a> {
    ids: Cow<'a, [u32]>,
    lengths: Vec<usize>,
    targets: Vec<bool>,
}

impl<'a> BatchSequences<'a> {
    /// What a caller gives: all tokens one after another, and where each sequence begins and the last ends.
    ///
    /// # Errors
    /// `InvalidArgument` and `ContextFull`, naming the argument, the place and what was found there.
    pub fn new(model: &Model, tokens: &'a [u32], loss_mask: Option<&[bool]>, offsets: &[usize]) -> Result<Self> {
        let lengths = lengths(model, offsets)?;
        let end = lengths.iter().sum::<usize>();
        if end != tokens.len() {
            let (at, tokens) = (offsets.len() - 1, tokens.len());
            return Err(Error::argument(format!("offsets[{at}]: expected the {tokens} tokens, found {end}")));
        }
        let vocab = model.vocab_size();
        if let Some((at, id)) = tokens.iter().enumerate().find(|(_, id)| **id as usize >= vocab) {
            return Err(Error::argument(format!("tokens[{at}]: expected an id below {vocab}, found {id}")));
        }
        let mut targets = match loss_mask {
            Some(mask) if mask.len() != tokens.len() => {
                let (expected, found) = (tokens.len(), mask.len());
                return Err(Error::argument(format!("loss_mask: expected {expected} values, one a token, found {found}")));
            }
            Some(mask) => copied(mask).map_err(|e| no_memory(mask.len(), e))?,
            None => {
                let mut all = room(tokens.len())?;
                all.resize(tokens.len(), true);
                all
            }
        };
        offsets[..offsets.len() - 1].iter().for_each(|&first| targets[first] = false);
        if !targets.contains(&true) {
            let message = "loss_mask: expected a target token behind the first of a sequence, found none";
            return Err(Error::argument(message));
        }
        Ok(Self { ids: tokens.into(), lengths, targets })
    }

    /// Some of a dataset's examples.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn of(samples: &[Sample], which: &[usize]) -> Result<Self> {
        let samples = || which.iter().map(|&i| &samples[i]);
        let lengths: Vec<usize> = samples().map(|sample| sample.ids.len()).collect();
        let len = lengths.iter().sum();
        let (mut ids, mut targets) = (room(len)?, room(len)?);
        samples().for_each(|sample| {
            ids.extend_from_slice(&sample.ids);
            targets.extend_from_slice(&sample.targets);
        });
        Ok(Self { ids: ids.into(), lengths, targets })
    }

    /// What the network takes.
    pub fn batch(&self) -> Batch<'_> {
        Batch { ids: &self.ids, lengths: &self.lengths, targets: &self.targets }
    }

    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Tokens to learn; at least one.
    pub fn target_tokens(&self) -> usize {
        self.targets.iter().filter(|target| **target).count()
    }
}

/// The length of each sequence, before any token is looked at.
///
/// # Errors
/// `InvalidArgument` and `ContextFull`, naming the place and what was found there.
pub(super) fn lengths(model: &Model, offsets: &[usize]) -> Result<Vec<usize>> {
    let &[first, _, ..] = offsets else {
        let found = offsets.len();
        return Err(Error::argument(format!("offsets: expected 0 and the end of each sequence, found {found} values")));
    };
    if first != 0 {
        return Err(Error::argument(format!("offsets[0]: expected 0, found {first}")));
    }
    if let Some(at) = (1..offsets.len()).find(|&at| offsets[at] <= offsets[at - 1]) {
        let (least, found) = (offsets[at - 1], offsets[at]);
        return Err(Error::argument(format!("offsets[{at}]: expected more than {least}, found {found}")));
    }
    let lengths: Vec<usize> = offsets.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let most = model.context_length();
    if let Some((at, length)) = lengths.iter().enumerate().find(|(_, length)| **length > most) {
        let message = format!("sequence {at}: expected at most {most} tokens, the model's context, found {length}");
        return Err(Error::new(ErrorKind::ContextFull, message));
    }
    Ok(lengths)
}

/// Batches whose examples are sorted by length among themselves: enough that lengths are near, few enough that who meets whom in a
/// batch stays chance.
const WINDOW: usize = 50;

/// All examples once, as their numbers. The same seed, lengths and batch size give the same batches.
pub(super) fn batches(lengths: &[usize], batch_size: usize, mut random: Random) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    shuffle(&mut order, &mut random);
    for window in order.chunks_mut(batch_size.saturating_mul(WINDOW)) {
        window.sort_by_key(|&i| lengths[i]);
    }
    let mut batches: Vec<Vec<usize>> = order.chunks(batch_size).map(<[usize]>::to_vec).collect();
    shuffle(&mut batches, &mut random);
    batches
}

/// Fisher and Yates.
fn shuffle<T>(items: &mut [T], random: &mut Random) {
    for i in (1..items.len()).rev() {
        items.swap(i, random.below(i + 1));
    }
}

/// For one of each token.
fn room<T>(tokens: usize) -> Result<Vec<T>> {
    let mut room = Vec::new();
    room.try_reserve_exact(tokens).map_err(|e| no_memory(tokens, e))?;
    Ok(room)
}

fn no_memory(tokens: usize, source: TryReserveError) -> Error {
    Error::new(ErrorKind::OutOfMemory, format!("a batch of {tokens} tokens does not fit the memory")).with_source(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_example_comes_once_in_an_order_of_the_seed() {
        let lengths: Vec<usize> = (0..1003).map(|i| 1 + i * 37 % 101).collect();
        let of = |seed| batches(&lengths, 4, Random::stream(seed, 0));
        let first = of(7);
        assert_eq!((first.len(), first.iter().filter(|batch| batch.len() != 4).count()), (251, 1));
        let mut all = first.concat();
        assert_ne!(all, (0..1003).collect::<Vec<_>>());
        all.sort_unstable();
        assert_eq!(all, (0..1003).collect::<Vec<_>>());
        assert_eq!(of(7), first);
        assert_ne!(of(8), first);
    }

    #[test]
    fn examples_of_a_batch_are_of_near_lengths_and_batches_of_any() {
        let lengths: Vec<usize> = (0..1000).map(|i| 1 + i * 37 % 500).collect();
        let batches = batches(&lengths, 4, Random::stream(3, 0));
        let longest: Vec<usize> = batches.iter().map(|batch| batch.iter().map(|&i| lengths[i]).max().unwrap()).collect();
        let padding = |batch: &Vec<usize>| {
            let longest = batch.iter().map(|&i| lengths[i]).max().unwrap();
            batch.iter().map(|&i| longest - lengths[i]).sum::<usize>()
        };
        let all: usize = lengths.iter().sum();
        assert!(batches.iter().map(padding).sum::<usize>() * 20 < all);
        let rising = longest.windows(2).filter(|pair| pair[0] <= pair[1]).count();
        assert!((80..170).contains(&rising), "{rising}");
    }
}
