//! adapter_config.json: which modules were trained, and with what rank and factor.

use std::collections::{BTreeSet, HashSet};

use fancy_regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::CONFIG;
use crate::error::{Error, ErrorKind, Result};
use crate::kernels::copied;
use crate::load::Json;
use crate::nn::{Module, Role};

/// Larger than any rank.
const MAX_RANK: usize = 1 << 13;
/// More than the projections of any model; each is tried on each module.
const MAX_PATTERNS: usize = 4096;
/// More than the modules of any model, those of experts among them; they are looked up.
const MAX_NAMES: usize = 1 << 17;
/// Of patterns that are more than names, each of which takes memory and steps: more than are written by hand.
const MAX_REGEXES: usize = 256;
/// Above any token.
const MAX_TOKEN: usize = 1 << 26;
/// Bytes of a compiled pattern.
const MAX_PATTERN_BYTES: usize = 256 << 10;
/// Bytes of its text, of which each is a node until it is compiled.
const MAX_PATTERN_TEXT: usize = 64 << 10;
/// Steps back that a pattern may take on a path, and that all of a list may.
const MAX_STEPS: usize = 10_000;
const MAX_STEPS_OF_ALL: usize = 100_000;
/// Repetitions that a pattern asks for at least, by its numbers in braces: those of nothing are no steps back.
const MAX_REPETITIONS: usize = 4096;

/// Which biases were trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BiasKind {
    None,
    All,
    Targeted,
}

/// Which modules were trained.
pub(super) enum Targets {
    Names(ModuleNames),
    Pattern(Regex),
    /// Every matrix but the embedding and the output matrix.
    Linear,
}

/// Names of modules or of parameters: the whole path, or what it ends with.
#[derive(Default)]
pub(super) struct ModuleNames(BTreeSet<String>);

/// A pattern for how a path ends.
enum Pattern {
    /// Its dots stand for any character. What programs write is such: they name each module.
    Name(String),
    Regex(Regex),
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
    pub target_parameters: ModuleNames,
    excluded: Option<Targets>,
    rank_pattern: Vec<(Pattern, usize)>,
    alpha_pattern: Vec<(Pattern, f64)>,
    layers: Option<HashSet<usize>>,
    layers_pattern: Vec<Regex>,
    pub modules_to_save: ModuleNames,
    /// Rows of tables that were trained: how the table's name ends, the embedding's where none is said.
    tokens: Vec<(Option<String>, Vec<usize>)>,
    tying: EnsuredTying,
}

/// What `ensure_weight_tying` makes of an embedding and an output matrix that are one, where the adapter names either.
#[derive(Clone, Copy, PartialEq, Eq)]
enum EnsuredTying {
    None,
    /// Both have the low-rank change.
    Targets,
    /// What replaces the embedding replaces both.
    Saved,
}

/// What PEFT calls an embedding and an output matrix when it looks for one that is to stay tied.
const TABLES: [&str; 2] = ["embed_tokens", "lm_head"];

