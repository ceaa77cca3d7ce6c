//! The Hub's client against a server on the loopback interface.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::*;
use crate::engine::hub::load_from;
use crate::engine::{Cancel, LoadOptions, Model, Progress, Stage};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const REPO: &str = "nobody/tiny";
const TOKEN: &str = "hf_secretOfTheTests";
/// Larger than every buffer between the two.
const LARGE: usize = 3 << 20;
/// Elsewhere a file lives in the snapshot, and nothing is left of its blob.
const HAS_LINKS: bool = cfg!(unix);

/// A request as the server saw it; header names in lower case.
#[derive(Debug, Clone)]
struct Request {
    path: String,
    headers: BTreeMap<String, String>,
}

impl Request {
    /// Whether it asks for the rest of a file.
    fn resumes(&self) -> bool {
        self.headers.get("range").is_some_and(|range| !range.starts_with("bytes=0-"))
    }
}

#[derive(Clone)]
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// What Content-Length says.
    announced: usize,
}

impl Reply {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self { status, headers: Vec::new(), announced: body.len(), body }
    }

    fn redirect(to: String) -> Self {
        Self { headers: vec![("Location", to)], ..Self::new(302, "moved") }
    }
}

type Answer = dyn Fn(&Request) -> Reply + Send + Sync;

/// Answers one request a connection until it is dropped.
struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn new(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (log, stopped) = (requests.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                // A client that goes away in the middle is part of the tests.
                let _ = stream.and_then(|stream| serve(stream, &log, &answer));
            }
        });
        Self { address, requests, stop, thread: Some(thread) }
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    fn paths(&self) -> Vec<String> {
        self.requests.lock().unwrap().iter().map(|request| request.path.clone()).collect()
    }

    /// The files that were asked for since the last call, sorted.
    fn files(&self) -> Vec<String> {
        let requests = std::mem::take(&mut *self.requests.lock().unwrap());
        let file = |request: Request| Some(request.path.split_once(&format!("/resolve/{COMMIT}/"))?.1.to_string());
        let mut files: Vec<_> = requests.into_iter().filter_map(file).collect();
        files.sort();
        files
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn serve(mut stream: TcpStream, log: &Mutex<Vec<Request>>, answer: &Answer) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.set_write_timeout(Some(Duration::from_secs(20)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_string();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.to_ascii_lowercase(), value.trim().to_string());
        }
    }
    let request = Request { path, headers };
    log.lock().unwrap().push(request.clone());
    let reply = answer(&request);
    write!(stream, "HTTP/1.1 {} x\r\nConnection: close\r\nContent-Length: {}\r\n", reply.status, reply.announced)?;
    for (name, value) in &reply.headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    stream.write_all(b"\r\n")?;
    stream.write_all(&reply.body)
}

/// A repository of the fake Hub. Names ending in `.safetensors` are large files.
#[derive(Clone, Default)]
struct Repo {
    files: BTreeMap<String, Vec<u8>>,
}

