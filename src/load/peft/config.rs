//! adapter_config.json: which modules were trained, and with what rank and factor.

use fancy_regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::CONFIG;
use crate::error::{Error, Result};
use crate::load::Json;
use crate::nn::{Module, Role};

/// Larger than any rank.
const MAX_RANK: usize = 1 << 13;
/// More than the projections of any model; each is tried on each module.
const MAX_PATTERNS: usize = 4096;
/// Above any token.
const MAX_TOKEN: usize = 1 << 26;
/// Bytes of a compiled pattern.
const MAX_PATTERN_BYTES: usize = 256 << 10;

/// Which biases were trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BiasKind {
    None,
    All,
    Targeted,
}

/// Which modules were trained.
pub(super) enum Targets {
    /// The whole path, or what it ends with.
    Names(Vec<String>),
    Pattern(Regex),
    /// Every matrix but the embedding and the output matrix.
    Linear,
}

/// adapter_config.json, as far as it changes the result.
pub(super) struct PeftConfig {
    pub rank: usize,
    pub alpha: f64,
    rslora: bool,
    pub dora: bool,
    pub lora_bias: bool,
    pub bias: BiasKind,
    pub targets: Targets,
    /// How full names of parameters end: of matrices of experts, and of weights.
    pub target_parameters: Vec<String>,
    excluded: Option<Targets>,
    rank_pattern: Vec<(Regex, usize)>,
    alpha_pattern: Vec<(Regex, f64)>,
    layers: Option<Vec<usize>>,
    layers_pattern: Vec<Regex>,
    pub modules_to_save: Vec<String>,
    /// Rows of tables that were trained: how the table's name ends, the embedding's where none is said.
    tokens: Vec<(Option<String>, Vec<usize>)>,
}

/// Keys of the configuration that say how the adapter came to be.
const HISTORY: [&str; 14] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

/// Keys that are read below.
const READ: [&str; 19] = [
    "alpha_pattern",
    "bias",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "target_parameters",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
    "fan_in_fan_out",
    "ensure_weight_tying",
];

impl PeftConfig {
    pub fn parse(json: &Json) -> Result<Self> {
        if json.text("peft_type")?.as_deref() != Some("LORA") {
            return Err(json.unsupported("peft_type", "expected \"LORA\""));
        }
        for (key, value) in json.value().as_object().into_iter().flatten() {
            // Whatever a later version of PEFT adds is off while it is empty.
            if !HISTORY.contains(&key.as_str()) && !READ.contains(&key.as_str()) && !is_off(value) {
                return Err(json.unsupported(key, "expected none: this option is not implemented"));
            }
        }
        for key in ["fan_in_fan_out", "ensure_weight_tying"] {
            if json.flag(key, false)? {
                return Err(json.unsupported(key, "expected false"));
            }
        }
        // The others subtract something from the base model before training, which is then no longer the one at hand.
        let plain = ["gaussian", "eva", "orthogonal"];
        if let Some(init) = json.get("init_lora_weights")
            && !init.value().is_boolean()
            && !init.value().as_str().is_some_and(|init| plain.contains(&init))
        {
            return Err(json.unsupported("init_lora_weights", "expected true, false, \"gaussian\", \"eva\" or \"orthogonal\""));
        }
        if let Some(dropout) = json.number("lora_dropout")?
            && !(0.0..=1.0).contains(&dropout)
        {
            return Err(json.invalid("lora_dropout", &format!("expected 0 to 1, found {dropout}")));
        }
        let targets = match json.get("target_modules") {
            None if ["modules_to_save", "target_parameters", "trainable_token_indices"]
                .iter()
                .any(|key| json.get(key).is_some()) =>
            {
                Targets::Names(Vec::new())
            }
            None => return Err(json.invalid("target_modules", "expected a list of names or a pattern, found nothing")),
            Some(_) => targets(json, "target_modules")?,
        };
        let layers = match json.get("layers_to_transform") {
            Some(field) if field.value().is_array() => {
                Some(whole_numbers(json, "layers_to_transform")?).filter(|l| !l.is_empty())
            }
            _ => json.count("layers_to_transform", usize::MAX >> 1)?.map(|layer| vec![layer]),
        };
        let layers_pattern = match json.get("layers_pattern") {
            Some(field) if field.value().is_array() => json.texts("layers_pattern")?.unwrap_or_default(),
            _ => json.text("layers_pattern")?.filter(|pattern| !pattern.is_empty()).into_iter().collect(),
        };
        for (key, is_set) in [("layers_to_transform", layers.is_some()), ("layers_pattern", !layers_pattern.is_empty())] {
            if is_set && !matches!(targets, Targets::Names(_)) {
                return Err(json.invalid(key, "expected none where target_modules is text"));
            }
        }
        let layer_of = |pattern: &String| regex(json, "layers_pattern", &format!(r"\A(?:|.*?\.)(?:{pattern})\.(\d+)\."));
        let config = Self {
            rank: json.size("r", MAX_RANK)?,
            alpha: match json.number("lora_alpha")? {
                Some(alpha) => alpha,
                None => return Err(json.invalid("lora_alpha", "expected a number, found nothing")),
            },
            rslora: json.flag("use_rslora", false)?,
            dora: json.flag("use_dora", false)?,
            lora_bias: json.flag("lora_bias", false)?,
            bias: match json.text("bias")?.as_deref() {
                None | Some("none") => BiasKind::None,
                Some("all") => BiasKind::All,
                Some("lora_only") => BiasKind::Targeted,
                Some(_) => return Err(json.unsupported("bias", "expected \"none\", \"all\" or \"lora_only\"")),
            },
            targets,
            target_parameters: json.texts("target_parameters")?.unwrap_or_default(),
            excluded: json.get("exclude_modules").map(|_| targets_of(json, "exclude_modules")).transpose()?,
            rank_pattern: patterns(json, "rank_pattern", |object, key| object.size(key, MAX_RANK))?,
            alpha_pattern: patterns(json, "alpha_pattern", |object, key| {
                object.number(key)?.ok_or_else(|| object.invalid(key, "expected a number, found null"))
            })?,
            layers,
            layers_pattern: layers_pattern.iter().map(layer_of).collect::<Result<_>>()?,
            modules_to_save: json.texts("modules_to_save")?.unwrap_or_default(),
            tokens: tokens(json)?,
        };
        if config.lora_bias && config.dora {
            return Err(json.invalid("lora_bias", "expected false with use_dora"));
        }
        for (key, is_set) in [("lora_bias", config.lora_bias), ("use_dora", config.dora)] {
            if is_set && !config.target_parameters.is_empty() {
                return Err(json.invalid(key, "expected false with target_parameters"));
            }
        }
        Ok(config)
    }

