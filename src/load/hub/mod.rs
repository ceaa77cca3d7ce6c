//! Models from the Hugging Face Hub: which files a model needs, and getting those that the cache lacks.
//!
//! One listing names the commit and every file with its size and hash; files come in blocks, are checked, and appear in the
//! cache under their name only when whole. The cache has the layout of the Hub's own client ([`cache`]), so each finds what
//! the other downloaded. Everything the Hub says is checked before it becomes part of a path.
//!
//! What brings the files is a [`Download`]: our own client ([`client`]), a thin one over `ureq` that can be stopped
//! within a file and takes up a broken connection, or the crate hf-hub (`hf_hub`, with the feature `hf-hub`).

mod client;
#[cfg(feature = "hf-hub")]
mod hf_hub;
mod cache;
mod gguf;

use std::path::{Path, PathBuf};

use serde::Deserialize;

use self::cache::Cache;
pub use self::client::Client;
#[cfg(feature = "hf-hub")]
pub use self::hf_hub::HfHub;
use super::safetensors::{shards, weight_map};
use super::sentence::NETWORK_SETTINGS;
use crate::error::{Error, ErrorKind, Result};

/// The Hub itself.
pub const ENDPOINT: &str = "https://huggingface.co";

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Files that a model directory may have beside its weights. The last two are those of sentence-transformers, as are the folders `N_Name`
/// and the settings of a network, `sentence_NETWORK_config.json`.
const FILES: [&str; 10] = [
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "modules.json",
    "config_sentence_transformers.json",
];

/// What a tokenizer is made of where there is no tokenizer.json.
const VOCABULARIES: [&str; 4] = ["vocab.txt", "vocab.json", "merges.txt", "tokenizer.model"];

/// What brings files from the Hub.
pub trait Download {
    /// What the Hub says of a revision, with sizes and hashes: the text of a [`Listing`].
    ///
    /// # Errors
    /// `NotFound`, `Network`; what `watch` returns.
    fn listing(&self, repo: &RepoId, revision: &Revision, watch: &mut dyn Watch) -> Result<Vec<u8>>;

    /// Brings a file of a commit to `blob`, where it appears whole, in the listed size and, where one is listed, with
    /// that SHA-256. The caller holds the blob's lock.
    ///
    /// # Errors
    /// `NotFound`, `Network`, `Io`; what `meter` returns.
    fn file(&self, repo: &RepoId, commit: &str, file: &Sibling, blob: &Path, meter: &mut Meter<'_>) -> Result<()>;
}

/// Who waits for a download. Every error stops it.
pub trait Watch {
    /// Asked before each request and while waiting.
    fn check(&mut self) -> Result<()>;
    /// Told after each block: bytes so far of all that the model needs, those in the cache included. Never told if all were.
    fn bytes(&mut self, done: u64, total: u64) -> Result<()>;
    /// All but the weights is in `directory`: the last moment to refuse a model before its weights are downloaded.
    fn weights_follow(&mut self, directory: &Path) -> Result<()>;
}

/// The Hub and the cache.
pub struct Hub {
    download: Option<Box<dyn Download>>,
    cache: PathBuf,
}

impl Hub {
    /// `cache` is where files are kept (`None` = [`cache::default_directory`]).
    pub fn new(download: Box<dyn Download>, cache: Option<&Path>) -> Result<Self> {
        Ok(Self { download: Some(download), cache: directory(cache)? })
    }

    /// The cache alone, without a network.
    pub fn offline(cache: Option<&Path>) -> Result<Self> {
        Ok(Self { download: None, cache: directory(cache)? })
    }