/// Keys of the configuration that say how the adapter came to be.
const HISTORY: [&str; 15] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "merge_weights",
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
    /// `is_tied`: whether embedding and output matrix of the network are one.
    pub fn parse(json: &Json, is_tied: bool) -> Result<Self> {
        if json.text("peft_type")?.as_deref() != Some("LORA") {
            return Err(json.unsupported("peft_type", "expected \"LORA\""));
        }
        for (key, value) in json.value().as_object().into_iter().flatten() {
            // Whatever a later version of PEFT adds is off while it is empty.
            if !HISTORY.contains(&key.as_str()) && !READ.contains(&key.as_str()) && !is_off(value) {
                return Err(json.unsupported(key, "expected none: this option is not implemented"));
            }
        }
        // PEFT takes it back where a module is no `Conv1D`, and no family here has one.
        json.flag("fan_in_fan_out", false)?;
        let ensures_tying = json.flag("ensure_weight_tying", false)? && is_tied;
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
                Targets::Names(ModuleNames::default())
            }
            None => return Err(json.invalid("target_modules", "expected a list of names or a pattern, found nothing")),
            Some(_) => targets(json, "target_modules")?,
        };
        let layers = match json.get("layers_to_transform") {
            Some(field) if field.value().is_array() => {
                Some(whole_numbers(json, "layers_to_transform")?).filter(|l| !l.is_empty())
            }
            _ => json.count("layers_to_transform", usize::MAX >> 1)?.map(|layer| HashSet::from([layer])),
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
        let steps = steps_of(json, "layers_pattern", layers_pattern.len())?;
        let layer_of = |pattern: &String| {
            check_pattern(json, "layers_pattern", pattern)?;
            regex(json, "layers_pattern", &format!(r"\A(?:|.*?\.)(?:{pattern})\.(\d+)\."), steps)
        };
        let modules_to_save = ModuleNames::read(json, "modules_to_save", MAX_PATTERNS)?;
        let tying = match ensures_tying {
            true if modules_to_save.name_table() => EnsuredTying::Saved,
            true if targets.name_table()? => EnsuredTying::Targets,
            _ => EnsuredTying::None,
        };
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
            target_parameters: ModuleNames::read(json, "target_parameters", MAX_NAMES)?,
            excluded: json.get("exclude_modules").map(|_| targets_of(json, "exclude_modules")).transpose()?,
            rank_pattern: patterns(json, "rank_pattern", |object, key| object.size(key, MAX_RANK))?,
            alpha_pattern: patterns(json, "alpha_pattern", |object, key| {
                object.number(key)?.ok_or_else(|| object.invalid(key, "expected a number, found null"))
            })?,
            layers,
            layers_pattern: layers_pattern.iter().map(layer_of).collect::<Result<_>>()?,
            modules_to_save,
            tokens: tokens(json)?,
            tying,
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
        self.target_parameters.hold(key)
    }

    /// Of a model without an output matrix nothing is tied to the embedding.
    pub fn untie(&mut self) {
        self.tying = EnsuredTying::None;
    }

    /// Whether what replaces the embedding replaces the output matrix, too.
    pub fn ties_saved(&self) -> bool {
        self.tying == EnsuredTying::Saved
    }

    /// Whether rows of tables were trained.
    pub fn has_tokens(&self) -> bool {
        !self.tokens.is_empty()
    }

    /// The tokens whose rows were trained of a module.
    pub fn tokens(&self, path: &str, module: &Module) -> Option<&[usize]> {
        let is_it = |name: &Option<String>| match name {
            // Within a word, too: "model.embed_tokens" is that of a "language_model".
            Some(name) => path.ends_with(name.as_str()),
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
        if self.weight_key(path).is_some() || (self.tying == EnsuredTying::Targets && !module.role.is_inner()) {
            return Ok(true);
        }
        if let Some(excluded) = &self.excluded
            && excluded.hold(path, module)?
        {
            return Ok(false);
        }
        if self.modules_to_save.hold_part(path) || !self.targets.hold(path, module)? {
            return Ok(false);
        }
        // A path that is named as a whole is meant whatever its layer.
        let named = matches!(&self.targets, Targets::Names(names) if names.0.contains(path));
        match &self.layers {
            Some(layers) if !named => Ok(self.layer(path)?.is_some_and(|layer| layers.contains(&layer))),
            _ => Ok(true),
        }
    }

    /// Whether a target says more of a module than what it is called: where it stands.
    pub fn says_place(&self, path: &str) -> bool {
        self.weight_key(path).is_some()
            || match &self.targets {
                Targets::Names(names) => names.ending(path).any(|name| name.contains('.')),
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
            Self::Names(names) => Ok(names.hold(path)),
            Self::Pattern(pattern) => pattern.is_match(path).map_err(too_hard),
            Self::Linear => Ok(module.role.is_inner() && !module.of_experts),
        }
    }

    /// Whether they name an embedding or an output matrix, as PEFT looks for one that is to stay tied: not by their paths.
    fn name_table(&self) -> Result<bool> {
        match self {
            Self::Names(names) => Ok(names.name_table()),
            Self::Pattern(pattern) => {
                let matches = TABLES.iter().map(|table| pattern.is_match(table).map_err(too_hard));
                Ok(matches.collect::<Result<Vec<_>>>()?.contains(&true))
            }
            Self::Linear => Ok(false),
        }
    }
}