    /// Whether a parameter of this full name was trained.
    pub fn targets_parameter(&self, key: &str) -> bool {
        self.target_parameters.iter().any(|name| ends_with_name(key, name))
    }

    /// Whether rows of tables were trained.
    pub fn has_tokens(&self) -> bool {
        !self.tokens.is_empty()
    }

    /// The tokens whose rows were trained of a module.
    pub fn tokens(&self, path: &str, module: &Module) -> Option<&[usize]> {
        let is_it = |name: &Option<String>| match name {
            Some(name) => ends_with_name(path, name),
            None => module.role == Role::Embedding,
        };
        self.tokens.iter().find(|(name, _)| is_it(name)).map(|(_, ids)| ids.as_slice())
    }

    /// Whether a module was trained by the name of its weight, which is what patterns are compared with then.
    pub fn weight_key(&self, path: &str) -> Option<String> {
        Some(format!("{path}.weight")).filter(|key| self.targets_parameter(key))
    }

    /// Whether a module was trained. Of experts, and of what chooses them, a name may also mean others that are called alike.
    pub fn targets(&self, path: &str, module: &Module) -> Result<bool> {
        if self.weight_key(path).is_some() {
            return Ok(true);
        }
        if let Some(excluded) = &self.excluded
            && excluded.hold(path, module)?
        {
            return Ok(false);
        }
        let saved =
            |name: &String| path.split('.').collect::<Vec<_>>().windows(name.split('.').count()).any(|w| w.join(".") == *name);
        if self.modules_to_save.iter().any(saved) || !self.targets.hold(path, module)? {
            return Ok(false);
        }
        // A path that is named as a whole is meant whatever its layer.
        let named = matches!(&self.targets, Targets::Names(names) if names.iter().any(|name| name == path));
        match &self.layers {
            Some(layers) if !named => Ok(self.layer(path)?.is_some_and(|layer| layers.contains(&layer))),
            _ => Ok(true),
        }
    }

    /// Whether a target says more of a module than what it is called: where it stands.
    pub fn says_place(&self, path: &str) -> bool {
        self.weight_key(path).is_some()
            || match &self.targets {
                Targets::Names(names) => names.iter().any(|name| name.contains('.') && ends_with_name(path, name)),
                Targets::Pattern(_) => true,
                Targets::Linear => false,
            }
    }

    /// The layer that a path goes through: behind one of the patterns, or its first number.
    fn layer(&self, path: &str) -> Result<Option<usize>> {
        if self.layers_pattern.is_empty() {
            let parts: Vec<&str> = path.split('.').collect();
            // A module stands behind it, and two names before.
            let inside = parts.get(2..parts.len().saturating_sub(1)).unwrap_or_default();
            let number = inside.iter().find(|part| part.bytes().all(|b| b.is_ascii_digit()));
            return Ok(number.and_then(|number| number.parse().ok()));
        }
        for pattern in &self.layers_pattern {
            if let Some(found) = pattern.captures(path).map_err(too_hard)? {
                return Ok(found.get(1).and_then(|number| number.as_str().parse().ok()));
            }
        }
        Ok(None)
    }