    /// Completes a model in the cache and returns its directory, or its GGUF file: `file`, or that of a repository which has no
    /// safetensors.
    ///
    /// # Errors
    /// `InvalidArgument` for an impossible name; `NotFound` for a repository, revision or file that does not exist; `Network`;
    /// `Format` for a listing or index that contradicts itself or names files elsewhere; `Io`; what `watch` returns.
    pub fn fetch(&self, repo: &RepoId, revision: &Revision, file: Option<&str>, watch: &mut dyn Watch) -> Result<PathBuf> {
        if let Some(found) = file.filter(|file| !is_gguf(file)) {
            return Err(Error::argument(format!("file: expected the name of a .gguf file, found {found:?}")));
        }
        let cache = Cache::new(&self.cache, repo);
        let Some(download) = &self.download else { return self.cached(&cache, repo, revision, file) };
        let subject = format!("{}@{}", repo.as_str(), revision.as_str());
        watch.check()?;
        let listing = download.listing(repo, revision, watch).and_then(|text| Listing::parse(&text));
        let listing = listing.map_err(|e| named(e, &subject))?;
        let snapshot = Snapshot { download: &**download, cache, repo, listing };
        let path = snapshot.fetch(file, watch).map_err(|e| named(e, &subject))?;
        snapshot.cache.remember(revision, &snapshot.listing.sha, &mut || watch.check())?;
        Ok(path)
    }

    /// A model without a network. Which optional files it should have nobody knows: what there is must do.
    fn cached(&self, cache: &Cache, repo: &RepoId, revision: &Revision, file: Option<&str>) -> Result<PathBuf> {
        let missing = |file: &str| {
            let (repo, revision, root) = (repo.as_str(), revision.as_str(), self.cache.display());
            Error::new(
                ErrorKind::NotFound,
                format!("{repo}@{revision}: {file}: expected in the cache {root} (offline), found nothing"),
            )
        };
        let directory = cache.snapshot(&cache.commit(revision).ok_or_else(|| missing("any file"))?);
        let require = |file: &str| cache::size(&directory.join(file)).map(|_| ()).ok_or_else(|| missing(file));
        let has_safetensors = [WEIGHTS, INDEX].iter().any(|file| cache::size(&directory.join(file)).is_some());
        if file.is_some() || !has_safetensors {
            let names = cache::files(&directory);
            let names: Vec<&str> = names.iter().map(String::as_str).filter(|name| is_gguf(name)).collect();
            let subject = format!("{}@{} (offline)", repo.as_str(), revision.as_str());
            if let Some(files) = gguf::chosen(&names, file).map_err(|e| named(e, &subject))? {
                return Ok(directory.join(&files[0]));
            }
        }
        require(CONFIG)?;
        if cache::size(&directory.join(INDEX)).is_none() || cache::size(&directory.join(WEIGHTS)).is_some() {
            require(WEIGHTS)?;
        } else {
            let map = weight_map(&directory.join(INDEX))?;
            shards(&map)?.into_keys().try_for_each(require)?;
        }
        Ok(directory)
    }
}

fn directory(cache: Option<&Path>) -> Result<PathBuf> {
    cache.map_or_else(cache::default_directory, |cache| Ok(cache.to_path_buf()))
}

/// The error of a repository or file; a cancelled call is not about one.
fn named(error: Error, subject: &str) -> Error {
    if error.kind() == ErrorKind::Cancelled { error } else { error.within(subject) }
}

/// One commit of one repository on its way into the cache.
struct Snapshot<'a> {
    download: &'a dyn Download,
    cache: Cache,
    repo: &'a RepoId,
    listing: Listing,
}