impl Repo {
    /// A configuration that no family has, and large weights that are none.
    fn random() -> Self {
        let weights: Vec<u8> = (0..LARGE as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
        Self::default().with(CONFIG, "{}").with("tokenizer.json", "[1, 2, 3]").with("README.md", "# Tiny").with(WEIGHTS, weights)
    }

    fn of(directory: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(directory);
        let mut repo = Self::default();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
                    repo.files.insert(name, std::fs::read(path).unwrap());
                }
            }
        }
        repo
    }

    fn with(mut self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        self.files.insert(name.to_string(), content.into());
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.files.remove(name).unwrap();
        self
    }

    /// The weights in two files.
    fn sharded(self) -> Self {
        let whole = self.files[WEIGHTS].clone();
        let tensors = safetensors::SafeTensors::deserialize(&whole).unwrap();
        let mut names = tensors.names();
        names.sort();
        let (mut repo, mut map) = (self.without(WEIGHTS), BTreeMap::new());
        for (i, half) in names.chunks(names.len().div_ceil(2)).enumerate() {
            let shard = format!("model-{:05}-of-00002.safetensors", i + 1);
            let views = half.iter().map(|name| (name.to_string(), tensors.tensor(name).unwrap()));
            repo.files.insert(shard.clone(), safetensors::serialize(views, None).unwrap());
            map.extend(half.iter().map(|name| (name.to_string(), shard.clone())));
        }
        repo.with(INDEX, json!({ "weight_map": map }).to_string())
    }

    fn listing(&self) -> serde_json::Value {
        let file = |(name, content): (&String, &Vec<u8>)| match name.ends_with(".safetensors") {
            true => json!({ "rfilename": name, "size": content.len(), "blobId": &sha256(b"pointer")[..40],
                            "lfs": { "sha256": sha256(content), "size": content.len(), "pointerSize": 135 } }),
            false => json!({ "rfilename": name, "size": content.len(), "blobId": &sha256(content)[..40] }),
        };
        json!({ "id": REPO, "sha": COMMIT, "siblings": self.files.iter().map(file).collect::<Vec<_>>() })
    }

    fn answer(&self, request: &Request) -> Reply {
        if request.path == format!("/api/models/{REPO}/revision/main?blobs=true") {
            return Reply::new(200, self.listing().to_string());
        }
        let name = request.path.strip_prefix(&format!("/{REPO}/resolve/{COMMIT}/"));
        let Some(content) = name.and_then(|name| self.files.get(name)) else { return Reply::new(404, "no") };
        let etag = if name.is_some_and(|name| name.ends_with(".safetensors")) { sha256(content) } else { "small".to_string() };
        let mut headers = vec![("X-Repo-Commit", COMMIT.to_string()), ("ETag", format!("\"{etag}\""))];
        let range = request.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let Some((from, to)) = range else { return Reply { headers, ..Reply::new(200, content.clone()) } };
        let (from, last) = (from.parse().unwrap(), to.parse().unwrap_or(content.len() - 1));
        headers.push(("Content-Range", format!("bytes {from}-{last}/{}", content.len())));
        Reply { headers, ..Reply::new(206, &content[from..=last]) }
    }

    fn server(self) -> Server {
        Server::new(move |request| self.answer(request))
    }

    /// The same, with another answer to requests whose path ends so.
    fn server_but(self, end: &'static str, answer: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Server {
        Server::new(move |request| {
            let reply = self.answer(request);
            if request.path.ends_with(end) { answer(request, reply) } else { reply }
        })
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Remembers what it was told, and stops at a number of bytes.
#[derive(Default)]
struct Seen {
    bytes: Vec<(u64, u64)>,
    followed: usize,
    stop_at: Option<u64>,
}

impl Watch for Seen {
    fn check(&mut self) -> Result<()> {
        Ok(())
    }

    fn bytes(&mut self, done: u64, total: u64) -> Result<()> {
        self.bytes.push((done, total));
        if self.stop_at.is_some_and(|stop| done >= stop) { Err(Error::cancelled()) } else { Ok(()) }
    }

    fn weights_follow(&mut self, directory: &Path) -> Result<()> {
        assert!(directory.join(CONFIG).exists());
        self.followed += 1;
        Ok(())
    }
}

/// Who downloads.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Via {
    Ours,
    #[cfg(feature = "hf-hub")]
    HfHub,
}

#[cfg(not(feature = "hf-hub"))]
const CLIENTS: [Via; 1] = [Via::Ours];
#[cfg(feature = "hf-hub")]
const CLIENTS: [Via; 2] = [Via::Ours, Via::HfHub];

impl Via {
    fn download(self, endpoint: &str) -> Result<Box<dyn Download>> {
        Ok(match self {
            Self::Ours => Box::new(Client::new(endpoint, Some(TOKEN))?),
            #[cfg(feature = "hf-hub")]
            Self::HfHub => Box::new(HfHub::new(endpoint, None)?),
        })
    }

    /// The files that were asked for since the last call; hf-hub asks for each twice, first for its size.
    fn files(self, server: &Server) -> Vec<String> {
        let files = server.files();
        if self == Self::Ours {
            return files;
        }
        assert!(files.chunks(2).all(|both| both[0] == both[1]), "{files:?}");
        files.into_iter().step_by(2).collect()
    }
}

struct Fixture {
    folder: tempfile::TempDir,
    via: Via,
}

impl Fixture {
    fn new() -> Self {
        Self::via(Via::Ours)
    }

    fn via(via: Via) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), via }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn repo(&self) -> PathBuf {
        self.path().join("models--nobody--tiny")
    }

    fn options(&self) -> LoadOptions {
        LoadOptions {
            hub_cache_dir: Some(self.path().to_path_buf()),
            #[cfg(feature = "hf-hub")]
            hf_hub: self.via == Via::HfHub,
            ..LoadOptions::default()
        }
    }

    fn fetch_watched(&self, server: &Server, watch: &mut Seen) -> Result<PathBuf> {
        let hub = Hub::new(self.via.download(&server.endpoint())?, Some(self.path()))?;
        let result = hub.fetch(&RepoId::parse(REPO)?, &Revision::parse("main")?, None, watch);
        if let Err(error) = &result {
            assert!(!error.details().contains(TOKEN), "{}", error.details());
        }
        result
    }

    fn fetch(&self, server: &Server) -> Result<PathBuf> {
        self.fetch_watched(server, &mut Seen::default())
    }

    fn offline(&self) -> Result<PathBuf> {
        Hub::offline(Some(self.path()))?.fetch(&RepoId::parse(REPO)?, &Revision::parse("main")?, None, &mut Seen::default())
    }

    /// Names in blobs/ that are as long as a SHA-256, or end so.
    fn large_blobs(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.repo().join("blobs")).into_iter().flatten();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.len() >= 64 || !is_hex(name, 40))
            .collect()
    }
}

