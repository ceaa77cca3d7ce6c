//! The Hub by the crate hf-hub 0.5, blocking, over the same `ureq`.
//!
//! It brings each file into a folder of its own beside the blob, from where the file moves if its size and hash are
//! right: what appears in the cache is what our own client would have put there, under the same locks. It cannot do all
//! that ours does:
//!
//! | | |
//! |---|---|
//! | a token | `Unsupported`: it would go to the hosts that the Hub redirects to |
//! | a revision with other characters than `A-Za-z0-9-._~/` | `Unsupported`: another one would be asked for |
//! | a cancel within a file | is heard when the file has come |
//! | a connection that breaks | `Network`; the next call takes it up where it ended |
//! | an answer that it did not expect | `Network`: it panics, and that is caught here |
//! | a connection that stalls | waits for ever: there are no timeouts |
//! | the Hub's headers | are believed: commit and etag become parts of paths |

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::{fs, io};

use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::cache::Partial;
use super::client::{network, read_listing, refused};
use super::{Download, Meter, RepoId, Revision, Sibling, Watch, encode};
use crate::error::{Error, ErrorKind, Result};

/// hf-hub has one error for a disk and a connection.
const OF_THE_DISK: [io::ErrorKind; 4] = [
    io::ErrorKind::StorageFull,
    io::ErrorKind::QuotaExceeded,
    io::ErrorKind::PermissionDenied,
    io::ErrorKind::ReadOnlyFilesystem,
];

/// hf-hub's client for one endpoint.
pub struct HfHub {
    endpoint: String,
}

impl HfHub {
    /// Opens nothing yet.
    ///
    /// # Errors
    /// `Unsupported` with a token.
    pub fn new(endpoint: &str, token: Option<&str>) -> Result<Self> {
        match token {
            Some(_) => Err(Error::unsupported("hub_token: expected none: hf-hub sends it on to where the Hub redirects")),
            None => Ok(Self { endpoint: endpoint.to_string() }),
        }
    }

    /// A revision of a repository, whose files come into `folder`.
    fn repo(&self, repo: &RepoId, revision: &str, folder: &Path) -> Result<ApiRepo> {
        if !revision.split('/').all(|part| encode(part) == part) {
            let expected = "hf-hub takes letters, digits, '-', '.', '_', '~' and '/' alone";
            return Err(Error::unsupported(format!("hub_revision: {revision:?}: {expected}")));
        }
        let builder = ApiBuilder::from_cache(Cache::new(folder.to_path_buf()));
        let builder = builder.with_endpoint(self.endpoint.clone()).with_token(None).with_progress(false);
        let api = builder.build().map_err(|e| self.failed(e))?;
        Ok(api.repo(Repo::with_revision(repo.as_str().to_string(), RepoType::Model, revision.to_string())))
    }

    fn failed(&self, error: ApiError) -> Error {
        let error = match error {
            ApiError::RequestError(e) => match *e {
                // What is left of a file is not a part of it: the folder must go.
                ureq::Error::StatusCode(416) => ApiError::InvalidResume,
                ureq::Error::StatusCode(status) => return refused(status),
                e => return network(format!("no connection to {}: {e}", self.endpoint)).with_source(e),
            },
            e => e,
        };
        let kind = match &error {
            ApiError::InvalidResume => ErrorKind::Io,
            ApiError::IoError(e) if OF_THE_DISK.contains(&e.kind()) => ErrorKind::Io,
            _ => ErrorKind::Network,
        };
        Error::new(kind, format!("hf-hub: {error}")).with_source(error)
    }

    /// Brings a file into `folder`, and from there to where those lie that are to be checked.
    fn bring(&self, repo: &ApiRepo, folder: &Path, name: &str, blob: &Path, meter: &mut Meter<'_>) -> Result<Partial> {
        let mut told = Told { meter, len: 0, heard: Ok(()) };
        let come = catch_unwind(AssertUnwindSafe(|| repo.download_with_progress(name, &mut told)));
        told.heard?;
        let come = come.map_err(|_| network("hf-hub: expected an answer of the Hub, found another"))?;
        let link = come.map_err(|e| self.failed(e))?;
        let path = fs::canonicalize(&link).map_err(|e| Error::io(&link, e))?;
        if !path.starts_with(fs::canonicalize(folder).map_err(|e| Error::io(folder, e))?) {
            let (folder, path) = (folder.display(), path.display());
            return Err(Error::format(format!("hf-hub: expected a file in {folder}, found {path}")));
        }
        Partial::take(&path, blob)
    }
}

impl Download for HfHub {
    fn listing(&self, repo: &RepoId, revision: &Revision, watch: &mut dyn Watch) -> Result<Vec<u8>> {
        let repo = self.repo(repo, revision.as_str(), Path::new(""))?;
        let response = repo.info_request().query("blobs", "true").call();
        read_listing(response.map_err(|e| self.failed(ApiError::RequestError(Box::new(e))))?.into_body(), watch)
    }

    /// A broken connection leaves the part of a file whose hash will tell whether it is good.
    fn file(&self, repo: &RepoId, commit: &str, file: &Sibling, blob: &Path, meter: &mut Meter<'_>) -> Result<()> {
        let folder = blob.with_extension("hf-hub");
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let brought = self.bring(&self.repo(repo, commit, &folder)?, &folder, &file.rfilename, blob, meter);
        if !matches!(&brought, Err(e) if e.kind() == ErrorKind::Network && file.sha256().is_some()) {
            // The result matters more than an error of this.
            let _ = fs::remove_dir_all(&folder);
        }
        let mut partial = brought?;
        let read = partial.resume(&mut |_| meter.again());
        match read.and_then(|()| partial.check(file.size(), file.sha256())) {
            Ok(()) => partial.keep(blob),
            Err(e) => {
                partial.discard();
                Err(e)
            }
        }
    }
}

/// Passes on how far a file is, as long as someone listens.
struct Told<'a, 'm> {
    meter: &'a mut Meter<'m>,
    len: u64,
    heard: Result<()>,
}

impl Progress for &mut Told<'_, '_> {
    fn init(&mut self, _: usize, _: &str) {
        self.len = 0;
    }

    fn update(&mut self, bytes: usize) {
        self.len += bytes as u64;
        if self.heard.is_ok() {
            self.heard = self.meter.at(self.len);
        }
    }

    fn finish(&mut self) {}
}