impl ModuleNames {
    fn read(json: &Json, key: &str, max: usize) -> Result<Self> {
        let names: BTreeSet<String> = json.texts(key)?.unwrap_or_default().into_iter().collect();
        if names.len() > max {
            return Err(json.invalid(key, &format!("expected at most {max} names, found {}", names.len())));
        }
        Ok(Self(names))
    }

    /// Whether one ends with what PEFT calls an embedding or an output matrix.
    fn name_table(&self) -> bool {
        self.iter().any(|name| name.rsplit('.').next().is_some_and(|last| TABLES.contains(&last)))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In the order of the alphabet.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Those that a path is, or ends with behind a dot.
    fn ending<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a str> {
        tails(path).filter(|tail| self.0.contains(*tail))
    }

    pub fn hold(&self, path: &str) -> bool {
        self.ending(path).next().is_some()
    }

    /// Whether one of them stands anywhere between dots of a path.
    fn hold_part(&self, path: &str) -> bool {
        let begins = |tail: &str| self.0.contains(tail) || tail.match_indices('.').any(|(end, _)| self.0.contains(&tail[..end]));
        tails(path).any(begins)
    }
}

/// A path, and what follows each of its dots.
fn tails(path: &str) -> impl Iterator<Item = &str> {
    std::iter::once(path).chain(path.match_indices('.').map(|(dot, _)| &path[dot + 1..]))
}

impl Pattern {
    fn is_match(&self, path: &str) -> Result<bool> {
        match self {
            Self::Name(name) => {
                let mut rest = path.chars().rev();
                let fits = name.chars().rev().all(|c| rest.next().is_some_and(|found| found == c || (c == '.' && found != '\n')));
                Ok(fits && rest.next().is_none_or(|before| before == '.'))
            }
            Self::Regex(regex) => regex.is_match(path).map_err(too_hard),
        }
    }
}

/// `trainable_token_indices`: of the embedding, or of each table by its name.
fn tokens(json: &Json) -> Result<Vec<(Option<String>, Vec<usize>)>> {
    const KEY: &str = "trainable_token_indices";
    let distinct = |json: &Json, key: &str| {
        let ids = json.counts(key, MAX_TOKEN)?.unwrap_or_default();
        let no_memory = |e| {
            let message = format!("{key}: a copy of {} ids does not fit the memory", ids.len());
            Error::new(ErrorKind::OutOfMemory, message).with_source(e)
        };
        let mut sorted = copied(&ids).map_err(no_memory)?;
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
            if names.len() > MAX_PATTERNS {
                return Err(json.invalid(KEY, &format!("expected at most {MAX_PATTERNS} tables, found {}", names.len())));
            }
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
            check_pattern(json, key, &pattern)?;
            Ok(Targets::Pattern(regex(json, key, &format!(r"\A(?:{pattern})\z"), MAX_STEPS)?))
        }
        _ => Ok(Targets::Names(ModuleNames::read(json, key, MAX_NAMES)?)),
    }
}

fn patterns<T>(json: &Json, key: &str, value: impl Fn(&Json, &str) -> Result<T>) -> Result<Vec<(Pattern, T)>> {
    let Some(object) = json.object(key)? else { return Ok(Vec::new()) };
    let fields = object.value().as_object();
    let count = fields.map_or(0, serde_json::Map::len);
    if count > MAX_PATTERNS {
        return Err(json.unsupported(key, &format!("expected at most {MAX_PATTERNS} patterns")));
    }
    let is_name = |pattern: &str| pattern.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
    let fields = || fields.into_iter().flatten().map(|(pattern, _)| pattern);
    let steps = steps_of(json, key, fields().filter(|pattern| !is_name(pattern)).count())?;
    let made = |pattern: &String| {
        if is_name(pattern) {
            return Ok(Pattern::Name(pattern.clone()));
        }
        check_pattern(json, key, pattern)?;
        regex(json, key, &format!(r"\A(?:.*\.)?(?:{pattern})\z"), steps).map(Pattern::Regex)
    };
    fields().map(|pattern| Ok((made(pattern)?, value(&object, pattern)?))).collect()
}