    /// Of a module by its path, or of a parameter by its full name.
    pub fn rank(&self, path: &str) -> Result<usize> {
        let key = self.weight_key(path);
        Ok(first(&self.rank_pattern, key.as_deref().unwrap_or(path))?.unwrap_or(self.rank))
    }

    /// The same.
    pub fn scaling(&self, path: &str, rank: usize) -> Result<f32> {
        let key = self.weight_key(path);
        let alpha = first(&self.alpha_pattern, key.as_deref().unwrap_or(path))?.unwrap_or(self.alpha);
        let scaling = (if self.rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 }) as f32;
        if !scaling.is_finite() {
            return Err(Error::format(format!("{CONFIG}: lora_alpha: expected a number of F32 for {path}, found {alpha}")));
        }
        Ok(scaling)
    }
}

impl Targets {
    fn hold(&self, path: &str, module: &Module) -> Result<bool> {
        match self {
            Self::Names(names) => Ok(names.iter().any(|name| ends_with_name(path, name))),
            Self::Pattern(pattern) => pattern.is_match(path).map_err(too_hard),
            Self::Linear => Ok(module.role.is_inner() && !module.of_experts),
        }
    }
}

/// `trainable_token_indices`: of the embedding, or of each table by its name.
fn tokens(json: &Json) -> Result<Vec<(Option<String>, Vec<usize>)>> {
    const KEY: &str = "trainable_token_indices";
    let distinct = |json: &Json, key: &str| {
        let ids = json.counts(key, MAX_TOKEN)?.unwrap_or_default();
        let mut sorted = ids.clone();
        sorted.sort_unstable();
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(json.invalid(key, &format!("expected each token once, found {} twice", pair[0]))),
            None => Ok(ids),
        }
    };
    let Some(field) = json.get(KEY) else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    match json.value().get(KEY).and_then(Value::as_object) {
        Some(names) => {
            for name in names.keys() {
                all.push((Some(name.clone()), distinct(&field, name)?));
            }
        }
        None => all.push((None, distinct(json, KEY)?)),
    }
    all.retain(|(_, ids)| !ids.is_empty());
    Ok(all)
}

/// Null, false, or empty.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

fn targets(json: &Json, key: &str) -> Result<Targets> {
    match json.get(key).and_then(|field| field.value().as_str().map(str::to_lowercase)).as_deref() {
        Some("all-linear") => Ok(Targets::Linear),
        _ => targets_of(json, key),
    }
}

/// A list of names, or a pattern for the whole path.
fn targets_of(json: &Json, key: &str) -> Result<Targets> {
    match json.get(key) {
        Some(field) if field.value().is_string() => {
            let pattern = json.text(key)?.unwrap_or_default();
            Ok(Targets::Pattern(regex(json, key, &format!(r"\A(?:{pattern})\z"))?))
        }
        _ => Ok(Targets::Names(json.texts(key)?.unwrap_or_default())),
    }
}

fn patterns<T>(json: &Json, key: &str, value: impl Fn(&Json, &str) -> Result<T>) -> Result<Vec<(Regex, T)>> {
    let Some(object) = json.object(key)? else { return Ok(Vec::new()) };
    let fields = object.value().as_object();
    let count = fields.map_or(0, serde_json::Map::len);
    if count > MAX_PATTERNS {
        return Err(json.unsupported(key, &format!("expected at most {MAX_PATTERNS} patterns")));
    }
    let fields = fields.into_iter().flatten();
    fields
        .map(|(pattern, _)| Ok((regex(json, key, &format!(r"\A(?:.*\.)?(?:{pattern})\z"))?, value(&object, pattern)?)))
        .collect()
}

/// What the first pattern that fits a path says.
fn first<T: Copy>(patterns: &[(Regex, T)], path: &str) -> Result<Option<T>> {
    for (pattern, value) in patterns {
        if pattern.is_match(path).map_err(too_hard)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

fn regex(json: &Json, key: &str, pattern: &str) -> Result<Regex> {
    let compiled = RegexBuilder::new(pattern).delegate_size_limit(MAX_PATTERN_BYTES).build();
    compiled.map_err(|e| json.invalid(key, &format!("expected a regular expression: {e}")).with_source(e))
}

/// A pattern from outside may ask for more steps than there is time.
fn too_hard(error: fancy_regex::Error) -> Error {
    Error::unsupported(format!("{CONFIG}: a pattern takes too long: {error}")).with_source(error)
}

fn whole_numbers(json: &Json, key: &str) -> Result<Vec<usize>> {
    let numbers = json.numbers(key)?.unwrap_or_default();
    let whole = |x: f64| if x >= 0.0 && x.fract() == 0.0 && x < 1e9 { Ok(x as usize) } else { Err(x) };
    let numbers = numbers.into_iter().map(whole).collect::<std::result::Result<_, _>>();
    numbers.map_err(|x| json.invalid(key, &format!("expected whole numbers, found {x}")))
}

/// Whether a path is a name, or ends with it behind a dot.
pub(super) fn ends_with_name(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}
