//! Adapters of llama.cpp as the directories of PEFT that they were made from.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::super::{AdaptedModule, GgufAdapter, Origin};
use super::{HeadLayer, Naming, PREFIX, Peft, path};
use crate::error::Result;
use crate::nn::{Module, Role, Transformer};

impl Peft {
    /// Reads an adapter of a network, of whose matrices `origins` says what they are in a file, by the checkpoint's names.
    ///
    /// # Errors
    /// As [`read`](Self::read), naming the file's tensors where they have no place.
    pub fn read_gguf(
        adapter: GgufAdapter,
        origins: Vec<(String, Origin)>,
        network: &Transformer,
        head: &[HeadLayer],
    ) -> Result<Self> {
        let prefix = network.config().names.prefixes.first();
        let (of_network, of_head) = prefix.map_or(("", ""), |prefix| (prefix.network, prefix.head));
        let naming = Naming { prefix: of_network.to_string(), as_stored: false };
        let mut origins: HashMap<String, Origin> = origins.into_iter().collect();
        let (mut paths, mut changed) = (Vec::new(), Vec::new());
        for module in network.modules() {
            let prefix = if module.role == Role::Head { of_head } else { of_network };
            let Some(origin) = origins.remove(&format!("{prefix}{}.weight", module.name)) else { continue };
            let path = path(module, &naming);
            changed.push(AdaptedModule { name: format!("{PREFIX}{path}"), origin });
            paths.push(path);
        }
        let alpha = adapter.alpha();
        let mut on_bytes = |_, _| Ok(());
        let mut source = adapter.into_source(&changed, &mut on_bytes)?;
        let all: Vec<String> = network.modules().iter().map(|module: &Module| path(module, &naming)).collect();
        let config = config(&paths, &source.ranks, alpha, &all);
        Self::of(format!("{config:#}\n"), &mut source, network, head)
    }
}

/// The adapter_config.json of changes of these modules, which are some of `all`.
fn config(paths: &[String], ranks: &[usize], alpha: Option<f32>, all: &[String]) -> Value {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    ranks.iter().for_each(|rank| *counts.entry(*rank).or_default() += 1);
    let usual = counts.iter().max_by_key(|(_, count)| **count).map_or(1, |(rank, _)| *rank);
    let others: Vec<(&String, usize)> = paths.iter().zip(ranks.iter().copied()).filter(|(_, rank)| *rank != usual).collect();
    let each: Map<String, Value> = others.iter().map(|(path, rank)| ((*path).clone(), json!(rank))).collect();
    // Where none is given, each change counts once.
    let (lora_alpha, alphas) = match alpha {
        Some(alpha) => (json!(alpha), Map::new()),
        None => (json!(usual), each.clone()),
    };
    json!({
        "peft_type": "LORA",
        "base_model_name_or_path": null,
        "bias": "none",
        "inference_mode": true,
        "r": usual,
        "lora_alpha": lora_alpha,
        "rank_pattern": each,
        "alpha_pattern": alphas,
        "target_modules": targets(paths, all),
    })
}

/// Names that stand for these modules among all: what they end with, where that stands for no others.
fn targets<'a>(paths: &'a [String], all: &'a [String]) -> Vec<&'a str> {
    fn last(path: &str) -> &str {
        path.rsplit('.').next().unwrap_or(path)
    }
    let changed: HashSet<&str> = paths.iter().map(String::as_str).collect();
    let of_others: HashSet<&str> = all.iter().filter(|path| !changed.contains(path.as_str())).map(|path| last(path)).collect();
    let name = |path: &'a String| if of_others.contains(last(path)) { path.as_str() } else { last(path) };
    let mut names: Vec<&str> = paths.iter().map(name).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_named_as_briefly_as_they_can_be() {
        let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let all = owned(&["m.0.q", "m.0.v", "m.1.q", "m.1.v", "head"]);
        assert_eq!(targets(&owned(&["m.0.q", "m.1.q"]), &all), ["q"]);
        assert_eq!(targets(&owned(&["m.0.q", "m.0.v", "m.1.v", "head"]), &all), ["head", "m.0.q", "v"]);
    }

    #[test]
    fn a_configuration_counts_each_change_as_the_file_does() {
        let paths: Vec<String> = ["m.0.q", "m.1.q", "m.2.q"].map(str::to_string).to_vec();
        let given = config(&paths, &[4, 8, 4], Some(16.0), &paths);
        assert_eq!((&given["r"], &given["lora_alpha"]), (&json!(4), &json!(16.0)));
        assert_eq!((&given["rank_pattern"], &given["alpha_pattern"]), (&json!({ "m.1.q": 8 }), &json!({})));
        let none = config(&paths, &[4, 8, 4], None, &paths);
        assert_eq!((&none["lora_alpha"], &none["alpha_pattern"]), (&json!(4), &json!({ "m.1.q": 8 })));
    }
}
