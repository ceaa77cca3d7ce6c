//! Which experts a token goes to. A token chooses by its own logits alone, and the products and sums behind the choice round one by one:
//! the choice is the same on every processor.

use super::math::exp_unfused;

/// How logits become scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    Softmax,
    Sigmoid,
}

/// How a token chooses.
#[derive(Clone, Copy)]
pub struct RouteBy<'a> {
    /// Experts of a token.
    pub top_k: usize,
    pub scoring: Scoring,
    /// Weights are divided by their sum and this number; `None` = they are the scores.
    pub normalise: Option<f32>,
    /// Factor of the weights.
    pub scale: f32,
    /// Added to the scores for the choice alone; as many as there are experts.
    pub bias: Option<&'a [f32]>,
    /// Of each expert's weights.
    pub factors: Option<&'a [f32]>,
    /// Of how many equal groups of neighbours so many are chosen from: those whose two best have the largest sum. (1, 1) = from all.
    pub groups: (usize, usize),
}

impl RouteBy<'_> {
    fn scores(&self, logits: &[f32]) -> Vec<f32> {
        match self.scoring {
            Scoring::Sigmoid => logits.iter().map(|x| 1.0 / (1.0 + exp_unfused(-x))).collect(),
            Scoring::Softmax => {
                let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let scores: Vec<f32> = logits.iter().map(|x| exp_unfused(x - max)).collect();
                let sum: f32 = scores.iter().sum();
                scores.iter().map(|x| x / sum).collect()
            }
        }
    }

    /// What an expert's score is multiplied with, but for the sum.
    fn factor(&self, expert: usize) -> f32 {
        self.factors.map_or(self.scale, |factors| self.scale * factors[expert])
    }

    /// Which experts lie in the groups that are chosen from.
    fn open(&self, choice: &[f32]) -> Vec<bool> {
        let (count, chosen) = self.groups;
        let size = choice.len() / count;
        let best_two = |group: &[f32]| {
            let best = |of: &dyn Fn(usize) -> bool| {
                let left = (0..size).filter(|&i| of(i));
                left.reduce(|best, i| if group[i] > group[best] || group[best].is_nan() { i } else { best })
            };
            let first = best(&|_| true);
            let second = best(&|i| Some(i) != first);
            first.into_iter().chain(second).map(|i| group[i]).sum::<f32>()
        };
        let sums: Vec<f32> = choice.chunks_exact(size).map(best_two).collect();
        let mut is_open = vec![false; count];
        for _ in 0..chosen {
            let left = (0..count).filter(|&i| !is_open[i]);
            if let Some(best) = left.reduce(|best, i| if sums[i] > sums[best] || sums[best].is_nan() { i } else { best }) {
                is_open[best] = true;
            }
        }
        (0..choice.len()).map(|i| is_open[i / size]).collect()
    }

    /// The sum that weights are divided by.
    fn total(&self, scores: &[f32], is_chosen: impl Fn(usize) -> bool) -> f32 {
        let sum = |eps| (0..scores.len()).filter(|&i| is_chosen(i)).map(|i| scores[i]).sum::<f32>() + eps;
        self.normalise.map_or(1.0, sum)
    }
}

/// The weights of one token's experts, in `weights` as far as they are chosen; tells these, the best first.
pub fn route(logits: &[f32], by: &RouteBy<'_>, weights: &mut [f32], mut chosen: impl FnMut(usize)) {
    assert!(by.top_k <= logits.len() && weights.len() == logits.len(), "a weight for each expert");
    let fits = |numbers: Option<&[f32]>| numbers.is_none_or(|numbers| numbers.len() == logits.len());
    assert!(fits(by.bias) && fits(by.factors), "a bias and a factor for each expert");
    let (groups, chosen_groups) = by.groups;
    assert!(groups > 0 && logits.len().is_multiple_of(groups) && chosen_groups <= groups, "whole groups of experts");
    assert!(by.top_k <= logits.len() / groups * chosen_groups, "as many experts as are chosen in the groups that are");
    let scores = by.scores(logits);
    let choice = |i: usize| by.bias.map_or(scores[i], |bias| scores[i] + bias[i]);
    let is_open = if groups == 1 { None } else { Some(by.open(&(0..logits.len()).map(choice).collect::<Vec<_>>())) };
    let mut is_chosen = vec![false; logits.len()];
    for _ in 0..by.top_k {
        let left = (0..logits.len()).filter(|&i| !is_chosen[i] && is_open.as_ref().is_none_or(|is_open| is_open[i]));
        // Of equal ones the first; what is no number comes last.
        let best = left.reduce(|best, i| if choice(i) > choice(best) || choice(best).is_nan() { i } else { best });
        if let Some(best) = best {
            is_chosen[best] = true;
            chosen(best);
        }
    }
    let total = by.total(&scores, |i| is_chosen[i]);
    for (i, weight) in weights.iter_mut().enumerate() {
        *weight = if is_chosen[i] { scores[i] / total * by.factor(i) } else { 0.0 };
    }
}

