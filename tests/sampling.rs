//! The sampler against transformers' logits processors and a naive chain.

use metal_candle::{ErrorKind, Sampler, Sampling, SamplingOptions};
use proptest::prelude::*;
use serde_json::Value as Json;

fn numbers(json: &Json) -> Vec<f32> {
    json.as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
}

fn ids(json: &Json) -> Vec<u32> {
    json.as_array().map_or_else(Vec::new, |ids| ids.iter().map(|id| id.as_u64().unwrap() as u32).collect())
}

/// A golden case's settings, row, context and answer.
fn golden_case(case: &Json) -> (Sampling, Vec<f32>, Vec<u32>, Vec<u32>) {
    let mut sampling = Sampling::default().temperature(1.0);
    let (mut context, mut generated) = (Vec::new(), Vec::new());
    for (name, value) in case["params"].as_object().unwrap() {
        let number = value.as_f64().unwrap_or_default() as f32;
        match name.as_str() {
            "temperature" => sampling.temperature = number,
            "top_k" => sampling.top_k = number as usize,
            "top_p" => sampling.top_p = number,
            "min_p" => sampling.min_p = number,
            "repetition_penalty" => sampling.repetition_penalty = number,
            "frequency_penalty" => sampling.frequency_penalty = number,
            "presence_penalty" => sampling.presence_penalty = number,
            "context" => context = ids(value),
            "generated" => generated = ids(value),
            other => panic!("{other}"),
        }
    }
    (sampling, numbers(&case["logits"]), context, generated)
}

