//! Nomic BERT's modules as transformers 5 has them: checkpoints keep the names of the code that the first of them came with, where
//! three modules are one matrix.

use super::{PREFIX, old_name};
use crate::nn::{Module, Transformer};

/// How the names of layers begin.
pub const LAYERS: &str = "layers.";
/// The same of stored ones.
const STORED_LAYERS: &str = "encoder.layers.";
/// What stores three modules, and these.
const QKV: (&str, [&str; 3]) = (".attn.Wqkv", [".self_attn.q_proj", ".self_attn.k_proj", ".self_attn.v_proj"]);
/// How the names of stored modules end, and those of transformers.
const RENAMED: [(&str, &str); 4] = [
    (".attn.out_proj", ".self_attn.o_proj"),
    (".mlp.fc11", ".mlp.up_proj"),
    (".mlp.fc12", ".mlp.gate_proj"),
    (".mlp.fc2", ".mlp.down_proj"),
];

/// The modules of a network that the tensors of an adapter call so; `None` for every other network, and if they have the stored names.
pub fn modules(network: &Transformer, tensors: &[&str]) -> Option<Vec<Module>> {
    let names = &network.config().names;
    let is_stored = |module: &Module| module.name.starts_with(STORED_LAYERS) && module.name.ends_with(QKV.0);
    if names.layers() != STORED_LAYERS || !network.modules().iter().any(is_stored) {
        return None;
    }
    let prefixes = || names.prefixes.iter().map(|prefix| prefix.network).chain([""]);
    let is_native = |name: &&str| {
        let name = name.strip_prefix(PREFIX).unwrap_or(name);
        old_name(name).is_none()
            && prefixes().any(|prefix| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(LAYERS)))
    };
    tensors.iter().any(is_native).then(|| network.modules().iter().flat_map(native).collect())
}

/// What a stored module is there.
fn native(module: &Module) -> Vec<Module> {
    let Some(layer) = module.name.strip_prefix(STORED_LAYERS) else { return vec![module.clone()] };
    if let Some(layer) = layer.strip_suffix(QKV.0) {
        return QKV.1.iter().enumerate().map(|(i, end)| third(module, i, format!("{LAYERS}{layer}{end}"))).collect();
    }
    let renamed = RENAMED.iter().find_map(|(stored, end)| Some(format!("{}{end}", layer.strip_suffix(stored)?)));
    vec![Module { name: format!("{LAYERS}{}", renamed.as_deref().unwrap_or(layer)), ..module.clone() }]
}

/// The `i`th third of a module's rows.
fn third(module: &Module, i: usize, name: String) -> Module {
    let outputs = module.outputs / 3;
    let first = i * outputs;
    let parts = module.parts.iter().filter_map(|(rows, start)| {
        let (from, to) = (rows.start.max(first), rows.end.min(first + outputs));
        (from < to).then(|| (from - first..to - first, start + from - rows.start))
    });
    Module { name, outputs, parts: parts.collect(), ..module.clone() }
}