#[track_caller]
fn expect<T>(result: Result<T>, kind: ErrorKind, fragments: &[&str]) {
    let Err(error) = result else { panic!("expected {kind:?}, found success") };
    assert_eq!(error.kind(), kind, "{}", error.details());
    for fragment in fragments {
        assert!(error.message().contains(fragment), "{fragment:?} is not in {:?}", error.message());
    }
}

#[test]
#[cfg_attr(not(reference_data), ignore = "needs the repository's references")]
fn a_repository_is_downloaded_once_and_loads() {
    for via in CLIENTS {
        for (repo, weights) in [(Repo::of("tiny-coder"), 1), (Repo::of("tiny-coder").sharded(), 3)] {
            let small = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"];
            let expected: u64 = repo.files.values().map(|content| content.len() as u64).sum();
            // Neither is a file that the model needs.
            let repo = repo.with("model-00009-of-00009.safetensors", "other").with("pytorch_model.bin", "old");
            let (fixture, server) = (Fixture::via(via), repo.server());
            let mut events: Vec<Progress> = Vec::new();
            let load = |events: &mut Vec<Progress>| {
                let mut note = |event| {
                    events.push(event);
                    ControlFlow::Continue(())
                };
                load_from(&server.endpoint(), REPO, &fixture.options(), Some(&mut note))
            };
            let model = load(&mut events).unwrap();
            assert_eq!((model.architecture(), model.vocab_size()), ("qwen2", 4096));
            assert!(model.tokenizer().is_ok() && model.chat_template().is_ok());

            let read = events.iter().position(|event| event.stage == Stage::Read).unwrap();
            let (download, read) = events.split_at(read);
            assert!(download.iter().all(|event| event.stage == Stage::Download && event.total == expected));
            assert!(read.iter().all(|event| event.stage == Stage::Read));
            assert!(download.is_sorted_by(|a, b| a.done < b.done) && download.len() > 100);
            assert_eq!(download.last().unwrap().done, expected);

            let files = via.files(&server);
            assert_eq!(files.len(), small.len() + weights);
            assert!(small.iter().all(|file| files.contains(&file.to_string())));
            assert!(!files.iter().any(|file| file.contains("00009") || file.contains("pytorch")));
            assert_eq!(std::fs::read_to_string(fixture.repo().join("refs/main")).unwrap(), COMMIT);
            if HAS_LINKS {
                let link = std::fs::read_link(fixture.repo().join("snapshots").join(COMMIT).join(CONFIG)).unwrap();
                assert!(link.starts_with("../../blobs"), "{link:?}");
                assert!(std::fs::read_dir(fixture.repo().join("blobs")).unwrap().count() == files.len());
            }

            events.clear();
            load(&mut events).unwrap();
            assert_eq!(via.files(&server), [""; 0], "everything was in the cache");
            assert!(events.iter().all(|event| event.stage == Stage::Read));

            drop(server);
            let options = LoadOptions { offline: true, ..fixture.options() };
            assert!(Model::load_hub(REPO, &options, None).is_ok());
            let options = LoadOptions { hub_revision: Some(COMMIT.to_string()), ..options };
            assert!(Model::load_hub(REPO, &options, None).is_ok());
        }
    }
}

#[test]
#[cfg_attr(not(reference_data), ignore = "needs the repository's references")]
fn sentence_transformers_files_come_along() {
    for via in CLIENTS {
        let (fixture, server) = (
            Fixture::via(via),
            Repo::of("tiny-embed").with("2_Dense/model.safetensors", "x").with("onnx/model.onnx", "y").server(),
        );
        let directory = fixture.fetch(&server).unwrap();
        for file in ["modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json"] {
            let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-embed").join(file);
            assert_eq!(std::fs::read(directory.join(file)).unwrap(), std::fs::read(here).unwrap(), "{file}");
        }
        assert_eq!(std::fs::read(directory.join("2_Dense/model.safetensors")).unwrap(), b"x");
        assert!(!directory.join("onnx").exists());
    }
}

#[test]
#[cfg_attr(not(reference_data), ignore = "needs the repository's references")]
fn offline_names_what_is_missing() {
    for via in CLIENTS {
        let fixture = Fixture::via(via);
        let root = fixture.path().to_str().unwrap().to_string();
        expect(fixture.offline(), ErrorKind::NotFound, &["nobody/tiny@main", &root]);
        assert_eq!(std::fs::read_dir(fixture.path()).unwrap().count(), 0, "looking creates nothing");

        let directory = fixture.fetch(&Repo::of("tiny-coder").sharded().server()).unwrap();
        assert_eq!(fixture.offline().unwrap(), directory);
        for file in ["model-00002-of-00002.safetensors", INDEX, CONFIG] {
            std::fs::remove_file(directory.join(file)).unwrap();
            let missing = if file == INDEX { WEIGHTS } else { file };
            expect(fixture.offline(), ErrorKind::NotFound, &[missing, &root]);
        }
    }
}