#[test]
fn kept_tokens_and_probabilities_equal_those_of_transformers() {
    let golden: Json = serde_json::from_str(include_str!("golden/sampling.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 44);
    for case in cases {
        let name = &case["name"];
        let (sampling, logits, context, generated) = golden_case(case);
        let mut sampler = Sampler::new(sampling.clone(), logits.len()).unwrap();
        let kept = sampler.distribution(&logits, &context, &generated).unwrap().to_vec();
        let expected = case["probs"].as_object().unwrap();
        if case["any_ids"] == true {
            assert_eq!(kept.len(), expected.len(), "{name}");
            assert!(
                kept.iter().zip(expected.values()).all(|(kept, p)| (f64::from(kept.1) - p.as_f64().unwrap()).abs() <= 1e-6),
                "{name}"
            );
        } else {
            assert_eq!(kept.iter().map(|kept| kept.0).collect::<Vec<_>>(), ids(&case["kept"]), "{name}");
            for (id, probability) in kept {
                let expected = expected[&id.to_string()].as_f64().unwrap();
                assert!((f64::from(probability) - expected).abs() <= 1e-6, "{name}: token {id}: {probability} {expected}");
            }
            let mut greedy = Sampler::new(sampling.temperature(0.0), logits.len()).unwrap();
            let id = greedy.sample(&logits, &context, &generated).unwrap().0;
            assert_eq!(Some(u64::from(id)), case["greedy"].as_u64(), "{name}");
        }
    }
}

/// The chain as its definition reads: sort everything, F64 throughout.
fn naive(sampling: &Sampling, logits: &[f32], context: &[u32], generated: &[u32]) -> Vec<(u32, f64)> {
    let mut logits = logits.to_vec();
    let all: Vec<u32> = context.iter().chain(generated).copied().collect();
    let window = if sampling.repetition_last_n == 0 { all.len() } else { sampling.repetition_last_n.min(all.len()) };
    for (id, logit) in logits.iter_mut().enumerate() {
        let id = id as u32;
        if all[all.len() - window..].contains(&id) && sampling.repetition_penalty != 1.0 {
            *logit = if *logit > 0.0 { *logit / sampling.repetition_penalty } else { *logit * sampling.repetition_penalty };
        }
        let count = generated.iter().filter(|&&other| other == id).count();
        if count > 0 {
            *logit -= sampling.frequency_penalty * count as f32 + sampling.presence_penalty;
        }
        *logit += sampling.logit_bias.iter().filter(|bias| bias.0 == id).map(|bias| bias.1).sum::<f32>();
    }
    let mut kept: Vec<(u32, f32)> =
        logits.iter().enumerate().map(|(id, &logit)| (id as u32, logit)).filter(|kept| kept.1 > f32::NEG_INFINITY).collect();
    kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if sampling.temperature == 0.0 {
        return vec![(kept[0].0, 1.0)];
    }
    if sampling.top_k > 0 && sampling.top_k < kept.len() {
        let border = kept[sampling.top_k - 1].1;
        kept.retain(|kept| kept.1 >= border);
    }
    let best = f64::from(kept[0].1);
    let softmax = |kept: &[(u32, f32)]| -> Vec<(u32, f64)> {
        let weight = |logit: f32| ((f64::from(logit) - best) / f64::from(sampling.temperature)).exp();
        let total: f64 = kept.iter().map(|kept| weight(kept.1)).sum();
        kept.iter().map(|kept| (kept.0, weight(kept.1) / total)).collect()
    };
    let mut sum = 0.0;
    let mut distribution = softmax(&kept);
    if sampling.top_p < 1.0 {
        let len = distribution
            .iter()
            .take_while(|kept| {
                let stays = sum < f64::from(sampling.top_p);
                sum += kept.1;
                stays
            })
            .count();
        kept.truncate(len);
        distribution = softmax(&kept);
    }
    let best = distribution[0].1;
    let len = distribution.iter().filter(|kept| kept.1 >= f64::from(sampling.min_p) * best).count();
    kept.truncate(len);
    let mut kept = softmax(&kept);
    kept.sort_by_key(|kept| kept.0);
    kept
}

fn sampling() -> impl Strategy<Value = Sampling> {
    (
        prop_oneof![Just(0.0_f32), 0.05_f32..3.0, Just(1.0)],
        prop_oneof![Just(0), 1_usize..200],
        prop_oneof![Just(1.0_f32), 0.01_f32..1.0],
        prop_oneof![Just(0.0_f32), 0.0_f32..1.0],
        (prop_oneof![Just(1.0_f32), 0.5_f32..2.0], prop_oneof![Just(0), 1_usize..30]),
        prop_oneof![Just(0.0_f32), -1.0_f32..1.0],
        prop_oneof![Just(0.0_f32), -1.0_f32..1.0],
        proptest::collection::vec((0_u32..8, prop_oneof![Just(f32::NEG_INFINITY), -2.0_f32..2.0]), 0..3),
    )
        .prop_map(
            |(
                temperature,
                top_k,
                top_p,
                min_p,
                (repetition_penalty, repetition_last_n),
                frequency_penalty,
                presence_penalty,
                logit_bias,
            )| {
                Sampling::default()
                    .temperature(temperature)
                    .top_k(top_k)
                    .top_p(top_p)
                    .min_p(min_p)
                    .repetition_penalty(repetition_penalty)
                    .repetition_last_n(repetition_last_n)
                    .frequency_penalty(frequency_penalty)
                    .presence_penalty(presence_penalty)
                    .logit_bias(logit_bias)
                    .seed(1)
            },
        )
}

/// Rows with many ties, with masked tokens, wide and narrow.
fn row() -> impl Strategy<Value = Vec<f32>> {
    let logit =
        prop_oneof![8 => -12.0_f32..12.0, 4 => (-8_i8..8).prop_map(|step| f32::from(step) / 2.0), 1 => Just(f32::NEG_INFINITY)];
    (20_usize..500).prop_flat_map(move |len| proptest::collection::vec(logit.clone(), len)).prop_map(|mut row| {
        row[10] = 0.0; // never all at minus infinity
        row
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_chain_equals_its_definition(
        sampling in sampling(),
        logits in row(),
        context in proptest::collection::vec(0_u32..40, 0..60),
        generated in proptest::collection::vec(0_u32..40, 0..60),
    ) {
        let expected = naive(&sampling, &logits, &context, &generated);
        let mut sampler = Sampler::new(sampling.clone(), logits.len()).unwrap();
        let kept = sampler.distribution(&logits, &context, &generated).unwrap().to_vec();
        // A token that lies on a border of top-p or min-p within rounding may fall to either side.
        let same = kept.iter().map(|kept| kept.0).eq(expected.iter().map(|kept| kept.0));
        let nudged = |by: f32| naive(&sampling.clone().top_p((sampling.top_p * (1.0 + by)).min(1.0)).min_p(sampling.min_p * (1.0 - by)), &logits, &context, &generated);
        prop_assert!(same || nudged(1e-5).len() != nudged(-1e-5).len(), "{:?} {:?}", kept, expected);
        if same {
            for (kept, expected) in kept.iter().zip(&expected) {
                prop_assert!((f64::from(kept.1) - expected.1).abs() <= 1e-6, "{:?} {:?}", kept, expected);
            }
        }
        let (id, logprob) = sampler.sample(&logits, &context, &generated).unwrap();
        prop_assert!(kept.iter().any(|kept| kept.0 == id));
        let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        prop_assert!((f64::from(logprob) - (f64::from(logits[id as usize]) - total.ln())).abs() <= 1e-5 || logprob == f32::NEG_INFINITY);
        // The buffers leave nothing behind.
        prop_assert_eq!(sampler.distribution(&logits, &context, &generated).unwrap(), &kept[..]);
    }
}

/// A row of a real size: a few likely tokens and a long tail.
fn large_row(vocab_size: usize) -> Vec<f32> {
    let mut state = 1_u32;
    (0..vocab_size)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let uniform = (state >> 8) as f32 / (1 << 24) as f32;
            12.0 * uniform.powi(8) - 4.0
        })
        .collect()
}

#[test]
fn a_large_vocabulary_gives_what_the_definition_gives() {
    let logits = large_row(151_936);
    for (top_k, top_p, min_p) in [(20, 0.95, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.05), (5000, 0.99, 0.001), (0, 0.999, 0.0)] {
        let sampling = Sampling::default().temperature(0.8).top_k(top_k).top_p(top_p).min_p(min_p);
        let expected = naive(&sampling, &logits, &[], &[]);
        let kept = Sampler::new(sampling, logits.len()).unwrap().distribution(&logits, &[], &[]).unwrap().to_vec();
        assert_eq!(kept.iter().map(|kept| kept.0).collect::<Vec<_>>(), expected.iter().map(|kept| kept.0).collect::<Vec<_>>());
    }
}

#[test]
fn a_seed_gives_the_same_tokens_again() {
    let logits = large_row(1000);
    let draw = |seed| {
        let mut sampling = Sampling::default().temperature(1.0).top_p(0.95);
        sampling.seed = seed;
        let mut sampler = Sampler::new(sampling, logits.len()).unwrap();
        (0..50).map(|_| sampler.sample(&logits, &[], &[]).unwrap().0).collect::<Vec<_>>()
    };
    assert_eq!(draw(Some(7)), draw(Some(7)));
    assert_ne!(draw(Some(7)), draw(Some(8)));
    assert_ne!(draw(None), draw(None));
    // The numbers themselves must not change with a dependency or a machine.
    assert_eq!(draw(Some(7))[..5], [37, 369, 180, 532, 358]);
}

#[test]
fn drawn_frequencies_follow_the_probabilities() {
    let logits = [0.0, 1.0, 2.0, -1.0, 0.5, 3.0, -20.0, 1.5];
    let mut sampler = Sampler::new(Sampling::default().temperature(1.3).seed(42), logits.len()).unwrap();
    let kept = sampler.distribution(&logits, &[], &[]).unwrap().to_vec();
    let draws = 100_000;
    let mut counts = [0_u32; 8];
    for _ in 0..draws {
        counts[sampler.sample(&logits, &[], &[]).unwrap().0 as usize] += 1;
    }
    let chi_square: f64 = kept
        .iter()
        .filter(|kept| kept.1 > 1e-4)
        .map(|&(id, probability)| {
            let expected = f64::from(probability) * f64::from(draws);
            (f64::from(counts[id as usize]) - expected).powi(2) / expected
        })
        .sum();
    // Six degrees of freedom: above 22.5 in one of a thousand seeds.
    assert!(chi_square < 22.5, "{chi_square}");
}

#[test]
fn ties_go_to_the_lowest_id() {
    let logits = [1.0, 5.0, 5.0, 2.0, 5.0];
    assert_eq!(Sampler::new(Sampling::default(), 5).unwrap().sample(&logits, &[], &[]).unwrap().0, 1);
    let sampling = Sampling::default().temperature(1.0).top_p(0.5);
    let kept = Sampler::new(sampling, 5).unwrap().distribution(&logits, &[], &[]).unwrap().to_vec();
    assert_eq!(kept, [(1, 0.5), (2, 0.5)]);
}

#[test]
fn penalties_decide_the_greedy_token_and_not_its_log_probability() {
    let logits = [2.0, 1.9, -1.0];
    let sampling = Sampling::default().repetition_penalty(2.0).logit_bias([(2, 0.5)]);
    let (id, logprob) = Sampler::new(sampling, 3).unwrap().sample(&logits, &[0], &[]).unwrap();
    let log_sum = (2f64.exp() + 1.9f64.exp() + (-1f64).exp()).ln();
    assert_eq!(id, 1);
    assert!((f64::from(logprob) - (f64::from(1.9_f32) - log_sum)).abs() < 1e-6);
    // The window holds the last tokens of prompt and answer together.
    let sampling = Sampling::default().repetition_penalty(2.0).repetition_last_n(1);
    let mut sampler = Sampler::new(sampling, 3).unwrap();
    assert_eq!(sampler.sample(&logits, &[0], &[]).unwrap().0, 1);
    assert_eq!(sampler.sample(&logits, &[0], &[2]).unwrap().0, 0);
    // A token outside of the row has no logit to change.
    assert_eq!(sampler.sample(&logits, &[], &[u32::MAX]).unwrap().0, 0);
}

#[test]
fn forbidden_tokens_are_never_drawn() {
    let sampling = Sampling::default().temperature(2.0).logit_bias([(0, f32::NEG_INFINITY)]).seed(1);
    let mut sampler = Sampler::new(sampling, 3).unwrap();
    for _ in 0..500 {
        assert_eq!(sampler.sample(&[9.0, 0.0, f32::NEG_INFINITY], &[], &[]).unwrap().0, 1);
    }
    let error = sampler.sample(&[9.0, f32::NEG_INFINITY, f32::NEG_INFINITY], &[], &[]).unwrap_err();
    assert_eq!(
        (error.kind(), error.message()),
        (ErrorKind::InvalidArgument, "penalties and logit_bias: expected a number, found minus infinity for every token")
    );
}

#[test]
fn rows_without_a_distribution_are_errors() {
    for temperature in [0.0, 1.0] {
        let mut sampler = Sampler::new(Sampling::default().temperature(temperature).top_p(0.5).top_k(2), 3).unwrap();
        for (logits, message) in [
            ([0.0, f32::NAN, 1.0], "logits: token 1: expected a number, found NaN"),
            ([0.0, 1.0, f32::INFINITY], "logits: token 2: expected a number, found inf"),
            ([f32::NEG_INFINITY; 3], "logits: expected a number, found minus infinity for every token"),
        ] {
            let error = sampler.sample(&logits, &[], &[]).unwrap_err();
            assert_eq!((error.kind(), error.message()), (ErrorKind::Device, message));
        }
        let error = sampler.distribution(&[0.0; 4], &[], &[]).unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::InvalidArgument, "logits: expected 3 values, found 4"));
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY, f32::MIN, f32::NEG_INFINITY], &[], &[]).unwrap(), (1, 0.0));
        sampler.sample(&[f32::MAX, f32::MIN, f32::MAX], &[], &[]).unwrap();
    }
    let mut sampler = Sampler::new(Sampling::default().repetition_penalty(1e-30), 1).unwrap();
    let error = sampler.sample(&[1e20], &[0], &[]).unwrap_err();
    assert_eq!(
        (error.kind(), error.message()),
        (ErrorKind::InvalidArgument, "penalties and logit_bias: token 0: expected a number, found inf")
    );
}