impl Snapshot<'_> {
    /// The GGUF file, or the directory, of the model.
    fn fetch(&self, file: Option<&str>, watch: &mut dyn Watch) -> Result<PathBuf> {
        let has_safetensors = [WEIGHTS, INDEX].iter().any(|file| self.listing.find(file).is_ok());
        if file.is_some() || !has_safetensors {
            let names: Vec<&str> = self.listing.siblings.iter().map(|file| file.rfilename.as_str()).collect();
            if let Some(files) = gguf::chosen(&names, file)? {
                return self.gguf(&files, watch);
            }
        }
        self.model(watch)
    }

    /// The files of a GGUF model; returns the first. It holds all that a model needs, so that nothing can be refused before.
    fn gguf(&self, files: &[String], watch: &mut dyn Watch) -> Result<PathBuf> {
        let found = files.iter().map(|name| self.listing.find(name)).collect::<Result<Vec<_>>>()?;
        for file in &found {
            file.check()?;
            if !file.rfilename.split('/').all(is_plain) {
                return Err(Error::format(format!("listing: expected a plain name, found {:?}", file.rfilename)));
            }
        }
        self.all(&found, &[], watch)?;
        Ok(self.cache.snapshot(&self.listing.sha).join(&files[0]))
    }

    /// The small files, then the weights.
    fn model(&self, watch: &mut dyn Watch) -> Result<PathBuf> {
        let directory = self.cache.snapshot(&self.listing.sha);
        self.listing.find(CONFIG)?;
        let weights = self.weights(watch)?;
        let siblings = || self.listing.siblings.iter();
        let is_whole = siblings().any(|file| name_below_module(&file.rfilename) == "tokenizer.json");
        let is_needed = |name: &str| is_small(name) || (!is_whole && is_vocabulary(name));
        let mut small: Vec<&Sibling> = siblings().filter(|file| is_needed(&file.rfilename)).collect();
        small.sort_by_key(|file| &file.rfilename);
        small.dedup_by_key(|file| &file.rfilename);

        self.all(&weights, &small, watch)?;
        Ok(directory)
    }

    /// Brings what the cache lacks; `small` ones first, and with them the chance to refuse the others.
    fn all(&self, weights: &[&Sibling], small: &[&Sibling], watch: &mut dyn Watch) -> Result<()> {
        let all = || small.iter().chain(weights);
        let total = all().fold(0, |sum: u64, file| sum.saturating_add(file.size()));
        let finished = all().filter(|file| self.holds(file)).fold(0, |sum: u64, file| sum.saturating_add(file.size()));
        let mut meter = Meter { watch, finished, told: finished, total };
        let complete = finished == total;
        if !complete {
            meter.at(0)?;
        }
        small.iter().try_for_each(|file| self.file(file, &mut meter))?;
        if !small.is_empty() {
            meter.watch.weights_follow(&self.cache.snapshot(&self.listing.sha))?;
        }
        weights.iter().try_for_each(|file| self.file(file, &mut meter))?;
        // What another process finished meanwhile was not counted.
        if !complete && meter.told < total {
            meter.at(total)?;
        }
        Ok(())
    }

    /// The one file of weights, or the index and the shards it names; and those of sentence-transformers' modules.
    fn weights(&self, watch: &mut dyn Watch) -> Result<Vec<&Sibling>> {
        let modules = self.listing.siblings.iter().filter(|file| is_module_weights(&file.rfilename));
        let mut files: Vec<&Sibling> = modules.collect();
        match (self.listing.find(WEIGHTS), self.listing.find(INDEX)) {
            (Err(missing), Err(_)) => return Err(missing),
            (Ok(single), _) => files.push(single),
            (Err(_), Ok(index)) => {
                // The total is not known before the index is read: it comes unannounced.
                self.file(index, &mut Meter { watch, finished: 0, told: 0, total: 0 })?;
                files.push(index);
                let map = weight_map(&self.cache.snapshot(&self.listing.sha).join(INDEX))?;
                for (shard, tensors) in shards(&map)? {
                    if !is_plain(shard) || !shard.ends_with(".safetensors") {
                        let found = format!("expected the name of a safetensors file, found {shard:?}");
                        return Err(map.invalid(tensors.first().unwrap_or(&""), &found));
                    }
                    files.push(self.listing.find(shard)?);
                }
            }
        }
        Ok(files)
    }

    /// Whether a file is where it belongs. A wrong size means that something damaged it.
    fn holds(&self, file: &Sibling) -> bool {
        cache::size(&self.cache.snapshot(&self.listing.sha).join(&file.rfilename)) == Some(file.size())
    }

    fn file(&self, file: &Sibling, meter: &mut Meter<'_>) -> Result<()> {
        if self.holds(file) {
            return Ok(());
        }
        meter.watch.check()?;
        let etag = file.etag();
        let _lock = self.cache.lock(etag, &mut || meter.again())?;
        let blob = self.cache.blob(etag);
        if cache::size(&blob) != Some(file.size()) && !self.holds(file) {
            let brought = self.download.file(self.repo, &self.listing.sha, file, &blob, meter);
            brought.map_err(|e| named(e, &file.rfilename))?;
        }
        if !self.holds(file) {
            self.cache.link(&self.listing.sha, &file.rfilename, etag)?;
        }
        meter.at(file.size())?;
        meter.finished = meter.finished.saturating_add(file.size());
        Ok(())
    }
}