/// Turns the gradient of one token's weights into that of its logits. The choice has none.
pub fn route_backward(logits: &[f32], by: &RouteBy<'_>, is_chosen: &[bool], gradient: &mut [f32]) {
    let scores = by.scores(logits);
    let total = by.total(&scores, |i| is_chosen[i]);
    for (i, gradient) in gradient.iter_mut().enumerate() {
        *gradient = if is_chosen[i] { *gradient * by.factor(i) } else { 0.0 };
    }
    if by.normalise.is_some() {
        let mean: f32 = gradient.iter().zip(&scores).map(|(d, s)| d * s / total).sum();
        let chosen = gradient.iter_mut().zip(is_chosen).filter(|(_, is_chosen)| **is_chosen);
        chosen.for_each(|(d, _)| *d = (*d - mean) / total);
    }
    match by.scoring {
        Scoring::Sigmoid => gradient.iter_mut().zip(&scores).for_each(|(d, s)| *d *= s * (1.0 - s)),
        Scoring::Softmax => {
            let mean: f32 = gradient.iter().zip(&scores).map(|(d, s)| d * s).sum();
            gradient.iter_mut().zip(&scores).for_each(|(d, s)| *d = s * (*d - mean));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(logits: &[f32], by: &RouteBy<'_>) -> (Vec<usize>, Vec<f32>) {
        let (mut weights, mut chosen) = (vec![f32::NAN; logits.len()], Vec::new());
        route(logits, by, &mut weights, |expert| chosen.push(expert));
        (chosen, weights)
    }

    #[test]
    fn a_token_goes_to_the_best_by_the_formula() {
        let by = RouteBy {
            top_k: 2,
            scoring: Scoring::Softmax,
            normalise: Some(0.0),
            scale: 1.0,
            bias: None,
            factors: None,
            groups: (1, 1),
        };
        let (chosen, weights) = routed(&[0.5, 2.0, -1.0, 1.0], &by);
        let (a, b) = (2f32.exp(), 1f32.exp());
        assert_eq!(chosen, [1, 3]);
        assert!((weights[1] - a / (a + b)).abs() < 1e-6 && (weights[3] - b / (a + b)).abs() < 1e-6);
        assert_eq!([weights[0], weights[2]], [0.0; 2]);
        // The scores themselves.
        let sum: f32 = [0.5f32, 2.0, -1.0, 1.0].iter().map(|x| x.exp()).sum();
        let (_, weights) = routed(&[0.5, 2.0, -1.0, 1.0], &RouteBy { normalise: None, scale: 3.0, ..by });
        assert!((weights[1] - 3.0 * a / sum).abs() < 1e-6);
        // A bias decides the choice, and no weight.
        let bias = [9.0, 0.0, 0.0, 0.0];
        let by = RouteBy { scoring: Scoring::Sigmoid, normalise: Some(1e-6), bias: Some(&bias), ..by };
        let (chosen, weights) = routed(&[-3.0, 2.0, -1.0, 1.0], &by);
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        assert_eq!(chosen, [0, 1]);
        assert!((weights[0] - sigmoid(-3.0) / (sigmoid(-3.0) + sigmoid(2.0) + 1e-6)).abs() < 1e-6);
    }

    #[test]
    fn factors_are_those_of_the_weights_alone() {
        let by = RouteBy {
            top_k: 2,
            scoring: Scoring::Softmax,
            normalise: Some(0.0),
            scale: 2.0,
            bias: None,
            factors: None,
            groups: (1, 1),
        };
        let (_, plain) = routed(&[0.5, 2.0, -1.0, 1.0], &by);
        let (chosen, weights) = routed(&[0.5, 2.0, -1.0, 1.0], &RouteBy { factors: Some(&[9.0, 0.5, 9.0, 3.0]), ..by });
        assert_eq!((chosen, weights), (vec![1, 3], vec![0.0, plain[1] * 0.5, 0.0, plain[3] * 3.0]));
    }

    #[test]
    fn experts_are_chosen_of_the_groups_whose_two_best_are() {
        let by = RouteBy {
            top_k: 2,
            scoring: Scoring::Sigmoid,
            normalise: None,
            scale: 1.0,
            bias: None,
            factors: None,
            groups: (3, 1),
        };
        // The largest of all lies in a group whose second is small.
        let logits = [3.0, -4.0, -3.0, 1.0, 0.5, 0.9, 0.7, -1.0, 0.6];
        assert_eq!(routed(&logits, &by).0, [3, 5]);
        assert_eq!(routed(&logits, &RouteBy { groups: (3, 2), ..by }).0, [3, 5], "of the first and the last two");
        assert_eq!(routed(&logits, &RouteBy { groups: (3, 3), ..by }).0, [0, 3]);
        assert_eq!(routed(&logits, &RouteBy { groups: (9, 9), ..by }).0, [0, 3], "groups of one");
        // A bias is a part of what groups are chosen by.
        let bias = [0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let (chosen, weights) = routed(&logits, &RouteBy { bias: Some(&bias), ..by });
        assert_eq!(chosen, [1, 0]);
        assert!((weights[1] - 1.0 / (1.0 + 4f32.exp())).abs() < 1e-6);
    }

    #[test]
    fn of_equal_ones_the_first_is_chosen_and_what_is_no_number_last() {
        let by = RouteBy {
            top_k: 3,
            scoring: Scoring::Sigmoid,
            normalise: None,
            scale: 1.0,
            bias: None,
            factors: None,
            groups: (1, 1),
        };
        assert_eq!(routed(&[1.0; 5], &by).0, [0, 1, 2]);
        assert_eq!(routed(&[f32::NAN, 1.0, 2.0, 3.0], &by).0, [3, 2, 1]);
        assert_eq!(routed(&[f32::NAN; 4], &by).0.len(), 3);
    }
}