#[test]
fn options_out_of_range_are_named_with_their_value() {
    let defaults = Sampling::default();
    for (options, message) in [
        (SamplingOptions::default().temperature(-0.5), "temperature: expected 0 or more, found -0.5"),
        (SamplingOptions::default().temperature(f32::NAN), "temperature: expected 0 or more, found NaN"),
        (SamplingOptions::default().temperature(f32::INFINITY), "temperature: expected 0 or more, found inf"),
        (SamplingOptions::default().top_p(0.0), "top_p: expected above 0, up to 1, found 0"),
        (SamplingOptions::default().top_p(1.5), "top_p: expected above 0, up to 1, found 1.5"),
        (SamplingOptions::default().min_p(-0.1), "min_p: expected 0 to 1, found -0.1"),
        (SamplingOptions::default().min_p(2.0), "min_p: expected 0 to 1, found 2"),
        (SamplingOptions::default().repetition_penalty(0.0), "repetition_penalty: expected above 0, found 0"),
        (SamplingOptions::default().frequency_penalty(f32::NAN), "frequency_penalty: expected a number, found NaN"),
        (SamplingOptions::default().presence_penalty(f32::NEG_INFINITY), "presence_penalty: expected a number, found -inf"),
        (
            SamplingOptions::default().logit_bias([(3, f32::INFINITY)]),
            "logit_bias[3]: expected a number or minus infinity, found inf",
        ),
    ] {
        let error = options.resolve(&defaults).unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::InvalidArgument, message));
    }
    let options = SamplingOptions::default().temperature(0.7).repetition_penalty(1.1).repetition_last_n(64);
    let model = Sampling::default().temperature(1.0).top_k(20).seed(3);
    let expected = Sampling::default().temperature(0.7).top_k(20).repetition_penalty(1.1).repetition_last_n(64).seed(3);
    assert_eq!(options.resolve(&model).unwrap(), expected);
    let biased = Sampling::default().logit_bias([(3, 1.0)]);
    assert_eq!(Sampler::new(biased, 3).err().unwrap().message(), "logit_bias[3]: expected a token below 3");
    assert!(Sampler::new(Sampling::default(), 0).is_err());
    assert!(Sampler::new(Sampling::default().top_p(f32::NAN), 3).is_err());
}