/// The steps back of each of so many patterns on a path.
fn steps_of(json: &Json, key: &str, count: usize) -> Result<usize> {
    match count {
        0..=MAX_REGEXES => Ok(MAX_STEPS.min(MAX_STEPS_OF_ALL / count.max(1))),
        _ => Err(json.invalid(key, &format!("expected at most {MAX_REGEXES} patterns that are no names, found {count}"))),
    }
}

/// What the first pattern that fits a path says.
fn first<T: Copy>(patterns: &[(Pattern, T)], path: &str) -> Result<Option<T>> {
    for (pattern, value) in patterns {
        if pattern.is_match(path)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// What would take memory or time before the limits of a compiled pattern count.
fn check_pattern(json: &Json, key: &str, pattern: &str) -> Result<()> {
    let repeated = || {
        let braces = pattern.split('{').skip(1).map(|rest| rest.split('}').next().unwrap_or_default());
        braces.filter_map(repetitions).try_fold(1usize, |all, more| all.checked_mul(more))
    };
    let (is_short, is_cheap) =
        (pattern.len() <= MAX_PATTERN_TEXT, || repeated().is_some_and(|repeated| repeated <= MAX_REPETITIONS));
    if is_short && is_cheap() {
        return Ok(());
    }
    let expected = format!("expected a regular expression of at most {MAX_PATTERN_TEXT} bytes and {MAX_REPETITIONS} repetitions");
    Err(json.invalid(key, &format!("{expected}, found one of {} bytes", pattern.len())))
}

/// How often something comes at least, by what stands in braces; `None` = nothing that counts.
fn repetitions(braces: &str) -> Option<usize> {
    let number = |digits: &str| digits.parse().unwrap_or(usize::MAX).max(1);
    if braces.bytes().all(|b| b.is_ascii_digit() || b == b',') {
        return braces.split(',').next().filter(|least| !least.is_empty()).map(number);
    }
    // Blanks and comments are allowed there: the largest number, whatever it is.
    braces.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty()).map(number).max()
}

fn regex(json: &Json, key: &str, pattern: &str, steps: usize) -> Result<Regex> {
    let compiled = RegexBuilder::new(pattern).delegate_size_limit(MAX_PATTERN_BYTES).backtrack_limit(steps).build();
    compiled.map_err(|e| json.invalid(key, &format!("expected a regular expression: {e}")).with_source(e))
}

/// A pattern from outside may ask for more steps than there is time.
fn too_hard(error: fancy_regex::Error) -> Error {
    Error::unsupported(format!("{CONFIG}: a pattern takes too long: {error}")).with_source(error)
}

fn whole_numbers(json: &Json, key: &str) -> Result<HashSet<usize>> {
    let numbers = json.numbers(key)?.unwrap_or_default();
    let whole = |x: f64| if x >= 0.0 && x.fract() == 0.0 && x < 1e9 { Ok(x as usize) } else { Err(x) };
    let numbers = numbers.into_iter().map(whole).collect::<std::result::Result<_, _>>();
    numbers.map_err(|x| json.invalid(key, &format!("expected whole numbers, found {x}")))
}

/// Whether a path is a name, or ends with it behind a dot.
pub(super) fn ends_with_name(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::error::ErrorKind;

    fn parsed(key: &str, value: Value) -> Result<PeftConfig> {
        let mut config = json!({ "peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"] });
        config[key] = value;
        PeftConfig::parse(&Json::parse(CONFIG, &config.to_string())?, false)
    }

    const PATH: &str = "model.layers.0.self_attn.q_proj";

    #[test]
    fn a_name_is_the_pattern_that_it_spells() {
        for pattern in
            ["q_proj", "self_attn.q_proj", "self.attn.q_proj", PATH, "proj", "_proj", ".q_proj", "x.q_proj", ".", "", "v_proj"]
        {
            let config = parsed("rank_pattern", json!({ pattern: 4 })).unwrap();
            let regex = Regex::new(&format!(r"\A(?:.*\.)?(?:{pattern})\z")).unwrap();
            assert!(matches!(config.rank_pattern[0].0, Pattern::Name(_)));
            for path in [PATH, "q_proj", "model.self.attn.q_proj", "a.b"] {
                let want = if regex.is_match(path).unwrap() { 4 } else { 8 };
                assert_eq!(config.rank(path).unwrap(), want, "{pattern} {path}");
            }
        }
    }

    #[test]
    fn what_a_list_names_is_found_by_every_part_of_a_path() {
        let config = parsed("modules_to_save", json!(["layers.0", "head", "head"])).unwrap();
        for (path, holds) in
            [(PATH, true), ("model.layers.01.q_proj", false), ("head", true), ("a.head.b", true), ("lm_head", false)]
        {
            assert_eq!(config.modules_to_save.hold_part(path), holds, "{path}");
        }
        assert_eq!(config.modules_to_save.iter().collect::<Vec<_>>(), ["head", "layers.0"]);
        let targets = parsed("target_modules", json!(["q_proj", "mlp.up_proj"])).unwrap().targets;
        let Targets::Names(names) = targets else { panic!("expected names") };
        for (path, holds) in
            [(PATH, true), ("mlp.up_proj", true), ("x.mlp.up_proj", true), ("up_proj", false), ("xq_proj", false)]
        {
            assert_eq!(names.hold(path), holds, "{path}");
        }
    }

    #[test]
    fn lists_and_patterns_that_take_too_long_are_refused() {
        let names = |count: usize| (0..count).map(|i| format!("n{i}")).collect::<Vec<_>>();
        let regexes = |count: usize| names(count).into_iter().map(|name| (format!("{name}.*"), 4)).collect::<Vec<_>>();
        let object = |fields: Vec<(String, i32)>| fields.into_iter().map(|(name, x)| (name, json!(x))).collect::<Value>();
        for (key, value) in [
            ("target_modules", json!(names(MAX_NAMES + 1))),
            ("exclude_modules", json!(names(MAX_NAMES + 1))),
            ("target_parameters", json!(names(MAX_NAMES + 1))),
            ("modules_to_save", json!(names(MAX_PATTERNS + 1))),
            ("layers_pattern", json!(names(MAX_REGEXES + 1))),
            ("rank_pattern", object(regexes(MAX_REGEXES + 1))),
            ("trainable_token_indices", names(MAX_PATTERNS + 1).into_iter().map(|name| (name, json!([1]))).collect()),
            // A million million times nothing.
            ("rank_pattern", json!({ "(?:(?:(?=m)){999999}){999999}": 4 })),
            ("alpha_pattern", json!({ "(?x)(?:(?=m)){ #1\n999999 }": 4 })),
            ("target_modules", json!("(?:(?:aa){9999999999}){9999999999}")),
            ("target_modules", json!("a".repeat(MAX_PATTERN_TEXT + 1))),
        ] {
            let error = parsed(key, value).err().unwrap_or_else(|| panic!("{key}: accepted"));
            assert!(error.message().contains(key), "{error}");
        }
        assert!(parsed("rank_pattern", object(names(MAX_PATTERNS).into_iter().map(|name| (name, 4)).collect())).is_ok());
        assert!(parsed("rank_pattern", json!({ r"layers\.\d{1,3}\.(?!x).*q_proj": 4 })).unwrap().rank(PATH).unwrap() == 4);
        let slow = parsed("rank_pattern", json!({ "(?:.(?=.)|.)*!": 4 })).unwrap();
        let error = slow.rank(PATH).unwrap_err();
        assert!(error.kind() == ErrorKind::Unsupported && error.message().contains("takes too long"), "{error}");
    }

    #[test]
    fn patterns_of_a_list_share_their_steps() {
        // Each of these takes about a thousand steps back: one may, two hundred may not.
        let pattern = |i: usize| format!("(?:.(?=.))*(?:.(?=.))*!{i}");
        let of = |count: usize| parsed("rank_pattern", (0..count).map(|i| (pattern(i), json!(4))).collect()).unwrap();
        assert_eq!(of(1).rank(PATH).unwrap(), 8);
        assert!(of(200).rank(PATH).unwrap_err().message().contains("takes too long"));
    }
}