#[test]
fn a_model_that_cannot_be_loaded_is_refused_before_its_weights() {
    for via in CLIENTS {
        let (fixture, server) = (Fixture::via(via), Repo::random().with(CONFIG, r#"{"model_type": "no-such-family"}"#).server());
        expect(load_from(&server.endpoint(), REPO, &fixture.options(), None), ErrorKind::Unsupported, &[REPO, "no-such-family"]);
        assert_eq!(via.files(&server), [CONFIG, "tokenizer.json"]);
    }
}

#[test]
fn a_vocabulary_is_brought_where_there_is_no_tokenizer_json() {
    for via in CLIENTS {
        for is_whole in [true, false] {
            let config = r#"{"model_type": "no-such-family"}"#;
            let mut repo = Repo::random().with(CONFIG, config).with("merges.txt", "a b").with("vocab.json", "{}");
            if !is_whole {
                repo.files.remove("tokenizer.json");
            }
            let (fixture, server) = (Fixture::via(via), repo.server());
            expect(load_from(&server.endpoint(), REPO, &fixture.options(), None), ErrorKind::Unsupported, &["no-such-family"]);
            let want: &[&str] = if is_whole { &[CONFIG, "tokenizer.json"] } else { &[CONFIG, "merges.txt", "vocab.json"] };
            assert_eq!(via.files(&server), want);
        }
    }
}

#[test]
#[cfg_attr(not(reference_data), ignore = "needs the repository's references")]
fn a_cancel_within_a_file_leaves_nothing_of_it() {
    for via in CLIENTS {
        let (fixture, server) = (Fixture::via(via), Repo::random().server());
        let mut watch = Seen { stop_at: Some(LARGE as u64 / 2), ..Seen::default() };
        expect(fixture.fetch_watched(&server, &mut watch), ErrorKind::Cancelled, &[]);
        let (done, _) = *watch.bytes.last().unwrap();
        // hf-hub hears of it when the file has come.
        let within = via == Via::Ours;
        assert!(!within || done < LARGE as u64 / 2 + 2 * client::BLOCK as u64, "stopped at {done}");
        assert_eq!(fixture.large_blobs(), [""; 0]);
        assert!(!fixture.repo().join("snapshots").join(COMMIT).join(WEIGHTS).exists());
        assert!(!fixture.repo().join("refs").exists());
        assert!(fixture.fetch(&server).is_ok(), "and the next call works");

        // By the flag and by the callback of a whole load.
        let server = Repo::of("tiny-coder").server();
        for by_flag in [true, false] {
            let (fixture, cancel) = (Fixture::via(via), Cancel::new());
            let options = LoadOptions { cancel: Some(cancel.clone()), ..fixture.options() };
            let mut stop = |event: Progress| {
                let late = event.done > event.total / 2;
                if late && by_flag {
                    cancel.trigger();
                }
                if late && !by_flag { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            expect(load_from(&server.endpoint(), REPO, &options, Some(&mut stop)), ErrorKind::Cancelled, &[]);
            assert_eq!(fixture.large_blobs(), [""; 0]);
            via.files(&server);
            if by_flag {
                expect(load_from(&server.endpoint(), REPO, &options, None), ErrorKind::Cancelled, &[]);
                assert_eq!(server.paths(), [""; 0], "a triggered flag asks for nothing");
            }
        }
    }
}

#[test]
fn a_lost_connection_is_taken_up_where_it_ended() {
    let cut = |_: &Request, mut reply: Reply| {
        reply.body.truncate(LARGE / 4 + 7);
        reply
    };
    let (fixture, server) = (Fixture::new(), Repo::random().server_but(WEIGHTS, cut));
    let mut watch = Seen::default();
    let directory = fixture.fetch_watched(&server, &mut watch).unwrap();
    assert_eq!(std::fs::read(directory.join(WEIGHTS)).unwrap(), Repo::random().files[WEIGHTS]);
    assert!(watch.bytes.is_sorted());
    let ranges: Vec<_> =
        server.requests.lock().unwrap().iter().filter_map(|request| request.headers.get("range").cloned()).collect();
    assert_eq!(ranges.first(), Some(&format!("bytes={}-", LARGE / 4 + 7)));
    assert_eq!(ranges.len(), 3);
}

#[test]
fn what_a_failed_download_left_is_used_by_the_next() {
    let once = AtomicBool::new(true);
    let cut = move |request: &Request, mut reply: Reply| {
        if request.headers.contains_key("range") && once.swap(false, Ordering::SeqCst) {
            return Reply::new(503, "busy");
        }
        reply.body.truncate(LARGE / 2);
        reply
    };
    let (fixture, server) = (Fixture::new(), Repo::random().server_but(WEIGHTS, cut));
    let half = LARGE / 2;
    expect(
        fixture.fetch(&server),
        ErrorKind::Network,
        &["nobody/tiny@main", WEIGHTS, &format!("expected {LARGE} bytes, found {half}")],
    );
    assert!(!fixture.repo().join("snapshots").join(COMMIT).join(WEIGHTS).exists());
    server.files();
    let directory = fixture.fetch(&server).unwrap();
    assert_eq!(std::fs::read(directory.join(WEIGHTS)).unwrap(), Repo::random().files[WEIGHTS]);
    assert_eq!(server.requests.lock().unwrap().last().unwrap().headers["range"], format!("bytes={half}-"));
    assert_eq!(fixture.large_blobs().len(), usize::from(HAS_LINKS), "the half file became the blob");
}

#[cfg(feature = "hf-hub")]
#[test]
fn what_a_connection_lost_by_hf_hub_left_is_used_by_its_next_call() {
    let once = AtomicBool::new(true);
    let cut = move |request: &Request, mut reply: Reply| {
        if request.headers["range"] == "bytes=0-" && once.swap(false, Ordering::SeqCst) {
            reply.body.truncate(LARGE / 2);
        }
        reply
    };
    let (fixture, server) = (Fixture::via(Via::HfHub), Repo::random().server_but(WEIGHTS, cut));
    expect(fixture.fetch(&server), ErrorKind::Network, &["nobody/tiny@main", WEIGHTS]);
    assert!(!fixture.repo().join("snapshots").join(COMMIT).join(WEIGHTS).exists() && !fixture.repo().join("refs").exists());
    let directory = fixture.fetch(&server).unwrap();
    assert_eq!(std::fs::read(directory.join(WEIGHTS)).unwrap(), Repo::random().files[WEIGHTS]);
    assert_eq!(fixture.large_blobs().len(), 1, "nothing of its folder is left");
    assert!(server.requests.lock().unwrap().last().unwrap().resumes());
}

#[cfg(feature = "hf-hub")]
#[test]
fn what_hf_hub_cannot_do_is_refused() {
    expect(HfHub::new(ENDPOINT, Some(TOKEN)).map(drop), ErrorKind::Unsupported, &["hub_token"]);
    let (fixture, server) = (Fixture::via(Via::HfHub), Repo::random().server());
    for revision in ["a#b", "größe", "a%2Fb", "a&b"] {
        let options = LoadOptions { hub_revision: Some(revision.to_string()), ..fixture.options() };
        let result = load_from(&server.endpoint(), REPO, &options, None);
        expect(result.map(drop), ErrorKind::Unsupported, &["hub_revision", revision]);
    }
    let options = LoadOptions { hub_token: Some(TOKEN.to_string()), ..fixture.options() };
    expect(load_from(&server.endpoint(), REPO, &options, None).map(drop), ErrorKind::Unsupported, &["hub_token"]);
    assert_eq!(server.paths(), [""; 0]);
}

#[test]
fn a_damaged_beginning_is_thrown_away() {
    let (fixture, server) = (Fixture::new(), Repo::random().server());
    let etag = sha256(&Repo::random().files[WEIGHTS]);
    std::fs::create_dir_all(fixture.repo().join("blobs")).unwrap();
    for damaged in [vec![7; 1000], vec![7; LARGE], vec![7; LARGE + 1]] {
        std::fs::write(fixture.repo().join("blobs").join(format!("{etag}.incomplete")), damaged).unwrap();
        let mut watch = Seen::default();
        let directory = fixture.fetch_watched(&server, &mut watch).unwrap();
        assert_eq!(std::fs::read(directory.join(WEIGHTS)).unwrap(), Repo::random().files[WEIGHTS]);
        assert!(watch.bytes.is_sorted());
        std::fs::remove_file(directory.join(WEIGHTS)).unwrap();
        if HAS_LINKS {
            std::fs::remove_file(fixture.repo().join("blobs").join(&etag)).unwrap();
        }
    }
}

#[test]
fn a_file_of_the_wrong_size_or_content_is_refused() {
    for via in CLIENTS {
        let too_long = |_: &Request, mut reply: Reply| {
            reply.body.push(0);
            Reply { announced: reply.body.len(), ..reply }
        };
        let too_short = |request: &Request, mut reply: Reply| {
            reply.body.truncate(if request.resumes() { 0 } else { LARGE - 1 });
            Reply { announced: reply.body.len(), ..reply }
        };
        let other = |_: &Request, mut reply: Reply| {
            reply.body.get_mut(LARGE / 2).into_iter().for_each(|byte| *byte ^= 1);
            reply
        };
        let small = |request: &Request, reply: Reply| {
            let headers = if request.resumes() { Vec::new() } else { reply.headers };
            Reply { headers, ..Reply::new(reply.status, "[1, 2]") }
        };
        type Change = fn(&Request, Reply) -> Reply;
        let cases: [(&'static str, Change, &str); 4] = [
            (WEIGHTS, too_long, "found more"),
            (WEIGHTS, too_short, "expected 3145728 bytes, found 3145727"),
            (WEIGHTS, other, "SHA-256"),
            ("tokenizer.json", small, "expected 9 bytes, found 6"),
        ];
        for (file, change, message) in cases {
            let (fixture, server) = (Fixture::via(via), Repo::random().server_but(file, change));
            expect(fixture.fetch(&server), ErrorKind::Network, &[file, message]);
            assert!(!fixture.repo().join("snapshots").join(COMMIT).join(file).exists());
            assert!(fixture.large_blobs().iter().all(|name| name.ends_with(".incomplete")));
            assert!(!fixture.repo().join("refs").exists());
        }
    }
}

#[test]
fn what_is_read_beside_weights_is_downloaded() {
    for name in ["added_tokens.json", "sentence_bert_config.json", "sentence_xlm-roberta_config.json", "1_Pooling/config.json"] {
        assert!(is_small(name), "{name}");
    }
    for name in ["sentence_other_config.json", "sentence_bert_config.json.bak", "runs/config.json", "1_Pooling/../config.json"] {
        assert!(!is_small(name), "{name}");
    }
}

#[test]
fn a_damaged_file_of_the_cache_is_downloaded_again() {
    for via in CLIENTS {
        let (fixture, server) = (Fixture::via(via), Repo::random().server());
        let directory = fixture.fetch(&server).unwrap();
        std::fs::write(directory.join(WEIGHTS), "short").unwrap();
        std::fs::remove_file(directory.join(CONFIG)).unwrap();
        std::fs::write(directory.join(CONFIG), "not a link").unwrap();
        via.files(&server);
        let mut watch = Seen::default();
        fixture.fetch_watched(&server, &mut watch).unwrap();
        // The blob of the configuration is whole: its link is renewed.
        assert_eq!(via.files(&server), if HAS_LINKS { &[WEIGHTS][..] } else { &[CONFIG, WEIGHTS] });
        assert_eq!(std::fs::read(directory.join(CONFIG)).unwrap(), b"{}");
        assert_eq!(std::fs::read(directory.join(WEIGHTS)).unwrap(), Repo::random().files[WEIGHTS]);
        let total = (LARGE + 2 + 9) as u64;
        assert_eq!(*watch.bytes.last().unwrap(), (total, total));
        if HAS_LINKS {
            assert_eq!(watch.bytes[0], (9, total));
        }
    }
}

#[test]
fn a_refusal_says_what_to_do() {
    for via in CLIENTS {
        for (status, kind, message) in [
            (401, ErrorKind::NotFound, "token"),
            (403, ErrorKind::Network, "licence"),
            (404, ErrorKind::NotFound, "no such"),
            (429, ErrorKind::Network, "too many"),
            (500, ErrorKind::Network, "found 500"),
            (302, ErrorKind::Network, "redirect"),
        ] {
            for (end, file) in [("blobs=true", None), (CONFIG, Some(CONFIG)), (WEIGHTS, Some(WEIGHTS))] {
                let (fixture, server) = (Fixture::via(via), Repo::random().server_but(end, move |_, _| Reply::new(status, "no")));
                let result = fixture.fetch(&server);
                assert!(status == 302 || std::error::Error::source(result.as_ref().unwrap_err()).is_some());
                // hf-hub has its own words for a redirect to nowhere, or panics.
                let message = if status == 302 && via != Via::Ours { "" } else { message };
                expect(result, kind, &["nobody/tiny@main", message, file.unwrap_or_default()]);
            }
        }
    }
}

#[test]
fn a_hub_that_cannot_be_reached_is_a_network_error() {
    for via in CLIENTS {
        let (fixture, server) = (Fixture::via(via), Repo::random().server());
        let endpoint = server.endpoint();
        drop(server);
        let error = load_from(&endpoint, REPO, &fixture.options(), None).err().unwrap();
        assert!(std::error::Error::source(&error).is_some());
        expect::<()>(Err(error), ErrorKind::Network, &[REPO, "127.0.0.1"]);
    }
}

#[test]
fn the_token_does_not_leave_the_hub() {
    let other = Repo::random().server();
    let elsewhere = other.endpoint();
    let moved = move |request: &Request| format!("{elsewhere}{}", request.path);
    let (fixture, server) =
        (Fixture::new(), Repo::random().server_but(WEIGHTS, move |request, _| Reply::redirect(moved(request))));
    fixture.fetch(&server).unwrap();
    let bearer = format!("Bearer {TOKEN}");
    assert!(server.requests.lock().unwrap().iter().all(|request| request.headers.get("authorization") == Some(&bearer)));
    let redirected = other.requests.lock().unwrap();
    assert_eq!(redirected.len(), 1);
    assert!(!redirected[0].headers.contains_key("authorization"));
}

#[test]
fn the_token_stays_on_the_way_within_the_hub() {
    let repo = Repo::random();
    let server = Server::new(move |request| match request.path.strip_prefix("/renamed") {
        Some(path) => repo.answer(&Request { path: path.to_string(), headers: request.headers.clone() }),
        None => Reply::redirect(format!("/renamed{}", request.path)),
    });
    Fixture::new().fetch(&server).unwrap();
    assert!(server.requests.lock().unwrap().iter().all(|request| request.headers.contains_key("authorization")));
    assert_eq!(server.paths().len(), 8);
}

#[test]
fn redirects_in_a_circle_end() {
    let server = Server::new(|request| Reply::redirect(request.path.clone()));
    expect(Fixture::new().fetch(&server), ErrorKind::Network, &["redirects"]);
    let server = Server::new(|_| Reply::redirect("file:///etc/passwd".to_string()));
    expect(Fixture::new().fetch(&server), ErrorKind::Network, &["redirect"]);
}

#[test]
fn hostile_names_do_not_get_far() {
    let long = "x".repeat(97);
    let repositories = [
        "", "/", "a/", "/a", "a/b/c", "..", "a/..", "../a", "a/.b", ".a/b", "a b/c", "a\\b", "a/b?c", "a/b#c", "a/b%2e",
        "a--b/c", "a/b\n", "a/b\0", "-a/b", "a/b.", "ä/b", "C:/a", "a/b..c", &long,
    ];
    for repo in repositories {
        expect(RepoId::parse(repo), ErrorKind::InvalidArgument, &["repo_id"]);
    }
    for repo in ["gpt2", "a/b", "Qwen/Qwen2.5-0.5B-Instruct", "o_o/a.b-c_d"] {
        assert_eq!(RepoId::parse(repo).unwrap().as_str(), repo);
    }
    expect(RepoId::parse("a/b/c.gguf"), ErrorKind::InvalidArgument, &["repo_id", "file", "c.gguf"]);
    for revision in [
        "", "..", "../main", "a/../b", "/main", "main/", "a//b", ".a", "a/.b", "a\\b", "a:b", "a b", "a\n", "a\0", "x.lock",
        "a..b", "@{1}", "-x",
    ] {
        expect(Revision::parse(revision), ErrorKind::InvalidArgument, &["hub_revision"]);
    }
    for revision in ["main", "v1.0", "refs/pr/1", "feature/größe#2", COMMIT] {
        assert_eq!(Revision::parse(revision).unwrap().as_str(), revision);
    }
    assert_eq!(encode("refs/pr/ü#1?"), "refs%2Fpr%2F%C3%BC%231%3F");
    for token in ["", "a b", "a\r\nX: y", "ü"] {
        let error = Client::new(ENDPOINT, Some(token)).err().unwrap();
        assert!(error.kind() == ErrorKind::InvalidArgument && (token.is_empty() || !error.details().contains(token)));
    }
}

#[test]
fn hostile_listings_write_nothing() {
    for via in CLIENTS {
        let hash = "a".repeat(64);
        let file = |name: &str| json!({ "rfilename": name, "size": 2, "blobId": &hash[..40] });
        let cases = [
            (json!([file("config.json"), file("../../evil.json")]), "path within"),
            (json!([file("/etc/passwd")]), "path within"),
            (json!([file("1_a/../../config.json")]), "path within"),
            (json!([file("a\\..\\..\\b")]), "path within"),
            (json!([{ "rfilename": "config.json", "size": 2, "blobId": "../../../evil" }]), "hash"),
            (json!([{ "rfilename": "config.json", "size": 2 }]), "hash"),
            (json!([{ "rfilename": "config.json", "blobId": &hash[..40] }]), "size"),
            (json!([{ "rfilename": "config.json", "size": u64::MAX, "blobId": &hash[..40] }]), "size"),
            (json!([{ "rfilename": WEIGHTS, "size": 2, "lfs": { "sha256": "/etc/passwd" } }]), "hash"),
            (json!({}), "listing"),
            (json!([1]), "listing"),
        ];
        for (siblings, message) in cases {
            let (fixture, listing) = (Fixture::via(via), json!({ "sha": COMMIT, "siblings": siblings }).to_string());
            let server = Server::new(move |_| Reply::new(200, listing.clone()));
            expect(fixture.fetch(&server), ErrorKind::Format, &[REPO, message]);
            assert_eq!(std::fs::read_dir(fixture.path()).unwrap().count(), 0);
        }
        for sha in ["", "main", "../../../../etc", "0123456789ABCDEF0123456789abcdef01234567"] {
            let listing = json!({ "sha": sha, "siblings": [] }).to_string();
            let server = Server::new(move |_| Reply::new(200, listing.clone()));
            expect(Fixture::via(via).fetch(&server), ErrorKind::Format, &["sha"]);
        }
    }
}

#[test]
fn hostile_indexes_are_refused() {
    for via in CLIENTS {
        for (shard, kind) in [
            ("../evil.safetensors", ErrorKind::Format),
            ("/etc/evil.safetensors", ErrorKind::Format),
            ("..", ErrorKind::Format),
            ("C:evil.safetensors", ErrorKind::Format),
            (".evil.safetensors", ErrorKind::Format),
            ("config.json", ErrorKind::Format),
            ("absent.safetensors", ErrorKind::NotFound),
        ] {
            let index = json!({ "weight_map": { "x.weight": shard } }).to_string();
            let (fixture, server) = (Fixture::via(via), Repo::random().without(WEIGHTS).with(INDEX, index).server());
            expect(fixture.fetch(&server), kind, &[REPO, shard]);
            assert_eq!(via.files(&server), [INDEX]);
        }
    }
}

#[test]
fn a_repository_without_a_model_names_what_it_lacks() {
    for via in CLIENTS {
        for file in [CONFIG, WEIGHTS] {
            expect(Fixture::via(via).fetch(&Repo::random().without(file).server()), ErrorKind::NotFound, &[REPO, file]);
        }
    }
}

#[test]
fn two_downloads_at_once_share_the_work() {
    for via in CLIENTS {
        let (fixture, server) = (Fixture::via(via), Repo::random().server());
        let directories: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        let mut watch = Seen::default();
                        let directory = fixture.fetch_watched(&server, &mut watch).unwrap();
                        assert!(watch.bytes.is_sorted() && watch.followed == 1);
                        assert!(watch.bytes.last().is_none_or(|(done, total)| done == total));
                        directory
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(directories[0], directories[1]);
        assert_eq!(std::fs::read(directories[0].join(WEIGHTS)).unwrap(), Repo::random().files[WEIGHTS]);
        assert_eq!(via.files(&server), [CONFIG, WEIGHTS, "tokenizer.json"], "each file is asked for once");
    }
}

#[test]
#[cfg_attr(not(reference_data), ignore = "needs the repository's references")]
fn a_gguf_file_is_chosen_downloaded_and_loaded() {
    let file = |name: &str| std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf").join(name)).unwrap();
    let repo = || {
        Repo::default()
            .with("README.md", "# Tiny")
            .with(CONFIG, "{}")
            .with("tiny-Q4_0.gguf", file("qwen2-Q4_0.gguf"))
            .with("f16/tiny-F16.gguf", file("qwen2-F16.gguf"))
            .with("mmproj-tiny.gguf", "vision")
    };
    for via in CLIENTS {
        let (fixture, server) = (Fixture::via(via), repo().server());
        let load = |name: Option<&str>| {
            let options = LoadOptions { file: name.map(str::to_string), ..fixture.options() };
            crate::engine::hub::load_from(&server.endpoint(), REPO, &options, None)
        };
        expect(load(None), ErrorKind::InvalidArgument, &["file", "tiny-Q4_0.gguf", "f16/tiny-F16.gguf"]);
        expect(load(Some("tiny-Q8_0.gguf")), ErrorKind::NotFound, &["tiny-Q8_0.gguf", "tiny-Q4_0.gguf"]);
        expect(load(Some("README.md")), ErrorKind::InvalidArgument, &["file", "README.md"]);
        assert_eq!(via.files(&server), [] as [&str; 0]);
        for name in ["tiny-Q4_0.gguf", "f16/tiny-F16.gguf"] {
            assert_eq!(load(Some(name)).unwrap().architecture(), "qwen2");
        }
        assert_eq!(via.files(&server), ["f16/tiny-F16.gguf", "tiny-Q4_0.gguf"]);
        let offline = |name: Option<&str>| {
            let options = LoadOptions { file: name.map(str::to_string), offline: true, ..fixture.options() };
            crate::engine::hub::load_from(&server.endpoint(), REPO, &options, None)
        };
        assert!(offline(Some("tiny-F16.gguf")).is_ok());
        expect(offline(Some("tiny-Q8_0.gguf")), ErrorKind::NotFound, &["tiny-Q8_0.gguf", "offline"]);
    }
}