/// Bytes of all files, never falling.
pub struct Meter<'a> {
    watch: &'a mut dyn Watch,
    finished: u64,
    told: u64,
    total: u64,
}

impl Meter<'_> {
    /// So many bytes of the present file are there.
    fn at(&mut self, len: u64) -> Result<()> {
        self.told = self.told.max(self.finished.saturating_add(len).min(self.total));
        self.again()
    }

    fn again(&mut self) -> Result<()> {
        if self.total == 0 { self.watch.check() } else { self.watch.bytes(self.told, self.total) }
    }
}

/// What the Hub says of a revision: <https://huggingface.co/docs/hub/api>.
#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

/// A file of a repository.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

/// A large file, kept outside of git.
#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: Option<u64>,
}

impl Listing {
    fn parse(text: &[u8]) -> Result<Self> {
        let listing: Self = serde_json::from_slice(text).map_err(|e| Error::format(format!("listing: {e}")).with_source(e))?;
        listing.checked()
    }

    /// The same, if nothing in it leads out of the cache and what is needed is complete.
    fn checked(self) -> Result<Self> {
        if !is_hex(&self.sha, 40) {
            return Err(Error::format(format!("listing: sha: expected 40 hexadecimal digits, found {:?}", self.sha)));
        }
        for file in &self.siblings {
            let name = &file.rfilename;
            if name.split(['/', '\\']).any(|part| matches!(part, "" | "." | "..")) {
                return Err(Error::format(format!("listing: expected a path within the repository, found {name:?}")));
            }
            // Shards are known only once the index is read, so every file in reach must be complete.
            if name.ends_with(".safetensors") || is_small(name) || is_vocabulary(name) || name == INDEX {
                file.check()?;
            }
        }
        Ok(self)
    }

    fn find(&self, name: &str) -> Result<&Sibling> {
        let file = self.siblings.iter().find(|file| file.rfilename == name);
        file.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("{name}: the repository has no such file")))
    }
}

impl Sibling {
    fn check(&self) -> Result<()> {
        let bad = |message: &str| Error::format(format!("listing: {}: {message}", self.rfilename));
        match self.lfs.as_ref().and_then(|lfs| lfs.size).or(self.size) {
            None => return Err(bad("expected a size, found none")),
            // Sums of sizes, and doubles of hosts that count in them, stay exact.
            Some(size) if size >= 1 << 53 => return Err(bad(&format!("size: expected less than 2^53 bytes, found {size}"))),
            Some(_) => {}
        }
        if !is_hex(self.etag(), if self.lfs.is_some() { 64 } else { 40 }) {
            return Err(bad(&format!("expected a hash, found {:?}", self.etag())));
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        self.lfs.as_ref().and_then(|lfs| lfs.size).or(self.size).unwrap_or(0)
    }

    fn sha256(&self) -> Option<&str> {
        self.lfs.as_ref().map(|lfs| lfs.sha256.as_str())
    }

    /// What the Hub and the cache call the content: SHA-256 of a large file, git's id of another.
    fn etag(&self) -> &str {
        self.sha256().or(self.blob_id.as_deref()).unwrap_or_default()
    }
}

/// The name of a repository: `owner/name`, or `name` alone for the oldest ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoId(String);

impl RepoId {
    /// # Errors
    /// `InvalidArgument` for what the Hub would not accept as a name, and for a file of a repository.
    pub fn parse(text: &str) -> Result<Self> {
        if text.to_ascii_lowercase().ends_with(".gguf") {
            return Err(Error::argument(format!(
                "repo_id: expected owner/name, and its file by the option file, found {text:?}"
            )));
        }
        // The Hub forbids "--" as well: the cache writes it for the slash.
        let part = |part: &str| is_plain(part) && part.len() <= 96 && !part.starts_with('-') && !part.ends_with(['-', '.']);
        if text.split('/').count() > 2 || !text.split('/').all(part) || text.contains("--") || text.contains("..") {
            let found: String = text.chars().take(100).collect();
            return Err(Error::argument(format!(
                "repo_id: expected owner/name of letters, digits, '-', '_' and '.', found {found:?}"
            )));
        }
        Ok(Self(text.to_string()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A branch, tag or commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision(String);

impl Revision {
    /// # Errors
    /// `InvalidArgument` for what git would not accept as a name (git-check-ref-format): it forbids all that could lead a path
    /// elsewhere.
    pub fn parse(text: &str) -> Result<Self> {
        let part =
            |part: &str| !part.is_empty() && !part.starts_with(['.', '-']) && !part.ends_with('.') && !part.ends_with(".lock");
        let forbidden = |c: char| c.is_control() || " ~^:?*[\\\"<>|".contains(c);
        if text.len() > 255
            || !text.split('/').all(part)
            || text.contains(forbidden)
            || text.contains("..")
            || text.contains("@{")
        {
            let found: String = text.chars().take(100).collect();
            return Err(Error::argument(format!("hub_revision: expected a branch, tag or commit, found {found:?}")));
        }
        Ok(Self(text.to_string()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn is_commit(&self) -> bool {
        is_hex(&self.0, 40)
    }
}

/// Files that are fetched before the weights.
fn is_small(name: &str) -> bool {
    match name.split_once('/') {
        None => is_setting(name),
        Some(("additional_chat_templates", template)) => is_plain(template) && template.ends_with(".jinja"),
        Some((folder, file)) => is_module(folder) && is_setting(file),
    }
}

fn is_vocabulary(name: &str) -> bool {
    VOCABULARIES.contains(&name_below_module(name))
}

/// A file's name, without the folder of a module of sentence-transformers.
fn name_below_module(name: &str) -> &str {
    name.split_once('/').filter(|(folder, _)| is_module(folder)).map_or(name, |(_, file)| file)
}

/// What is read beside weights.
fn is_setting(name: &str) -> bool {
    let network = name.strip_prefix("sentence_").and_then(|name| name.strip_suffix("_config.json"));
    FILES.contains(&name) || network.is_some_and(|network| NETWORK_SETTINGS.contains(&network))
}

fn is_module_weights(name: &str) -> bool {
    name.split_once('/').is_some_and(|(folder, file)| is_module(folder) && is_plain(file) && file.ends_with(".safetensors"))
}

/// A folder of sentence-transformers: `1_Pooling`.
fn is_module(folder: &str) -> bool {
    let number = folder.split_once('_').map(|(number, _)| number);
    is_plain(folder) && number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn is_gguf(name: &str) -> bool {
    name.len() > 5 && name.to_ascii_lowercase().ends_with(".gguf")
}

/// One part of a path that is nothing but a name.
fn is_plain(part: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !part.is_empty() && !part.starts_with('.') && part.bytes().all(allowed)
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Percent-encoding of one part of a URL.
fn encode(part: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    part.bytes().map(|byte| if plain(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests;
